"""Differences of pairs, intervals of means, where two curves cross: what a comparison calculates with."""

from math import gamma, sqrt
from typing import Any

import numpy as np
import pandas as pd
import scipy

from ..typed import Count, PartialFraction, Strength, checked

NEAR = 0.01
"""Two densities are one level if they differ by less than this share of the smaller."""


@checked
def paired(differences: np.ndarray, more: Strength = 0.0, level: PartialFraction = 0.05) -> dict[str, float]:
    """Mean difference, its interval, two-sided p of the paired t-test, Hedges' g, and the deviation.

    `more` is added to the variance.
    """
    n = len(differences)
    low, mean, high = interval(differences, more, level)
    deviation = sqrt(float(differences.var(ddof=1)) + more) if n > 1 else np.nan
    found = {"n": n, "difference": mean, "low": low, "high": high, "p": np.nan, "effect": np.nan}
    if n > 1 and deviation <= 1e-12:
        found["p"] = float(abs(mean) <= 1e-12)
    elif n > 1:
        few = gamma((n - 1) / 2) / (sqrt((n - 1) / 2) * gamma((n - 2) / 2)) if n > 2 else np.nan
        found["p"] = float(2 * scipy.stats.t.sf(abs(mean) / deviation * sqrt(n), n - 1))
        found["effect"] = few * mean / deviation
    return found | {"deviation": deviation}


@checked
def smallest(deviation: Strength, n: Count, level: PartialFraction = 0.05, power: PartialFraction = 0.8) -> float:
    """The true mean difference that a two-sided paired t-test of `n` pairs finds with probability `power`."""
    if n < 2:
        return np.nan
    nodes, weights = np.polynomial.legendre.leggauss(400)  # scipy's noncentral t gives NaN for few pairs
    spread = np.sqrt(scipy.stats.chi2.ppf((nodes + 1) / 2, n - 1) / (n - 1))  # the measured deviation over the true one
    edge = float(scipy.stats.t.ppf(1 - level / 2, n - 1)) * spread

    def missing(shift: float) -> float:
        found = scipy.stats.norm.sf(edge - shift) + scipy.stats.norm.cdf(-edge - shift)
        return power - float(found @ weights) / 2

    shift: Any = scipy.optimize.brentq(missing, 0, edge.max() + 10)
    return shift * deviation / sqrt(n)


@checked
def welch(a: np.ndarray, b: np.ndarray, level: PartialFraction = 0.05, more: Strength = 0.0) -> dict[str, float]:
    """Mean of `a` minus mean of `b` with its interval, t, degrees of freedom and two-sided p (Welch 1947).

    `more` is added to both variances. Two samples without any spread differ for certain or not at all.
    """
    parts = np.array([(x.var(ddof=1) + more) / len(x) for x in (a, b)])
    change, error = float(a.mean() - b.mean()), float(np.sqrt(parts.sum()))
    if error <= 1e-12:
        same = abs(change) <= 1e-12
        sure = {"t": 0.0 if same else np.copysign(np.inf, change), "df": float(len(a) + len(b) - 2)}
        return {"change": change, "low": change, "high": change, **sure, "p": float(same)}
    freedom = float(parts.sum() ** 2 / (parts**2 / [len(a) - 1, len(b) - 1]).sum())
    half = float(scipy.stats.t.ppf(1 - level / 2, freedom)) * error
    p = float(2 * scipy.stats.t.sf(abs(change) / error, freedom))
    return {
        "change": change, "low": change - half, "high": change + half, "t": change / error, "df": freedom, "p": p,
    }  # fmt: skip


@checked
def holm(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values: the smallest times m, the next times m - 1, never falling (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return stepped[np.argsort(order, kind="stable")]


@checked
def interval(values: np.ndarray, more: Strength = 0.0, level: PartialFraction = 0.05) -> tuple[float, float, float]:
    """Lower end, mean and upper end of the t-interval of the mean; no ends for a single value."""
    n = len(values)
    mean = float(values.mean()) if n else np.nan
    if n < 2:
        return np.nan, mean, np.nan
    half = float(scipy.stats.t.ppf(1 - level / 2, n - 1)) * sqrt((float(values.var(ddof=1)) + more) / n)
    return mean - half, mean, mean + half


@checked
def crossing(sparsities: np.ndarray, scores: np.ndarray, wanted: float) -> float | None:
    """The largest sparsity that keeps `wanted`; 1 if the sparsest measured does, None if none does."""
    order = np.argsort(sparsities)
    log_density, scores = np.log(1 - np.asarray(sparsities, float)[order]), np.asarray(scores, float)[order]
    keeps = np.flatnonzero(scores >= wanted)
    if not len(keeps):
        return None
    last = int(keeps[-1])
    if last == len(scores) - 1:
        return 1.0
    along = (scores[last] - wanted) / (scores[last] - scores[last + 1])
    return float(1 - np.exp(log_density[last] + along * (log_density[last + 1] - log_density[last])))


def levels_of(sparsities: pd.Series) -> list[float]:
    """Each run's sparsity, brought to that of the least sparse run within `NEAR` of its density."""
    level: dict[float, float] = {}
    first = 0.0
    for sparsity in sorted(set(sparsities)):
        if not level or (1 - first) - (1 - sparsity) > NEAR * (1 - sparsity) or first == 0:
            first = sparsity
        level[sparsity] = round(first, 6)
    return [level[s] for s in sparsities]

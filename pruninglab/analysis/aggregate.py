"""One verdict over several tasks: data sets, networks and sparsities (Agarwal et al., "rliable", 2021)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
import scipy

from ..errors import ConfigError
from ..typed import Filled, checked, one_of

Scores = dict[str, list[np.ndarray]]
"""Of each method the scores of its runs, one array for each task."""


@dataclass(frozen=True)
class Aggregate:
    """Methods over all tasks that every one of them has."""

    scores: Scores
    tasks: list[Any]
    draws: int = 2_000
    level: float = 0.05
    seed: int = 0

    def table(self) -> pd.DataFrame:
        """The interquartile mean of each method with its interval, the best first.

        The interquartile mean leaves out the lowest and the highest quarter of all runs. The interval is a stratified
        bootstrap: runs are drawn with replacement within each task.
        """
        rows = []
        for method, of in self.scores.items():
            low, value, high = self._interval(lambda drawn: iqm(np.concatenate(drawn)), of)
            rows.append({"method": method, "tasks": len(of), "runs": sum(map(len, of)), "iqm": value})
            rows[-1] |= {"low": low, "high": high}
        return pd.DataFrame(rows).sort_values("iqm", ascending=False, ignore_index=True)

    def improvement(self, method: str, against: str) -> tuple[float, float, float]:
        """Lower end, value and upper end of the probability that a run of `method` is above one of `against`.

        Of each task the share of pairs of runs where it is, ties counting half; then the mean over tasks.
        """
        first, second = (self.scores[one_of("method", name, self.scores)] for name in (method, against))
        tasks = len(first)

        def mean(drawn: Sequence[np.ndarray]) -> float:
            pairs = zip(drawn[:tasks], drawn[tasks:], strict=True)
            return float(np.mean([above(a, b) for a, b in pairs]))

        return self._interval(mean, [*first, *second])

    def profile(self, at: Sequence[float]) -> pd.DataFrame:
        """The performance profile: of each method the share of runs above each score in `at`, tasks weighing alike."""
        shares = {
            method: [float(np.mean([(runs > score).mean() for runs in of])) for score in at]
            for method, of in self.scores.items()
        }
        return pd.DataFrame(shares, index=pd.Index(at, name="score"))

    def _interval(
        self, of: Callable[[Sequence[np.ndarray]], float], runs: Sequence[np.ndarray]
    ) -> tuple[float, float, float]:
        random = np.random.default_rng(self.seed)
        drawn = [of([x[random.integers(len(x), size=len(x))] for x in runs]) for _ in range(self.draws)]
        low, high = np.quantile(drawn, [self.level / 2, 1 - self.level / 2])
        return float(low), of(runs), float(high)


def iqm(values: np.ndarray) -> float:
    """The mean without the lowest and the highest quarter."""
    return float(scipy.stats.trim_mean(values, 0.25))


def above(first: np.ndarray, second: np.ndarray) -> float:
    """The share of pairs in which the first is larger; ties count half."""
    lead = first[:, None] - second
    return float((lead > 0).mean() + (lead == 0).mean() / 2)


@checked
def aggregate(
    runs: pd.DataFrame,
    *,
    by: str = "method",
    tasks: Annotated[Sequence[str], Filled()] = ("data", "model", "level"),
    score: str = "test_accuracy",
    relative_to: str | None = None,
) -> Aggregate:
    """Scores of all runs, arranged by task and method: `aggregate(lab.compare("runs").runs)`.

    Tasks that not every method has are left out. `relative_to` names a method whose mean on a task is 1 there, because
    accuracies of different tasks are not on one scale.
    """
    if missing := [column for column in (by, *tasks, score) if column not in runs]:
        raise ConfigError(f"the runs have no column {', '.join(missing)}; they have {', '.join(map(str, runs))}.")
    groups = dict(iter(runs.groupby(list(tasks), sort=True)))
    methods = list(dict.fromkeys(runs[by]))
    whole = {key: of for key, of in groups.items() if set(of[by]) == set(methods)}
    if not whole:
        raise ConfigError(f"no task has runs of all methods: {', '.join(map(str, methods))}.")
    scores: Scores = {str(method): [] for method in methods}
    for of in whole.values():
        unit = 1.0 if relative_to is None else _mean_of(of, by, relative_to, score)
        for method in methods:
            scores[str(method)].append(of.loc[of[by] == method, score].to_numpy(float) / unit)
    return Aggregate(scores, list(whole))


def _mean_of(of: pd.DataFrame, by: str, method: str, score: str) -> float:
    return float(of.loc[of[by] == one_of("relative_to", method, set(of[by])), score].astype(float).mean())

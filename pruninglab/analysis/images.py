"""Two runs, or two groups of runs, compared image by image on the test split."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy

from ..errors import ConfigError
from ..results.record import Result
from ..train.run import Run
from ..typed import Count, CountFromZero, PartialFraction, checked

Recorded = Run | Result | str | Path


@dataclass(frozen=True)
class McNemar:
    """`first_only` images are right with the first run alone, `second_only` with the second alone."""

    both: int
    first_only: int
    second_only: int
    neither: int
    p: float
    """Exact and two-sided: how often a fair coin would split the images on which the two runs differ so unevenly."""

    def __str__(self) -> str:
        differ = self.first_only + self.second_only
        said = f"{self.first_only} images are right with the first alone, {self.second_only} with the second alone"
        return f"{said}, of {differ} on which they differ (McNemar's exact test, p = {self.p:.2g})."


@checked
def mcnemar(first: Recorded, second: Recorded) -> McNemar:
    """McNemar's exact test for one pair of runs: is one right where the other is wrong more often than by chance?

    It says whether these two networks differ on images like these. It says nothing of other seeds.
    """
    a, b = _right(first), _right(second)
    if a.shape != b.shape:
        raise ConfigError(f"the runs answered {len(a)} and {len(b)} test images; expected the same ones.")
    counts = [int((x & y).sum()) for x in (a, ~a) for y in (b, ~b)]
    both, first_only, second_only, neither = counts
    differ = first_only + second_only
    p = float(scipy.stats.binomtest(first_only, differ).pvalue) if differ else 1.0
    return McNemar(both, first_only, second_only, neither, p)


@checked
def nested_interval(
    first: Iterable[Recorded],
    second: Iterable[Recorded] | None = None,
    *,
    draws: Count = 10_000,
    level: PartialFraction = 0.05,
    seed: CountFromZero = 0,
) -> tuple[float, float, float]:
    """Lower end, mean and upper end of the accuracy of `first`, over new seeds and new test images.

    With `second`, of the difference of both, seed by seed. A bootstrap in two stages: seeds are drawn with replacement,
    and in each draw test images are, the same ones for all runs. With few seeds it is too narrow, as every bootstrap
    is: `interval` and `paired` are the ones to test with.
    """
    first = list(first)
    if not first:
        raise ConfigError("first is empty: there is no run; give at least one.")
    right = np.stack([_right(one) for one in first]).astype(float)  # (seeds, images)
    if second is not None:
        second = list(second)
        if not second:
            raise ConfigError("second is empty: there is no run; give a pair to each of first.")
        other = np.stack([_right(one) for one in second]).astype(float)
        if other.shape != right.shape:
            raise ConfigError(f"{right.shape} and {other.shape} runs and images; expected pairs of equal images.")
        right = right - other
    random = np.random.default_rng(seed)
    seeds, images = right.shape
    means = np.empty(draws)
    for i in range(draws):
        of_seeds = right[random.integers(seeds, size=seeds)].mean(0)
        means[i] = of_seeds @ random.multinomial(images, np.full(images, 1 / images)) / images
    low, high = np.quantile(means, [level / 2, 1 - level / 2])
    return float(low), float(right.mean()), float(high)


def _right(one: Recorded) -> np.ndarray:
    """(images,) of bool."""
    result = Result.read(one) if isinstance(one, str | Path) else one.result if isinstance(one, Run) else one
    answers = result.answers()
    if answers is None:
        raise ConfigError(
            f"the record of {result.name} with seed {result.config['seed']} holds no answers to single images: it is "
            "older than they are, or the network names no classes. Run it again."
        )
    return answers == 0

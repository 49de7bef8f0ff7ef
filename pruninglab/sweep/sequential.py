"""Add seeds until every mean is known well enough."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd

from ..analysis.statistics import interval
from ..errors import ConfigError
from ..typed import Count, PositiveFraction, Range, checked
from .plan import Sweep, plan

SCORE = "test_accuracy"


@checked
def until_width(
    notebook: str | Path,
    given: Mapping[str, Any],
    out: str | Path,
    width: PositiveFraction,
    *,
    least: Annotated[int, Range(2)] = 3,
    most: Count = 20,
    level: PositiveFraction = 0.05,
    say: Callable[[str], None] = partial(print, flush=True),  # noqa: B008 (it holds nothing)
    **options: Any,
) -> Sweep:
    """Run a grid with `least` seeds, then one seed more for every cell, until no interval is wider than `width`.

    The intervals are those of the mean test accuracy over seeds, one for each combination of the other parameters. With
    `most` seeds it ends in any case. All combinations get the same seeds, so that they stay pairs.

    Who looks after every seed and stops when the interval happens to be narrow, looks more than once. Each interval is
    therefore taken at `level` divided by the number of looks, `most - least + 1`. Then all of them together hold the
    true mean with probability 1 - `level`, whenever the looking stops. `options` are those of `Sweep.run`.
    """
    if "seed" in given:
        raise ConfigError("until_width chooses the seeds by itself; leave out seed=.")
    if most < least:
        raise ConfigError(f"most={most} seeds are fewer than least={least}.")
    looks, seeds = most - least + 1, least
    while True:
        planned = plan(notebook, {**given, "seed": list(range(seeds))}, out)
        if planned.run(say=say, **options).missing:
            say("Some cells are missing, so the intervals are not known; the same call goes on.")
            return planned
        found = widths(planned, level / looks)
        widest = found.loc[found["width"].idxmax()]
        say(f"{seeds} seeds: the widest interval is {widest['width']:.4f} ({widest['of']}), at {1 - level / looks:.2%}")
        if widest["width"] <= width:
            return planned
        if seeds == most:
            say(f"after {most} seeds an interval is still wider than {width}.")
            return planned
        seeds += 1


def widths(planned: Sweep, level: float) -> pd.DataFrame:
    """Of each combination of the parameters but the seed: n, mean and width of the interval of its accuracy."""
    table: Any = planned.table()
    done = table[table["status"] == "done"]
    if SCORE not in done or done[SCORE].isna().any():
        raise ConfigError(f"a cell has no {SCORE} of its own; each needs to leave exactly one record.")
    others = [name for name in next(iter(planned.cells.values())) if name != "seed"]
    rows = []
    for of, runs in done.groupby(others or (lambda _: 0), sort=False, dropna=False):
        low, mean, high = interval(runs[SCORE].to_numpy(float), level=level)
        values = of if isinstance(of, tuple) else (of,)
        name = ", ".join(f"{k}={v}" for k, v in zip(others, values, strict=True)) if others else "all"
        rows.append({"of": name, "n": len(runs), "mean": mean, "width": math.inf if np.isnan(low) else high - low})
    return pd.DataFrame(rows)

"""Which weights are kept: masks, how they are chosen, by which schedule."""

from .at_random import scattered
from .choose import Scope, check_sparsity, count, grow, keep_highest, keep_top, spread
from .masks import UNITS, Masks, Scores, Sparsity, Unit, units
from .projections import keeping, largest, largest_per_channel, n_of_m, project
from .schedules import Constant, Cubic, Exponential, Linear, Narang, Schedule

__all__ = [
    "UNITS",
    "Constant",
    "Cubic",
    "Exponential",
    "Linear",
    "Masks",
    "Narang",
    "Schedule",
    "Scope",
    "Scores",
    "Sparsity",
    "Unit",
    "check_sparsity",
    "count",
    "grow",
    "keep_highest",
    "keep_top",
    "keeping",
    "largest",
    "largest_per_channel",
    "n_of_m",
    "project",
    "scattered",
    "spread",
    "units",
]


def __dir__() -> list[str]:
    return __all__

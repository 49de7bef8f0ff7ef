"""pruninglab: an interactive research workbench for neural-network pruning. `import pruninglab as lab`."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

from . import (
    before_training,
    budgets,
    compare,
    connectivity,
    criteria,
    impact,
    levels,
    losses,
    masks,
    measure,
    methods,
    models,
    papers,
    projections,
    recipes,
    regrowth,
    results,
    schedules,
    second_order,
    storage,
    structured,
)
from .data import Data, load, wrap
from .errors import ConfigError, DataError, RunError
from .masks import Masks, grow, keep_top, prunable
from .method import Method
from .models import build
from .results import Result
from .run import Run, Snapshot
from .schedules import Constant, ConstantRate, CosineRate, Cubic, Exponential, Linear, Narang, Schedule, StepRate
from .train import fit, prune

if TYPE_CHECKING:
    from . import plots, sweep, widgets


def __getattr__(name: str) -> ModuleType:
    if name in ("plots", "sweep", "widgets"):  # they take longer to import than the rest, or need what is extra
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ConfigError",
    "Constant",
    "ConstantRate",
    "CosineRate",
    "Cubic",
    "Data",
    "DataError",
    "Exponential",
    "Linear",
    "Masks",
    "Method",
    "Narang",
    "Result",
    "Run",
    "RunError",
    "Schedule",
    "Snapshot",
    "StepRate",
    "before_training",
    "budgets",
    "build",
    "compare",
    "connectivity",
    "criteria",
    "fit",
    "grow",
    "impact",
    "keep_top",
    "levels",
    "load",
    "losses",
    "masks",
    "measure",
    "methods",
    "models",
    "papers",
    "plots",
    "projections",
    "prunable",
    "prune",
    "recipes",
    "regrowth",
    "results",
    "schedules",
    "second_order",
    "storage",
    "structured",
    "sweep",
    "widgets",
    "wrap",
]

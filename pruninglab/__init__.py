"""pruninglab: an interactive research workbench for neural-network pruning. `import pruninglab as lab`."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from . import analysis, criteria, layers, masks, methods, models, recipes, results, storage, structured, train
from .analysis import compare, impact
from .data import Data, load, wrap
from .errors import ConfigError, DataError, RunError
from .identity import __version__
from .layers import prunable
from .masks import Constant, Cubic, Exponential, Linear, Masks, Narang, Schedule, grow, keep_top
from .methods.controls import controls
from .models import build
from .results import Result
from .train import ConstantLR, CosineLR, Method, Run, Snapshot, StepLR, fit, prune

if TYPE_CHECKING:
    from . import plots, sweep, widgets

__all__ = [
    "ConfigError",
    "Constant",
    "ConstantLR",
    "CosineLR",
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
    "StepLR",
    "__version__",
    "analysis",
    "build",
    "compare",
    "controls",
    "criteria",
    "fit",
    "grow",
    "impact",
    "keep_top",
    "layers",
    "load",
    "masks",
    "methods",
    "models",
    "plots",
    "prunable",
    "prune",
    "recipes",
    "results",
    "storage",
    "structured",
    "sweep",
    "train",
    "widgets",
    "wrap",
]


def __getattr__(name: str) -> ModuleType:
    if name in ("plots", "sweep", "widgets"):  # they take longer to import than the rest, or need an extra
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

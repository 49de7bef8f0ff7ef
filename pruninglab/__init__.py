"""pruninglab: an interactive research workbench for neural-network pruning. `import pruninglab as lab`.

Every name is imported when it is first used, so that `pruninglab --version` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import (
        analysis,
        criteria,
        deploy,
        layers,
        masks,
        methods,
        models,
        plots,
        recipes,
        results,
        storage,
        structured,
        sweep,
        train,
        widgets,
    )
    from .analysis import compare, impact
    from .data import Data, load, wrap
    from .errors import ConfigError, DataError, RunError
    from .layers import prunable
    from .masks import Constant, Cubic, Exponential, Linear, Masks, Narang, Schedule, grow, keep_top
    from .methods.controls import controls
    from .models import build
    from .results import Result
    from .train import ConstantLR, CosineLR, Method, Run, Snapshot, StepLR, attach, fit, prune
    from .widgets import Workbench

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
    "Workbench",
    "__version__",
    "analysis",
    "attach",
    "build",
    "compare",
    "controls",
    "criteria",
    "deploy",
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

_HOMES = {
    "analysis": ("compare", "impact"),
    "data": ("Data", "load", "wrap"),
    "errors": ("ConfigError", "DataError", "RunError"),
    "layers": ("prunable",),
    "masks": ("Constant", "Cubic", "Exponential", "Linear", "Masks", "Narang", "Schedule", "grow", "keep_top"),
    "methods.controls": ("controls",),
    "models": ("build",),
    "results": ("Result",),
    "train": ("ConstantLR", "CosineLR", "Method", "Run", "Snapshot", "StepLR", "attach", "fit", "prune"),
    "widgets": ("Workbench",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        globals()[name] = found = getattr(import_module(f".{_HOME[name]}", __name__), name)
        return found
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

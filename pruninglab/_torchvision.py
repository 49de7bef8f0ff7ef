"""torchvision, imported in this one place and when it is first used: `_torchvision.torchvision`.

The published torchvision wheel is built for CUDA. Beside a CPU build of torch its operators do not load, and the import
fails when it describes operators that do not exist. Only then are their schemas defined here; data sets, transforms and
models work, and the operators themselves (`ops.nms`, `io.read_image`) stay unavailable. Where the operators load
nothing is touched. Once this module is imported a plain `import torchvision` works as well.
"""

import importlib
import warnings
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import find_spec
from types import ModuleType

import torch

from .errors import ConfigError

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None  # the schemas live as long as this object


def _define_schemas() -> None:
    """Load the operators, as torchvision does, and define the schemas of those that did not load."""
    global _library
    found = find_spec("torchvision")
    if found is None:
        return
    operators = PathFinder.find_spec("_C", found.submodule_search_locations)
    if operators is not None and operators.origin is not None:
        with suppress(OSError):
            torch.ops.load_library(operators.origin)
    missing = [schema for name, schema in _SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    if missing:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in missing:
            _library.define(schema)


def __getattr__(name: str) -> ModuleType:
    if name != "torchvision":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with warnings.catch_warnings():
        # Said by releases before 0.28 beside a CPU torch; nothing here reads images through torchvision's own decoder.
        warnings.filterwarnings("ignore", "Failed to load image Python extension", UserWarning)
        try:
            return importlib.import_module("torchvision")
        except ModuleNotFoundError as error:
            if error.name != "torchvision":
                raise
    raise ConfigError(
        f"this needs torchvision, which is not installed. Install the release made for torch {torch.__version__}: "
        "torchvision 0.28.0 belongs to torch 2.13.0 (`pip install torchvision==0.28.0`). Then start again"
    )


_define_schemas()

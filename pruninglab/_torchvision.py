"""torchvision, imported in this one place: `from ._torchvision import torchvision`.

The published torchvision wheel is built for CUDA. Beside a CPU build of torch its operators do not load, and the import
fails when it describes operators that do not exist. Only then are their schemas defined here and the import repeated;
data sets, transforms and models work, and the operators themselves (`ops.nms`, `io.read_image`) stay unavailable.
Where the operators load nothing is touched. Once this module is imported a plain `import torchvision` works as well.
"""

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

import torch

from .errors import ConfigError

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None  # the schemas live as long as this object


def _define_schemas() -> None:
    global _library
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            _library.define(schema)


def _imported() -> ModuleType:
    with warnings.catch_warnings():
        # Said by releases before 0.28 beside a CPU torch; nothing here reads images through torchvision's own decoder.
        warnings.filterwarnings("ignore", "Failed to load image Python extension", UserWarning)
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _define_schemas()
        return importlib.import_module("torchvision")


def __getattr__(name: str) -> Any:  # reached only where torchvision is missing
    if name != "torchvision":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise ConfigError(
        f"this needs torchvision, which is not installed. Install the release made for torch {torch.__version__}: "
        "torchvision 0.28.0 belongs to torch 2.13.0 (`pip install torchvision==0.28.0`). Then start again"
    )


try:
    torchvision: ModuleType = _imported()
except ModuleNotFoundError as error:
    if error.name != "torchvision":
        raise

"""What a network is made of, read off without training: names, kinds of layers, hooks, widths, FLOPs."""

from .flops import module_flops, sparse_flops
from .hooks import evaluating, hooked, norms_after
from .kinds import CONVS, LAYERS, Norm
from .modules import Attention, PadShortcut
from .names import canonical, canonical_parameters, owner_of, prunable
from .precision import exact, exact_device, exact_dtype
from .reach import Reading, readings
from .widths import Widths, narrow_

__all__ = [
    "CONVS",
    "LAYERS",
    "Attention",
    "Norm",
    "PadShortcut",
    "Reading",
    "Widths",
    "canonical",
    "canonical_parameters",
    "evaluating",
    "exact",
    "exact_device",
    "exact_dtype",
    "hooked",
    "module_flops",
    "narrow_",
    "norms_after",
    "owner_of",
    "prunable",
    "readings",
    "sparse_flops",
]


def __dir__() -> list[str]:
    return __all__

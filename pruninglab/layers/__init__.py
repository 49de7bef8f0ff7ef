"""What a network is made of, read off without training: names, kinds of layers, hooks, widths, FLOPs."""

from .flops import Flops, count
from .hooks import evaluating, hooked, norms_after
from .kinds import CONVS, KINDS, LAYERS, Kind, Norm, kind_of
from .modules import Attention, CausalAttention, PadShortcut
from .names import canonical_parameters, owner_of, prunable, real_names
from .precision import exact, exact_device, exact_dtype
from .reach import Reading, readings
from .widths import Widths, narrow_

__all__ = [
    "CONVS",
    "KINDS",
    "LAYERS",
    "Attention",
    "CausalAttention",
    "Flops",
    "Kind",
    "Norm",
    "PadShortcut",
    "Reading",
    "Widths",
    "canonical_parameters",
    "count",
    "evaluating",
    "exact",
    "exact_device",
    "exact_dtype",
    "hooked",
    "kind_of",
    "narrow_",
    "norms_after",
    "owner_of",
    "prunable",
    "readings",
    "real_names",
]


def __dir__() -> list[str]:
    return __all__

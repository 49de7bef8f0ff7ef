"""Recipes: what trains more than once. Each takes model, data and an amount, and returns `Trials`."""

from .admm import admm
from .deep_compression import deep_compression
from .enhanced import enhanced
from .iterative import iterative
from .progressive import progressive
from .prune_while_accurate import bonetta, prune_while_accurate, search
from .quantize import quantize
from .scratch import scratch
from .slimming import slimming
from .stages import dense_start
from .tickets import tickets
from .trials import Trial, Trials

__all__ = [
    "Trial",
    "Trials",
    "admm",
    "bonetta",
    "deep_compression",
    "dense_start",
    "enhanced",
    "iterative",
    "progressive",
    "prune_while_accurate",
    "quantize",
    "scratch",
    "search",
    "slimming",
    "tickets",
]


def __dir__() -> list[str]:
    return __all__

"""Recipes: what trains more than once. Each is a function around `fit`."""

from .admm import admm
from .deep_compression import deep_compression
from .enhanced import enhanced
from .gated import bonetta, gated, search
from .iterative import iterative
from .progressive import progressive
from .quantize import quantize
from .scratch import scratch
from .slimming import slimming
from .stages import dense_start
from .tickets import tickets
from .trials import Trials

__all__ = [
    "Trials",
    "admm",
    "bonetta",
    "deep_compression",
    "dense_start",
    "enhanced",
    "gated",
    "iterative",
    "progressive",
    "quantize",
    "scratch",
    "search",
    "slimming",
    "tickets",
]


def __dir__() -> list[str]:
    return __all__

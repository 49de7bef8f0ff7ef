"""Recipes: what trains more than once. Each is a function around `fit`."""

from .admm import admm
from .deep_compression import deep_compression
from .gated import bonetta, gated, search
from .iterative import iterative
from .progressive import progressive
from .quantize import quantize

__all__ = [
    "admm",
    "bonetta",
    "deep_compression",
    "gated",
    "iterative",
    "progressive",
    "quantize",
    "search",
]

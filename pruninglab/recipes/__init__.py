"""Recipes: what trains more than once. Each is a function around `fit`."""

from .admm import admm
from .deep_compression import deep_compression
from .gated import gated
from .iterative import iterative
from .progressive import progressive
from .quantize import quantize
from .tickets import tickets

__all__ = ["admm", "deep_compression", "gated", "iterative", "progressive", "quantize", "tickets"]

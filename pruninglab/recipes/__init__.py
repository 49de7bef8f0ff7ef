"""Recipes: what trains more than once. Each is a function around `fit`."""

from .iterative import iterative

__all__ = ["iterative"]

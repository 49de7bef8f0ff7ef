"""Structured pruning: whole channels are chosen together and taken out, so that a smaller plain network is left."""

from ..coupling.grouping import Group, Groups, Part
from .choose import Coupled, groups, prune, silence
from .shrink import Shrunk, shrink
from .two_of_four import is_2_to_4, semi_structured

__all__ = [
    "Coupled",
    "Group",
    "Groups",
    "Part",
    "Shrunk",
    "groups",
    "is_2_to_4",
    "prune",
    "semi_structured",
    "shrink",
    "silence",
]


def __dir__() -> list[str]:
    return __all__

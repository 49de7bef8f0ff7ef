"""`fit` trains, `Run` is one training, `Method` is what happens during it."""

from .evaluate import accuracy, evaluate
from .fit import fit, prune
from .losses import Distill, whole
from .lr_schedules import ConstantLR, CosineLR, StepLR
from .method import Method
from .run import Cut, Options, Run
from .snapshot import Snapshot

__all__ = [
    "ConstantLR",
    "CosineLR",
    "Cut",
    "Distill",
    "Method",
    "Options",
    "Run",
    "Snapshot",
    "StepLR",
    "accuracy",
    "evaluate",
    "fit",
    "prune",
    "whole",
]


def __dir__() -> list[str]:
    return __all__

"""`fit` trains, `Run` is one training, `Method` is what happens during it."""

from .evaluate import accuracy, evaluate
from .fit import fit, prune
from .losses import Distill, whole
from .lr_schedules import ConstantRate, CosineRate, StepRate
from .method import Method
from .run import Cut, Options, Run
from .snapshot import Snapshot

__all__ = [
    "ConstantRate",
    "CosineRate",
    "Cut",
    "Distill",
    "Method",
    "Options",
    "Run",
    "Snapshot",
    "StepRate",
    "accuracy",
    "evaluate",
    "fit",
    "prune",
    "whole",
]


def __dir__() -> list[str]:
    return __all__

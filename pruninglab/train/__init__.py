"""`fit` trains, `Run` is one training, `Method` is what happens during it."""

from .evaluate import evaluate
from .fit import fit, prune
from .losses import Distill
from .lr_schedules import ConstantLR, CosineLR, StepLR
from .method import Method
from .metrics import accuracy, bits, compression, perplexity, whole
from .options import FitOptions, Options
from .run import Cut, Run
from .snapshot import Snapshot
from .training import Training

__all__ = [
    "ConstantLR",
    "CosineLR",
    "Cut",
    "Distill",
    "FitOptions",
    "Method",
    "Options",
    "Run",
    "Snapshot",
    "StepLR",
    "Training",
    "accuracy",
    "bits",
    "compression",
    "evaluate",
    "fit",
    "perplexity",
    "prune",
    "whole",
]


def __dir__() -> list[str]:
    return __all__

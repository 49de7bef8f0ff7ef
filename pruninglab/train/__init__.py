"""`fit` trains, `Run` is one training, `Method` is what happens during it."""

from .attach import Attached, Pruner, attach
from .evaluate import evaluate
from .fit import fit, prune
from .losses import Distill, negative_loss, returned_loss
from .lr_schedules import ConstantLR, CosineLR, StepLR
from .method import Method
from .metrics import accuracy, bits, compression, negative_squared_error, perplexity, whole
from .observers import CSVLog, TensorBoard, Tracker
from .options import FitOptions, Options
from .publishing import publish
from .run import Cut, Run
from .snapshot import Snapshot
from .training import Training

__all__ = [
    "Attached",
    "CSVLog",
    "ConstantLR",
    "CosineLR",
    "Cut",
    "Distill",
    "FitOptions",
    "Method",
    "Options",
    "Pruner",
    "Run",
    "Snapshot",
    "StepLR",
    "TensorBoard",
    "Tracker",
    "Training",
    "accuracy",
    "attach",
    "bits",
    "compression",
    "evaluate",
    "fit",
    "negative_loss",
    "negative_squared_error",
    "perplexity",
    "prune",
    "publish",
    "returned_loss",
    "whole",
]


def __dir__() -> list[str]:
    return __all__

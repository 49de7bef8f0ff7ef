"""CIFAR-10 at 32 pixels on two cores: a small network, a short training, and the methods at 10, 5 and 2 %.

The recipe is that of short trainings (Page 2019, Jordan 2024). A first layer whitens patches, labels are smoothed, and
each image is mirrored in every second epoch. SGD with Nesterov's momentum takes a high rate.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..methods.cuts.oneshot import OneShot
from ..methods.regrowth.rigl import RigL
from ..train.lr_schedules import CosineLR
from .rates import _direct
from .rows import Row, _controls, _dense
from .weightmom import _momentum

DENSITIES = (0.1, 0.05, 0.02)


def nesterov(groups: Any, lr: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay, fused=True)


def smoothed(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy with labels of which 0.2 is shared by all classes."""
    return F.cross_entropy(logits, y, label_smoothing=0.2)


PROTOCOL: dict[str, Any] = {
    "optimizer": nesterov,
    "lr": 0.4,
    "lr_schedule": CosineLR(warmup=0.2),
    "weight_decay": 5e-4,
    "batch_size": 250,
    "loss": smoothed,
}


def _at(density: float) -> dict[str, Row]:
    sparsity, name = 1 - density, f"{1 / density:.0f}"
    return {
        f"text-{name}": Row("WeightMom, text", _momentum(sparsity), sparsity),
        f"formula_prune-{name}": Row(
            "WeightMom, formula_prune", _momentum(sparsity, interpretation="formula_prune"), sparsity
        ),
        f"snip-{name}": Row("SNIP", lambda cell: cell.untrained(OneShot(sparsity, "snip")), sparsity),
        f"rigl-{name}": Row("RigL", lambda cell: cell.untrained(RigL(sparsity)), sparsity),
        f"admm-{name}": Row("ADMM", _direct(1 / density), sparsity),
    }


CIFAR10: dict[str, Row] = {
    "dense": Row("dense", _dense),
    **{name: row for density in DENSITIES for name, row in _at(density).items()},
    **_controls(**{f"{1 / density:.0f}": 1 - density for density in DENSITIES}),
}

"""ADMM, hard cut, masked retraining: Zhang et al., "A systematic DNN weight pruning framework using ADMM", 2018."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..data.dataset import Data
from ..masks.choose import Scope
from ..masks.masks import Sparsity, Unit
from ..methods.projection.admm import ADMM, Penalty
from ..train.fit import fit
from ..train.lr_schedules import LRSchedule
from ..train.run import Run
from .stages import ended, stage, start_from


def admm(
    model: nn.Module | Run,
    data: Data,
    sparsity: Sparsity,
    *,
    epochs: int,
    finetune: int | None = None,
    rho: Penalty | Mapping[str, Penalty] = 1.5e-3,
    updates: int = 10,
    scope: Scope = "layer",
    unit: Unit = "weight",
    lr: float = 1e-3,
    finetune_lr: float | None = None,
    admm_lr_schedule: str | LRSchedule = "constant",
    folder: str | Path | None = None,
    **options: Any,
) -> list[Run]:
    """Train `epochs`, as many with ADMM, cut, and retrain under the mask (for `retrain` epochs, by default as many).

    A finished `Run` as `model` is the start, and is not trained again; what it has pruned stays pruned. As the authors
    do, the learning rate stays at `lr` while ADMM runs, and retraining begins anew at the same one. `folder` holds a
    checkpoint and a record of each stage, and the same call goes on from them. Returns all runs: the dense one, the
    one with ADMM and the cut (its accuracy is that before retraining), the retrained one.
    """
    finetune = epochs if finetune is None else finetune
    finetune_lr = lr if finetune_lr is None else finetune_lr
    runs = [start_from(model, data, folder, epochs=epochs, lr=lr, **options)]
    if not ended(runs[-1], model):
        pull = ADMM(sparsity, rho, scope, unit, updates)
        pulling = {**options, "lr_schedule": admm_lr_schedule}
        runs.append(fit(runs[-1], data, pull, epochs=epochs, lr=lr, **stage(folder, "admm"), **pulling))
    if not ended(runs[-1]):
        runs.append(fit(runs[-1], data, epochs=finetune, lr=finetune_lr, **stage(folder, "fine-tuned"), **options))
    return runs

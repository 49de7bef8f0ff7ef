"""ADMM, hard cut, masked retraining: Zhang et al., "A systematic DNN weight pruning framework using ADMM", 2018."""

from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

from torch import nn

from ..data.dataset import Data
from ..masks.choose import Scope
from ..masks.masks import Sparsity, Unit
from ..methods.projection.admm import ADMM, Penalty
from ..train.lr_schedules import LRSchedule
from ..train.options import TrainingOptions
from ..train.run import Run
from ..typed import Count, CountFromZero, Strength
from .stages import Stages, recipe
from .trials import Trials


@recipe
def admm(
    model: nn.Module | Run,
    data: Data,
    sparsity: Sparsity,
    *,
    epochs: CountFromZero,
    finetune: CountFromZero | None = None,
    rho: Penalty | Mapping[str, Penalty] = 1.5e-3,
    updates: Count = 10,
    scope: Scope = "layer",
    unit: Unit = "weight",
    finetune_lr: Strength | None = None,
    admm_lr_schedule: LRSchedule = "constant",
    folder: str | Path | None = None,
    **options: Unpack[TrainingOptions],
) -> Trials:
    """Train dense, train on with ADMM, cut, and fine-tune under the mask.

    The dense training and the one with ADMM take `epochs` each, fine-tuning takes `finetune` (by default as many). A
    finished `Run` as `model` is the dense start; what it has pruned stays pruned. As in the authors' code, the learning
    rate stays at `lr` during ADMM, and fine-tuning begins at the same one. The accuracy of the trial "admm" is that
    after the cut, before fine-tuning. `folder` holds a checkpoint and a record of each stage; the same call goes on
    from them.
    """
    pull = ADMM(sparsity, rho, scope, unit, updates)
    stages = Stages("admm", data, folder, options, finetune_lr)
    run = stages.dense(model, epochs)
    run = stages.train("admm", run, pull, epochs=epochs, lr_schedule=admm_lr_schedule)
    stages.finetune(run, epochs=epochs if finetune is None else finetune)
    return stages.made

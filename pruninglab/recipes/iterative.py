"""Train, cut, retrain, repeat: Han et al., "Learning both weights and connections", 2015."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from torch import nn

from ..criteria.registry import Criterion, CriterionName
from ..data.dataset import Data
from ..masks.choose import Scope
from ..masks.masks import Unit
from ..masks.schedules import Exponential, Schedule
from ..methods.cuts.oneshot import OneShot
from ..train.method import Method
from ..train.options import TrainingOptions
from ..train.run import Run
from ..typed import BelowOne, Count, CountFromZero, Strength
from .stages import Stages, recipe
from .trials import Trials


@recipe
def iterative(
    model: nn.Module | Run,
    data: Data,
    sparsity: BelowOne | Schedule,
    *,
    rounds: Count = 5,
    epochs: CountFromZero,
    finetune: CountFromZero | None = None,
    finetune_lr: Strength | None = None,
    criterion: CriterionName | Criterion = "layer_magnitude",
    scope: Scope = "global",
    unit: Unit = "weight",
    folder: str | Path | None = None,
    **options: Unpack[TrainingOptions],
) -> Trials:
    """Train `epochs`, then `rounds` times cut and fine-tune (for `finetune` epochs, by default as many).

    A finished `Run` as `model` is the dense start. A number as `sparsity` is reached by cutting the same share of the
    survivors each round. The default criterion with its one global threshold is the paper's: |w| against a quality
    factor times the standard deviation of the layer. Fine-tuning takes a tenth of the learning rate, and dropout
    becomes smaller with the connections it acts on, D' = D·sqrt(C'/C) (section 3.3). `folder` holds a checkpoint and a
    record of each round; the same call goes on from them.
    """
    schedule = sparsity if isinstance(sparsity, Schedule) else Exponential(sparsity)
    stages = Stages("iterative", data, folder, options, finetune_lr)
    run = stages.dense(model, epochs, "round-00", round=0)
    length = epochs if finetune is None else finetune
    less_dropout = _LessDropout.of(run)
    for number in range(1, rounds + 1):
        target = schedule(number / rounds)
        if not isinstance(target, Mapping):
            target = max(target, run.sparsity)
        cut = OneShot(target, criterion, scope, unit)
        run = stages.finetune(
            run, cut, *less_dropout, epochs=length, slower=10, file=f"round-{number:02d}", round=number
        )
    return stages.made


@dataclass
class _LessDropout(Method):
    """Scale each dropout of the dense net by what is pruned of the layer that it feeds."""

    rates: dict[str, float]
    kept: dict[str, int]

    @classmethod
    def of(cls, dense: Run) -> "list[_LessDropout]":
        dropout = nn.modules.dropout._DropoutNd
        rates = {name: m.p for name, m in dense.model.named_modules() if isinstance(m, dropout) and m.p}
        return [cls(rates, dense.masks.kept_by_layer)] if rates else []

    def on_start(self, run: Run) -> None:
        kept, fed = run.masks.kept_by_layer, None
        for name, module in reversed(list(run.model.named_modules())):
            fed = f"{name}.weight" if f"{name}.weight" in kept else fed
            if isinstance(module, nn.modules.dropout._DropoutNd) and name in self.rates and fed:
                module.p = self.rates[name] * math.sqrt(kept[fed] / max(self.kept[fed], 1))

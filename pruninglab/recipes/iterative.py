"""Train, cut, retrain, repeat: Han et al., "Learning both weights and connections", 2015."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..criteria.registry import Criterion
from ..data.dataset import Data
from ..errors import ConfigError
from ..masks.choose import Scope
from ..masks.masks import Unit
from ..masks.schedules import Exponential, Schedule
from ..methods.cuts.oneshot import OneShot
from ..train.fit import fit
from ..train.method import Method
from ..train.run import Run
from .stages import ended, refuse_own, stage


def iterative(
    model: nn.Module | Run,
    data: Data,
    sparsity: float | Schedule,
    *,
    rounds: int = 5,
    epochs: int,
    finetune: int | None = None,
    lr: float = 1e-3,
    finetune_lr: float | None = None,
    criterion: str | Criterion = "layer_magnitude",
    scope: Scope = "global",
    unit: Unit = "weight",
    folder: str | Path | None = None,
    **options: Any,
) -> list[Run]:
    """Train `epochs`, then `rounds` times cut and retrain (for `retrain` epochs, by default as many).

    A finished `Run` as `model` is the dense start, and is not trained again. A number as `sparsity` is reached by
    cutting the same share of the survivors each round. The default criterion with its one global threshold is the
    paper's: |w| against a quality factor times the standard deviation of the layer. Retraining takes a tenth of the
    learning rate, and dropout becomes smaller with the connections it acts on, D' = D·sqrt(C'/C) (section 3.3).
    `folder` holds a checkpoint and a record of each round, and the same call goes on from them. Returns all runs, the
    dense one first.
    """
    if rounds < 1:
        raise ConfigError(f"rounds={rounds}: at least one round is needed to prune.")
    refuse_own("iterative", options)
    schedule = sparsity if isinstance(sparsity, Schedule) else Exponential(sparsity)
    files = [stage(folder, f"round-{number:02d}") for number in range(rounds + 1)]
    dense = model if isinstance(model, Run) else fit(model, data, epochs=epochs, lr=lr, **files[0], **options)
    runs = [dense]
    less_dropout = _LessDropout.of(dense)
    for number in range(1, rounds + 1):
        if ended(runs[-1], model):
            break
        target = schedule(number / rounds)
        if not isinstance(target, Mapping):
            target = max(target, runs[-1].sparsity)
        runs.append(
            fit(
                runs[-1],
                data,
                OneShot(target, criterion, scope, unit),
                *less_dropout,
                epochs=epochs if finetune is None else finetune,
                lr=lr / 10 if finetune_lr is None else finetune_lr,
                **files[number],
                **options,
            )
        )
    return runs


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

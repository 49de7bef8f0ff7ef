"""Train, cut, retrain, repeat: Han et al., "Learning both weights and connections", 2015."""

import copy
import math
from pathlib import Path
from typing import Any

from torch import nn

from ..criteria import Criterion
from ..data import Data
from ..errors import ConfigError
from ..methods import OneShot
from ..run import Run
from ..schedules import Exponential, Schedule
from ..train import fit


def iterative(
    model: nn.Module | Run,
    data: Data,
    sparsity: float | Schedule,
    *,
    rounds: int = 5,
    epochs: int,
    retrain: int | None = None,
    lr: float = 1e-3,
    retrain_lr: float | None = None,
    criterion: str | Criterion = "layer_magnitude",
    scope: str = "global",
    unit: str = "weight",
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
    schedule = sparsity if isinstance(sparsity, Schedule) else Exponential(sparsity)
    folder = Path(folder) if folder else None

    def files(number: int) -> dict[str, Path]:
        name = f"round-{number:02d}"
        return {"checkpoint": folder / f"{name}.safetensors", "record": folder / f"{name}.json"} if folder else {}

    dense = model if isinstance(model, Run) else fit(model, data, epochs=epochs, lr=lr, **files(0), **options)
    runs = [dense]
    for number in range(1, rounds + 1):
        before = runs[-1]
        if before.status in ("interrupted", "diverged"):
            break
        cut = OneShot(schedule(number / rounds), criterion, scope, unit)
        rate = lr / 10 if retrain_lr is None else retrain_lr
        start = _with_less_dropout(before, dense)
        runs.append(fit(start, data, cut, epochs=retrain or epochs, lr=rate, **files(number), **options))
    return runs


def _with_less_dropout(run: Run, dense: Run) -> Run:
    """The same run, each dropout of the dense net scaled by what is pruned of the layer that it feeds."""
    rates = {
        name: m.p for name, m in dense.model.named_modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p
    }
    if not rates:
        return run
    run = copy.copy(run)
    run.model = copy.deepcopy(run.model)
    fed = None
    for name, module in reversed(list(run.model.named_modules())):
        fed = f"{name}.weight" if f"{name}.weight" in run.masks else fed
        if name in rates and fed:
            kept, before = run.masks.kept_by_layer[fed], dense.masks.kept_by_layer[fed]
            module.p = rates[name] * math.sqrt(kept / max(before, 1))  # pyright: ignore[reportArgumentType]
    return run

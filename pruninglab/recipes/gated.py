"""Prune under a regularizer while accuracy allows, then train without it: Bonetta and Cancelliere, 2022, section 2."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..data import Data
from ..errors import ConfigError
from ..method import Method
from ..methods import GatedPruning
from ..run import Run
from ..schedules import Rate
from ..train import fit
from .admm import ended, stage


def gated(
    model: nn.Module | Run,
    data: Data,
    regularizer: Method | Sequence[Method],
    gate: GatedPruning,
    *,
    epochs: int,
    final: int,
    lr: float = 1e-3,
    final_lr: float | None = None,
    gated_rate: str | Rate = "constant",
    folder: str | Path | None = None,
    **options: Any,
) -> list[Run]:
    """Train `epochs` with `regularizer` and `gate`, then `final` epochs without them, under the mask.

    The final phase begins at the best state by validation among those at the final mask, and ends at its own. As the
    authors do, the learning rate stays at `lr` while the gate is there. Their setting for `lenet5` on MNIST is
    `RelevanceL2(1e-3)`, `GatedPruning(0.987, counting="epoch")`, `epochs=120`, `final=5`, `biases=True`, from random
    weights; their validation split is the test split. `folder` holds a checkpoint and a record of each phase, and the
    same call goes on from them. Returns both runs; the accuracy of the first is that before the final phase.
    """
    if own := {"start", "masks", "checkpoint", "record", "inplace", "keep"} & options.keys():
        raise ConfigError(f"gated sets {', '.join(sorted(own))} by itself; for files give folder=.")
    together = [regularizer] if isinstance(regularizer, Method) else list(regularizer)
    pruning = {**options, "rate": gated_rate, "epochs": epochs, "lr": lr, "keep": "best"}
    runs = [fit(model, data, *together, gate, **stage(folder, "gated"), **pruning)]
    if not ended(runs[0]):
        tuning = {**options, "epochs": final, "lr": lr if final_lr is None else final_lr, "keep": "best"}
        runs.append(fit(runs[0], data, **stage(folder, "final"), **tuning))
    return runs

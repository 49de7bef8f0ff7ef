"""Prune, share, code: Han, Mao and Dally, "Deep Compression", 2016."""

from pathlib import Path
from typing import Any, Literal

from torch import nn

from ..data.dataset import Data
from ..errors import ConfigError
from ..masks.schedules import Schedule
from ..methods.projection.code_books import SharedWeights
from ..storage.levels import Bits
from ..train.fit import fit
from ..train.run import Run
from .iterative import iterative
from .stages import ended, stage


def deep_compression(
    model: nn.Module | Run,
    data: Data,
    sparsity: float | Schedule | None = None,
    *,
    epochs: int,
    rounds: int = 5,
    bits: Bits | None = None,
    finetune: int | None = None,
    centres: Literal["linear", "best"] = "linear",
    lr: float = 1e-3,
    finetune_lr: float | None = None,
    folder: str | Path | None = None,
    **options: Any,
) -> list[Run]:
    """Prune as `iterative` does, then share weights by k-means and train the shared values for `tune` epochs.

    Without `sparsity`, `model` is a pruned `Run`, and only the last stage is left. `bits` are by default the paper's, 8
    for convolutions and 5 for dense layers; `finetune` as many epochs as `epochs`, at a tenth of the learning rate.
    What comes out in bits, with fixed and with Huffman codes, is `lab.storage.levels.cost(run.weights, run.masks)` of
    the last run. `folder` holds a checkpoint and a record of each stage, and the same call goes on from them. Returns
    all runs.

    Deviations: position codes have one symbol for a gap that is too long, where the paper inserts a weight of 0, and
    the cheapest width instead of 8 bits for convolutions and 5 for dense layers.
    """
    method = SharedWeights(centres=centres) if bits is None else SharedWeights(bits, centres)
    if sparsity is not None:
        runs = iterative(model, data, sparsity, rounds=rounds, epochs=epochs, lr=lr, folder=folder, **options)
    elif isinstance(model, Run):
        runs = [model]
    else:
        raise ConfigError("deep_compression needs a sparsity to prune to, or a pruned Run as its model.")
    if ended(runs[-1], model):
        return runs
    finetune, finetune_lr = epochs if finetune is None else finetune, lr / 10 if finetune_lr is None else finetune_lr
    return [*runs, fit(runs[-1], data, method, epochs=finetune, lr=finetune_lr, **stage(folder, "shared"), **options)]

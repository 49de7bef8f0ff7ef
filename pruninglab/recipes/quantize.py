"""Quantize by ADMM, then train the code books: Ye et al., "A unified framework of DNN weight pruning and weight
clustering/quantization using ADMM", 2018.
"""

from pathlib import Path
from typing import Any, Literal

from torch import nn

from ..data.dataset import Data
from ..methods.projection.code_books import SharedWeights
from ..methods.projection.quantize import Quantize
from ..storage.levels import Bits
from ..train.fit import fit
from ..train.run import Run
from .stages import ended, stage


def quantize(
    model: nn.Module | Run,
    data: Data,
    bits: Bits,
    *,
    epochs: int,
    finetune: int | None = None,
    levels: Literal["equal", "clustered"] = "clustered",
    rho: float = 1.5e-3,
    updates: int = 10,
    lr: float = 1e-3,
    finetune_lr: float | None = None,
    folder: str | Path | None = None,
    **options: Any,
) -> list[Run]:
    """Put the kept weights of `model` on levels in `epochs`, then train the levels for `tune` (by default as many).

    A pruned `Run` stays pruned under its masks. Levels at equal distances would not stay so, and are not trained.
    Training the levels takes a third of the learning rate. `folder` holds a checkpoint and a record of each stage, and
    the same call goes on from them. Returns both runs, or the one.
    """
    method = Quantize(bits, levels, rho, updates)
    runs = [fit(model, data, method, epochs=epochs, lr=lr, **stage(folder, "quantized"), **options)]
    finetune = epochs if finetune is None else finetune
    if levels == "equal" or finetune == 0 or ended(runs[0]):
        return runs
    finetune_lr = lr / 3 if finetune_lr is None else finetune_lr
    tuned = fit(
        runs[0], data, SharedWeights(bits), epochs=finetune, lr=finetune_lr, **stage(folder, "fine-tuned"), **options
    )
    return [*runs, tuned]

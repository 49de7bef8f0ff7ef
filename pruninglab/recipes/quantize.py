"""Quantize by ADMM, then train the code books: Ye et al., "A unified framework of DNN weight pruning and weight
clustering/quantization using ADMM", 2018.
"""

from pathlib import Path
from typing import Literal, Unpack

from torch import nn

from ..data.dataset import Data
from ..masks.masks import Masks
from ..methods.projection.code_books import SharedWeights
from ..methods.projection.quantize import Quantize
from ..storage.levels import Bits
from ..train.options import TrainingOptions
from ..train.run import Run
from ..typed import Count, CountFromZero, Strength
from .stages import Stages, filled, in_scope, recipe
from .trials import Trials


@recipe
def quantize(
    model: nn.Module | Run,
    data: Data,
    bits: Bits,
    *,
    epochs: CountFromZero,
    finetune: CountFromZero | None = None,
    levels: Literal["clustered", "equal"] = "clustered",
    rho: Strength = 1.5e-3,
    updates: Count = 10,
    finetune_lr: Strength | None = None,
    folder: str | Path | None = None,
    **options: Unpack[TrainingOptions],
) -> Trials:
    """Put the kept weights of `model` on levels in `epochs`, then train the levels for `finetune` epochs.

    A pruned `Run` stays pruned under its masks. By default the levels are trained for as many epochs, at a third of the
    learning rate. Levels at equal distances would not stay so, and are not trained. A layer that keeps fewer weights
    than its bits have levels gets as many bits as it can fill. `folder` holds a checkpoint and a record of each stage;
    the same call goes on from them.
    """
    weights = model.weights if isinstance(model, Run) else in_scope(model, options)
    bits = filled(bits, weights, model.masks if isinstance(model, Run) else Masks.full(weights))
    stages = Stages("quantize", data, folder, options, finetune_lr)
    run = stages.train("quantized", model, Quantize(bits, levels, rho, updates), epochs=epochs)
    length = epochs if finetune is None else finetune
    if levels == "clustered" and length:
        stages.finetune(run, SharedWeights(bits), epochs=length, slower=3)
    return stages.made

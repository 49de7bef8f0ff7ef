"""Prune, share, code: Han, Mao and Dally, "Deep Compression", 2016."""

from pathlib import Path
from typing import Literal, Unpack

from torch import nn

from ..data.dataset import Data
from ..errors import ConfigError
from ..masks.schedules import Schedule
from ..methods.projection.code_books import SharedWeights
from ..storage.levels import Bits, by_layer
from ..train.options import TrainingOptions
from ..train.run import Run
from ..typed import BelowOne, Count, CountFromZero, Strength
from .iterative import iterative
from .stages import Stages, ended, filled, in_scope, recipe, tags_of
from .trials import Trials


@recipe
def deep_compression(
    model: nn.Module | Run,
    data: Data,
    sparsity: BelowOne | Schedule | None = None,
    *,
    epochs: CountFromZero,
    rounds: Count = 5,
    bits: Bits | None = None,
    finetune: CountFromZero | None = None,
    centres: Literal["linear", "best"] = "linear",
    finetune_lr: Strength | None = None,
    folder: str | Path | None = None,
    **options: Unpack[TrainingOptions],
) -> Trials:
    """Prune as `iterative` does, then share weights by k-means and train the shared values.

    `bits` are by default the paper's: 8 for convolutions, 5 for dense layers. A layer that keeps fewer weights than its
    bits have levels gets as many bits as it can fill. The shared values are trained for `finetune` epochs (by default
    as many as `epochs`) at a tenth of the learning rate. Without `sparsity`, `model` is a pruned `Run`, and only this
    last stage is left. `lab.storage.levels.cost(run.weights, run.masks)` of the last run says what comes out in bits,
    with fixed and with Huffman codes. `folder` holds a checkpoint and a record of each stage; the same call goes on
    from them.

    Deviations: where a gap is too long, the paper inserts a weight of 0; here position codes have a symbol for it.
    Their width is the cheapest one, instead of 8 bits for convolutions and 5 for dense layers.
    """
    weights = in_scope(model.model if isinstance(model, Run) else model, options)
    if bits is None:
        dimensions = {weight.ndim for weight in weights.values()}
        bits = ({"conv": 8} if max(dimensions, default=0) > 2 else {}) | ({"dense": 5} if 2 in dimensions else {})
    by_layer(weights, bits)  # refuses what matches no layer
    stages = Stages("deep_compression", data, folder, options, finetune_lr)
    if sparsity is not None:
        options["tags"] = tags_of("deep_compression", options)
        stages.made = iterative(model, data, sparsity, rounds=rounds, epochs=epochs, folder=folder, **options)
    elif isinstance(model, Run):
        stages.made.add("pruned", model)
    else:
        raise ConfigError("deep_compression needs a sparsity to prune to, or a pruned Run as its model.")
    run = stages.made.last
    stages.over = ended(run, model)
    method = SharedWeights(filled(bits, run.weights, run.masks), centres)
    stages.finetune(run, method, name="shared", epochs=epochs if finetune is None else finetune, slower=10)
    return stages.made

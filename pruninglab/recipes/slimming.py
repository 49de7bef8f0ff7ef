"""Network slimming in three stages: Liu et al. 2017, with the controls of Liu et al., "Rethinking", 2019."""

from pathlib import Path
from typing import Literal, Unpack

from ..data.dataset import Data
from ..layers.widths import narrow_
from ..methods.channels.slimming import Slimming, scales
from ..randomness import own_randomness
from ..structured import choose
from ..structured.shrink import shrink
from ..train.options import TrainingOptions
from ..typed import CountFromZero, Fraction, Positive, Strength
from .stages import Stages, Untrained, check_prunable, recipe
from .tickets import redrawn
from .trials import Trials


@recipe
def slimming(
    model: Untrained,
    data: Data,
    prune_fraction: Fraction,
    *,
    epochs: CountFromZero,
    finetune: CountFromZero,
    strength: Strength = 1e-4,
    begin: Positive | None = None,
    scope: Literal["global", "layer"] = "global",
    finetune_lr: Strength | None = None,
    folder: str | Path | None = None,
    **options: Unpack[TrainingOptions],
) -> Trials:
    """Train the untrained `model` with a penalty on its channels' scales, remove the smallest, and fine-tune.

    `prune_fraction` of the channels are removed. What comes out is a smaller plain network, fine-tuned for `finetune`
    epochs at a tenth of the learning rate. `strength` and `begin` are those of `methods.Slimming`, `scope` is that of
    `structured.prune`. "dense" is the network as it was, trained without a penalty. Two more trainings start the small
    network from new weights: "Scratch-E" for `epochs`, "Scratch-B" for as much computation as the dense training took.
    All small networks are charged with the training that found their form.

    `folder` holds a checkpoint and a record of each training; the same call goes on from them.
    """
    check_prunable(model, options)
    scales(model)
    seed, stages = options.get("seed", 0), Stages("slimming", data, folder, options, finetune_lr)
    choose.prune(model, data, prune_fraction, "norm_scale", scope=scope, seed=seed)  # refuses what is impossible
    dense = stages.dense(model, epochs)
    slim = stages.train("slimmed", model, Slimming(strength, begin), epochs=epochs)
    if stages.over:
        return stages.made
    pruned, masks = choose.prune(slim, data, prune_fraction, "norm_scale", scope=scope, seed=seed)
    small = shrink(pruned, data, masks)
    with own_randomness(seed):
        anew = narrow_(redrawn(model, seed), small.widths)
    stages.train("removed", small.model, epochs=0, found_by=[slim])
    tuned = stages.finetune(small.model, epochs=finetune, slower=10, found_by=[slim])
    longer = dense.result.flops["dense"] / tuned.result.flops["dense"]
    for name, length in (("Scratch-E", epochs), ("Scratch-B", round(epochs * longer))):
        stages.train(name, anew, epochs=length, found_by=[slim])
    return stages.made

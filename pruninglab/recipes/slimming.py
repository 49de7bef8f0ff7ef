"""Network slimming in three stages: Liu et al. 2017, with the controls of Liu et al., "Rethinking", 2019."""

from pathlib import Path
from typing import Literal, Unpack

from ..data.dataset import Data
from ..layers.widths import narrow_
from ..methods.channels.slimming import Slimming, scales
from ..randomness import own_randomness
from ..structured import choose
from ..structured.shrink import shrink
from ..train.fit import fit
from ..train.options import TrainingOptions
from ..typed import CountFromZero, Fraction, Positive, Strength
from .stages import Untrained, check_prunable, dense_start, ended, finetuning, recipe, stage
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
    `structured.prune`. Beside it stand the network as it was, trained without a penalty ("dense"), and the small one
    with new weights: "Scratch-E" for `epochs`, "Scratch-B" for as much computation as the dense training took. All
    small networks are charged with the training that found their form.

    `folder` holds a checkpoint and a record of each training; the same call goes on from them.
    """
    check_prunable(model, options)
    scales(model)
    seed, made = options.get("seed", 0), Trials()
    choose.prune(model, data, prune_fraction, "norm_scale", scope=scope, seed=seed)  # refuses what is impossible
    dense = made.add("dense", dense_start(model, data, epochs=epochs, folder=folder, name="dense", **options))
    if ended(dense):
        return made
    pull, files = Slimming(strength, begin), stage(folder, "slimmed")
    slim = made.add("slimmed", fit(model, data, pull, epochs=epochs, **files, **options))
    if ended(slim):
        return made
    pruned, masks = choose.prune(slim, data, prune_fraction, "norm_scale", scope=scope, seed=seed)
    small = shrink(pruned, data, masks)
    with own_randomness(seed):
        anew = narrow_(redrawn(model, seed), small.widths)
    tuning = finetuning(options, finetune_lr, slower=10)
    made.add("removed", fit(small.model, data, epochs=0, found_by=[slim], **stage(folder, "removed"), **options))
    files = stage(folder, "fine-tuned")
    tuned = made.add("fine-tuned", fit(small.model, data, epochs=finetune, found_by=[slim], **files, **tuning))
    longer = dense.result.flops["dense"] / tuned.result.flops["dense"]
    for method, length in (("Scratch-E", epochs), ("Scratch-B", round(epochs * longer))):
        if not ended(made.last):
            files = stage(folder, method.lower())
            made.add(method, fit(anew, data, epochs=length, found_by=[slim], **files, **options))
    return made

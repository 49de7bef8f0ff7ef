"""Network slimming in three stages: Liu et al. 2017, with the controls of Liu et al., "Rethinking", 2019."""

from pathlib import Path
from typing import Any

from torch import nn

from ..data.dataset import Data
from ..layers.widths import narrow_
from ..methods.channels.slimming import Slimming, scales
from ..randomness import own_randomness
from ..structured import choose
from ..structured.shrink import shrink
from ..train.fit import fit
from ..train.run import Run
from .stages import ended, stage
from .tickets import redrawn, untrained
from .trials import Trials


def slimming(
    model: nn.Module,
    data: Data,
    prune_fraction: float,
    *,
    epochs: int,
    finetune: int,
    strength: float = 1e-4,
    begin: float | None = None,
    scope: str = "global",
    lr: float = 1e-3,
    finetune_lr: float | None = None,
    folder: str | Path | None = None,
    **options: Any,
) -> Trials:
    """Train the untrained `model` with a penalty on its channels' scales, take out `share` of them, and fine-tune.

    What comes out is a smaller plain network, fine-tuned for `finetune` epochs at a tenth of the learning rate.
    `strength` and `begin` are those of `methods.Slimming`, `scope` that of `structured.prune`. Beside it stand the
    network as it was, trained without a penalty ("dense"), and the small one with new weights: "Scratch-E" for
    `epochs`, "Scratch-B" for as much computation as the dense training took. Both are charged with the training that
    found their form.

    `folder` holds a checkpoint and a record of each training, and the same call goes on from them.
    """
    untrained(model, options)
    scales(model)
    seed, made = options.get("seed", 0), Trials()
    choose.prune(
        model, data, prune_fraction, "norm_scale", scope=scope, seed=seed
    )  # refuses what cannot be before training

    def train(
        method: str, net: nn.Module, length: int, *methods: Slimming, own_lr: float = lr, before: list[Run]
    ) -> Run:
        files = stage(folder, method.replace(" ", "-").lower())
        return made.add(method, fit(net, data, *methods, epochs=length, lr=own_lr, **files, **options), *before)

    dense = train("dense", model, epochs, before=[])
    if ended(dense):
        return made
    slim = train("slimmed", model, epochs, Slimming(strength, begin), before=[])
    if ended(slim):
        return made
    pruned, masks = choose.prune(slim, data, prune_fraction, "norm_scale", scope=scope, seed=seed)
    small = shrink(pruned, data, masks)
    train("removed", small.model, 0, before=[slim])
    finetune_lr = lr / 10 if finetune_lr is None else finetune_lr
    tuned = train("fine-tuned", small.model, finetune, own_lr=finetune_lr, before=[slim])
    with own_randomness(seed):
        anew = narrow_(redrawn(model, seed), small.widths)
    longer = dense.result.flops["dense"] / tuned.result.flops["dense"]
    for method, length in (("Scratch-E", epochs), ("Scratch-B", round(epochs * longer))):
        if not ended(made.made[-1].run):
            train(method, anew, length, before=[slim])
    return made

"""Network slimming in three stages: Liu et al. 2017, with the controls of Liu et al., "Rethinking", 2019."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .. import structured
from ..criteria import Criterion
from ..data import Data
from ..errors import ConfigError
from ..methods import Slimming
from ..run import Run
from ..train import fit
from ..widths import narrow_
from .admm import ended, stage
from .tickets import redrawn, untrained
from .trials import Trials

CONTROLS = ("dense", "Scratch-E", "Scratch-B")


def slimming(
    model: nn.Module,
    data: Data,
    share: float,
    *,
    epochs: int,
    tune: int,
    strength: float = 1e-4,
    begin: float | None = None,
    passes: int = 1,
    criterion: str | Criterion = "norm_scale",
    scope: str = "global",
    controls: Sequence[str] = CONTROLS,
    limit: float | None = None,
    lr: float = 1e-3,
    tune_lr: float | None = None,
    folder: str | Path | None = None,
    **options: Any,
) -> Trials:
    """Train the untrained `model` with a penalty on its channels' scales, take out `share` of them, and fine-tune.

    What comes out is a smaller plain network: it is fine-tuned, and trained from scratch, at its own size and speed.
    In several `passes` each takes out the same share of the channels that are left, and begins with what the last one
    fine-tuned. Every pass trains for `epochs` with the penalty and for `tune` without, at a tenth of the learning rate.
    `strength` and `begin` are those of `methods.Slimming`, criterion and scope those of `structured.prune`; with
    `strength=0` and `"filter_l1"`, say, this is the pruning of filters.

    Beside it stand the network as it was, trained without a penalty (`"dense"`), and the small one with new weights:
    `"Scratch-E"` for `epochs`, `"Scratch-B"` for as much computation as the dense training took, but for at most
    `limit` times the epochs (the paper doubles at most on ImageNet).

    `folder` holds a checkpoint and a record of each training, and the same call goes on from them.
    """
    untrained(model, options)
    if passes < 1 or (limit is not None and limit < 1):
        raise ConfigError(f"passes={passes}, limit={limit}; expected 1 or more.")
    if unknown := [way for way in controls if way not in CONTROLS]:
        raise ConfigError(f"control {unknown[0]!r} is unknown; there are {', '.join(CONTROLS)}.")
    made = Trials()

    def train(
        way: str, net: nn.Module, length: int, *methods: Slimming, rate: float = lr, before: Sequence[Run]
    ) -> Run:
        files = stage(folder, way.replace(" ", "-").lower())
        return made.add(way, fit(net, data, *methods, epochs=length, lr=rate, **files, **options), *before)

    if "dense" in controls and ended(train("dense", model, epochs, before=())):
        return made
    net, chain = model, []
    for number in range(1, passes + 1):
        suffix = f" {number}" if passes > 1 else ""
        chain.append(
            train(f"slimmed{suffix}", net, epochs, Slimming(strength, begin if number == 1 else None), before=chain)
        )
        if ended(chain[-1]):
            return made
        pruned, masks = structured.prune(chain[-1], data, 1 - (1 - share) ** (1 / passes), criterion, scope=scope)
        net = structured.shrink(pruned, data, masks).model
        train(f"removed{suffix}", net, 0, before=chain)
        chain.append(
            train(f"fine-tuned{suffix}", net, tune, rate=lr / 10 if tune_lr is None else tune_lr, before=chain)
        )
        if ended(chain[-1]):
            return made
        net = chain[-1].model
    small = narrow_(redrawn(model, options.get("seed", 0)), vars(net)["_pruninglab"]["widths"], rescale=True)
    full, left = (run.result.flops["dense"] for run in (chain[0], chain[-1]))
    longer = full / left if limit is None else min(full / left, limit)
    for way, length in (("Scratch-E", epochs), ("Scratch-B", round(epochs * longer))):
        if way in controls and not ended(made.made[-1].run):
            train(way, small, length, before=chain)
    return made

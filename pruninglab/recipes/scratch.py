"""Train the pruned architecture anew: Liu et al., "Rethinking the value of network pruning", 2019."""

from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..criteria.registry import Criterion, resolve
from ..data.dataset import Data
from ..errors import ConfigError
from ..layers.widths import narrow_
from ..masks.choose import Scope, keep_top, scattered
from ..masks.masks import Masks, Sparsity
from ..methods.cuts.oneshot import OneShot
from ..randomness import own_randomness
from ..structured import choose
from ..structured.shrink import shrink
from ..train.fit import fit
from ..train.run import Run
from .stages import ended, in_scope, stage
from .tickets import redrawn, untrained
from .trials import Trials

COMPUTES = ("flops", "flops+tuning", "epochs")


def scratch(
    model: nn.Module,
    data: Data,
    sparsity: Sparsity,
    *,
    epochs: int,
    finetune: int,
    architecture: str = "found",
    compute: str | float = "flops",
    criterion: str | Criterion | None = None,
    scope: Scope | None = None,
    unit: str = "weight",
    lr: float = 1e-3,
    finetune_lr: float | None = None,
    folder: str | Path | None = None,
    **options: Any,
) -> Trials:
    """Train the untrained `model`, cut and fine-tune for `tune` epochs; beside it, the same architecture from scratch.

    A `"found"` architecture has the fine-tuned net's own masks, by default of one global cut; of a `"predefined"` one
    only the number of each layer was given, by default the same share of all, and the places are random. `unit` is
    `"weight"` or, as in the paper's structured methods, `"channel"`: `sparsity` is then a share of the channels, which
    are taken out as `structured.prune` and `shrink` do, and what is trained anew is the smaller network. By default
    weights go by magnitude and channels by the norm of their filters. Fine-tuning takes a tenth of the learning rate.

    Scratch-E trains new weights for `epochs`. Scratch-B, the survey's "Scratch-D", may compute as much as the dense
    training did; `compute` says what that is: `"flops"` is `epochs` times dense over pruned FLOPs, as the paper has it;
    `"flops+tuning"` adds the epochs of fine-tuning, as its critics ask; a number is a factor (the paper doubles at most
    on ImageNet); with `"epochs"` there is Scratch-E alone. Pruned FLOPs are those on kept weights.

    `folder` holds a checkpoint and a record of each training, and the same call goes on from them.
    """
    untrained(model, options)
    known = {"architecture": (architecture, ("found", "predefined")), "unit": (unit, ("weight", "channel"))}
    for what, (given, values) in known.items():
        if given not in values:
            raise ConfigError(f"{what}={given!r} is unknown; expected {' or '.join(map(repr, values))}.")
    scope = scope or ("global" if architecture == "found" else "layer")
    if architecture == "predefined" and scope == "global" and not isinstance(sparsity, Mapping):
        raise ConfigError("a global cut finds an architecture; a predefined one has scope='layer', or a dict.")
    factor = isinstance(compute, Real) and not isinstance(compute, bool)
    if (factor and float(compute) < 1) or (not factor and compute not in COMPUTES):
        raise ConfigError(
            f"compute={compute!r}; expected a factor of the epochs from 1 on, or one of "
            f"{', '.join(map(repr, COMPUTES))}."
        )
    criterion = criterion or ("magnitude" if unit == "weight" else "filter_l2")
    seed, made, weights = options.get("seed", 0), Trials(), in_scope(model, options)

    def smaller(net: nn.Module | Run) -> tuple[nn.Module, Masks]:
        if isinstance(sparsity, Mapping):
            raise ConfigError("sparsity is a dict; of channels it is one share, since layers share their channels.")
        skip = options.get("skip", ())
        return choose.prune(net, data, sparsity, criterion, scope=scope, skip=skip, seed=seed)

    resolve(criterion)
    if unit == "channel":
        smaller(model)
    else:
        keep_top({name: torch.zeros_like(w) for name, w in weights.items()}, sparsity, scope=scope)
    # What cannot be has been refused; from here on it takes time.
    dense = made.add("dense", fit(model, data, epochs=epochs, lr=lr, **stage(folder, "dense"), **options))
    if ended(dense):
        return made
    tuning = {
        **options,
        "epochs": finetune,
        "lr": lr / 10 if finetune_lr is None else finetune_lr,
        **stage(folder, "fine-tuned"),
    }
    anew, masks = redrawn(model, seed), None
    if unit == "channel":
        small = shrink(smaller(dense)[0], data)
        tuned = made.add("fine-tuned", fit(small.model, data, **tuning), dense)
        with own_randomness(seed):
            narrow_(anew, small.widths)
    else:
        tuned = made.add("fine-tuned", fit(dense, data, OneShot(sparsity, criterion, scope), **tuning), dense)
        masks = tuned.masks if architecture == "found" else scattered(tuned.masks, seed)
    before = (dense,) if architecture == "found" else ()
    lengths = {"Scratch-E": epochs}
    if compute != "epochs":
        lengths["Scratch-B"] = _length(dense, tuned, epochs, finetune, compute)
    for method, length in lengths.items():
        if not ended(made.made[-1].run):
            files = stage(folder, method.lower())
            made.add(method, fit(anew, data, masks=masks, epochs=length, lr=lr, **files, **options), *before)
    return made


def _length(dense: Run, tuned: Run, epochs: int, finetune: int, compute: str | float) -> int:
    """The epochs of Scratch-B."""
    if not isinstance(compute, str):
        return round(epochs * compute)
    length = round(epochs * dense.result.flops["dense"] / tuned.result.flops["sparse"])
    return length + (finetune if compute == "flops+tuning" else 0)

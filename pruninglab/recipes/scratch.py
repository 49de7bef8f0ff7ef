"""Train the pruned architecture anew: Liu et al., "Rethinking the value of network pruning", 2019."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Unpack

import torch
from torch import nn

from ..criteria.registry import Criterion, CriterionName, resolve
from ..data.dataset import Data
from ..errors import ConfigError
from ..layers.widths import narrow_
from ..masks.at_random import scattered
from ..masks.choose import Scope, keep_top
from ..masks.masks import Masks, Sparsity
from ..methods.cuts.oneshot import OneShot
from ..randomness import own_randomness
from ..structured import choose
from ..structured.shrink import shrink
from ..train.options import TrainingOptions
from ..train.run import Run
from ..typed import CountFromZero, Range, Strength
from .stages import Stages, Untrained, check_prunable, in_scope, recipe
from .tickets import redrawn
from .trials import Trials

Compute = Literal["flops", "flops+tuning", "epochs"] | Annotated[float, Range(1), "a factor of the epochs"]


@recipe
def scratch(
    model: Untrained,
    data: Data,
    sparsity: Sparsity,
    *,
    epochs: CountFromZero,
    finetune: CountFromZero,
    architecture: Literal["found", "predefined"] = "found",
    compute: Compute = "flops",
    criterion: CriterionName | Criterion | None = None,
    scope: Scope | None = None,
    unit: Literal["weight", "channel"] = "weight",
    finetune_lr: Strength | None = None,
    folder: str | Path | None = None,
    **options: Unpack[TrainingOptions],
) -> Trials:
    """Train the untrained `model`, cut and fine-tune it. Beside it, train the same architecture from scratch.

    A `"found"` architecture has the fine-tuned net's own masks, by default of one global cut. Of a `"predefined"` one
    only the number of each layer was given, by default the same share of all, and the places are random. `unit` is
    `"weight"` or, as in the paper's structured methods, `"channel"`. Then `sparsity` is a share of the channels, which
    `structured.prune` and `shrink` remove, and the smaller network is trained anew. By default weights go by magnitude
    and channels by the norm of their filters. Fine-tuning takes a tenth of the learning rate.

    "Scratch-E" trains new weights for `epochs`. "Scratch-B", the survey's "Scratch-D", may compute as much as the dense
    training did, and `compute` says what that is. `"flops"` is `epochs` times dense over pruned FLOPs, as in the paper.
    `"flops+tuning"` adds the epochs of fine-tuning, as its critics ask. A number is a factor (on ImageNet the paper
    doubles at most). With `"epochs"` there is Scratch-E alone. Pruned FLOPs are those on kept weights.

    What trains a found architecture anew is charged with the training that found it. `folder` holds a checkpoint and a
    record of each training; the same call goes on from them.
    """
    check_prunable(model, options)
    scope = scope or ("global" if architecture == "found" else "layer")
    if architecture == "predefined" and scope == "global" and not isinstance(sparsity, Mapping):
        raise ConfigError("a global cut finds an architecture; a predefined one has scope='layer', or a dict.")
    criterion = criterion or ("magnitude" if unit == "weight" else "filter_l2")
    seed, stages = options.get("seed", 0), Stages("scratch", data, folder, options, finetune_lr)

    def smaller(net: nn.Module | Run) -> tuple[nn.Module, Masks]:
        if isinstance(sparsity, Mapping):
            raise ConfigError("sparsity is a dict; of channels it is one share, since layers share their channels.")
        skip = options.get("skip", ())
        return choose.prune(net, data, sparsity, criterion, scope=scope, skip=skip, seed=seed)

    resolve(criterion)
    if unit == "channel":
        smaller(model)
    else:
        keep_top({name: torch.zeros_like(w) for name, w in in_scope(model, options).items()}, sparsity, scope=scope)
    # All that is impossible has been refused above; training starts here.
    dense = stages.dense(model, epochs)
    if stages.over:
        return stages.made
    anew, masks, found_by = redrawn(model, seed), None, [dense] if architecture == "found" else []
    if unit == "channel":
        small = shrink(smaller(dense)[0], data)
        tuned = stages.finetune(small.model, epochs=finetune, slower=10, found_by=[dense])
        with own_randomness(seed):
            narrow_(anew, small.widths)
    else:
        tuned = stages.finetune(dense, OneShot(sparsity, criterion, scope), epochs=finetune, slower=10)
        masks = tuned.masks if architecture == "found" else scattered(tuned.masks, seed)
    lengths = {"Scratch-E": epochs}
    if compute != "epochs":
        lengths["Scratch-B"] = _length(dense, tuned, epochs, finetune, compute)
    for name, length in lengths.items():
        stages.train(name, anew, masks=masks, epochs=length, found_by=found_by)
    return stages.made


def _length(dense: Run, tuned: Run, epochs: int, finetune: int, compute: str | float) -> int:
    """The epochs of Scratch-B."""
    if not isinstance(compute, str):
        return round(epochs * compute)
    length = round(epochs * dense.result.flops["dense"] / tuned.result.flops["sparse"])
    return length + (finetune if compute == "flops+tuning" else 0)

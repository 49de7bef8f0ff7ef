"""Train the pruned architecture anew: Liu et al., "Rethinking the value of network pruning", 2019."""

from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from torch import nn

from ..criteria import Criterion
from ..data import Data
from ..errors import ConfigError
from ..masks import Masks, Sparsity
from ..methods import OneShot
from ..results import sparse_flops
from ..run import Run
from ..train import fit
from .admm import ended, stage
from .tickets import redrawn, scattered, untrained
from .trials import Trials

BUDGETS = ("flops", "flops+tuning", "epochs")


def scratch(
    model: nn.Module,
    data: Data,
    sparsity: Sparsity,
    *,
    epochs: int,
    tune: int,
    architecture: str = "found",
    budget: str | float = "flops",
    criterion: str | Criterion = "magnitude",
    scope: str | None = None,
    unit: str = "weight",
    lr: float = 1e-3,
    tune_lr: float | None = None,
    folder: str | Path | None = None,
    **options: Any,
) -> Trials:
    """Train the untrained `model`, cut and fine-tune for `tune` epochs; beside it, the same architecture from scratch.

    A `"found"` architecture has the fine-tuned net's own masks, by default of one global cut; of a `"predefined"` one
    only the number of each layer was given, by default the same share of all, and the places are random. `unit` is
    `"weight"` or, as in the paper's structured methods, `"channel"`. Fine-tuning takes a tenth of the learning rate.

    Scratch-E trains new weights for `epochs`. Scratch-B may compute as much as the dense training did; `budget` says
    what that is: `"flops"` is `epochs` times dense over pruned FLOPs, as the paper has it; `"flops+tuning"` adds the
    epochs of fine-tuning, as its critics ask; a number is a factor (the paper doubles at most on ImageNet); with
    `"epochs"` there is Scratch-E alone. Pruned FLOPs are those on kept weights.

    `folder` holds a checkpoint and a record of each training, and the same call goes on from them.
    """
    untrained(model, options)
    if architecture not in ("found", "predefined"):
        raise ConfigError(f"architecture={architecture!r} is unknown; expected 'found' or 'predefined'.")
    scope = scope or ("global" if architecture == "found" else "layer")
    if architecture == "predefined" and scope == "global" and not isinstance(sparsity, Mapping):
        raise ConfigError("a global cut finds an architecture; a predefined one has scope='layer', or a dict.")
    factor = isinstance(budget, Real) and not isinstance(budget, bool)
    if (factor and float(budget) < 1) or (not factor and budget not in BUDGETS):
        raise ConfigError(
            f"budget={budget!r}; expected a factor of the epochs from 1 on, or one of {', '.join(map(repr, BUDGETS))}."
        )
    seed, made = options.get("seed", 0), Trials()
    dense = made.add("dense", fit(model, data, epochs=epochs, lr=lr, **stage(folder, "dense"), **options))
    if ended(dense):
        return made
    cut = OneShot(sparsity, criterion, scope, unit)
    tuning = {**options, "epochs": tune, "lr": lr / 10 if tune_lr is None else tune_lr}
    tuned = made.add("fine-tuned", fit(dense, data, cut, **stage(folder, "fine-tuned"), **tuning), dense)
    masks, before = tuned.masks, (dense,)
    if architecture == "predefined":
        masks, before = scattered(masks, seed, unit), ()
    anew = redrawn(model, seed)
    lengths = {"Scratch-E": epochs}
    if budget != "epochs":
        lengths["Scratch-B"] = _length(dense, masks, epochs, tune, budget)
    for way, length in lengths.items():
        if not ended(made.made[-1].run):
            files = stage(folder, way.lower())
            made.add(way, fit(anew, data, masks=masks, epochs=length, lr=lr, **files, **options), *before)
    return made


def _length(dense: Run, masks: Masks, epochs: int, tune: int, budget: str | float) -> int:
    """The epochs of Scratch-B."""
    if not isinstance(budget, str):
        return round(epochs * budget)
    kept = sparse_flops(dense.model, dense.flops, masks)
    return round(epochs * dense.result.flops["dense"] / kept) + (tune if budget == "flops+tuning" else 0)

"""Training sparse with regrowth: some weights are dropped and as many grow elsewhere, so that the count stays.

What the methods of this family share: when they act, how large a share they turn over, which weights go, and what they
note. Which weights grow, and in which layers, is each method's own.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import ConfigError
from ...masks.choose import keep_highest
from ...masks.masks import Masks, Sparsity
from ...train.run import Run


class Regrowing(Protocol):
    """The settings that these functions read, and the state that they keep."""

    sparsity: Sparsity
    scope: str
    drop_fraction: float
    every_steps: int | None
    end: float
    settled: bool
    interval: int
    """Steps from one update to the next."""
    changes: list[dict[str, Any]]
    """By update and layer: step, weights dropped, grown, kept, and how many of these were there at the start."""
    first: Masks
    ever: Masks
    """What was kept at the start, and what at any time."""
    original: int
    explored: int
    """How many of the kept weights were there at the start, and how many different ones have been kept."""


def check(method: Regrowing) -> None:
    name = type(method).__name__
    if not 0 < method.drop_fraction < 1:
        raise ConfigError(
            f"drop_fraction={method.drop_fraction:g} is what {name} drops of the kept weights; expected a number "
            "between 0 and 1."
        )
    if method.every_steps is not None and method.every_steps < 1:
        raise ConfigError(
            f"every_steps={method.every_steps}: updates are at least one step apart; None takes the usual interval."
        )
    if not 0 < method.end <= 1:
        raise ConfigError(f"end is a share of the training, 0 < end <= 1; got {method.end:g}.")


def start(method: Regrowing, run: Run, interval: int) -> None:
    """Cut to the sparsity at random, where that is not reached already, and begin to note. `interval` is the usual."""
    name = type(method).__name__
    run.aim(method.sparsity, method.scope)
    if run.steps == 0:
        raise ConfigError(f"{name} moves weights in training, and epochs=0 has no step; use OneShot or more epochs.")
    method.interval = method.every_steps or max(interval, 1)
    if method.interval >= last(method, run):
        raise ConfigError(
            f"{name} would never update: one update every {method.interval} steps, and none from step "
            f"{last(method, run)} on. Give a smaller every_steps=, a larger end= or more epochs."
        )
    run.cut("random", method.sparsity, method.scope)
    method.settled = _next(method, run.step) >= last(method, run)
    method.changes = []
    method.first, method.ever = run.masks.clone(), run.masks.clone()
    method.original = method.explored = run.masks.kept


def due(method: Regrowing, run: Run) -> bool:
    """Whether to update before this step is taken: then new weights take it along, and none ends as it began, at 0."""
    return 0 < run.step < last(method, run) and run.step % method.interval == 0


def last(method: Regrowing, run: Run) -> int:
    """The step from which on nothing moves any more."""
    return max(round(method.end * run.steps), 1)


def annealed(method: Regrowing, run: Run) -> float:
    """Half a cosine from `drop_fraction` at the start to 0 at the end."""
    return method.drop_fraction / 2 * (1 + math.cos(math.pi * run.step / last(method, run)))


def gradients(run: Run) -> dict[str, Tensor]:
    """|g| of every weight in scope, the pruned ones too; layers without a gradient are left out."""
    return {n: w.grad.abs().nan_to_num_() for n, w in run.weights.items() if w.grad is not None}


def drops(masks: Masks, felt: Mapping[str, Tensor], drop_fraction: float) -> dict[str, int]:
    """How many each layer drops: a share, and no more than it misses of which anything is felt."""
    counts = dict.fromkeys(masks, 0)
    for name, score in felt.items():
        kept, felt_missing = int(masks[name].count_nonzero()), int((~masks[name] & (score > 0)).count_nonzero())
        counts[name] = min(int(drop_fraction * kept), felt_missing)
    return counts


def without_smallest(weights: Mapping[str, Tensor], masks: Masks, counts: Mapping[str, int]) -> Masks:
    """The masks without so many of the lowest |w| of each layer."""
    left = Masks()
    for name, mask in masks.items():
        size = weights[name].detach().abs().nan_to_num_().flatten()
        left[name] = keep_highest(size, mask.flatten(), int(mask.count_nonzero()) - counts[name]).view_as(mask)
    return left


@torch.no_grad()
def exchange(method: Regrowing, run: Run, masks: Masks) -> None:
    """Keep exactly these from now on, and note what it changed."""
    before = run.masks
    run.exchange(masks)
    method.ever = method.ever | masks
    method.original = method.explored = 0
    for name, mask in masks.items():
        parts = (before[name] & ~mask, mask & ~before[name], mask, mask & method.first[name], method.ever[name])
        gone, new, kept, original, explored = torch.stack([part.count_nonzero() for part in parts]).tolist()
        counts = {"dropped": gone, "grown": new, "kept": kept, "original": original}
        method.changes.append({"step": run.step, "layer": name, **counts})
        method.original += original
        method.explored += explored
    method.settled = _next(method, run.step + 1) >= last(method, run)


def _next(method: Regrowing, step: int) -> int:
    """The first update at this step or later."""
    return max(math.ceil(step / method.interval), 1) * method.interval

"""Training sparse with regrowth: some weights are dropped and as many grow elsewhere, so that the count stays.

`Turnover` is what the methods of this family share: when weights are exchanged, and a note of what was. Which weights
grow, and in which layers, is each method's own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ...masks.choose import Scope, keep_highest
from ...masks.masks import Masks, Sparsity
from ...train.run import Run


@dataclass
class Turnover:
    """One object for each run: it says when an update is due, makes the exchange and notes it."""

    every_steps: int
    """Steps from one update to the next."""
    last: int
    """The step from which on nothing moves any more."""
    first: Masks
    """What was kept at the start."""
    ever: Masks
    """What was kept at any time."""
    settled: bool
    original: int
    """How many of the kept weights were there at the start."""
    explored: int
    """How many different weights have been kept."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """By update and layer: step, weights dropped, grown, kept, and how many of these were there at the start."""

    @classmethod
    def begin(cls, run: Run, sparsity: Sparsity, scope: Scope, end: float, every_steps: int) -> "Turnover":
        """Cut to the sparsity at random, where that is not reached already, and begin to note."""
        run.aim(sparsity, scope)
        last = last_step(run, end)
        if every_steps >= last:
            raise ConfigError(
                f"{run.name} would never update: one update every {every_steps} steps, and none from step {last} on. "
                "Give a smaller every_steps=, a larger end= or more epochs."
            )
        run.cut("random", sparsity, scope)
        kept = run.masks.kept
        made = cls(every_steps, last, run.masks.clone(), run.masks.clone(), False, kept, kept)
        made.settled = made._next(run.step) >= last
        return made

    def due(self, run: Run) -> bool:
        """Whether to update before this step is taken, so that new weights take it too and none ends at 0."""
        return 0 < run.step < self.last and run.step % self.every_steps == 0

    @torch.no_grad()
    def exchange(self, run: Run, masks: Masks) -> None:
        """Keep exactly these from now on, and note what it changed."""
        before = run.masks
        run.exchange(masks)
        self.ever = self.ever | masks
        self.original = self.explored = 0
        for name, mask in masks.items():
            parts = (before[name] & ~mask, mask & ~before[name], mask, mask & self.first[name], self.ever[name])
            gone, new, kept, original, explored = torch.stack([part.count_nonzero() for part in parts]).tolist()
            counts = {"dropped": gone, "grown": new, "kept": kept, "original": original}
            self.changes.append({"step": run.step, "layer": name, **counts})
            self.original += original
            self.explored += explored
        self.settled = self._next(run.step + 1) >= self.last

    def _next(self, step: int) -> int:
        """The first update at this step or later."""
        return max(math.ceil(step / self.every_steps), 1) * self.every_steps


def last_step(run: Run, end: float) -> int:
    return max(round(end * run.steps), 1)


def annealed(drop_fraction: float, step: int, last: int) -> float:
    """Half a cosine from `drop_fraction` at the start to 0 at the end."""
    return drop_fraction / 2 * (1 + math.cos(math.pi * step / last))


def gradients(run: Run) -> dict[str, Tensor]:
    """|g| of every weight in scope, the pruned ones too; layers without a gradient are left out."""
    return {n: w.grad.abs().nan_to_num_() for n, w in run.weights.items() if w.grad is not None}


def drops(masks: Masks, felt: Mapping[str, Tensor], drop_fraction: float) -> dict[str, int]:
    """How many each layer drops: a fraction of the kept, and no more than can grow, where anything is felt."""
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

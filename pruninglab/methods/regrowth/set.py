"""Sparse evolutionary training: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
connectivity inspired by network science", 2018.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ...masks.choose import Scope, grow, spread
from ...masks.masks import Masks, Sparsity
from ...train.method import Method
from ...train.run import Run
from ...typed import Count, PartialFraction, PositiveFraction
from .turnover import Turnover, drops, gradients, without_smallest


def update(
    weights: Mapping[str, Tensor], felt: Mapping[str, Tensor], masks: Masks, drop_fraction: float, drop: str = "sign"
) -> Masks:
    """Of each layer drop the weights closest to zero, and grow as many at random, where anything is felt."""
    counts = drops(masks, felt, drop_fraction)
    chance = {name: torch.rand(g.shape, device=g.device) + (g > 0) for name, g in felt.items()}
    left = (without_closest if drop == "sign" else without_smallest)(weights, masks, counts)
    return grow(left, chance, counts)


def without_closest(weights: Mapping[str, Tensor], masks: Masks, counts: Mapping[str, int]) -> Masks:
    """The masks without so many of each layer, the same share of the positive and of the negative weights."""
    left = Masks()
    for name, mask in masks.items():
        weight = weights[name].detach().nan_to_num()
        signs = [Masks({name: mask & (weight >= 0)}), Masks({name: mask & (weight < 0)})]
        there = [sign.kept for sign in signs]
        each = spread(counts[name], there, there)
        kept = [without_smallest(weights, s, {name: k}) for s, k in zip(signs, each, strict=True)]
        left[name] = (kept[0] | kept[1])[name]
    return left


@dataclass
class SET(Method):
    """Train at one sparsity; now and then drop of each layer the weights closest to zero, and grow others at random.

    It starts from a random mask whose layers have the shares of `scope` ("erk" is the paper's density for linear
    layers). If the run's masks are as sparse already, it starts from them. `drop="sign"`, the paper's, drops the same
    share of the positive and of the negative weights. "magnitude", as in later comparisons, drops those with the lowest
    |w|, whatever their sign. `every_steps` is the number of steps from update to update, None an epoch. A new weight
    starts at 0, and so does what the optimizer remembers of it.

    Deviations: the paper's last update comes after training. Here no weight moves after the share `end` of the
    training, and an epoch's update comes in the first step of the next. A weight without any gradient in that step does
    not grow: it leads nowhere, and would stay 0.

    >>> run = lab.fit(model, data, lab.methods.SET(0.9), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    10%
    """

    in_training = True
    sees_pruned = True
    sparsity: Sparsity
    scope: Scope = "erk"
    drop_fraction: PartialFraction = 0.3
    every_steps: Count | None = None
    end: PositiveFraction = 1.0
    drop: Literal["sign", "magnitude"] = "sign"
    turnover: Turnover = field(init=False)

    @property
    def settled(self) -> bool:
        return self.turnover.settled

    def on_start(self, run: Run) -> None:
        every = self.every_steps or run.steps_per_epoch
        self.turnover = Turnover.begin(run, self.sparsity, self.scope, self.end, every)

    def on_grad(self, run: Run) -> None:
        if self.turnover.due(run):
            masks = update(run.weights, gradients(run), run.masks, self.drop_fraction, self.drop)
            self.turnover.exchange(run, masks)

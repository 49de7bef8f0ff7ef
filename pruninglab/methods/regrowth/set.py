"""Sparse evolutionary training: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
connectivity inspired by network science", 2018.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ...masks.choose import grow, spread
from ...masks.masks import Masks, Sparsity
from ...train.method import Method
from ...train.run import Run
from . import turnover


@dataclass
class SET(Method):
    """Train at one sparsity; now and then drop of each layer the weights closest to zero, and grow others at random.

    It starts from a random mask whose layers have the shares of `scope` ("erk" is the paper's density for linear
    layers), or from the run's masks where these are as sparse already. The same share of the positive and of the
    negative weights is dropped (`drop="sign"`, the paper's), or those with the lowest |w|, whatever their sign
    ("magnitude", as in later comparisons). `every_steps` is the number of steps from update to update, None an epoch. A
    new weight starts at 0, and so does what the optimizer remembers of it.

    Deviations: the paper's last update comes after training; here nothing moves from the share `end` of the training
    on, and an epoch's update comes in the first step of the next. A weight without any gradient in that step does not
    grow: it leads nowhere, and would stay 0.
    """

    sparsity: Sparsity
    scope: str = "erk"
    drop_fraction: float = 0.3
    every_steps: int | None = None
    end: float = 1.0
    drop: str = "sign"
    settled: bool = field(init=False)
    interval: int = field(init=False)
    changes: list[dict[str, Any]] = field(init=False)
    first: Masks = field(init=False)
    ever: Masks = field(init=False)
    original: int = field(init=False)
    explored: int = field(init=False)

    def __post_init__(self) -> None:
        turnover.check(self)
        if self.drop not in ("sign", "magnitude"):
            raise ConfigError(f"drop={self.drop!r} is unknown; expected 'sign' or 'magnitude'.")

    def on_start(self, run: Run) -> None:
        turnover.start(self, run, run.steps_per_epoch)

    def on_grad(self, run: Run) -> None:
        if not turnover.due(self, run):
            return
        felt = turnover.gradients(run)
        counts = turnover.drops(run.masks, felt, self.drop_fraction)
        chance = {name: torch.rand(g.shape, device=g.device) + (g > 0) for name, g in felt.items()}
        choose = _without_closest if self.drop == "sign" else turnover.without_smallest
        left = choose(run.weights, run.masks, counts)
        turnover.exchange(self, run, grow(left, chance, counts))


def _without_closest(weights: Mapping[str, Tensor], masks: Masks, drops: Mapping[str, int]) -> Masks:
    """The masks without so many of each layer, the same share of the positive and of the negative weights."""
    left = Masks()
    for name, mask in masks.items():
        weight = weights[name].detach().nan_to_num()
        signs = [Masks({name: mask & (weight >= 0)}), Masks({name: mask & (weight < 0)})]
        there = [sign.kept for sign in signs]
        counts = spread(drops[name], there, there)
        kept = [turnover.without_smallest(weights, s, {name: k}) for s, k in zip(signs, counts, strict=True)]
        left[name] = (kept[0] | kept[1])[name]
    return left

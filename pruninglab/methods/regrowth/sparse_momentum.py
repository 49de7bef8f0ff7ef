"""Sparse momentum: Dettmers and Zettlemoyer, "Sparse networks from scratch: faster training without losing
performance", 2019.
"""
# pyright: reportPrivateImportUsage=false

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...masks.choose import Scope, grow, spread
from ...masks.masks import Masks, Sparsity
from ...train.method import Method
from ...train.run import Run
from ...typed import BelowOne, Count, PartialFraction, PositiveFraction
from .turnover import Turnover, annealed, drops, without_smallest


def moving_average(average: list[Tensor], gradient: list[Tensor], beta: float) -> None:
    """m ← β·m + (1 - β)·g in each layer, in place."""
    torch._foreach_lerp_(average, gradient, 1 - beta)


def update(
    weights: Mapping[str, Tensor],
    felt: Mapping[str, Tensor],
    momentum: Mapping[str, Tensor],
    masks: Masks,
    drop_fraction: float,
) -> Masks:
    """Drop the weights with the lowest |w|. Layers regrow in proportion to the mean |momentum| of what they keep."""
    growth = {name: m * (felt[name] != 0) for name, m in momentum.items()}
    counts = drops(masks, growth, drop_fraction)
    left = without_smallest(weights, masks, counts)
    shares = [float(m[masks[name]].mean().nan_to_num_()) for name, m in momentum.items()]
    room = [int((~left[name] & (m > 0)).count_nonzero()) for name, m in growth.items()]
    grown = spread(sum(counts.values()), shares, room)
    return grow(left, growth, dict(zip(growth, grown, strict=True)))


@dataclass
class SparseMomentum(Method):
    """Train at one sparsity; once an epoch drop each layer's smallest weights, and grow where momentum is largest.

    The momentum is a moving average of the dense gradient (`beta`), of missing weights too. The share that is dropped
    falls along half a cosine from `drop_fraction` to 0. All layers together grow as many weights as they dropped. Each
    layer's part is in proportion to the mean |momentum| of its kept weights. Within a layer, the missing weights with
    the largest |momentum| grow. So weights move between layers, and their number stays. It starts from a random mask
    whose layers have the shares of `scope`, or from the run's masks if these are as sparse already. `every_steps` is
    the number of steps from update to update, None an epoch. A new weight starts at 0, and so does what the optimizer
    remembers of it.

    Deviations: the momentum is the method's own whatever the optimizer; the authors take the optimizer's, under Adam
    divided by the root of its second moment. They drop less of a layer that is nearly full; here it regrows what it
    dropped. A weight without a gradient in that step does not grow: it may lead nowhere, and stay 0. Their last update
    comes after training; here an epoch's update comes in the first step of the next.

    >>> run = lab.fit(model, data, lab.methods.SparseMomentum(0.9), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    10%
    """

    in_training = True
    sees_pruned = True
    sparsity: Sparsity
    scope: Scope = "layer"
    drop_fraction: PartialFraction = 0.5
    every_steps: Count | None = None
    end: PositiveFraction = 1.0
    beta: BelowOne = 0.9
    turnover: Turnover = field(init=False)
    momentum: dict[str, Tensor] = field(init=False)

    @property
    def settled(self) -> bool:
        return self.turnover.settled

    def on_start(self, run: Run) -> None:
        every = self.every_steps or run.steps_per_epoch
        self.turnover = Turnover.begin(run, self.sparsity, self.scope, self.end, every)
        self.momentum = {name: torch.zeros_like(weight) for name, weight in run.weights.items()}

    def on_grad(self, run: Run) -> None:
        if self.settled:
            return
        felt = {name: weight.grad for name, weight in run.weights.items() if weight.grad is not None}
        moving_average([self.momentum[name] for name in felt], list(felt.values()), self.beta)
        if self.turnover.due(run):
            momentum = {name: self.momentum[name].abs().nan_to_num_() for name in felt}
            fraction = annealed(self.drop_fraction, run.step, self.turnover.last)
            self.turnover.exchange(run, update(run.weights, felt, momentum, run.masks, fraction))

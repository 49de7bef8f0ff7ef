"""Sparse momentum: Dettmers and Zettlemoyer, "Sparse networks from scratch: faster training without losing
performance", 2019.
"""
# pyright: reportPrivateImportUsage=false

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
class SparseMomentum(Method):
    """Train at one sparsity; once an epoch drop each layer's smallest weights, and grow where momentum is largest.

    The momentum is a moving average of the dense gradient (`beta`), of missing weights too. What all layers drop
    together, a share that falls along half a cosine from `drop_fraction` to 0, is handed out in proportion to the mean
    |momentum| of each layer's kept weights, and grows in a layer where the |momentum| of the missing is largest. So
    weights move between layers, and their number stays. It starts from a random mask whose layers have the shares of
    `scope`, or from the run's masks where these are as sparse already. `every_steps` is the number of steps from update
    to update, None an epoch. A new weight starts at 0, and so does what the optimizer remembers of it.

    Deviations: the momentum is the method's own whatever the optimizer; the authors take the optimizer's, under Adam
    divided by the root of its second moment. They drop less of a layer that is nearly full; here it regrows what it
    dropped. What has no gradient in that step does not grow: it may lead nowhere, and stay 0. Their last update comes
    after training, an epoch's here in the first step of the next.
    """

    sparsity: Sparsity
    scope: str = "layer"
    drop_fraction: float = 0.5
    every_steps: int | None = None
    end: float = 1.0
    beta: float = 0.9
    settled: bool = field(init=False)
    interval: int = field(init=False)
    changes: list[dict[str, Any]] = field(init=False)
    first: Masks = field(init=False)
    ever: Masks = field(init=False)
    original: int = field(init=False)
    explored: int = field(init=False)
    momentum: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        turnover.check(self)
        if not 0 <= self.beta < 1:
            raise ConfigError(f"beta={self.beta:g} is the factor of the moving average; expected 0 <= beta < 1.")

    def on_start(self, run: Run) -> None:
        turnover.start(self, run, run.steps_per_epoch)
        self.momentum = {name: torch.zeros_like(weight) for name, weight in run.weights.items()}

    def on_grad(self, run: Run) -> None:
        if self.settled:
            return
        felt = {name: weight.grad for name, weight in run.weights.items() if weight.grad is not None}
        torch._foreach_lerp_([self.momentum[name] for name in felt], list(felt.values()), 1 - self.beta)
        if turnover.due(self, run):
            momentum = {name: self.momentum[name].abs().nan_to_num_() for name in felt}
            self._update(run, momentum, {name: m * (felt[name] != 0) for name, m in momentum.items()})

    def _update(self, run: Run, momentum: dict[str, Tensor], growth: dict[str, Tensor]) -> None:
        drops = turnover.drops(run.masks, growth, turnover.annealed(self, run))
        left = turnover.without_smallest(run.weights, run.masks, drops)
        shares = [float(m[run.masks[name]].mean().nan_to_num_()) for name, m in momentum.items()]
        room = [int((~left[name] & (m > 0)).count_nonzero()) for name, m in growth.items()]
        grows = spread(sum(drops.values()), shares, room)
        turnover.exchange(self, run, grow(left, growth, dict(zip(growth, grows, strict=True))))

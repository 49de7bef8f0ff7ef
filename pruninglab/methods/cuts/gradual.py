"""Gradual magnitude pruning: Zhu and Gupta, "To prune, or not to prune", 2017."""

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from ...criteria.registry import Criterion, CriterionName
from ...errors import ConfigError
from ...masks.choose import Scope, keep_top
from ...masks.masks import Masks, Sparsity, Unit
from ...masks.schedules import Schedule
from ...train.method import Method
from ...train.run import Run
from ...typed import Count, Fraction, PositiveFraction


@dataclass
class Gradual(Method):
    """Cut `cuts` times between the shares `begin` and `end` of the training, along `schedule`; then the mask is frozen.

    The paper renews its masks every n steps. A number of cuts means the same for runs of every length. With
    `reactivate`, as in the authors' code, a pruned weight keeps its last value aside and competes in every cut. It
    comes back with that value when kept weights have fallen below it.

    >>> run = lab.fit(model, data, lab.methods.Gradual(lab.Cubic(0.9)), epochs=2)
    >>> print(f"{run.masks.density:.0%} of the weights are left")
    10% of the weights are left
    """

    in_training = True
    schedule: Annotated[Schedule, "for example lab.Cubic(0.9)"]
    criterion: CriterionName | Criterion = "magnitude"
    scope: Scope = "global"
    unit: Unit = "weight"
    begin: Fraction = 0.0
    end: PositiveFraction = 0.75
    cuts: Count = 50
    reactivate: bool = False
    settled: bool = field(init=False)
    revived: int = field(init=False)
    remembered: dict[str, Tensor] = field(init=False)
    allowed: Masks = field(init=False)

    def __post_init__(self) -> None:
        if self.begin >= self.end:
            raise ConfigError(f"Gradual: begin={self.begin:g} has to come before end={self.end:g}.")

    @property
    def sees_pruned(self) -> bool:
        return self.reactivate

    def on_start(self, run: Run) -> None:
        run.aim(self.schedule(1.0), self.scope, self.unit)
        self.settled = False
        self.revived = 0
        self.allowed = run.masks.clone() if self.reactivate else Masks()
        self.remembered = {name: torch.zeros_like(w) for name, w in run.weights.items()} if self.reactivate else {}

    def on_step(self, run: Run) -> None:
        due = self._moments(run.step, run.steps)
        if self.settled or due == self._moments(run.step - 1, run.steps):
            return
        self.settled = due > self.cuts
        sparsity = self.schedule((due - 1) / self.cuts)
        if self.reactivate:
            self._renew(run, sparsity)
        else:
            run.cut(self.criterion, sparsity, self.scope, self.unit)

    def _moments(self, step: int, steps: int) -> int:
        """How many of the moments 0 … cuts, evenly spaced from start to end, have come by `step`."""
        first, last = max(round(self.begin * steps), 1), max(round(self.end * steps), 1)
        if step < first:
            return 0
        return self.cuts + 1 if step >= last else 1 + (step - first) * self.cuts // (last - first)

    @torch.no_grad()
    def _renew(self, run: Run, sparsity: Sparsity) -> None:
        """Choose among all weights, the pruned ones by the values that they had."""
        old, dense = run.masks, {}
        for name, weight in run.weights.items():
            dense[name] = torch.where(old[name], weight, self.remembered[name])
            weight.copy_(dense[name])
        choice = {"scope": self.scope, "unit": self.unit, "masks": self.allowed, "clamp": True}
        chosen = keep_top(run.score(self.criterion, masked=False), sparsity, **choice)
        self.revived += run.grow(chosen)
        run.masks = chosen
        for name, weight in run.weights.items():
            weight.copy_(torch.where(chosen[name], dense[name], 0))
            self.remembered[name] = torch.where(chosen[name], 0, dense[name])

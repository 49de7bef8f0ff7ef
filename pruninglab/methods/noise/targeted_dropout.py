"""Targeted dropout: Gomez et al., "Learning sparse networks using targeted dropout", 2019 (arXiv 1905.13678)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import functional_call

from ...masks.choose import Scope
from ...masks.masks import UNITS, Masks, Sparsity, Unit
from ...masks.projections import largest
from ...masks.schedules import Constant, Schedule
from ...train.method import Method
from ...train.run import Run
from ...typed import Fraction, PositiveFraction
from . import steering


@dataclass
class TargetedDropout(Method):
    """Drop the smallest weights at random while training, so that the net learns to do without; then cut them.

    The candidates are the share `sparsity` (γ) of the weights with the lowest magnitude. In every step each candidate
    is left out of the forward pass with the probability `drop` (α), and gets no gradient then. `unit="channel"` drops
    and cuts whole units by their norm (the paper's unit form). A schedule as `sparsity` raises γ with the progress of
    the run ("ramping"). At the share `end` of the training the candidates are cut; then training continues under the
    mask. Validation sees all weights. Nothing is rescaled, because the dropped weights should matter little.

    Deviations: candidates are the smallest of each layer (or of `scope`), the paper's those of each unit's inputs.

    >>> run = lab.fit(model, data, lab.methods.TargetedDropout(0.9), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    10%
    """

    in_training = True
    sparsity: Sparsity | Schedule
    drop: Fraction = 0.5
    scope: Scope = "layer"
    unit: Unit = "weight"
    end: PositiveFraction = 1.0
    settled: bool = field(init=False)

    def on_start(self, run: Run) -> None:
        run.aim(self._schedule()(1.0), self.scope, self.unit)
        steering.alone(run, "TargetedDropout")
        self.settled = False
        inside = run.net

        def net(x: Tensor) -> Tensor:
            if self.settled or not run.model.training:
                return inside(x)
            return functional_call(run.model, self._dropped(run), x)

        run.net = net

    def on_step(self, run: Run) -> None:
        if not self.settled and run.step >= max(round(self.end * run.steps), 1):
            run.masks = self._largest(run, 1.0)
            self.settled = True

    def _dropped(self, run: Run) -> dict[str, Tensor]:
        """The weights, those that are left out in this step set to 0."""
        kept = self._largest(run, run.progress)
        dropped: dict[str, Tensor] = {}
        for name, weight in run.weights.items():
            drawn = torch.rand(weight.shape[: UNITS[self.unit]], device=weight.device) < self.drop
            drawn = drawn.reshape(*drawn.shape, *[1] * (weight.ndim - drawn.ndim))
            dropped[name] = weight * (kept[name] | ~drawn).to(weight.dtype)
        return dropped

    def _largest(self, run: Run, progress: float) -> Masks:
        share = self._schedule()(progress)
        return largest(run.weights, share, scope=self.scope, unit=self.unit, masks=run.masks)

    def _schedule(self) -> Schedule:
        return self.sparsity if isinstance(self.sparsity, Schedule) else Constant(self.sparsity)

"""Dynamic network surgery: Guo, Yao and Chen, "Dynamic network surgery for efficient DNNs", 2016."""

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from ...errors import ConfigError
from ...layers.names import NOTHING
from ...masks.choose import Scope, keep_top
from ...masks.masks import Masks, Sparsity
from ...masks.projections import project
from ...masks.threshold import counted
from ...randomness import generator
from ...train.method import Method
from ...train.run import Run
from ...typed import PositiveFraction, Range, Strength


def above(w: Tensor, mask: Tensor, threshold: Tensor, low: float, high: float) -> Tensor:
    """What is kept: of the kept weights |w| > low·t, of the pruned |w| > high·t."""
    return torch.where(mask, w.abs() > low * threshold, w.abs() > high * threshold)


def deviations(w: Tensor, mask: Tensor, allowed: Tensor, low: float, high: float) -> Tensor:
    """The same solved for c in t = mean + c·deviation: |w| > f·t, f low or high, is (|w|/f - mean)/deviation > c."""
    size = w.abs().nan_to_num_()
    deviation, mean = spread_of(size.flatten() if counted(allowed) == len(allowed.flatten()) else size[allowed])
    factor = torch.lerp(size.new_tensor(high), size.new_tensor(low), mask.to(size.dtype))
    return (size / factor - mean) / deviation.clamp_min(torch.finfo(size.dtype).tiny)


def spread_of(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Deviation and mean; 0 for a layer that has collapsed before. In two passes: `torch.std_mean` takes 20 times."""
    mean = sizes.sum() / max(len(sizes), 1)
    return torch.linalg.vector_norm(sizes - mean) / max(len(sizes), 1) ** 0.5, mean


def probability(step: int, gamma: float, power: float) -> float:
    """Of surgery after this step: (1 + gamma·steps)^-power."""
    return (1 + gamma * step) ** -power


@dataclass
class DynamicSurgery(Method):
    """Cut what is small, train it on all the same, and splice it back once it has become large.

    The forward pass sees only kept weights; the gradient updates all, with the values of the pruned ones kept `aside`.
    Each layer has a threshold t of |w|. A kept weight up to `low`·t is cut; a pruned one above `high`·t comes back with
    the value that it has by then. In each layer t = mean + c·deviation of |w|. One of two settings gives c:

    `sparsity`: c is chosen anew each time, the same for all layers, so that exactly so many are left ("global"; in
    another `scope` each layer has its own).
    `crate`: that is c, with mean and deviation at the start: the paper's rule. What sparsity follows is not known.

    After each step surgery is done with a `probability` that falls, until the share `end` of the training, when the
    mask is frozen.

    The paper starts from a trained net. Deviations: in the authors' code the numbers of the layer's bias enter mean and
    deviation, and biases are cut; here what is in scope. Weight decay does not reach the values that are aside.

    >>> run = lab.fit(model, data, lab.methods.DynamicSurgery(0.9), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    10%
    """

    in_training = True
    sees_pruned = True
    sparsity: Sparsity | None = None
    crate: float | None = None
    scope: Scope = "global"
    low: PositiveFraction = 0.9
    high: Annotated[float, Range(1)] = 1.1
    gamma: Strength = 1e-4
    power: Strength = 1.0
    end: PositiveFraction = 0.75
    settled: bool = field(init=False)
    spliced: int = field(init=False)
    """How often a weight has come back."""
    aside: dict[str, Tensor] = field(init=False)
    allowed: Masks = field(init=False)
    levels: dict[str, Tensor] = field(init=False)
    """With `crate`, the threshold of each layer."""

    def __post_init__(self) -> None:
        if (self.sparsity is None) == (self.crate is None):
            raise ConfigError("DynamicSurgery needs either sparsity=0.9 or crate=1.0, the paper's threshold.")

    def on_start(self, run: Run) -> None:
        if self.sparsity is not None:
            run.aim(self.sparsity, self.scope)
        if not run.weights:
            raise ConfigError(NOTHING)
        self.settled = False
        self.spliced = 0
        self.allowed = run.masks.clone()
        self.aside = {name: torch.zeros_like(weight) for name, weight in run.weights.items()}
        self.levels = {}
        if self.crate is not None:
            for name, weight in run.weights.items():
                deviation, mean = spread_of(weight.detach()[run.masks[name]].abs())
                self.levels[name] = (mean + self.crate * deviation).clamp_min(0.0)

    @torch.no_grad()
    def on_step(self, run: Run) -> None:
        if self.settled:
            return
        values, drawn = self._values(run), torch.rand((), generator=generator(run.options.seed, "surgery", run.step))
        if run.step >= max(round(self.end * run.steps), 1):
            self._settle(run, values)
        elif drawn < probability(run.step, self.gamma, self.power):
            self._operate(run, values)
        else:
            self.aside = project(values, ~run.masks)

    @torch.no_grad()
    def on_end(self, run: Run) -> None:
        if not self.settled and run.status != "diverged":  # broken off before its time
            self._settle(run, self._values(run))

    def _values(self, run: Run) -> dict[str, Tensor]:
        """All weights after this step. A pruned one was 0 before it, so what it is now is what the step added.

        `aside` holds the values of the pruned and 0 for the kept, so that one sum is right for both.
        """
        return {name: weight.detach() + self.aside[name] for name, weight in run.weights.items()}

    def _operate(self, run: Run, values: dict[str, Tensor]) -> None:
        self.spliced += run.exchange(self._masks(run.masks, values), values)
        self.aside = project(values, ~run.masks)

    def _settle(self, run: Run, values: dict[str, Tensor]) -> None:
        if self.crate is None:
            self._operate(run, values)
        self.aside = {}
        self.settled = True

    def _masks(self, masks: Masks, values: dict[str, Tensor]) -> Masks:
        factors = (self.low, self.high)
        if self.sparsity is None:
            return Masks({n: above(w, masks[n], self.levels[n], *factors) for n, w in values.items()}) & self.allowed
        scores = {n: deviations(w, masks[n], self.allowed[n], *factors) for n, w in values.items()}
        return keep_top(scores, self.sparsity, scope=self.scope, masks=self.allowed, clamp=True)

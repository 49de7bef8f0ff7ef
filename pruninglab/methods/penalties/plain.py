"""Plain L2 and L1 penalties, and what all penalties share."""
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...masks.masks import Masks
from ...train.method import Method
from ...train.run import Run
from ...typed import Strength


@dataclass
class L2(Method):
    """Adds λ·Σ w² to the loss, through the optimizer: a weight decay of 2λ. In `RelevanceL2(alpha=0)` λ decays too.

    >>> run = lab.fit(model, data, lab.methods.L2(1e-4), lab.methods.OneShot(0.9), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    10%
    """

    strength: Strength = 1e-3
    only_prunable: bool = False

    @torch.no_grad()
    def on_grad(self, run: Run) -> None:
        if weights := with_gradient(run, self.only_prunable):
            add_terms(weights, weights, 2 * self.strength)


@dataclass
class L1(Method):
    """Adds λ·Σ |w| to the loss, with the subgradient λ·sgn(w), through the optimizer.

    >>> run = lab.fit(model, data, lab.methods.L1(1e-4), lab.methods.OneShot(0.9), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    10%
    """

    strength: Strength = 1e-5
    only_prunable: bool = False

    @torch.no_grad()
    def on_grad(self, run: Run) -> None:
        if weights := with_gradient(run, self.only_prunable):
            add_terms(weights, [weight.sign() for weight in weights], self.strength)


def with_gradient(run: Run, only_prunable: bool) -> list[Tensor]:
    """Those of all parameters, or of those that may be cut, that this step has a gradient for."""
    chosen = run.weights.values() if only_prunable else run.model.parameters()
    return [w for w in chosen if w.grad is not None]


def gradients_of(weights: list[Tensor]) -> list[Tensor]:
    return [w.grad for w in weights if w.grad is not None]


def add_terms(weights: list[Tensor], terms: list[Tensor], factor: float = 1.0) -> None:
    """To the gradients of these weights."""
    torch._foreach_add_(gradients_of(weights), terms, alpha=factor)


def shrink(weights: list[Tensor], shares: list[Tensor] | tuple[Tensor, ...]) -> None:
    """Take these shares off the weights, nothing where a share is no number, so that a broken step harms no weight."""
    for share in shares:
        share.nan_to_num_(0.0)
    torch._foreach_addcmul_(weights, weights, shares, value=-1.0)


def at_least(weights: Mapping[str, Tensor], masks: Masks, threshold: float) -> Masks:
    """What is kept of these masks without all |w| below the threshold."""
    return Masks({name: mask & (weights[name].detach().abs() >= threshold) for name, mask in masks.items()})


def largest_threshold(loss: Callable[[float], float], bound: float, high: float, halvings: int = 20) -> float:
    """The largest threshold from 0 to `high` whose loss is within the bound, by bisection."""
    low = 0.0
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) <= bound else (low, middle)
    return low

"""Criteria: `(model, batches) -> {name: score}`, the higher is kept. Pure: nothing is remembered, no gradient is left.

A criterion scores every parameter that it can; what is in scope is chosen elsewhere. One that has settings is a frozen
dataclass, so that it prints itself in tables and records. Any function of your own serves as well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..layers.names import canonical_parameters
from ..layers.precision import exact
from ..masks.projections import n_of_m
from .registry import BY_NAME, Batches, Criterion, resolve


def magnitude(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """|w|."""
    return {name: w.detach().abs() for name, w in canonical_parameters(model).items()}


def layer_magnitude(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """|w| in standard deviations of its layer: one global threshold is then Han's quality factor (Han 2015)."""
    scores = {}
    for name, w in canonical_parameters(model).items():
        deviation = exact(w).std(correction=0).to(w.dtype) if w.numel() > 1 else w.detach().abs()
        scores[name] = w.detach().abs() / deviation.clamp_min(torch.finfo(w.dtype).tiny)
    return scores


def random(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """Uniform noise; inside a run it comes from the run's own generator."""
    return {name: torch.rand(w.shape, device=w.device) for name, w in canonical_parameters(model).items()}


@dataclass(frozen=True)
class Gradient:
    """|g|, g the mean gradient of the loss over `batches` batches."""

    batches: int = 1
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        return {name: g.abs() for name, (_, g) in _gradients(model, batches, self).items()}


@dataclass(frozen=True)
class Taylor:
    """|w·g|, the first-order change of the loss when the weight is cut (Molchanov 2017; SNIP's score)."""

    batches: int = 1
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        return {name: (w * g).abs() for name, (w, g) in _gradients(model, batches, self).items()}


@dataclass(frozen=True)
class Movement:
    """-w·g: kept is what a gradient step moves away from zero (Sanh 2020, over `batches` batches at one point)."""

    batches: int = 8
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        return {name: -w * g for name, (w, g) in _gradients(model, batches, self).items()}


@dataclass(frozen=True)
class NofM:
    """Another criterion by the pattern n:m: the n highest of every m neighbours along the inputs go last, all layers
    ranked together.

    A sparsity of 1 - n/m, one cut or along a schedule, then leaves at most n of every m: 2:4 at one half.
    """

    criterion: str | Criterion = "magnitude"
    n: int = 2
    m: int = 4

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        scores = {name: exact(s) for name, s in resolve(self.criterion)(model, batches).items()}
        low, high = min(float(s.min()) for s in scores.values()), max(float(s.max()) for s in scores.values())
        between = {name: (s - low) / ((high - low) or 1.0) for name, s in scores.items()}
        return {name: between[name] + 2 * kept for name, kept in n_of_m(between, self.n, self.m).items()}


def _matrices(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What has filters: every parameter of two dimensions or more."""
    return [(name, w) for name, w in canonical_parameters(model).items() if w.ndim > 1]


def _gradients(model: nn.Module, batches: Batches | None, criterion: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and mean gradient of each parameter. `.grad` is neither read nor written."""
    if batches is None:
        raise ConfigError(f"{type(criterion).__name__} needs data to take gradients; pass data=.")
    named = {name: w for name, w in canonical_parameters(model).items() if w.requires_grad}
    sums = {name: torch.zeros_like(w) for name, w in named.items()}
    seen = 0
    for x, y in islice(batches, criterion.batches):
        with torch.enable_grad():
            loss = criterion.loss(model(x), y)
            grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for name, g in zip(named, grads, strict=True):
            if g is not None:
                sums[name] += g * len(x)
        seen += len(x)
    if not seen:
        raise ConfigError(f"{type(criterion).__name__} got no batches; it needs at least one.")
    return {name: (w.detach(), sums[name] / seen) for name, w in named.items()}


BY_NAME.update(
    magnitude=magnitude,
    layer_magnitude=layer_magnitude,
    random=random,
    gradient=Gradient(),
    taylor=Taylor(),
    movement=Movement(),
)

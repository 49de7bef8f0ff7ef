"""Criteria: `(model, batches) -> {name: score}`, the higher is kept. Pure: nothing is remembered, no gradient is left.

A criterion scores every parameter that it can; what is in scope is chosen elsewhere. One that has settings is a frozen
dataclass, so that it prints itself in tables and records. Any function of your own serves as well.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers.names import canonical_parameters
from ..layers.precision import exact
from ..masks.projections import n_of_m
from ..typed import Checked, Count, checked
from .gradients import OfGradients, weights_and_gradients
from .registry import BY_NAME, Batches, Criterion, CriterionName, resolve


@checked
def magnitude(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """|w|.

    >>> _, masks = lab.prune(model, 0.9, lab.criteria.magnitude, scope="layer")
    >>> print(f"{masks.density:.0%}")
    10%
    """
    return {name: w.detach().abs() for name, w in canonical_parameters(model).items()}


@checked
def layer_magnitude(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """|w| in standard deviations of its layer: one global threshold is then Han's quality factor (Han 2015).

    >>> _, masks = lab.prune(model, 0.9, lab.criteria.layer_magnitude)
    >>> print(f"{masks.density:.0%}")
    10%
    """
    scores = {}
    for name, w in canonical_parameters(model).items():
        deviation = exact(w).std(correction=0).to(w.dtype) if w.numel() > 1 else w.detach().abs()
        scores[name] = w.detach().abs() / deviation.clamp_min(torch.finfo(w.dtype).tiny)
    return scores


@checked
def random(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """Uniform noise; inside a run it comes from the run's own generator."""
    return {name: torch.rand(w.shape, device=w.device) for name, w in canonical_parameters(model).items()}


@dataclass(frozen=True)
class Gradient(OfGradients):
    """|g|, g the mean gradient of the loss over `batches` batches.

    >>> _, masks = lab.prune(model, 0.9, lab.criteria.Gradient(), data=data)
    >>> print(f"{masks.density:.0%}")
    10%
    """

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        return {name: g.abs() for name, (_, g) in weights_and_gradients(model, batches, self).items()}


@dataclass(frozen=True)
class Taylor(OfGradients):
    """|w·g|, the first-order change of the loss when the weight is cut (Molchanov 2017; SNIP's score).

    >>> _, masks = lab.prune(model, 0.9, lab.criteria.Taylor(), data=data)
    >>> print(f"{masks.density:.0%}")
    10%
    """

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        return {name: (w * g).abs() for name, (w, g) in weights_and_gradients(model, batches, self).items()}


@dataclass(frozen=True)
class Movement(OfGradients):
    """-w·g: kept is what a gradient step moves away from zero (Sanh 2020, over `batches` batches at one point).

    >>> _, masks = lab.prune(model, 0.9, lab.criteria.Movement(), data=data)
    >>> print(f"{masks.density:.0%}")
    10%
    """

    batches: Count = 8

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        return {name: -w * g for name, (w, g) in weights_and_gradients(model, batches, self).items()}


@dataclass(frozen=True)
class NofM(Checked):
    """Another criterion by the pattern n:m: the n highest of every m neighbours along the inputs go last, all layers
    ranked together.

    A sparsity of 1 - n/m, one cut or along a schedule, then leaves at most n of every m: 2:4 at one half.

    >>> _, masks = lab.prune(model, 0.5, lab.criteria.NofM(n=2, m=4))
    >>> print(f"{masks.density:.0%}")
    50%
    """

    criterion: CriterionName | Criterion = "magnitude"
    n: Count = 2
    m: Count = 4

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        scores = {name: exact(s) for name, s in resolve(self.criterion)(model, batches).items()}
        low, high = min(float(s.min()) for s in scores.values()), max(float(s.max()) for s in scores.values())
        between = {name: (s - low) / ((high - low) or 1.0) for name, s in scores.items()}
        return {name: between[name] + 2 * kept for name, kept in n_of_m(between, self.n, self.m).items()}


def matrices(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What has filters: every parameter of two dimensions or more."""
    return [(name, w) for name, w in canonical_parameters(model).items() if w.ndim > 1]


BY_NAME.update(
    magnitude=magnitude,
    layer_magnitude=layer_magnitude,
    random=random,
    gradient=Gradient(),
    taylor=Taylor(),
    movement=Movement(),
)

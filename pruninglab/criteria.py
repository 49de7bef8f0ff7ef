"""Criteria: `(model, batches) -> {name: score}`, the higher is kept. Pure: nothing is remembered, no gradient is left.

A criterion scores every parameter that it can; what is in scope is chosen elsewhere. One that has settings is a frozen
dataclass, so that it prints itself in tables and records. Any function of your own serves as well.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import ConfigError
from .masks import _named
from .projections import n_of_m
from .reach import LAYERS, Norm, hooked, norms_after

Batches = Iterable[tuple[Tensor, Tensor]]
Criterion = Callable[[nn.Module, Batches | None], dict[str, Tensor]]


def magnitude(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """|w|."""
    return {name: w.detach().abs() for name, w in _named(model).items()}


def layer_magnitude(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """|w| in standard deviations of its layer: one global threshold is then Han's quality factor (Han 2015)."""
    scores = {}
    for name, w in _named(model).items():
        deviation = w.detach().double().std(correction=0).to(w.dtype) if w.numel() > 1 else w.detach().abs()
        scores[name] = w.detach().abs() / deviation.clamp_min(torch.finfo(w.dtype).tiny)
    return scores


def random(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """Uniform noise; inside a run it comes from the run's own generator."""
    return {name: torch.rand(w.shape, device=w.device) for name, w in _named(model).items()}


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


def filter_l1(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """Of each filter the sum of |w| (Li 2017), for `unit="channel"` like all that follow here."""
    return {name: _of_filters(w, w.detach().abs().flatten(1).sum(1)) for name, w in _matrices(model)}


def filter_l2(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """Of each filter the Euclidean norm."""
    return {name: _of_filters(w, w.detach().flatten(1).norm(dim=1)) for name, w in _matrices(model)}


def geometric_median(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """Of each filter the sum of its distances to the others of its layer (FPGM, He 2019): cut is what these replace.

    Layers differ in it by their size: rank within layers.
    """
    scores = {}
    for name, w in _matrices(model):
        rows = w.detach().flatten(1)
        scores[name] = _of_filters(w, torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1))
    return scores


def norm_scale(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """Of each channel |γ| of the batch norm that follows its layer (network slimming, Liu 2017).

    Layers without one score infinity: they are kept before all others.
    """
    if batches is None:
        raise ConfigError("norm_scale runs one batch to see which norm follows which layer; pass data=.")
    after = norms_after(model, next(iter(batches))[0][:2])
    scores = {}
    for name, w in _matrices(model):
        norm = model.get_submodule(after[_layer(name)]) if _layer(name) in after else None
        scale = getattr(norm, "weight", None)
        of_channel = torch.full((len(w),), torch.inf, device=w.device) if scale is None else scale.detach().abs()
        scores[name] = _of_filters(w, of_channel)
    return scores


@dataclass(frozen=True)
class FilterTaylor:
    """|Σ w·g| over each filter: the first-order change of the loss when all of it is cut, as by Molchanov 2019.

    The sum is what a gate on the channel would feel, so that what cancels inside a filter does not count.
    """

    batches: int = 1
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        products = {name: (w * g) for name, (w, g) in _gradients(model, batches, self).items() if w.ndim > 1}
        return {name: _of_filters(p, p.flatten(1).sum(1).abs()) for name, p in products.items()}


@dataclass(frozen=True)
class Activation:
    """Of each channel what a ReLU lets pass of it, on average over images and places, behind the norm that follows."""

    batches: int = 1

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        if batches is None:
            raise ConfigError("Activation needs data to run through the network; pass data=.")
        chosen = list(islice(batches, self.batches))
        if not chosen:
            raise ConfigError("Activation got no batches; it needs at least one.")
        after = norms_after(model, chosen[0][0][:2])
        measured = {after.get(layer, layer): layer for layer in map(_layer, dict(_matrices(model)))}
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}

        def add(name: str, module: nn.Module, given: Any, output: Tensor) -> None:
            if layer := measured.get(name):
                passed = output.clamp_min(0).movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1)
                sums[layer] = sums.get(layer, torch.zeros(())) + passed.sum(1)
                counts[layer] = counts.get(layer, 0) + passed.shape[1]

        with hooked(model, (*LAYERS, Norm), after=add):
            for x, _ in chosen:
                model(x)
        return {
            name: _of_filters(w, sums[_layer(name)] / counts[_layer(name)])
            for name, w in _matrices(model)
            if _layer(name) in sums
        }


@dataclass(frozen=True)
class NofM:
    """Another criterion by the pattern n:m: the n highest of every m neighbours along the inputs go last, all layers
    ranked together.

    A sparsity of 1 - n/m, one cut or along a schedule, then leaves at most n of every m: 2:4 at one half.
    """

    criterion: "str | Criterion" = "magnitude"
    n: int = 2
    m: int = 4

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        scores = {name: s.detach().double() for name, s in resolve(self.criterion)(model, batches).items()}
        low, high = min(float(s.min()) for s in scores.values()), max(float(s.max()) for s in scores.values())
        between = {name: (s - low) / ((high - low) or 1.0) for name, s in scores.items()}
        return {name: between[name] + 2 * kept for name, kept in n_of_m(between, self.n, self.m).items()}


BY_NAME: dict[str, Criterion] = {
    "magnitude": magnitude,
    "layer_magnitude": layer_magnitude,
    "random": random,
    "gradient": Gradient(),
    "taylor": Taylor(),
    "movement": Movement(),
    "filter_l1": filter_l1,
    "filter_l2": filter_l2,
    "filter_taylor": FilterTaylor(),
    "geometric_median": geometric_median,
    "norm_scale": norm_scale,
    "activation": Activation(),
}


def resolve(criterion: str | Criterion) -> Criterion:
    """A criterion by name or as it is, so that a notebook parameter can hold one."""
    if callable(criterion):
        return criterion
    if criterion not in BY_NAME:
        near = get_close_matches(str(criterion), BY_NAME, 1)
        raise ConfigError(
            f"criterion {criterion!r} is unknown{f'; did you mean {near[0]!r}?' if near else ''}. "
            f"Expected one of {', '.join(BY_NAME)}, or a function (model, batches) -> {{name: score}}."
        )
    return BY_NAME[criterion]


def _matrices(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What has filters: every parameter of two dimensions or more."""
    return [(name, w) for name, w in _named(model).items() if w.ndim > 1]


def _layer(weight: str) -> str:
    return weight.removesuffix(".weight")


def _of_filters(weight: Tensor, scores: Tensor) -> Tensor:
    """One score for each filter, at each of its weights."""
    return scores.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)).expand(weight.shape)


def _gradients(model: nn.Module, batches: Batches | None, criterion: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and mean gradient of each parameter. `.grad` is neither read nor written."""
    if batches is None:
        raise ConfigError(f"{type(criterion).__name__} needs data to take gradients; pass data=.")
    named = {name: w for name, w in _named(model).items() if w.requires_grad}
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

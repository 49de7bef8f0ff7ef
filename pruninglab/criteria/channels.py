"""Criteria for whole channels: each score is that of an output channel, spread over its weights."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.hooks import hooked, norms_after
from ..layers.kinds import LAYERS, Norm
from ..typed import Checked, Count, checked
from .gradients import OfGradients, first, weights_and_gradients
from .registry import BY_NAME, Batches
from .weights import matrices


@checked
def filter_l1(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """Of each filter the sum of |w| (Li 2017), for `unit="channel"` like all that follow here.

    >>> _, masks = lab.prune(model, {'fc1.weight': 0.5}, lab.criteria.filter_l1, unit='channel')
    >>> print(f"{masks['fc1.weight'].float().mean():.0%}")
    50%
    """
    return {name: _of_filters(w, w.detach().abs().flatten(1).sum(1)) for name, w in matrices(model)}


@checked
def filter_l2(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """Of each filter the Euclidean norm.

    >>> _, masks = lab.prune(model, {'fc1.weight': 0.5}, lab.criteria.filter_l2, unit='channel')
    >>> print(f"{masks['fc1.weight'].float().mean():.0%}")
    50%
    """
    return {name: _of_filters(w, w.detach().flatten(1).norm(dim=1)) for name, w in matrices(model)}


@checked
def geometric_median(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """Of each filter the sum of its distances to the others of its layer (FPGM, He 2019): cut is what these replace.

    Layers differ in it by their size: rank within layers.

    >>> _, masks = lab.prune(model, {'fc1.weight': 0.5}, lab.criteria.geometric_median, unit='channel')
    >>> print(f"{masks['fc1.weight'].float().mean():.0%}")
    50%
    """
    scores = {}
    for name, w in matrices(model):
        rows = w.detach().flatten(1)
        scores[name] = _of_filters(w, torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1))
    return scores


@checked
def norm_scale(model: nn.Module, batches: Batches | None = None) -> dict[str, Tensor]:
    """Of each channel |γ| of the batch norm that follows its layer (network slimming, Liu 2017).

    Layers without one score infinity: they are kept before all others.
    """
    ((x, _),) = first(batches, 1, "norm_scale")  # one batch shows which norm follows which layer
    after = norms_after(model, x[:2])
    scores = {}
    for name, w in matrices(model):
        norm = model.get_submodule(after[_layer(name)]) if _layer(name) in after else None
        scale = getattr(norm, "weight", None)
        of_channel = torch.full((len(w),), torch.inf, device=w.device) if scale is None else scale.detach().abs()
        scores[name] = _of_filters(w, of_channel)
    return scores


@dataclass(frozen=True)
class FilterTaylor(OfGradients):
    """|Σ w·g| over each filter: the first-order change of the loss when all of it is cut, as by Molchanov 2019.

    The sum is the gradient of a gate on the channel, so values that cancel inside a filter do not count.
    """

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        products = {name: w * g for name, (w, g) in weights_and_gradients(model, batches, self).items() if w.ndim > 1}
        return {name: _of_filters(p, p.flatten(1).sum(1).abs()) for name, p in products.items()}


@dataclass(frozen=True)
class Activation(Checked):
    """Of each channel what a ReLU lets pass of it, on average over images and places, behind the norm that follows."""

    batches: Count = 1

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        chosen = first(batches, self.batches, "Activation")
        after = norms_after(model, chosen[0][0][:2])
        measured = {after.get(layer, layer): layer for layer in map(_layer, dict(matrices(model)))}
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
            for name, w in matrices(model)
            if _layer(name) in sums
        }


def _layer(weight: str) -> str:
    return weight.removesuffix(".weight")


def _of_filters(weight: Tensor, scores: Tensor) -> Tensor:
    """One score for each filter, at each of its weights."""
    return scores.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)).expand(weight.shape)


BY_NAME.update(
    filter_l1=filter_l1,
    filter_l2=filter_l2,
    filter_taylor=FilterTaylor(),
    geometric_median=geometric_median,
    norm_scale=norm_scale,
    activation=Activation(),
)

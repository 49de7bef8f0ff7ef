"""Projections onto sparse sets, as pure functions on dicts of tensors: which weights the nearest point of a set keeps.

`project(weights, largest(weights, 0.9))` is the Euclidean projection onto all weights of which a tenth is not zero. The
nearest such point keeps the largest as they are and sets the others to 0.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ConfigError
from ..typed import BelowOne, Count, checked
from .choose import Scope, keep_top
from .masks import Masks, Sparsity, Unit, check_named, keep_, units

Tensors = Mapping[str, Tensor]


@checked
def project(weights: Tensors, masks: Tensors) -> dict[str, Tensor]:
    """The weights where they are kept, 0 elsewhere."""
    check_named(masks, weights)
    return {name: keep_(weight.detach().clone(), masks[name]) for name, weight in weights.items()}


@checked
def largest(
    weights: Tensors, sparsity: Sparsity, *, scope: Scope = "layer", unit: Unit = "weight", masks: Tensors | None = None
) -> Masks:
    """Keep the largest, exactly as many as `sparsity` leaves; scope and unit as in `keep_top`.

    Nothing outside `masks` is kept, and all that it holds where that is less than was asked for.

    Channels and kernels are ranked by their sum of squares: what is lost of it is the squared distance.
    """
    if unit == "weight":
        scores = {name: weight.detach().abs() for name, weight in weights.items()}
    else:
        scores = {
            name: weight.detach().float().square()
            * (weight.numel() / units({name: weight}, unit)[1])  # it takes their mean
            for name, weight in weights.items()
        }
    return keep_top(scores, sparsity, scope=scope, unit=unit, masks=masks, clamp=True)


@checked
def largest_per_channel(weights: Tensors, sparsity: BelowOne) -> Masks:
    """Keep equally many weights of every output channel: as `largest`, with each channel as a layer of its own."""
    masks = Masks()
    for name, weight in weights.items():
        channels = keep_top({str(i): row.abs() for i, row in enumerate(weight.detach())}, sparsity, scope="layer")
        masks[name] = torch.stack(list(channels.values()))
    return masks


@checked
def n_of_m(weights: Tensors, n: Count = 2, m: Count = 4) -> Masks:
    """Keep the n largest of every m neighbours along the input dimension, the second; ties go to the first.

    A last group of fewer than m keeps n of them too, or all. Weights with one dimension (biases) are kept.

    >>> lab.masks.n_of_m({'a': torch.tensor([[1.0, 3.0, 2.0, 4.0]])}, 2, 4)['a'].tolist()
    [[False, True, False, True]]
    """
    if not 0 < n <= m:
        raise ConfigError(f"{n}:{m} cannot be: of every m={m} neighbours n={n} are kept, and 0 < n <= m.")
    return Masks({name: _groups(weight.detach(), n, m) for name, weight in weights.items()})


@checked
def keeping(weights: Tensors, counts: Mapping[str, Count]) -> dict[str, float]:
    """The sparsities that leave exactly `counts` weights of each layer: `{"fc1.weight": 1370}` to `{…: 0.9966}`."""
    for name, count in counts.items():
        if name not in weights:
            raise ConfigError(f"{name!r} is no prunable layer; the model has {', '.join(weights) or 'none'}.")
        most = weights[name].numel()
        if count > most:
            raise ConfigError(f"{name}: cannot keep {count:,} weights; between 1 and {most:,} can be kept.")
    return {name: 1 - count / weights[name].numel() for name, count in counts.items()}


def _groups(weight: Tensor, n: int, m: int) -> Tensor:
    if weight.ndim < 2:
        return torch.ones_like(weight, dtype=torch.bool)
    by_input = weight.abs().movedim(1, -1)
    groups = F.pad(by_input, (0, -by_input.shape[-1] % m), value=-1.0).unflatten(-1, (-1, m))
    order = groups.sort(dim=-1, descending=True, stable=True).indices
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return kept.flatten(-2)[..., : by_input.shape[-1]].movedim(-1, 1).contiguous()

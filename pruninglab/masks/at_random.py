"""Masks whose kept weights lie at random places: the control of every choice."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..randomness import generator
from ..typed import CountFromZero, checked
from .masks import UNITS, Masks, Unit


@checked
def scattered(masks: Mapping[str, Tensor], seed: CountFromZero, unit: Unit = "weight") -> Masks:
    """As many units of each layer, at random places."""
    moved = Masks()
    for name, mask in masks.items():
        units = mask.flatten(0, min(UNITS[unit] or mask.ndim, mask.ndim) - 1)
        order = torch.randperm(len(units), generator=generator(seed, f"scattered {name}"))
        moved[name] = units[order.to(mask.device)].view_as(mask)
    return moved

"""What WeightMom remembers of each weight: the momentum of |w|, and the epochs in which |w| was low.

The paper has no formula for either. `mode` is the momentum of |w|: its moving average, bias-corrected ("ema"; `beta`
None is 1 - 1/window), its mean or maximum over the window, or |w| as it is now, where only low epochs in a row count
("consecutive_below"). Windows remember `window` + 1 numbers for each weight, the others two.

`threshold`, up to which |w| is low: "quantile" is the layer's own, at the share that it loses by the end; a number is
that value of |w| everywhere. The quantile stands at the final share from the first epoch: at the share of the next cut,
what goes later could not have been low for long. So nearly all that is cut was low all along, and the momentum decides,
which itself is held to no threshold. A number makes the count of low epochs bind.
"""

from typing import Literal

import torch
from torch import Tensor

from ...randomness import generator

Mode = Literal["ema", "window_mean", "window_max", "consecutive_below"]


def empty(weight: Tensor, mode: Mode, window: int) -> Tensor:
    """Before the first epoch: one number for each weight, or `window` of them."""
    return weight.new_zeros(window, *weight.shape) if mode.startswith("window") else torch.zeros_like(weight)


def remember(past: Tensor, size: Tensor, seen: int) -> Tensor:
    """What is remembered of |w| after one more epoch: the window, the newest over the oldest, or this epoch alone."""
    if past.ndim == size.ndim:
        return size
    past[seen % len(past)] = size
    return past


def momentum(past: Tensor, mode: Mode, seen: int, beta: float) -> Tensor:
    """What ranks the weights after so many epochs."""
    if mode == "ema":
        return past / (1 - beta**seen)
    if mode == "window_mean":
        return past[:seen].mean(0)
    return past[:seen].amax(0) if mode == "window_max" else past


def remember_low(lows: Tensor, low: Tensor, mode: Mode, window: int) -> Tensor:
    """A bit for each epoch of the window, the newest the lowest; in "consecutive_below" how many epochs in a row."""
    if mode == "consecutive_below":
        return (lows + 1).clamp(max=window) * low
    return (lows & (2 ** (window - 1) - 1)) * 2 + low


def bits(numbers: Tensor) -> Tensor:
    """How many bits of each number are set: of each two, then of each four, and so on side by side."""
    width = 8 * numbers.element_size()
    for shift in (1, 2, 4, 8, 16, 32):
        if shift < width:
            every_other = sum(2**i for i in range(width - 1) if not i // shift % 2)
            numbers = (numbers & every_other) + ((numbers >> shift) & every_other)
    return numbers


def places(sizes: Tensor, watch: int, largest: int, seed: int) -> Tensor:
    """Which weights of a layer are followed: half of them evenly by rank among the largest, the others at random."""
    number = min(watch, len(sizes))
    choices = number - number // 2
    ranks = torch.linspace(0, min(max(largest, choices), len(sizes)) - 1, choices).round().long()
    chosen = sizes.cpu().argsort(descending=True, stable=True)[ranks]
    others = torch.randperm(len(sizes), generator=generator(seed, "watch"))
    return torch.cat([chosen, others[~torch.isin(others, chosen)][: number - len(chosen)]])

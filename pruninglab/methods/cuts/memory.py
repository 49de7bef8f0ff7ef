"""What WeightMom remembers of each weight: the momentum of |w|, and the epochs in which |w| was low.

The paper has no formula for either. `mode` is the momentum of |w|: its bias-corrected moving average ("ema"; `beta`
None is 1 - 1/window), or its mean or maximum over the window. "consecutive_below" takes |w| as it is now, and counts
only low epochs in a row. Windows remember `window` + 1 numbers for each weight, the others two.

|w| is low up to `threshold`. "quantile" is a threshold for each layer, at the share that the layer loses by the end. A
number is the same threshold everywhere. The quantile stands at the final share from the first epoch. At the share of
the next cut, weights that are cut later could not have been low for long. So nearly all weights that are cut were low
all along, and the momentum, which has no threshold of its own, decides between them. With a number, the count of low
epochs decides.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ...randomness import generator
from ...train.run import Run

Mode = Literal["ema", "window_mean", "window_max", "consecutive_below"]


def empty(weight: Tensor, mode: Mode, window: int) -> Tensor:
    """Before the first epoch: one number for each weight, or `window` of them."""
    length = {"ema": (), "consecutive_below": (1,)}.get(mode, (window,))
    return weight.new_zeros(*length, *weight.shape)


def no_epochs(weight: Tensor, window: int) -> Tensor:
    """Before the first epoch: a bit for each epoch of the window, none of them set."""
    return torch.zeros_like(weight, dtype=torch.int16 if window <= 15 else torch.int64)


def one_more(lows: Tensor, low: Tensor, window: int) -> Tensor:
    """The newest epoch is the lowest bit, and the oldest of the window drops out."""
    return (lows & (2 ** (window - 1) - 1)) * 2 + low


def kth_lowest(values: Tensor, k: int) -> Tensor:
    """The k-th lowest value, and below all magnitudes for k = 0."""
    return torch.kthvalue(values.flatten(), k).values if k else values.new_tensor(-1.0)


def momentum(past: Tensor, mode: Mode, seen: int, beta: float) -> Tensor:
    """What ranks the weights after so many epochs."""
    if mode == "ema":
        return past / (1 - beta**seen)
    return past[:seen].mean(0) if mode == "window_mean" else past[:seen].amax(0)


def low_often(lows: Tensor, mode: Mode, needed: int) -> Tensor:
    """Whether |w| was low in so many epochs of the window, of which each has a bit, or in the last so many in a row."""
    last = 2**needed - 1
    return lows & last == last if mode == "consecutive_below" else bits(lows) >= needed


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


def followed(run: Run, watch: int, left: Mapping[str, int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Which weights of each layer are followed, and what will be known of them, nothing yet."""
    sizes = {name: weight.detach().abs().flatten() for name, weight in run.weights.items()}
    watched = {name: places(size, watch, 2 * left[name], run.options.seed) for name, size in sizes.items()}
    return watched, {n: torch.full((run.epochs, 3, len(p)), math.nan) for n, p in watched.items()}


def follow(
    trajectories: Mapping[str, Tensor],  # (epochs, 3, followed)
    watched: Mapping[str, Tensor],
    run: Run,
    momentum: Mapping[str, Tensor],
    levels: Mapping[str, Tensor],
) -> None:
    """Note this epoch's |w|, momentum and threshold; without levels |w| alone."""
    for name, chosen in watched.items():
        row = trajectories[name][run.epoch - 1]
        row[0] = run.weights[name].detach().flatten()[chosen].abs()
        if levels:
            row[1], row[2] = momentum[name].flatten()[chosen], levels[name]

"""Images brought to another size, to the same bytes on every processor."""

import torch
from torch import Tensor

BITS = 20  # of each weight; 8 of a pixel and 2 x 20 of weights are below the 53 that float64 holds exactly


def resized(x: Tensor, size: int | None) -> Tensor:
    """Square uint8 images (n, C, size, size) by a bicubic filter that is widened where images shrink.

    All sums are of whole numbers that float64 holds exactly, so neither the order of a sum nor a fused multiply can
    change a bit. Halves are rounded up.
    """
    if size is None or tuple(x.shape[-2:]) == (size, size):
        return x
    rows, columns = (_weights(side, size) for side in x.shape[-2:])
    return torch.cat([_filtered(block, rows, columns) for block in x.split(1000)])


def _filtered(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    sums = rows @ (x.double() @ columns.T)  # (size, H) @ (n, C, H, W) @ (W, size)
    return (sums / 4**BITS + 0.5).floor_().clamp_(0, 255).byte()


def _weights(side: int, size: int) -> Tensor:
    """What each of `side` pixels gives to each of `size` new ones, in units of 2^-BITS: (size, side)."""
    scale = side / size
    wide = max(scale, 1.0)
    rows = []
    for place in range(size):
        centre = (place + 0.5) * scale
        first, end = max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), side)
        row = [_cubic((k + 0.5 - centre) / wide) if first <= k < end else 0.0 for k in range(side)]
        total = sum(row)
        rows.append([round(weight / total * 2**BITS) for weight in row])
    return torch.tensor(rows, dtype=torch.float64)


def _cubic(t: float) -> float:
    """The kernel of Keys (1981) with a = -1/2."""
    t = abs(t)
    if t < 1:
        return (1.5 * t - 2.5) * t * t + 1
    return ((2.5 - 0.5 * t) * t - 4) * t + 2 if t < 2 else 0.0

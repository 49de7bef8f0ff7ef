"""Levels: the few values that the weights of a layer may take, and what a net of such weights costs in bits.

b bits name 2^b levels, and 0 is none of them: a pruned weight is told by its position and needs no code.
"""

import heapq
import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..errors import ConfigError
from ..typed import Filled, Range, checked
from . import codec

Width = Annotated[int, Range(1, 8)]
Bits = Width | Annotated[Mapping[str, Width], Filled()]
_KINDS = {"conv": lambda weight: weight.ndim > 2, "dense": lambda weight: weight.ndim == 2}
_POINTS = 512  # exact clustering takes the square of their number
_MOVES = 1 << 20


@checked
def by_layer(weights: Mapping[str, Tensor], bits: Bits) -> dict[str, int]:
    """The bits of each layer. Keys of a dict are layer patterns, or the words `"conv"` and `"dense"` for their kinds.

    As with sparsities, the last key that matches counts, and layers that no key matches are left out.
    """
    by_key = bits if isinstance(bits, Mapping) else {"*": bits}
    for key in by_key:
        if not any(_matches(name, weight, key) for name, weight in weights.items()):
            raise ConfigError(f"{key!r} matches no prunable layer; the model has {', '.join(weights)}.")
    found = {name: [v for key, v in by_key.items() if _matches(name, w, key)] for name, w in weights.items()}
    return {name: values[-1] for name, values in found.items() if values}


def check_counts(bits: Mapping[str, int], masks: Mapping[str, Tensor]) -> None:
    """Refuse a layer with more levels than weights: naming them would cost more than the weights do."""
    for name, width in bits.items():
        if 0 < (kept := int(masks[name].sum())) < 2**width:
            raise ConfigError(
                f"{name} has {kept:,} weights left, fewer than the {2**width:,} levels of {width} bits; "
                f"give it at most {kept.bit_length() - 1} bits, or leave it out."
            )


def equal(bits: int, interval: float) -> Tensor:
    """±q, ±2q, … ±(M/2)·q, with M = 2^bits: equal distances, but for the gap around 0."""
    steps = torch.arange(1, 2 ** (bits - 1) + 1)
    return torch.cat((-steps.flip(0), steps)) * interval


def best_interval(values: Tensor, bits: int, zero: bool = False) -> float:
    """The q of `equal` for which Σ (w - nearest level)² is least; with `zero`, 0 is one more level.

    Exact: as q falls, |w| moves on from the k-th multiple to the next at q = |w| / (k + 1/2). Between two such moves
    every weight keeps its k, the best q is Σ|w|k / Σk², and it lowers the error by (Σ|w|k)² / Σk². Beyond a million
    moves, means of equally many neighbours stand for the weights.
    """
    half, first = 2 ** (bits - 1), 0 if zero else 1
    size, number = _points(values.abs(), _MOVES // half)
    multiples = torch.arange(first, half, dtype=torch.float64)
    order = (size[:, None] / (multiples + 0.5)).flatten().argsort(descending=True, stable=True)
    products = (number * size)[:, None].expand(-1, len(multiples)).flatten()[order]
    squares = (number[:, None] * (2 * multiples + 1)).flatten()[order]
    start = (size * number).sum()[None] * first, number.sum()[None] * first
    products, squares = (torch.cat((s, c)).cumsum(0) for s, c in zip(start, (products, squares), strict=True))
    best = (products.square() / squares.clamp_min(1)).argmax()
    return float(products[best] / squares[best].clamp_min(1))


def linear(values: Tensor, count: int) -> Tensor:
    """`count` centres from the least to the greatest value at equal distances (Deep Compression, section 3.2)."""
    return torch.linspace(float(values.min()), float(values.max()), count, dtype=torch.float64)


def lloyd(values: Tensor, centres: Tensor, rounds: int = 300) -> Tensor:
    """k-means from these centres on: assign, average, repeat. A centre that nothing is near to stays where it is."""
    values, centres = _plain(values), centres.double().sort().values
    codes = None
    for _ in range(rounds):
        before, codes = codes, nearest(values, centres)
        if before is not None and torch.equal(before, codes):
            break
        number = codes.bincount(minlength=len(centres))
        means = codes.bincount(values, len(centres)) / number.clamp_min(1)
        centres = torch.where(number > 0, means, centres).sort().values
    return centres


def kmeans(values: Tensor, count: int) -> Tensor:
    """The `count` centres with the least Σ (w - nearest centre)², exactly (Wang and Song 2011, by dynamic programming).

    Beyond 512 different values, and four a centre, the best for means of equally many neighbours; from there `lloyd`
    goes on with all.
    """
    points, number = _points(values, max(_POINTS, 4 * count))
    count = min(count, len(points))
    shift = points.mean()
    sums = torch.stack([number, number * (points - shift), number * (points - shift).square()]).cumsum(1)
    n, s, q = torch.cat((torch.zeros(3, 1, dtype=torch.float64), sums), 1)
    inside = torch.ones(len(n), len(n), dtype=torch.bool).tril(-1)  # [j, i]: points i to j-1 as one cluster
    error = q[:, None] - q - (s[:, None] - s).square() / (n[:, None] - n).clamp_min(1)
    error = torch.where(inside, error.clamp_min(0), math.inf)
    least, begins, together = error[:, 0], [], torch.empty_like(error)
    for _ in range(count - 1):
        least, begin = torch.add(error, least, out=together).min(1)
        begins.append(begin)
    ends = [len(points)]
    for begin in reversed(begins):
        ends.insert(0, int(begin[ends[0]]))
    bounds = torch.tensor([0, *ends])
    centres = s[bounds].diff() / n[bounds].diff() + shift
    return centres if len(points) == values.numel() else lloyd(values, centres, 20)


def fit(values: Tensor, bits: int, kind: str = "equal", zero: bool = False) -> Tensor:
    """At most 2^bits levels for these values, in ascending order, none of them 0.

    `kind`: `"equal"` (distances), `"clustered"` (`kmeans`) or `"linear"` (`lloyd` from `linear`). Clusters of values
    that are no more than 2^bits different ones are these values. `zero` says that 0 will be one more level for now.
    """
    if values.numel() == 0:
        return values.new_zeros(0)
    least = float(values.abs().max()) * 1e-6 or 1e-6
    if kind == "equal":
        return equal(bits, max(best_interval(values, bits, zero), least)).to(values)
    levels = _plain(values).unique()
    if len(levels) > 2**bits:
        levels = kmeans(values, 2**bits) if kind == "clustered" else lloyd(values, linear(values, 2**bits))
    return torch.where(levels.abs() < least, least, levels).sort().values.to(values)


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """The number of the nearest of the ascending `levels`; halfway between two, the lower one."""
    return torch.bucketize(values.contiguous(), (levels[1:] + levels[:-1]) / 2)


def project(weight: Tensor, mask: Tensor, levels: Tensor) -> Tensor:
    """The nearest levels where the mask keeps, 0 elsewhere: the Euclidean projection onto weights of these levels."""
    if len(levels) == 0:
        return torch.zeros_like(weight)
    return torch.where(mask, levels[nearest(weight.detach(), levels)], 0)


def huffman_bits(counts: Iterable[int]) -> int:
    """Bits of a text in which symbols occur so often, in its Huffman code; one symbol alone takes a bit each time."""
    heap = [int(count) for count in counts if count]
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:  # each merge adds a bit to all symbols under it
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        heapq.heappush(heap, merged)
        total += merged
    return total


def cost(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> pd.DataFrame:
    """What each layer takes in bits, and all together in the last row.

    `values` are the codes of the kept weights and `positions` the gaps between them, each in as many bits as they need.
    Gaps have the width that is cheapest, and take 0 bits if nothing is pruned. `book` is 32 bits a level. A layer for
    which a code book does not pay counts as not quantized, at 32 bits a weight. `huffman` is values and gaps in Huffman
    codes, and `tables` what canonical codes need to be read: 5 bits a symbol, its length. Biases are in none of it. The
    sparse file needs less where whole rows or columns are dead, which gaps do not see.
    """
    rows = [{"layer": name, **_cost(weights[name].detach()[mask], mask)} for name, mask in masks.items()]
    table = pd.DataFrame(rows)
    total = {"layer": "all", **table.drop(columns="layer").sum()}
    return pd.concat([table, pd.DataFrame([total])], ignore_index=True)


def _cost(kept: Tensor, mask: Tensor) -> dict[str, int]:
    counts = kept.unique(return_counts=True)[1].tolist()
    width = max((len(counts) - 1).bit_length(), 1)
    if not (coded := width * len(kept) + 32 * len(counts) < 32 * len(kept)):
        width = 32
    grid = mask.reshape(len(mask), -1).cpu().numpy()
    texts = {}  # width of a gap -> the symbols
    if 0 < len(kept) < mask.numel():
        texts = {w: codec.from_bits(bits := codec.encode_gap(grid, w), w, len(bits) // w) for w in range(1, 17)}
    huffman = {w: (huffman_bits(np.bincount(text)), 5 * 2**w) for w, text in texts.items()}
    gaps, table = min(huffman.values(), key=sum, default=(0, 0))
    return {
        "kept": len(kept),
        "levels": len(counts),
        "values": len(kept) * width,
        "positions": min((w * len(text) for w, text in texts.items()), default=0),
        "book": 32 * len(counts) if coded else 0,
        "huffman": (huffman_bits(counts) if coded else 32 * len(kept)) + gaps,
        "tables": (5 * len(counts) if coded else 0) + table,
    }


def _matches(name: str, weight: Tensor, key: str) -> bool:
    return _KINDS[key](weight) if key in _KINDS else fnmatchcase(name, key)


def _plain(values: Tensor) -> Tensor:
    """Levels are found on the CPU and in double precision: the same everywhere."""
    return values.detach().flatten().cpu().double()


def _points(values: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The different values in order and how often each occurs; beyond `most`, means of equally many neighbours."""
    points, number = _plain(values).unique(return_counts=True)
    if len(points) > most:
        ordered = _plain(values).sort().values
        bounds = torch.linspace(0, len(ordered), most + 1, dtype=torch.float64).round().long()
        sums = torch.cat((ordered.new_zeros(1), ordered.cumsum(0)))
        number = bounds.diff()
        points = sums[bounds].diff() / number
    return points, number.double()

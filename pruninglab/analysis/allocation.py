"""How much each layer keeps: by one cut of all, by what cutting it alone costs, or to fit into bytes or FLOPs.

Each gives a dict from layers to sparsities, which every method takes in place of a number.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch

from ..errors import ConfigError
from ..masks.choose import keep_top, spread
from ..masks.masks import Masks
from ..masks.projections import keeping, largest, project
from ..storage import fileformat
from ..train.run import Run
from ..typed import AtLeastOne, BelowOne, Count, Positive, checked

Curves = list[tuple[np.ndarray, np.ndarray]]
SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


@checked
def allocate(run: Run, compression: AtLeastOne, by: str = "magnitude") -> dict[str, float]:
    """The sparsity of each layer with which the run keeps 1 of `compression` weights, among those that it has left.

    `by` is a criterion, for one cut of all layers together, or `"sensitivity"`, with which cutting each layer alone
    leads to the same validation loss. No layer becomes empty.
    """
    return _shares(run, by)(round(run.masks.total / compression))


@checked
def fitting(
    run: Run, *, bytes: Count | None = None, flops: Positive | None = None, by: str = "magnitude"
) -> dict[str, float]:
    """The sparsity of each layer with which the run fits into the sparse file's `bytes`, or into `flops` a sample.

    As many weights as fit are kept, shared among the layers as in `budget`. Bytes are those of the whole file with 32
    bits a value, so training under these masks cannot make it larger. FLOPs are those on kept weights.
    """
    if (bytes is None) == (flops is None):
        raise ConfigError("give either bytes= or flops= as the budget.")
    shares = _shares(run, by)
    weights = {name: weight.detach() for name, weight in run.weights.items()}

    def cost(sparsities: dict[str, float]) -> float:
        masks = largest(weights, sparsities, masks=run.masks)
        return _most_bytes(run, masks) if bytes is not None else run.flops.sparse(masks)

    limit, what = (bytes, "bytes") if bytes is not None else (flops, "FLOPs")
    low, high = len(weights), run.masks.kept
    fits = shares(low)
    if (least := cost(fits)) > (limit or 0):
        raise ConfigError(
            f"{limit:,} {what} are not enough: with one weight a layer it takes {least:,.0f}. What is not pruned "
            "(biases, norms, the header) counts too; give more, or take a smaller model."
        )
    while low < high:
        middle = (low + high + 1) // 2
        candidate = shares(middle)
        if cost(candidate) <= (limit or 0):
            low, fits = middle, candidate
        else:
            high = middle - 1
    return fits


@checked
def sensitivity(
    run: Run, shares: Sequence[BelowOne] = SHARES, split: Literal["train", "val", "test"] = "val"
) -> pd.DataFrame:
    """Loss and accuracy when one layer alone is cut by magnitude at each of `shares`, and when it is not.

    The others stay as they are, and nothing is retrained. So it measures how much a layer can lose at once.
    """
    now = run.evaluate(split)
    rows = []
    for name, mask in run.masks.items():
        cuts = {min(int(mask.numel() * share + 0.5), mask.numel() - 1) for share in shares}  # one weight stays
        kept = [k for k in (mask.numel() - cut for cut in sorted(cuts)) if k < int(mask.sum())]
        measured = [now, *_alone(run, name, kept, split)]
        for left, scores in zip([int(mask.sum()), *kept], measured, strict=True):
            sparsity = 1 - left / mask.numel()
            rows.append({"layer": name, "sparsity": sparsity, "kept": left, **scores})
    return pd.DataFrame(rows)


@checked
def tolerated(curves: pd.DataFrame, drop: BelowOne = 0.01) -> dict[str, float]:
    """Of each layer of `sensitivity` the largest sparsity before accuracy is lower by more than `drop`."""
    targets = {}
    for layer, curve in curves.groupby("layer", sort=False):
        lost = curve["accuracy"].iloc[0] - curve["accuracy"].to_numpy()
        within = np.logical_and.accumulate(lost <= drop + 1e-12)
        targets[str(layer)] = float(curve["sparsity"].to_numpy()[within][-1])
    return targets


def file_bytes(run: Run, masks: Masks) -> int:
    """The sparse file of the run under `masks`, with 32 bits a value."""
    state = run.model.state_dict()
    return fileformat.pack(state | project({n: state[n] for n in masks}, masks), "fp32", streams=False).size


def _most_bytes(run: Run, masks: Masks) -> int:
    """`file_bytes` whatever values training may bring: random bits, which no code makes shorter."""
    state, source = run.model.state_dict(), torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if tensor.is_floating_point():
            bits = torch.randint(256, (tensor.numel() * tensor.itemsize,), generator=source, dtype=torch.uint8)
            state[name] = bits.view(tensor.dtype).view(tensor.shape)
    kept = {name: state[name].masked_fill(~mask.cpu(), 0) for name, mask in masks.items()}
    return fileformat.pack(state | kept, "fp32", streams=False).size


def _shares(run: Run, by: str) -> Callable[[int], dict[str, float]]:
    """From how many weights stay to the sparsity of each layer."""
    counts = run.masks.kept_by_layer
    if by == "sensitivity":
        quotas = partial(_equally_sensitive, _curves(run))
    else:
        quotas = partial(_together, run, run.score(by))

    def shares(keep: int) -> dict[str, float]:
        kept = spread(keep, quotas(keep), list(counts.values()), least=1)
        return keeping(run.weights, dict(zip(run.weights, kept, strict=True)))

    return shares


def _together(run: Run, scores: dict[str, torch.Tensor], keep: int) -> list[float]:
    """How much each layer keeps of one cut of all."""
    masks = keep_top(scores, 1 - keep / run.masks.total, masks=run.masks)
    return [float(kept) for kept in masks.kept_by_layer.values()]


def _curves(run: Run) -> Curves:
    """Validation loss against the logarithm of what is kept, layer by layer, each halved again and again."""
    curves = []
    for name, mask in run.masks.items():
        counts = [int(mask.sum())]
        while counts[-1] > 1:
            counts.append(counts[-1] // 2)
        losses = [scores["loss"] for scores in _alone(run, name, counts, "val")]
        curves.append((np.maximum.accumulate(losses), np.log(counts)))  # a lucky cut does not count
    return curves


def _equally_sensitive(curves: Curves, keep: int) -> list[float]:
    """How much each layer keeps where cutting it alone leads to the same validation loss, all together `keep`."""

    def kept(loss: float) -> list[float]:
        return [math.exp(np.interp(loss, losses, logs)) for losses, logs in curves]

    low, high = min(losses[0] for losses, _ in curves), max(losses[-1] for losses, _ in curves)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(kept(middle)) > keep else (low, middle)
    return kept(high)


@torch.no_grad()
def _alone(run: Run, name: str, counts: Sequence[int], split: str) -> Iterator[dict[str, float]]:
    """What the run scores with only the largest `counts` weights of one layer left."""
    weight = run.weights[name]
    before = weight.detach().clone()
    own, alive = {name: before}, {name: run.masks[name]}
    try:
        for left in counts:
            weight.copy_(project(own, largest(own, keeping(own, {name: left}), masks=alive))[name])
            yield run.evaluate(split)
    finally:
        weight.copy_(before)

"""What else the equations of WeightMom may mean, and how many weights each layer keeps by them.

    I_l = W_l/(l·W_avg)  (1)        W_avg = W_l/ΣW  (2)

By the text, early layers matter more and large ones can be pruned more. Equation 1 contradicts that. It also
contradicts equation 2, a fraction that the text calls an average. `interpretation` says what they are taken to mean:

"text": a layer's cut share is in proportion to W_l/W_avg·l, W_avg the mean. Both sentences of the text hold.
"formula": equation 1 with that mean is the importance that it is called: the kept share is in proportion to it.
"formula_prune": the cut share is in proportion to it.
"literal": equation 2 put into equation 1 as printed, an importance.
"off": no ratio, and one ranking of all layers.
"text_scores" and the others in `_scores`: one ranking of all layers too, by the momentum times the importance or over
the prunability.

`depth_exponent` is the power of the place l in each of them. `basis`: W_l is the number of weights ("size", equation 1)
or the layer's "density" (the abstract's "relative sparsity"). `layer_index`: l counts layers in the order in which they
run. A shortcut's convolution has the place of its block's first ("forward") or one of its own ("sequential"). No layer
falls below `floor` times the density of all together, or below one weight (in one ranking, one weight alone). Without a
floor "text" keeps one of the 400,000 weights of lenet5's fc1. At very low densities most layers are at the floor. A
dict as the schedule's final sparsity sets the layers' shares instead.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...layers.flops import layer_of
from ...masks.choose import count, keep_highest, keep_top, spread
from ...masks.masks import Masks, Sparsity
from .memory import kth_lowest

Layers = Mapping[str, Tensor]
ALL = "all layers"
"""The one layer that all become to be ranked together."""
Ranked = Literal["text_scores", "formula_scores", "formula_prune_scores", "literal_scores"]
Interpretation = Literal["text", "formula", "formula_prune", "literal", "off", Ranked]


def formula(size: float, sizes: Collection[float], place: float) -> float:
    """Equation 1, W_avg the mean: W_l/(l·W_avg)."""
    return size / (place * (sum(sizes) / len(sizes)))


def literal(size: float, sizes: Collection[float], place: float) -> float:
    """Equation 2 put into equation 1 as printed: W_l cancels out, which leaves ΣW/l."""
    return sum(sizes) / place


def off(size: float, sizes: Collection[float], place: float) -> float:
    """No ratio: all layers are alike."""
    return 1.0


class Meaning(NamedTuple):
    ratio: Callable[[float, Collection[float], float], float]
    grows: Literal["cut", "kept"]
    """Which share of a layer grows with its ratio: a prunability, or the importance that the paper names it."""
    one_ranking: bool = False
    """The ratio weighs the momentum, and all layers are ranked together; else it sets the share of each layer."""


OTHERS = {
    "formula": Meaning(formula, "kept"),
    "formula_prune": Meaning(formula, "cut"),
    "literal": Meaning(literal, "kept"),
    "off": Meaning(off, "cut", one_ranking=True),
}


def layer_sizes(masks: Masks, basis: Literal["size", "density"] = "size") -> dict[str, float]:
    """The number of weights of each layer, or its density; a bias in scope belongs to its weight's layer."""
    layers: dict[str, list[Tensor]] = {}
    for name, mask in masks.items():
        layers.setdefault(layer_of(name), []).append(mask)
    sizes = {layer: float(sum(m.numel() for m in parts)) for layer, parts in layers.items()}
    if basis == "size":
        return sizes
    return {layer: int(sum(m.sum() for m in parts)) / sizes[layer] for layer, parts in layers.items()}


def positions(layers: Iterable[str], layer_index: str = "forward") -> dict[str, int]:
    """The place of each layer, from 1, of layers in the order in which they run.

    With "forward" a shortcut's convolution has the place of the first layer of the block that it goes past.
    """
    order = list(layers)
    shortcuts = {layer: _passed_by(layer) for layer in order if layer_index == "forward"}
    beside = {
        layer: next((other for other in order if other.startswith(block) and not _passed_by(other)), layer)
        for layer, block in shortcuts.items()
        if block
    }
    own = [layer for layer in order if beside.get(layer, layer) == layer]
    return {layer: own.index(beside.get(layer, layer)) + 1 for layer in order}


def _passed_by(layer: str) -> str:
    """The block around a shortcut's layer; nothing for other layers."""
    parts = layer.split(".")
    inside = next((i for i, part in enumerate(parts) if "shortcut" in part or "downsample" in part), 0)
    return "".join(f"{part}." for part in parts[:inside])


def keeps(
    masks: Masks, sparsity: Sparsity, ratios: Mapping[str, float], grows: str = "cut", floor: float = 0.25
) -> dict[str, int]:
    """How many weights of each layer are left at this sparsity, the sum exact.

    The share that is cut, or kept, is in proportion to the ratio. No layer falls below `floor` times the density of all
    together, or below one weight, as long as it has them. The other layers share what it cannot give.
    """
    if isinstance(sparsity, Mapping):
        level = {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in masks.items()}
        return keep_top(level, sparsity, masks=masks, clamp=True).kept_by_layer
    total, kept = [mask.numel() for mask in masks.values()], list(masks.kept_by_layer.values())
    keep = min(masks.total - count(masks.total, sparsity), masks.kept)
    density = floor * keep / masks.total
    least = [min(k, max(1, int(density * t))) for k, t in zip(kept, total, strict=True)]
    if sum(least) > keep:  # so few that one each is all that can be asked
        least = [min(k, 1) for k in kept]
    quotas = [ratios[layer_of(name)] * t for name, t in zip(masks, total, strict=True)]
    if grows == "kept":
        left = _between(keep, quotas, least, kept)
    else:
        already, most = [[t - n for t, n in zip(total, part, strict=True)] for part in (kept, least)]
        cuts = _between(masks.total - keep, quotas, already, most)
        left = [t - cut for t, cut in zip(total, cuts, strict=True)]
    return dict(zip(masks, left, strict=True))


def _between(total: int, quotas: Sequence[float], least: Sequence[int], most: Sequence[int]) -> list[int]:
    """`spread` with a lower bound for each: who would get less is given just that, and the others share the rest."""
    fixed: dict[int, int] = {}
    while True:
        free = [i for i in range(len(most)) if i not in fixed]
        shares = spread(total - sum(fixed.values()), [quotas[i] for i in free], [most[i] for i in free])
        below = {i: least[i] for i, share in zip(free, shares, strict=True) if share < least[i]}
        if not below:
            counts = fixed | dict(zip(free, shares, strict=True))
            return [counts[i] for i in range(len(most))]
        fixed |= below


def as_one_layer(
    keeps: Mapping[str, int], momentum: Layers, alive: Layers, eligible: Layers, factors: Mapping[str, float]
) -> tuple[dict[str, int], dict[str, Tensor], Masks, dict[str, Tensor]]:
    """All layers in one row, to be cut as one layer. The best weight of each stands last, so that it is not cut."""
    momentum = {name: momentum[name] * factor for name, factor in factors.items()}
    if len(factors) > 1:
        best = {name: keep_highest(m, alive[name], 1) for name, m in momentum.items()}
        momentum = {name: m.masked_fill(best[name], math.inf) for name, m in momentum.items()}
        eligible = {name: eligible[name] & ~best[name] for name in factors}
    rows = (_row(momentum, factors), _row(alive, factors), _row(eligible, factors))
    return {ALL: sum(keeps.values())}, {ALL: rows[0]}, Masks({ALL: rows[1]}), {ALL: rows[2]}


def common_levels(sizes: Layers, keeps: Mapping[str, int], factors: Mapping[str, float]) -> dict[str, Tensor]:
    """One threshold of all layers, each in its own measure again."""
    row = _row({name: sizes[name] * factor for name, factor in factors.items()}, factors)
    level = kth_lowest(row, len(row) - sum(keeps.values()))
    return {name: level / factor for name, factor in factors.items()}


def _row(layers: Layers, names: Mapping[str, float]) -> Tensor:
    return torch.cat([layers[name].flatten() for name in names])

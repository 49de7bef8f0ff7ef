"""A network as a list of layers that a compiler can work on: batch norms folded, activations and sums drawn in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, fx

Shape = tuple[int, int, int]
"""Channels, height and width of one image; n features are (n, 1, 1)."""
Pair = tuple[int, int]
WholeKind = Literal["convolution", "linear", "map", "max", "mean", "concatenation", "reshape"]


@dataclass(frozen=True, eq=False)
class Layer:
    """One thing to compute, from the values `inputs` to the value `output`. What a kind does not need is not set."""

    kind: WholeKind
    name: str
    inputs: tuple[str, ...]
    output: str
    weight: Tensor | None = None  # (out, in / groups, height, width), or (out, in)
    scale: Tensor | None = None  # y = scale * (what the weights give) + shift, by channel
    shift: Tensor | None = None
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    count_padding: bool = False
    relu: bool = False
    pool: int = 0
    """Sides of the windows of the max pooling that comes last, 0 for none."""
    added: bool = False
    """The last input is added before the ReLU."""

    @property
    def weighted(self) -> bool:
        return self.weight is not None

    def before_pooling(self, read: Shape) -> Pair:
        """Rows and columns that a convolution computes of an image of this shape."""
        sides = zip(read[1:], self.padding, self.dilation, self.kernel, self.stride, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sides)
        return height, width

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias in 32 bits, with the scale inside."""
        assert self.weight is not None
        weight, shift = self.weight.double(), torch.zeros(len(self.weight), dtype=torch.float64)
        if self.scale is not None:
            weight = weight * self.scale.view(-1, *[1] * (weight.ndim - 1))
        return weight.float(), (shift if self.shift is None else self.shift).float()


@dataclass(frozen=True, eq=False)
class Foreign:
    """A call that PyTorch makes; `reads` says which value each node that it reads is, `inputs` are these values."""

    name: str
    node: fx.Node
    reads: dict[str, str]
    output: str
    in_place: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.reads.values()))


@dataclass
class Network:
    """Layers and calls in the order of the computation; the logits are the value `output`."""

    items: list[Layer | Foreign]
    shapes: dict[str, Shape]
    sides: dict[str, tuple[int, ...]]
    """Of tensors as PyTorch sees them, by node, without the batch."""
    batched: set[str]
    """Nodes that give a row for each input."""
    input: str
    output: str
    last: str
    """The node that gives the logits."""
    module: fx.GraphModule = field(repr=False)

    @property
    def layers(self) -> list[Layer]:
        return [item for item in self.items if isinstance(item, Layer)]

    @property
    def foreign(self) -> list[Foreign]:
        return [item for item in self.items if isinstance(item, Foreign)]


Items = list[Layer | Foreign]
Shapes = dict[str, Shape]


def simplified(items: Items, output: str, shapes: Shapes) -> Items:
    """What the output needs, with norms folded and activations, sums and pools drawn into the layer before."""
    items = needed(items, output)
    for improve in (_fold_norms, _draw_in_activations, _draw_in_sums, _draw_in_pools, _draw_in_activations):
        items = _merged(items, output, shapes, improve)
    return items


def needed(items: Items, output: str) -> Items:
    needed, kept = {output}, []
    for item in reversed(items):
        if item.output in needed:
            needed.update(item.inputs)
            kept.append(item)
    return kept[::-1]


def _pairs(items: Items, output: str) -> Iterator[tuple[int, Layer, int, Layer]]:
    """A layer and the one thing that reads it, if that is a layer too, with their places."""
    readers: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        for name in dict.fromkeys(item.inputs):
            readers.setdefault(name, []).append(place)
    for place, item in enumerate(items):
        after = readers.get(item.output, [])
        if isinstance(item, Layer) and len(after) == 1 and item.output != output:
            reader = items[after[0]]
            if isinstance(reader, Layer) and reader.inputs.count(item.output) == 1:
                yield place, item, after[0], reader


def _merged(items: Items, output: str, shapes: Shapes, merge: Callable[[Layer, Layer, Shapes], Layer | None]) -> Items:
    """Pairs made one, at the place of the second, until there are none."""
    again = True
    while again:
        again = False
        for place, first, after, second in _pairs(items, output):
            if (merged := merge(first, second, shapes)) is not None:
                items = [merged if i == after else item for i, item in enumerate(items) if i != place]
                again = True
                break
    return items


def _fold_norms(first: Layer, second: Layer, shapes: Shapes) -> Layer | None:
    if not first.weighted or first.relu or first.added or second.kind != "map" or second.added or second.scale is None:
        return None
    assert second.shift is not None
    scale = second.scale if first.scale is None else first.scale * second.scale
    shift = second.shift if first.shift is None else first.shift * second.scale + second.shift
    return replace(first, scale=scale, shift=shift, output=second.output, relu=second.relu)


def _draw_in_activations(first: Layer, second: Layer, shapes: Shapes) -> Layer | None:
    only = second.kind == "map" and second.relu and not second.added and second.scale is None
    if not only or first.kind in ("reshape", "concatenation"):
        return None
    return replace(first, relu=True, output=second.output)  # maxima and ReLU may change places


def _draw_in_sums(first: Layer, second: Layer, shapes: Shapes) -> Layer | None:
    if not first.weighted or first.relu or first.added or first.pool:
        return None
    if second.kind != "map" or not second.added or second.scale is not None:
        return None
    other = next(name for name in second.inputs if name != first.output)
    return replace(first, inputs=(*first.inputs, other), added=True, output=second.output, relu=second.relu)


def _draw_in_pools(first: Layer, second: Layer, shapes: Shapes) -> Layer | None:
    side = second.kernel[0]
    square = second.kind == "max" and second.kernel == second.stride == (side, side) and second.padding == (0, 0)
    if first.kind != "convolution" or first.pool or not square or side < 2:
        return None
    before, after = shapes[first.output][1:], shapes[second.output][1:]
    whole = all(n // side == pooled for n, pooled in zip(before, after, strict=True))
    return replace(first, pool=side, output=second.output, relu=first.relu or second.relu) if whole else None

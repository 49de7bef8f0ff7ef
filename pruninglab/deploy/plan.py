"""From layers to the structs of `engine.c`: where each value lies, and which offsets each weight has."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .graph import Layer, Pair, Shape

ROWS = 4  # as in engine.c
TOO_MANY = 2**31 - 1
"""Floats that an offset can reach."""


class View(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("base", "plane", "pitch")]


class Operation(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("kind", "relu", "channels", "height", "width", "positions")),
        *((name, ctypes.c_int32) for name in ("pool", "block", "gather")),
        *((name, ctypes.c_int32 * 2) for name in ("kernel", "stride", "padding", "size")),
        ("count_padding", ctypes.c_int32),
        *((name, View) for name in ("input", "other", "out")),
        ("row", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("start", "offset", "value", "scale", "shift")),
    ]


class Port(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int64) for name in ("channels", "height", "width")), ("at", View)]


class Struct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("lanes", "floats", "scratch", "operations", "inputs", "outputs")),
        *((name, ctypes.c_void_p) for name in ("todo", "input", "out")),
    ]


KINDS = {"convolution": 0, "map": 1, "max": 2, "mean": 3}


@dataclass(frozen=True)
class Place:
    """Where a value lies, in cells of one float for each lane: zeros surround its rows for the convolutions to come."""

    shape: Shape
    base: int
    pitch: int
    plane: int
    padding: Pair = (0, 0)

    @property
    def first(self) -> int:
        """The cell of the first channel's first pixel."""
        return self.base + self.padding[0] * self.pitch + self.padding[1]

    def view(self, lanes: int, moved: int = 0, plane: int = 1, pitch: int = 1) -> View:
        at = (self.first + moved, self.plane * plane, self.pitch * pitch)
        return View(*(lanes * cells for cells in at))


class Weights:
    """The arrays of one layer for one way to compute it: `block` rows at a time share the offsets that any needs."""

    def __init__(self, rows: np.ndarray, offsets: np.ndarray, values: np.ndarray, count: int, block: int, full: int):
        blocks = -(-count // block)
        self.block = block
        if block == 1:
            order = np.lexsort((offsets, rows))
            ends, self.offset, self.value = rows[order], offsets[order], values[order]
        else:
            base = int(offsets.min(initial=0))
            span = int(offsets.max(initial=0)) - base + 1
            keys, place = np.unique(rows // block * span + (offsets - base), return_inverse=True)
            ends, self.offset = keys // span, keys % span + base
            self.value = np.zeros((len(keys), block), np.float32)
            self.value[place, rows % block] = values
        self.start = np.searchsorted(ends, np.arange(blocks + 1)).astype(np.int32)
        self.offset = np.ascontiguousarray(self.offset, np.int32)
        self.value = np.ascontiguousarray(self.value, np.float32)
        self.kind = "sparse" if block == 1 else "dense" if len(self.offset) >= full * blocks else "compacted"

    def enter(self, operation: Operation) -> None:
        operation.block = self.block
        operation.start, operation.offset = self.start.ctypes.data, self.offset.ctypes.data
        operation.value = self.value.ctypes.data


class Plan:
    """Operations on one image, or on `lanes` images side by side."""

    def __init__(
        self,
        layers: Sequence[Layer],
        shapes: dict[str, Shape],
        inputs: Sequence[str],
        outputs: Sequence[str],
        lanes: int,
        width: int,
    ):
        self.layers, self.shapes, self.lanes, self.width = layers, shapes, lanes, width
        self.operations: list[Operation] = []
        self.owners: list[Layer] = []
        self.ways: dict[int, list[Weights]] = {}
        self.kept: list[np.ndarray] = []
        self.cells, self.scratch = 0, 0
        self.places = self._places([*inputs, *(layer.output for layer in layers)])
        for layer in layers:
            self._add(layer)
        self.ports = [self._ports(inputs), self._ports(outputs)]
        floats = self.cells * lanes + 2 * width
        if floats + self.scratch > TOO_MANY:
            raise OverflowError(f"{floats:,} floats are more than the engine can address")
        self.todo = (Operation * len(self.operations))(*self.operations)
        self.struct = Struct(
            lanes, floats + self.scratch, floats, len(self.operations), len(inputs), len(outputs),
            *(ctypes.addressof(part) for part in (self.todo, *self.ports)),
        )  # fmt: skip
        self.address = ctypes.addressof(self.struct)
        self.floats = floats + self.scratch

    def choose(self, number: int, weights: Weights) -> None:
        """Compute an operation this way."""
        weights.enter(self.todo[number])
        self.ways[number] = [weights, *(other for other in self.ways[number] if other is not weights)]

    # Where values lie ------------------------------------------------------------------------------------------

    def _places(self, names: Sequence[str]) -> dict[str, Place]:
        return {name: self._place(self.shapes[name], *self._around(name)) for name in dict.fromkeys(names)}

    def _around(self, name: str) -> tuple[Pair, bool, int]:
        """The zeros that the convolutions which read a value need, and how many rows beyond it they may look at."""
        readers = [layer for layer in self.layers if layer.kind == "convolution" and layer.inputs[0] == name]
        padding = tuple(max((r.padding[side] for r in readers), default=0) for side in (0, 1))
        apart = any(r.dilation[1] * (r.kernel[1] - 1) + 1 <= r.padding[1] for r in readers)
        return (padding[0], padding[1]), apart, max((r.stride[0] for r in readers), default=1)

    def _place(self, shape: Shape, padding: Pair = (0, 0), apart: bool = False, beyond: int = 1) -> Place:
        """The zeros right of a row are those left of the next one, but where a kernel is smaller than its padding."""
        channels, height, width = shape
        pitch = width + padding[1] * (2 if apart else 1)
        plane = (height + 2 * padding[0]) * pitch
        place = Place(shape, self.cells, pitch, plane, padding)
        self.cells += channels * plane + (beyond + 1) * pitch + padding[1] + self.width
        return place

    def _ports(self, names: Sequence[str]) -> Any:
        return (Port * len(names))(*(Port(*self.shapes[n], self.places[n].view(self.lanes)) for n in names))

    # What is done ----------------------------------------------------------------------------------------------

    def _add(self, layer: Layer) -> None:
        if layer.kind in ("convolution", "linear"):
            self._add_weighted(layer)
        elif layer.kind == "concatenation":
            self._add_concatenation(layer)
        elif layer.kind == "reshape":
            self._add_reshape(layer)
        else:
            source, out = self.places[layer.inputs[0]], self.places[layer.output]
            operation = self._operation(layer, KINDS[layer.kind], out.shape)
            operation.input, operation.out = source.view(self.lanes), out.view(self.lanes)
            if layer.added:
                operation.other = self.places[layer.inputs[1]].view(self.lanes)
            operation.size = source.shape[1:]
            operation.kernel, operation.stride, operation.padding = layer.kernel, layer.stride, layer.padding
            operation.count_padding = layer.count_padding
            if layer.scale is not None and layer.shift is not None:
                operation.scale, operation.shift = self._keep(layer.scale), self._keep(layer.shift)

    def _operation(self, layer: Layer, kind: int, shape: Shape) -> Operation:
        operation = Operation(kind=kind, relu=layer.relu, stride=(1, 1), other=View(-1, 0, 0))
        operation.channels, operation.height, operation.width = shape
        self.operations.append(operation)
        self.owners.append(layer)
        return operation

    def _keep(self, values: torch.Tensor, multiple: int = 1) -> int:
        """The address of a copy, with zeros up to a whole block."""
        array = np.zeros(-(-len(values) // multiple) * multiple, np.float32)
        array[: len(values)] = values.float().numpy()
        self.kept.append(array)
        return array.ctypes.data

    def _add_concatenation(self, layer: Layer) -> None:
        out, channel = self.places[layer.output], 0
        for name in layer.inputs:
            source = self.places[name]
            operation = self._operation(layer, KINDS["map"], (source.shape[0], *out.shape[1:]))
            operation.input, operation.stride = source.view(self.lanes), layer.stride
            operation.out = out.view(self.lanes, channel * out.plane)
            channel += source.shape[0]

    def _add_reshape(self, layer: Layer) -> None:
        """One of the two is flat, or both are copied by way of a flat one."""
        source, out = self.places[layer.inputs[0]], self.places[layer.output]
        flat = self._place((int(np.prod(out.shape)), 1, 1))
        for place, into in ((source, True), (out, False)):
            _, height, width = place.shape
            operation = self._operation(layer, KINDS["map"], place.shape)
            there = View(*(self.lanes * cells for cells in (flat.base, height * width, width)))
            here = place.view(self.lanes)
            operation.input, operation.out = (here, there) if into else (there, here)

    def _add_weighted(self, layer: Layer) -> None:
        weight, shift = layer.folded()
        source, out = self.places[layer.inputs[0]], self.places[layer.output]
        if layer.kind == "linear":
            height = width = 1
            rows, features = weight.numpy().nonzero()
            entries = (rows, self._cells(source, features), weight.numpy()[rows, features])
            read, full = source, weight.shape[1]
        else:
            height, width = (n * (layer.pool or 1) for n in out.shape[1:])
            if layer.pool:
                height, width = layer.before_pooling(source.shape)
            read, entries = self._convolved(layer, weight.numpy(), source)
            full = weight[0].numel() * layer.groups
        number, positions = len(self.operations), ((height - 1) * read.pitch + width) * self.lanes
        operation = self._operation(layer, KINDS["convolution"], (len(weight), height, width))
        operation.input, operation.out = View(read.first * self.lanes, 0, 0), out.view(self.lanes)
        if layer.added:
            operation.other = self.places[layer.inputs[1]].view(self.lanes)
        operation.positions, operation.row, operation.pool = positions, read.pitch * self.lanes, layer.pool
        operation.gather = positions == 1
        block = self.width if operation.gather else ROWS
        operation.shift = self._keep(shift, max(block, ROWS))
        rows, cells, values = entries
        offsets = cells * self.lanes
        self.ways[number] = [Weights(rows, offsets, values, len(weight), b, full) for b in (1, block)]
        self.ways[number][0].enter(operation)
        self.scratch = max(self.scratch, max(block, ROWS) * (positions + 8 * self.width))

    def _cells(self, source: Place, features: np.ndarray) -> np.ndarray:
        """Where the numbers of a flattened image lie, from its first pixel on."""
        channel, y, x = np.unravel_index(features, source.shape)
        return channel * source.plane + y * source.pitch + x

    def _convolved(self, layer: Layer, weight: np.ndarray, source: Place) -> tuple[Place, Any]:
        """What a convolution reads, and for each of its weights the row, the offset in cells and the value."""
        out, inner, ky, kx = weight.nonzero()
        channel = out // (len(weight) // layer.groups) * weight.shape[1] + inner
        y, x = ky * layer.dilation[0], kx * layer.dilation[1]
        read = source
        if layer.stride == (1, 1):
            y, x = y - layer.padding[0], x - layer.padding[1]
        else:
            read, channel, y, x = self._phases(layer, source, channel, y, x)
        return read, (out, channel * read.plane + y * read.pitch + x, weight[out, inner, ky, kx])

    def _phases(self, layer: Layer, source: Place, channel: Any, y: Any, x: Any) -> tuple[Place, Any, Any, Any]:
        """Every `stride`-th pixel as an image of its own, for each phase that is read: steps of one again."""
        (sy, sx), (channels, height, width) = layer.stride, source.shape
        used = sorted({(int(a), int(b)) for a, b in zip(y % sy, x % sx, strict=True)}) or [(0, 0)]
        sides = [-(-(n + 2 * p) // s) for n, p, s in zip((height, width), layer.padding, layer.stride, strict=True)]
        place = self._place((len(used) * channels, sides[0], sides[1]))
        for number, (py, px) in enumerate(used):
            operation = self._operation(layer, KINDS["map"], (channels, sides[0], sides[1]))
            moved = (py - layer.padding[0]) * source.pitch + px - layer.padding[1]
            operation.relu, operation.stride = False, layer.stride
            operation.input = source.view(self.lanes, moved)
            operation.out = place.view(self.lanes, number * channels * place.plane)
        table = np.zeros((sy, sx), np.int64)
        for number, phase in enumerate(used):
            table[phase] = number
        return place, table[y % sy, x % sx] * channels + channel, y // sy, x // sx

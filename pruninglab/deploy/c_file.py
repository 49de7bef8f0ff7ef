"""One C file that classifies with the surviving weights alone, for devices without an operating system."""

import ctypes
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, RunError
from ..storage import codec, levels
from ..storage.files import check_writable, write_atomic
from ..train.run import Run
from ..typed import Range, checked
from ..version import __version__
from . import build
from .graph import Layer, Network, Shape
from .lowering import Untraceable, lower
from .memory import SCRATCH, lay_out
from .network import Example, images, plain

SOURCE = Path(__file__).with_name("portable.c")
GAP_BITS = range(1, 9)
Bits = Annotated[int, Range(2, 8)]


@dataclass(frozen=True)
class CFile:
    """A C file that was written. Sizes are in bytes."""

    path: Path
    function: str
    """The file has `int <function>_class(const float *image)` and `void <function>_logits(image, logits)`."""
    pixels: int
    classes: int
    weights: int
    weight_bytes: int
    """Of values, positions, code books, scales and biases: what lies in read-only memory besides the code."""
    source_bytes: int
    ram_bytes: int
    """Fixed: all values between the layers. The image and the logits belong to the caller."""

    def loaded(self) -> Callable[[Tensor], Tensor]:
        """What the file computes, to check it here: from a batch of images to their logits, one image at a time.

        The system's compiler builds it with -O3 and without this processor's own instructions.
        """
        try:
            logits_of_one = getattr(build.portable(self.path), f"{self.function}_logits")
        except (build.Unbuilt, OSError) as error:
            raise RunError(f"{self.path} cannot be run here: {error}.") from None
        logits_of_one.argtypes, logits_of_one.restype = [ctypes.c_void_p] * 2, None

        def logits(x: Tensor) -> Tensor:
            images, made = x.detach().to("cpu", torch.float32).contiguous(), torch.empty(len(x), self.classes)
            if images[:1].numel() not in (0, self.pixels):
                raise ConfigError(f"got images of {images[0].numel():,} numbers; expected {self.pixels:,}.")
            for image, row in zip(images, made, strict=True):
                logits_of_one(image.data_ptr(), row.data_ptr())
            return made

        return logits

    def __repr__(self) -> str:
        return (
            f"CFile({self.path}: {self.weights:,} weights in {self.weight_bytes:,} bytes, "
            f"{self.source_bytes:,} bytes of source, {self.ram_bytes:,} bytes of RAM)"
        )


@checked
def export_c(
    model: nn.Module | Run,
    path: str | Path,
    example: Example | None = None,
    masks: Mapping[str, Tensor] | None = None,
    *,
    bits: Bits | None = None,
) -> CFile:
    """Write one self-contained C99 file that computes a pruned network from its surviving weights alone.

    The file needs no library, allocates nothing, and has its weights inside. Channels that nothing needs are removed
    first, as in `compile`. Weights are floats of 32 bits. With `bits` each is a code of so many bits into the layer's
    code book (`storage.levels.fit`). That is exact if the network was trained with so few values. Positions are gaps of
    1 to 8 bits, whichever is smallest. An image is given as the network takes it: normalised, channel by channel, row
    by row. The functions keep their values in static memory, so that only one call may run at a time.

    `example` is the data set or a batch of images (a run brings its own), and `masks` are applied first.

        print(lab.deploy.export_c(run, "net.c", bits=4))

    `cc -O3 -std=c99 -DDRIVER net.c -o net` builds a program that prints a class for each image of a file of floats.
    """
    path = check_writable(path, "path")
    try:
        network = lower(plain(model, example, masks), _seven(images(model, example)))
    except Untraceable as error:
        instead = "Use deploy.compile, which leaves the rest to PyTorch."
        raise ConfigError(f"the network cannot be written in C: {error}. {instead}") from None
    if unknown := sorted({step.name for step in network.foreign}):
        raise ConfigError(
            f"{', '.join(unknown)} cannot be written in C; expected convolutions, linear layers, batch norms, ReLU, "
            "pooling, sums and concatenations. Use deploy.compile, which leaves the rest to PyTorch."
        )
    if all(layer.kind == "reshape" for layer in network.layers):
        raise ConfigError("the network has no layer that computes anything; there is nothing to write.")
    function = _identifier(path.stem)
    return _Writer(network, function if function[:1].isalpha() else f"net_{function}", bits).written(path)


_HEAD = """\
/* A pruned network, written by pruninglab $version: $weights weights in $bytes bytes, and $ram bytes of RAM.
   ${name}_class gives the class of an image of $shape numbers, ${name}_logits gives all $classes logits.
   A program that reads a file of images: cc -O3 -std=c99 -DDRIVER $name.c -o $name */

enum { ${name}_PIXELS = $pixels, ${name}_CLASSES = $classes };
void ${name}_logits(const float *image, float *logits);
int ${name}_class(const float *image);"""
_FUNCTIONS = """\
void ${name}_logits(const float *image, float *logits) {
$calls
}

int ${name}_class(const float *image) {
    float logits[$classes];
    int best = 0;
    ${name}_logits(image, logits);
    for (int i = 1; i < $classes; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}"""


@dataclass
class _Writer:
    network: Network
    function: str
    bits: int | None
    arrays: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    parts: set[str] = field(default_factory=set)
    constant_bytes: int = 0
    weights: int = 0

    def written(self, path: Path) -> CFile:
        self.rooms, self.floats = lay_out(self.network)
        for number, layer in enumerate(self.network.layers):
            self._add(layer, _identifier(f"l{number}_{layer.name}"))
        text = self._text()
        write_atomic(path, text.encode())
        ends = (self._count(self.network.input), self._count(self.network.output))
        return CFile(path, self.function, *ends, self.weights, self.constant_bytes, len(text), 4 * self.floats)

    def _text(self) -> str:
        parts = _parts()
        words = {
            "name": self.function,
            "version": __version__,
            "weights": f"{self.weights:,}",
            "bytes": f"{self.constant_bytes:,}",
            "ram": f"{4 * self.floats:,}",
            "shape": " x ".join(map(str, self.network.shapes[self.network.input])),
            "pixels": self._count(self.network.input),
            "classes": self._count(self.network.output),
            "calls": "\n".join(f"    {call};" for call in self.calls),
        }
        memory = [f"static float memory[{self.floats}];"] if self.floats else []
        kernels = [parts[name] for name in parts if name in self.parts]
        whole = [
            _HEAD,
            *kernels,
            "\n".join(self.arrays),
            *memory,
            _FUNCTIONS,
            parts["driver"].replace("NAME", "${name}"),
        ]
        return Template("\n\n".join(whole) + "\n").substitute(words)

    # Layers -----------------------------------------------------------------------------------------------------

    def _add(self, layer: Layer, name: str) -> None:
        out, relu = self._at(layer.output), int(layer.relu)
        sources = [self._at(value) for value in layer.inputs]
        other = sources[1] if layer.added else "0"
        match layer.kind:
            case "linear":
                self._struct("weights", name, self._weights(layer, name))
                self._call("linear", f"&{name}", sources[0], other, relu, out)
            case "convolution":
                self._convolution(layer, name, sources[0], other, out)
            case "map":
                channels, height, width = self.network.shapes[layer.output]
                scale, shift = (self._floats(f"{name}_{word}", v) for word, v in
                                (("scale", layer.scale), ("shift", layer.shift)))  # fmt: skip
                self._call("map", channels, height * width, scale, shift, sources[0], other, relu, out)
            case "max" | "mean":
                self._pooling(layer, name, sources[0], out)
            case "concatenation":
                self._concatenation(layer, name, out)
            case "reshape":
                pass  # values have no gaps between rows: the same numbers in the same order

    def _convolution(self, layer: Layer, name: str, source: str, other: str, out: str) -> None:
        channels, *size = self.network.shapes[layer.inputs[0]]
        made = layer.before_pooling(self.network.shapes[layer.inputs[0]])
        sides = [_pair(pair) for pair in (layer.kernel, layer.stride, layer.padding, layer.dilation, made)]
        weights = f"{{{self._weights(layer, name)}}}"
        fields = [weights, layer.groups, channels, _pair(size), *sides, layer.pool, int(layer.relu)]
        self._struct("convolution", name, ", ".join(map(str, fields)))
        scratch = self._at(layer.output + SCRATCH) if layer.pool else "0"
        self.parts.add("convolution")
        self.calls.append(f"convolve(&{name}, {source}, {other}, {scratch}, {out})")

    def _pooling(self, layer: Layer, name: str, source: str, out: str) -> None:
        channels, *size = self.network.shapes[layer.inputs[0]]
        sides = [size, self.network.shapes[layer.output][1:], layer.kernel, layer.stride, layer.padding]
        flags = [int(layer.kind == "mean"), int(layer.count_padding), int(layer.relu)]
        self._struct("pooling", name, ", ".join(map(str, [channels, *map(_pair, sides), *flags])))
        self.parts.add("pooling")
        self.calls.append(f"pool(&{name}, {source}, {out})")

    def _concatenation(self, layer: Layer, name: str, out: str) -> None:
        """One input after the other, and zeros where a shortcut has fewer channels."""
        _, height, width = self.network.shapes[layer.output]
        at = 0
        for value in layer.inputs:
            channels, *size = self.network.shapes[value]
            pairs = [f"(const int[2]){_pair(pair)}" for pair in (size, layer.stride)]
            self._call("copy", channels, height, width, *pairs, self._at(value), f"{out} + {at}")
            at += channels * height * width
        if left := self._count(layer.output) - at:
            self._call("clear", left, f"{out} + {at}")

    # What is written --------------------------------------------------------------------------------------------

    def _call(self, function: str, *arguments: object) -> None:
        self.parts.add(function)
        self.calls.append(f"{function}({', '.join(map(str, arguments))})")

    def _struct(self, kind: str, name: str, fields: str) -> None:
        self.arrays.append(f"static const {kind} {name} = {{{fields}}};")

    def _count(self, value: str) -> int:
        return int(np.prod(self.network.shapes[value]))

    def _at(self, value: str) -> str:
        room = self.rooms[value]
        return room if isinstance(room, str) else f"memory + {room}"

    def _weights(self, layer: Layer, name: str) -> str:
        """The fields of the struct `weights`. With a code book the norm's scale stays apart: it would add values."""
        self.parts.add("weights")
        weight, shift = layer.folded()
        scale = layer.scale if self.bits and layer.scale is not None else None
        if scale is not None and layer.weight is not None:
            weight = layer.weight.float()
        matrix = weight.reshape(len(weight), -1).numpy()
        kept = matrix != 0
        self.weights += int(kept.sum())
        gap_bits, stream = _gaps(kept)
        gaps = self._bytes(f"{name}_gap", stream)
        code_bits, codes, values = self._values(torch.from_numpy(matrix[kept]))
        code = self._bytes(f"{name}_code", codes) if code_bits else "0"
        numbers = [self._floats(f"{name}_{word}", v) for word, v in
                   (("value", values), ("scale", scale), ("shift", shift if shift.any() else None))]  # fmt: skip
        return ", ".join(map(str, [*matrix.shape, gap_bits, code_bits, gaps, code, *numbers]))

    def _values(self, values: Tensor) -> tuple[int, np.ndarray, Tensor]:
        """A code book and the codes, or the plain values where these are smaller."""
        if not self.bits or not len(values):
            return 0, np.zeros(0, np.uint8), values
        book = levels.fit(values, self.bits, "clustered")
        width = max((len(book) - 1).bit_length(), 1)
        codes = _packed(codec.to_bits(levels.nearest(values, book).numpy(), width))
        return (width, codes, book) if len(codes) + 4 * len(book) < 4 * len(values) else (0, codes, values)

    def _bytes(self, name: str, values: np.ndarray) -> str:
        self.constant_bytes += len(values)
        self.arrays.append(f"static const unsigned char {name}[] = {{{_wrapped(map(str, values.tolist()))}}};")
        return name

    def _floats(self, name: str, values: Tensor | None) -> str:
        if values is None or not len(values):
            return "0"
        self.constant_bytes += 4 * len(values)
        self.arrays.append(f"static const float {name}[] = {{{_wrapped(map(_number, values.float().tolist()))}}};")
        return name


def _seven(x: Tensor) -> Tensor:
    """A number of images that no other size of the network is likely to be."""
    return x[torch.arange(7) % len(x)]


def _gaps(kept: np.ndarray) -> tuple[int, np.ndarray]:
    """The width of a gap that takes the fewest bytes, and the stream; the last gap leads to the end of the matrix."""
    flat = np.append(kept.ravel(), True)[None]
    streams = {width: codec.encode_gap(flat, width) for width in GAP_BITS}
    best = min(streams, key=lambda width: len(streams[width]))
    return best, _packed(streams[best])


def _packed(bits: np.ndarray) -> np.ndarray:
    """Bytes, and one more to read on into."""
    return np.append(np.packbits(bits), np.uint8(0))


def _parts() -> dict[str, str]:
    """The kernels by name, in the order of their file."""
    found = re.split(r"^// (\w+)\n", SOURCE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: text.strip() for name, text in zip(found[1::2], found[2::2], strict=True)}


def _identifier(text: str) -> str:
    return re.sub(r"\W", "_", text, flags=re.ASCII)


def _pair(pair: tuple[int, ...] | list[int] | Shape) -> str:
    return f"{{{pair[0]}, {pair[1]}}}"


def _number(value: float) -> str:
    """Nine digits are enough for 32 bits."""
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _wrapped(words: Iterator[str], width: int = 120) -> str:
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) + 1 > width:
            lines.append(line)
            line = ""
        line += f"{word},"
    return "\n".join([*lines, line.rstrip(",")])

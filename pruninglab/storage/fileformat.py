"""The sparse file: named tensors, each in its cheapest coding, in one safetensors file of which every byte is checked.

It holds one tensor, `streams`, and metadata that every safetensors reader shows: `format`, `sha256` and `contents`.
`sha256` is the first 16 digits of the hash of the whole file with zeros in their place. `contents` has a line for each
tensor, in the order given. A line starts with dtype (`F32<F16` was float32 and is stored as float16), shape, number of
values stored, coding of positions and coding of values. Then come the bytes of the streams of positions, values and
code book, with z, l or b behind what zlib, lzma or bz2 made smaller. A checksum of these and the name end the line. A
line `= 3 NAME` is one more name of the tensor in line 3, counted from 0.
"""

import hashlib
import json
import lzma
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..masks.masks import INTEGERS
from . import codec
from .codec import Coded, Entropy, Numbers

FORMAT = "pruninglab sparse 1"
Values = Literal["exact", "fp32", "fp16", "bf16", "codebook"]
Others = Literal["exact", "fp16", "bf16"]
_ROUNDED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_DTYPES = {  # as safetensors calls them
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MARKS = {"zlib": "z", "lzma": "l", "bz2": "b"}
_ENTROPY = {mark: name for name, mark in _MARKS.items()}
_BLANK = "0" * 16
_UNDECODABLE = (
    *(ValueError, TypeError, LookupError, ArithmeticError, RuntimeError),
    *(OSError, EOFError, zlib.error, lzma.LZMAError),
)
SMALL = 2**24
"""Bytes that any file may become; beyond that a thousand times its own size, unless the caller allows more."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: how it is coded, its streams as stored, and how many values rounding changed."""

    name: str
    dtype: str
    stored: str
    shape: tuple[int, ...]
    coded: Coded
    streams: tuple[bytes, ...]
    lengths: tuple[int, ...]
    marks: tuple[str, ...]
    is_weight: bool
    nonzero: int
    rounded: int

    @property
    def index_bytes(self) -> int:
        return self.lengths[0]

    @property
    def data_bytes(self) -> int:
        return self.lengths[1] + self.lengths[2]

    def without_streams(self) -> "Entry":
        return replace(self, streams=(), coded=replace(self.coded, streams=()))

    @property
    def line(self) -> str:
        dtype = self.dtype if self.dtype == self.stored else f"{self.dtype}<{self.stored}"
        shape = ",".join(map(str, self.shape)) or "-"
        lengths = ",".join(f"{length}{mark}" for length, mark in zip(self.lengths, self.marks, strict=True))
        coded, checksum = self.coded, _checksum(self.streams)
        return f"{dtype} {shape} {coded.kept} {coded.positions} {coded.values} {lengths} {checksum} {self.name}"


@dataclass(frozen=True)
class Packed:
    """Tensors ready to be written: the lines of the contents, and the entries, tied tensors once."""

    lines: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def content(self) -> bytes:
        """The whole file. Its container is put together here: safetensors leaves the order of metadata to chance."""
        content = b"".join((self._head(), *(stream for entry in self.entries for stream in entry.streams)))
        return content.replace(_BLANK.encode(), _digest(content, _BLANK).encode(), 1)

    @property
    def size(self) -> int:
        """The bytes of that file."""
        return len(self._head()) + self._bytes_of_streams

    @property
    def _bytes_of_streams(self) -> int:
        return sum(sum(entry.lengths) for entry in self.entries)

    def _head(self) -> bytes:
        metadata = {"format": FORMAT, "sha256": _BLANK, "contents": "\n".join(self.lines)}
        length = self._bytes_of_streams
        only = {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}
        return head({"__metadata__": metadata, "streams": only})


def head(said: Mapping[str, Any], ascii: bool = True) -> bytes:
    """The header of a safetensors file, and its length before it."""
    header = json.dumps(said, separators=(",", ":"), ensure_ascii=ascii).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def dense_size(tensors: Mapping[str, Tensor]) -> int | None:
    """The bytes of a safetensors file of these tensors, or None for a type that is not known here."""
    if any(tensor.dtype not in _NAMES for tensor in tensors.values()):
        return None
    said, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-_RANK.index(_NAMES[tensors[name].dtype]), name)):
        tensor = tensors[name]
        places = [end, end := end + tensor.nbytes]
        said[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": places}
    return len(head(said, ascii=False)) + end


_RANK = ("BOOL", "U8", "I8", "I16", "F16", "BF16", "I32", "F32", "F64", "I64")
"""Types as safetensors orders them, from the last to the first."""


def is_weight(tensor: Tensor) -> bool:
    """What `values` is about and papers count: floating point, two dimensions or more."""
    return tensor.is_floating_point() and tensor.ndim > 1


def pack(
    state: Mapping[str, Tensor],
    values: Values = "exact",
    others: Others = "exact",
    entropy: Entropy | None = None,
    *,
    streams: bool = True,
) -> Packed:
    """Tensors in their cheapest codings; what the options mean is said at `storage.save`.

    Without `streams` it can only be measured, and holds no second network in memory.
    """
    packed = Packed()
    seen: dict[object, int] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ConfigError(f"{name} is a {type(tensor).__name__}; a sparse file holds tensors only.")
        if tensor.dtype not in _NAMES or tensor.layout != torch.strided or tensor.is_meta:
            found = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise ConfigError(f"{name} is {found}; a sparse file is made from dense tensors of {', '.join(_DTYPES)}.")
        if "\n" in name:
            raise ConfigError(f"{name!r} has a line break, which the table of contents cannot hold; rename the module.")
        place = (
            (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else name
        )
        if place in seen:
            packed.lines.append(f"= {seen[place]} {name}")
            continue
        seen[place] = len(packed.lines)
        entry = _entry(name, tensor.detach(), values, others, entropy)
        packed.lines.append(entry.line)
        packed.entries.append(entry if streams else entry.without_streams())
    return packed


def _entry(name: str, tensor: Tensor, values: str, others: str, entropy: Entropy | None) -> Entry:
    weight = is_weight(tensor)
    wanted = _ROUNDED.get(values if weight else others) if tensor.is_floating_point() else None
    stored = tensor.to(wanted) if wanted is not None and wanted.itemsize < tensor.dtype.itemsize else tensor
    if stored is not tensor and bool((stored.isinf() & ~tensor.isinf()).any()):
        raise ConfigError(f"{name} has values beyond the range of {stored.dtype}; take bf16, or keep them exact.")
    book = {"fp32": False, "codebook": True}.get(values) if weight else None
    try:
        coded = codec.encode(patterns(stored), book)
    except ValueError as error:
        raise ConfigError(f"{name} cannot have a code book: {error}. Quantize it, or use values='exact'.") from None
    streams, marks = list(coded.streams), [""] * len(coded.streams)
    for i, raw in enumerate(coded.streams):
        if entropy and len(squeezed := codec.squeeze(raw, entropy)) < len(raw):
            streams[i], marks[i] = squeezed, _MARKS[entropy]
    changed = 0 if stored is tensor else int(((stored.to(tensor.dtype) != tensor) & ~tensor.isnan()).sum())
    return Entry(
        name=name,
        dtype=_NAMES[tensor.dtype],
        stored=_NAMES[stored.dtype],
        shape=tuple(tensor.shape),
        coded=coded,
        streams=tuple(streams),
        lengths=tuple(map(len, streams)),
        marks=tuple(marks),
        is_weight=weight,
        nonzero=int(torch.count_nonzero(stored)),
        rounded=changed,
    )


def patterns(tensor: Tensor) -> Numbers:
    """A tensor as a matrix (first dimension, everything else) of bit patterns, -0 as +0."""
    size = tensor.dtype.itemsize
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(INTEGERS[size]).numpy().astype(f"<u{size}")
    if tensor.is_floating_point():
        flat[flat == 1 << (8 * size - 1)] = 0
    return flat.reshape(_matrix(tuple(tensor.shape)))


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


def unpack(content: bytes, limit: int | None = None) -> dict[str, Tensor]:
    """The tensors by name, tied ones shared. Whatever is wrong with the file is a ValueError that says where.

    `limit` is the number of bytes that all tensors together may take, so that no small file fills the memory.
    """
    metadata, start = _header(content)
    lines = metadata["contents"].split("\n") if metadata["contents"] else []
    if _digest(content, metadata["sha256"]) != metadata["sha256"]:
        raise ValueError(_what_is_wrong(content, start, lines))
    left = max(SMALL, 1000 * len(content)) if limit is None else limit
    state: dict[str, Tensor] = {}
    names: list[str] = []
    for line in lines:
        *fields, name = line.split(" ", 2 if line.startswith("= ") else 7)
        try:
            if fields[0] == "=":
                state[name] = state[names[int(fields[1])]]
            else:
                *coding, lengths, _ = fields
                streams = _streams(content, start, lengths)
                start += sum(map(_length, lengths.split(",")))
                if start > len(content):
                    raise ValueError("its streams lie beyond the end of the file")
                left -= (size := _bytes_of(coding))
                if left < 0:
                    raise ValueError(f"its {size:,} bytes are over the limit; limit=… allows more")
                state[name] = _tensor(coding, streams, lengths)
        except _UNDECODABLE as error:
            raise ValueError(f"{name:.200} cannot be decoded ({error})") from None
        names.append(name)
    return state


def _shape(coding: list[str]) -> tuple[int, ...]:
    shape = tuple(map(int, coding[1].split(","))) if coding[1] != "-" else ()
    if any(length < 0 for length in shape):
        raise ValueError(f"a shape of {coding[1]:.40}")
    return shape


def _bytes_of(coding: list[str]) -> int:
    """What a tensor takes in memory, by its line of the contents."""
    return prod(_shape(coding)) * max(_DTYPES[dtype].itemsize for dtype in coding[0].split("<"))


def _header(content: bytes) -> tuple[dict[str, str], int]:
    """The metadata, and where the streams begin."""
    start = 8 + int.from_bytes(content[:8], "little")
    if content[8:9] != b"{":
        raise ValueError("it is no safetensors file")
    if len(content) < start:
        raise ValueError(f"it is cut off inside its header, at {len(content):,} bytes")
    try:
        header = json.loads(content[8:start])
        metadata = header.get("__metadata__")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"its header has been altered ({error})") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError(f"it is a safetensors file, but not of the format {FORMAT!r}")
    try:
        return {key: str(metadata[key]) for key in ("sha256", "contents")}, start
    except KeyError:
        raise ValueError("its header has been altered") from None


def _what_is_wrong(content: bytes, start: int, lines: list[str]) -> str:
    """Which tensor a file that fails its checksum fails in, as far as its contents can still tell."""
    for line in lines:
        if line.startswith("= "):
            continue
        try:
            *_, lengths, checksum, name = line.split(" ", 7)
            streams = _streams(content, start, lengths)
        except ValueError:
            return "its header has been altered"
        start += sum(map(_length, lengths.split(",")))  # where they should end
        if start > len(content):
            return f"it is cut off inside {name}, at {len(content):,} bytes"
        if _checksum(streams) != checksum:
            return f"{name} has been altered: its bytes do not match their checksum"
    if len(content) > start:
        return f"{len(content) - start:,} bytes follow its end"
    return "its header has been altered"


def _streams(content: bytes, start: int, lengths: str) -> tuple[bytes, ...]:
    streams = []
    for length in lengths.split(","):
        stop = start + _length(length)
        streams.append(content[start:stop])
        start = stop
    return tuple(streams)


def _length(written: str) -> int:
    if (length := int(written.rstrip("zlb"))) < 0:
        raise ValueError(f"a stream of {length:,} bytes")
    return length


def _tensor(coding: list[str], streams: tuple[bytes, ...], lengths: str) -> Tensor:
    dtypes, _, kept, positions, values = coding
    dtype, _, stored = dtypes.partition("<")
    shape = _shape(coding)
    if not 0 <= int(kept) <= prod(shape):
        raise ValueError(f"{kept:.40} values in {prod(shape):,} places")
    most = 8 * codec.LARGEST_BOOK + prod(shape) * _DTYPES[stored or dtype].itemsize
    place, codes, book = (
        codec.expand(stream, _ENTROPY[length[-1]], most) if length[-1] in _ENTROPY else stream
        for stream, length in zip(streams, lengths.split(","), strict=True)
    )
    kind = _DTYPES[stored or dtype]
    coded = Coded(int(kept), positions, values, 0, 0, (place, codes, book))
    matrix = codec.decode(coded, _matrix(shape), np.dtype(f"<u{kind.itemsize}"))
    return torch.from_numpy(matrix.astype(f"i{kind.itemsize}")).view(kind).reshape(shape).to(_DTYPES[dtype])


def _checksum(streams: tuple[bytes, ...]) -> str:
    """Enough to name the tensor that was hit; that any was hit, the checksum of the whole file tells."""
    return f"{zlib.crc32(b''.join(streams)) & 0xFFFF:04x}"


def _digest(content: bytes, written: str) -> str:
    return hashlib.sha256(content.replace(written.encode(), _BLANK.encode(), 1)).hexdigest()[:16]

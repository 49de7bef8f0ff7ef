"""Sparse tensors as bits and back: codings of positions, of values, and of whole tensors, all pure and vectorised.

A tensor is a matrix (first dimension, everything else) of bit patterns, in which zero is the pattern 0. Its positions
are a boolean matrix; its values are the patterns of what is kept, row by row, however the positions are coded. Numbers
are packed with the most significant bit first, patterns and code books are little-endian.

A coding of positions is named from the outside in. `rows.cols.turn.rice:3` lists the live rows, then the live columns.
It codes the rest of the matrix, by columns, with `rice:3`.
"""

import bz2
import lzma
import math
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Numbers = NDArray[Any]
Shape = tuple[int, int]
LARGEST_BOOK = 2**16
_WINDOW = 2**23
_WIDEST = 48
Entropy = Literal["zlib", "lzma", "bz2"]
ENTROPY: dict[str, tuple[Callable[[bytes], bytes], Callable[[], Any]]] = {  # without containers and checksums
    "zlib": (lambda raw: zlib.compress(raw, 9, wbits=-15), lambda: zlib.decompressobj(-15)),
    "lzma": (
        lambda raw: lzma.compress(raw, lzma.FORMAT_RAW, filters=_lzma2(max(2**12, min(len(raw), _WINDOW)))),
        lambda: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_lzma2(_WINDOW)),
    ),
    "bz2": (bz2.compress, bz2.BZ2Decompressor),
}


def squeeze(raw: bytes, entropy: str) -> bytes:
    return ENTROPY[entropy][0](raw)


def expand(packed: bytes, entropy: str, most: int) -> bytes:
    """What was squeezed, or a ValueError where that is more than `most` bytes."""
    reader = ENTROPY[entropy][1]()
    raw = reader.decompress(packed, most + 1)
    if len(raw) > most or not reader.eof or reader.unused_data:
        raise ValueError(f"a stream does not decompress to {most:,} bytes or fewer")
    return raw


def _lzma2(window: int) -> list[dict[str, Any]]:
    """A window as large as the stream: to set up the preset's 64 MB for a few bytes takes a quarter of a second."""
    return [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}]


def to_bits(numbers: Numbers, width: int) -> Bits:
    """Each number in `width` bits."""
    bits = np.empty((len(numbers), width), np.uint8)
    for place in range(width):
        bits[:, place] = (numbers >> (width - 1 - place)) & 1
    return bits.reshape(-1)


def from_bits(bits: Bits, width: int, count: int) -> NDArray[np.int64]:
    numbers = np.zeros(count, np.int64)
    for place in range(width):
        numbers = (numbers << 1) | bits[place : count * width : width]
    return numbers


def pack(bits: Bits) -> bytes:
    return np.packbits(bits).tobytes()


def unpack(packed: bytes, count: int | None = None) -> Bits:
    """`count` bits, or all with the padding of the last byte."""
    if count is not None and len(packed) != -(-count // 8):
        raise ValueError(f"{len(packed):,} bytes instead of {-(-count // 8):,}")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=count)


def gaps(mask: Mask) -> NDArray[np.int64]:
    """How many zeros come before each kept weight, row by row."""
    return np.diff(np.flatnonzero(mask), prepend=-1) - 1


def encode_bitmap(mask: Mask, _: int = 0) -> Bits:
    """One bit for each weight, row by row."""
    return mask.reshape(-1).astype(np.uint8)


def decode_bitmap(bits: Bits, shape: Shape, kept: int, _: int = 0) -> Mask:
    return bits[: math.prod(shape)].astype(bool).reshape(shape)


def encode_gap(mask: Mask, width: int) -> Bits:
    """`width` bits for each gap; all ones is a filler: `2^width - 1` zeros, and no weight after them.

    Deep Compression (Han, Mao and Dally, 2016, section 2) stores a zero value with each filler; this one needs none.
    """
    most, zeros = 2**width - 1, gaps(mask)
    fillers = zeros // most
    codes = np.full(len(zeros) + int(fillers.sum()), most)
    codes[np.cumsum(fillers + 1) - 1] = zeros % most
    return to_bits(codes, width)


def decode_gap(bits: Bits, shape: Shape, kept: int, width: int) -> Mask:
    codes = from_bits(bits, width, len(bits) // width)
    ends = codes != 2**width - 1
    return _at(np.cumsum(codes + ends)[ends][:kept] - 1, shape)  # what padding adds comes after the last


def encode_rice(mask: Mask, width: int) -> Bits:
    """The lowest `width` bits of every gap; then, for each, as many 0s as the higher bits say, and a 1 (Rice, 1979)."""
    zeros = gaps(mask)
    ends = np.cumsum((zeros >> width) + 1) - 1
    unary = np.zeros(ends[-1] + 1 if len(ends) else 0, np.uint8)
    unary[ends] = 1
    return np.concatenate([to_bits(zeros, width), unary])


def decode_rice(bits: Bits, shape: Shape, kept: int, width: int) -> Mask:
    low = from_bits(bits, width, kept)
    high = np.diff(np.flatnonzero(bits[kept * width :]), prepend=-1) - 1
    return _at(np.cumsum((high << width | low) + 1) - 1, shape)


def encode_csr(mask: Mask, width: int) -> Bits:
    """`width` bits for the number kept in each row; then each one's column, in as few bits as the columns need."""
    return np.concatenate([to_bits(mask.sum(1), width), to_bits(np.nonzero(mask)[1], _enough_for(mask.shape[1]))])


def decode_csr(bits: Bits, shape: Shape, kept: int, width: int) -> Mask:
    rows, columns = shape
    counts = from_bits(bits, width, rows)
    if (counts > columns).any() or counts.sum() != kept:
        raise ValueError(f"rows of other lengths than {kept:,} positions")
    inside = from_bits(bits[rows * width :], _enough_for(columns), kept)
    if (inside >= columns).any():
        raise ValueError("a column lies outside the matrix")
    return _at(np.repeat(np.arange(rows), counts) * columns + inside, shape)


def _enough_for(choices: int) -> int:
    """Bits that tell so many things apart; none for a single one."""
    return max(0, choices - 1).bit_length()


def _at(positions: NDArray[np.int64], shape: Shape) -> Mask:
    mask = np.zeros(math.prod(shape), bool)
    mask[positions] = True
    return mask.reshape(shape)


_PLAIN: dict[str, tuple[Callable[[Mask, int], Bits], Callable[[Bits, Shape, int, int], Mask]]] = {
    "bitmap": (encode_bitmap, decode_bitmap),
    "gap": (encode_gap, decode_gap),
    "rice": (encode_rice, decode_rice),
    "csr": (encode_csr, decode_csr),
}


def encode_positions(mask: Mask, coding: str) -> Bits:
    """`rows.` and `cols.`: a bit for each, 1 where anything is kept, the others taken out. `turn.`: transposed."""
    head, _, rest = coding.partition(".")
    if head == "rows":
        live = mask.any(1)
        return np.concatenate([live.astype(np.uint8), encode_positions(mask[live], rest)])
    if head == "cols":
        live = mask.any(0)
        return np.concatenate([live.astype(np.uint8), encode_positions(mask[:, live], rest)])
    if head == "turn":
        return encode_positions(mask.T, rest)
    name, _, width = head.partition(":")
    return _PLAIN[name][0](mask, int(width or 0))


_CODING = re.compile(r"(rows\.)?(cols\.)?(turn\.)?(bitmap|(gap|rice|csr):[0-9]{1,2})")


def decode_positions(bits: Bits, shape: Shape, kept: int, coding: str) -> Mask:
    """The mask, or a ValueError where the bits do not give `kept` positions inside `shape`."""
    if not _CODING.fullmatch(coding):
        raise ValueError(f"{coding!r:.40} is no coding of positions")
    return _decode_positions(bits, shape, kept, coding)


def _decode_positions(bits: Bits, shape: Shape, kept: int, coding: str) -> Mask:
    head, _, rest = coding.partition(".")
    if head in ("rows", "cols"):
        axis = 0 if head == "rows" else 1
        live = bits[: shape[axis]].astype(bool)
        inner = (int(live.sum()), shape[1]) if axis == 0 else (shape[0], int(live.sum()))
        mask = np.zeros(shape, bool)
        mask[live if axis == 0 else (slice(None), live)] = _decode_positions(bits[shape[axis] :], inner, kept, rest)
        return mask
    if head == "turn":
        return _decode_positions(bits, (shape[1], shape[0]), kept, rest).T
    name, _, width = head.partition(":")
    if (wide := int(width or 0)) > _WIDEST:
        raise ValueError(f"a width of {wide} bits")
    mask = _PLAIN[name][1](bits, shape, kept, wide)
    if np.count_nonzero(mask) != kept:
        raise ValueError(f"{np.count_nonzero(mask):,} positions instead of {kept:,}")
    return mask


def costs(mask: Mask) -> dict[str, int]:
    """The bits of each coding of these positions, with the best width of each.

    Past half density a code for each gap cannot beat a bit for each weight, and taking lines out only adds to it.
    """
    rows, columns = mask.any(1), mask.any(0)
    sparse = 2 * np.count_nonzero(mask) < mask.size
    found: dict[str, int] = {}
    for prefix in ("", "rows.", "cols.", "rows.cols."):
        inner, side = mask, 0
        if "rows" in prefix:
            inner, side = inner[rows], side + mask.shape[0]
        if "cols" in prefix:
            inner, side = inner[:, columns], side + mask.shape[1]
        if ("rows" in prefix and rows.all()) or ("cols" in prefix and columns.all()):
            continue
        found[f"{prefix}bitmap"] = side + inner.size
        if sparse:
            turned = (
                {f"turn.{name}": bits for name, bits in _gap_costs(inner.T).items()} if min(inner.shape) > 1 else {}
            )
            found |= {prefix + name: side + bits for name, bits in (_gap_costs(inner) | turned).items()}
    return found


def _gap_costs(mask: Mask) -> dict[str, int]:
    lengths, counts = np.unique(gaps(mask), return_counts=True)
    kept, longest = int(counts.sum()), int(lengths[-1]) if len(lengths) else 0
    most = int(mask.sum(1).max(initial=0)).bit_length()
    widths = range(1, longest.bit_length() + 2)
    gap = {w: w * (kept + int((lengths // (2**w - 1)) @ counts)) for w in widths}
    rice = {w: kept * (w + 1) + int((lengths >> w) @ counts) for w in (0, *widths)}
    best_gap, best_rice = min(gap, key=gap.__getitem__), min(rice, key=rice.__getitem__)
    return {
        f"gap:{best_gap}": gap[best_gap],
        f"rice:{best_rice}": rice[best_rice],
        f"csr:{most}": mask.shape[0] * most + kept * _enough_for(mask.shape[1]),
    }


def book_of(patterns: Numbers) -> Numbers | None:
    """The distinct patterns in order; None where there are more than a code book may hold."""
    sample = patterns[:: max(1, len(patterns) // (2 * LARGEST_BOOK))]
    if len(_distinct(sample)) > LARGEST_BOOK or len(book := _distinct(patterns)) > LARGEST_BOOK:
        return None
    return book


def _distinct(patterns: Numbers) -> Numbers:
    """As `np.unique`, which hashes instead and takes ten times as long where most are different."""
    ordered = np.sort(patterns)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def value_costs(values: Numbers, book: bool | None = None) -> dict[str, int]:
    """The bits of each coding of these values, their code book included; all, only raw (False), only a book (True)."""
    found: dict[str, int] = {}
    count, width = len(values), 8 * values.itemsize
    if not book:
        found["raw"] = count * width
    if book is None and width > 8:
        tops = len(np.unique(_top(values)))
        found[f"top:{tops}"] = count * (_enough_for(tops) + width - 8) + 8 * tops
    if book is not False and (shared := book_of(values)) is not None:
        found[f"book:{len(shared)}"] = count * _enough_for(len(shared)) + width * len(shared)
    return found


def encode_values(values: Numbers, coding: str) -> tuple[bytes, bytes]:
    """`raw`: the patterns. `book:N`: a code for each, then a book of N patterns. `top:N`: a code for each highest byte,
    all lowest bytes, all next ones and so on, then a book of N bytes; weights of like size share sign and exponent.
    """
    if coding == "raw":
        return values.tobytes(), b""
    if coding.startswith("book"):
        book = _distinct(values)
        return pack(to_bits(np.searchsorted(book, values), _enough_for(len(book)))), book.tobytes()
    book, planes = np.unique(_top(values)), values.view(np.uint8).reshape(-1, values.itemsize).T[:-1]
    codes = pack(to_bits(np.searchsorted(book, _top(values)), _enough_for(len(book))))
    return codes + planes.tobytes(), book.tobytes()


def decode_values(stream: bytes, book: bytes, count: int, dtype: np.dtype, coding: str) -> Numbers:
    """The values, or a ValueError where the streams do not hold `count` of them."""
    name, _, entries = coding.partition(":")
    if name == "raw":
        values = np.frombuffer(stream, dtype)
    else:
        shared = np.frombuffer(book, dtype if name == "book" else np.uint8)
        if len(shared) != int(entries):
            raise ValueError(f"a code book of {len(shared):,} values instead of {entries}")
        width = _enough_for(len(shared))
        split = len(stream) if name == "book" else -(-count * width // 8)
        values = shared[from_bits(unpack(stream[:split], count * width), width, count)]
        if name == "top":
            planes = np.frombuffer(stream[split:], np.uint8).reshape(dtype.itemsize - 1, count)
            values = np.concatenate([planes, values[None]]).T.copy().view(dtype).reshape(-1)
    if len(values) != count:
        raise ValueError(f"{len(values):,} values instead of {count:,}")
    return values


def _top(values: Numbers) -> Numbers:
    return (values >> (8 * values.itemsize - 8)).astype(np.uint8)


@dataclass(frozen=True)
class Coded:
    """A tensor as three streams: where its values are, which they are, and the code book that they refer to."""

    kept: int
    positions: str
    """`dense`, every value in its place, or the name of a coding."""
    values: str
    index_bits: int
    data_bits: int
    """Of the values and their code book."""
    streams: tuple[bytes, bytes, bytes]


def encode(matrix: Numbers, book: bool | None = None) -> Coded:
    """The cheapest coding of positions and values, to the byte.

    `book` leaves all codings of values to choose from, only raw ones (False), or only code books (True); then a matrix
    of too many distinct values is a ValueError.
    """
    mask = matrix != 0
    bits = costs(mask) if not mask.all() else {}
    sparse = min(bits, key=bits.__getitem__, default="dense")
    best: tuple[int, str, str, int] | None = None
    for positions in dict.fromkeys(("dense", sparse)):
        held = matrix.reshape(-1) if positions == "dense" else matrix[mask]
        for values, data in value_costs(held, book).items():
            size = -(-bits.get(positions, 0) // 8) + -(-data // 8)
            if best is None or size < best[0]:
                best = (size, positions, values, data)
    if best is None:
        raise ValueError(f"more than {LARGEST_BOOK:,} distinct values")
    _, positions, values, data = best
    held = matrix.reshape(-1) if positions == "dense" else matrix[mask]
    index = b"" if positions == "dense" else pack(encode_positions(mask, positions))
    streams = (index, *encode_values(held, values))
    return Coded(len(held), positions, values, bits.get(positions, 0), data, streams)


def decode(coded: Coded, shape: Shape, dtype: np.dtype) -> Numbers:
    """The matrix of patterns, or a ValueError that says what does not fit."""
    index, codes, book = coded.streams
    held = decode_values(codes, book, coded.kept, dtype, coded.values)
    if coded.positions == "dense":
        return held.reshape(shape).copy()
    matrix = np.zeros(shape, dtype)
    matrix[decode_positions(unpack(index), shape, coded.kept, coded.positions)] = held
    return matrix

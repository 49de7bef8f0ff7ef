"""The sparse file, and every size that this package quotes."""

import bz2
import copy
import gzip
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import pandas as pd
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from ..layers.names import canonical_parameters
from ..typed import CountFromZero, checked
from . import codec, fileformat
from .codec import Entropy
from .fileformat import Others, Packed, Values
from .files import AnyModel, Source, check_writable, network_of, state_dict_of, write_atomic


@checked
def save(
    model: Source,
    path: str | Path,
    *,
    values: Values = "exact",
    others: Others = "exact",
    entropy: Entropy | None = None,
) -> dict[str, int]:
    """Write the sparse file of a model, a run or a state dict, and return its sizes (those of `sizes`, and `rounded`).

    `values` says how the weights (floating point, two dimensions or more) are stored. `"exact"` keeps every bit, with a
    code book of values or of their highest bytes if that is smaller. `"fp32"` is the plain 32 bits. `"codebook"`
    demands a book for every weight; it is exact too, and refused beyond 65,536 distinct values. `"fp16"` and `"bf16"`
    round to nearest, ties to even, and `rounded` counts what they changed. `others` says the same of biases, norms and
    floating buffers. Zeros come back as +0. `entropy` (`"zlib"`, `"lzma"`, `"bz2"`) compresses each stream that gets
    smaller by it.

    >>> size = lab.storage.save(run, folder / 'net.safetensors')
    >>> sorted(lab.storage.load(folder / 'net.safetensors')) == sorted(run.model.state_dict())
    True
    """
    path = check_writable(path, "path")
    packed = fileformat.pack(state_dict_of(model), values, others, entropy)
    content = packed.content()
    write_atomic(path, content)
    return _file_sizes(packed) | {"rounded": sum(entry.rounded for entry in packed.entries)}


@overload
def load(path: str | Path, *, limit: CountFromZero | None = None) -> dict[str, Tensor]: ...


@overload
def load(path: str | Path, model: AnyModel, *, limit: CountFromZero | None = None) -> AnyModel: ...


@checked
def load(
    path: str | Path, model: nn.Module | None = None, *, limit: CountFromZero | None = None
) -> dict[str, Tensor] | nn.Module:
    """The state dict in a sparse file, or `model` with it. What is cut off, altered or foreign is a DataError.

    A small file may hold large tensors of zeros. More than `limit` bytes in memory are refused: by default what the
    model has, and without one a thousand times the size of the file, or 16 MiB.
    """
    if model is not None and limit is None:
        limit = sum(tensor.nbytes for tensor in model.state_dict().values())
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}. Give a file that storage.save wrote.") from None
    try:
        state = fileformat.unpack(content, limit)
    except ValueError as error:
        raise DataError(f"{path} is refused: {error}. Copy it again, or write it again with storage.save.") from None
    if model is None:
        return state
    own = model.state_dict()
    if differing := sorted(own.keys() ^ state.keys()) or [n for n, t in state.items() if t.shape != own[n].shape]:
        raise ConfigError(
            f"{path} is of another model; they differ in {', '.join(differing[:5])}. Build the one that was saved."
        )
    model.load_state_dict(state)
    return model


def _file_sizes(packed: Packed) -> dict[str, int]:
    weights = [entry for entry in packed.entries if entry.is_weight]
    return {
        "weights": sum(math.prod(entry.shape) for entry in weights),
        "weights_nonzero": sum(entry.nonzero for entry in weights),
        "data_bits": sum(entry.coded.data_bits for entry in weights),
        "index_bits": sum(entry.coded.index_bits for entry in weights),
        "payload_bytes": sum(entry.index_bytes + entry.data_bytes for entry in weights),
        "sparse_bytes": packed.size,
    }


@checked
def state_bytes(model: nn.Module) -> bytes:
    """The state dict as a safetensors file, tied tensors once."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return to_safetensors({name: t.detach().cpu().contiguous().clone() for name, t in named})  # views share memory


@checked
def sizes(model: Source, masks: Mapping[str, Tensor] | None = None, *, compressed: bool = False) -> dict[str, int]:
    """Every number that is quoted of a model as it is, or as it would be under `masks`.

    `parameters` counts all, `nonzero` those that are not 0. `bytes` is the size of the dense safetensors file, whose
    zeros cost nothing only once it is compressed. With `compressed` there are also its `gzip_bytes` and `bzip2_bytes`,
    which take minutes for large networks. `state_dict_bytes` is what torch.save makes. The next five are of the weights
    alone (floating point, two dimensions or more). `weights` and `weights_nonzero` count them, `data_bits` are those of
    values and code books, and `index_bits` those of positions. `payload_bytes` is both in whole bytes: what papers
    quote. `sparse_bytes`: the whole file that `save` writes, with biases, buffers and header. What concerns that file
    is left out for a model that it cannot hold.

    >>> pruned, masks = lab.prune(model, 0.9, scope="layer")
    >>> size = lab.storage.sizes(pruned)
    >>> size['sparse_bytes'] < size['bytes'] / 5
    True
    """
    model = network_of(model)
    if masks is not None:
        model = _masked(model, masks)
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    parameters = [p.detach() for p in model.parameters()]
    try:
        packed = fileformat.pack(state_dict_of(model), streams=False)
        in_file = _file_sizes(packed)
    except ConfigError:  # it holds what the sparse file does not take, complex buffers say; the rest can be counted
        in_file = {}
    written = _Counter()
    torch.save(model.state_dict(), written)
    return {
        "parameters": sum(p.numel() for p in parameters),
        "nonzero": sum(int(torch.count_nonzero(p)) for p in parameters),
        "bytes": fileformat.dense_size(named) or len(state_bytes(model)),
        **(_compressed_sizes(state_bytes(model)) if compressed else {}),
        "state_dict_bytes": written.bytes,
        **in_file,
    }


class _Counter(io.BytesIO):
    """A file that forgets what is written, so that a large network is measured without a second one in memory."""

    bytes = 0

    def write(self, content: Any) -> int:
        self.bytes += (length := memoryview(content).nbytes)
        return length


def _compressed_sizes(content: bytes) -> dict[str, int]:
    return {"gzip_bytes": len(gzip.compress(content, mtime=0)), "bzip2_bytes": len(bz2.compress(content))}


@checked
def layer_sizes(
    model: Source, *, values: Values = "exact", others: Others = "exact", entropy: Entropy | None = None
) -> pd.DataFrame:
    """Where the bytes of the sparse file go: each weight, all other tensors, the header, and all together.

    >>> lab.storage.layer_sizes(model)['layer'].tolist()[:2]
    ['fc1.weight', 'fc2.weight']
    """
    packed = fileformat.pack(state_dict_of(model), values, others, entropy)
    columns = ("layer", "kept", "total", "positions", "values", "data_bytes", "index_bytes", "bytes")
    rows, rest = [], [0, 0, 0, 0, 0]
    for entry in packed.entries:
        data, index = entry.data_bytes, entry.index_bytes
        counts = [entry.nonzero, math.prod(entry.shape), data, index, data + index]
        if entry.is_weight:
            held = entry.stored if entry.coded.values == "raw" else entry.coded.values
            rows.append((entry.name, *counts[:2], entry.coded.positions, held, *counts[2:]))
        else:
            rest = [a + b for a, b in zip(rest, counts, strict=True)]
    rows.append(("other tensors", *rest[:2], "", "", *rest[2:]))
    rows.append(("header", 0, 0, "", "", 0, 0, packed.size - sum(row[-1] for row in rows)))
    sums = [sum(row[i] for row in rows) for i in (1, 2, 5, 6, 7)]
    rows.append(("all", *sums[:2], "", "", *sums[2:]))
    return pd.DataFrame(rows, columns=pd.Index(columns))


@checked
def index_sizes(model: Source) -> pd.DataFrame:
    """Bytes of the positions of each weight by each coding, at its best; "live" is with dead rows or columns out.

    A coding that is not tried, past half density or where nothing is dead, is missing (NaN).
    """
    rows: dict[str, dict[str, int]] = {}
    for name, tensor in state_dict_of(model).items():
        if fileformat.is_weight(tensor):
            row = rows[name] = {}
            for coding, bits in codec.costs(fileformat.patterns(tensor) != 0).items():
                kind = coding.rpartition(".")[2].partition(":")[0]
                kind = f"live {kind}" if coding.startswith(("rows", "cols")) else kind
                row[kind] = min(row.get(kind, -(-bits // 8)), -(-bits // 8))
    return pd.DataFrame.from_dict(rows, orient="index")


def _masked(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    named = {name: p.data for name, p in canonical_parameters(model).items()}
    if wrong := [name for name, mask in masks.items() if not isinstance(mask, Tensor) or mask.dtype != torch.bool]:
        raise ConfigError(f"masks: {wrong[0]} is {masks[wrong[0]]!r:.60}; expected a tensor of bool, True for kept.")
    if differing := [name for name in masks if name not in named or named[name].shape != masks[name].shape]:
        raise ConfigError(f"these masks are of another model; they differ in {', '.join(differing[:5])}.")
    for name, mask in masks.items():
        named[name].masked_fill_(~mask.to(named[name].device), 0)
    return model

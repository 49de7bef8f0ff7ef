"""Files that are whole or not there: atomic writes, and state as safetensors."""

import glob
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, runtime_checkable

try:
    import fcntl
except ImportError:  # Windows, where nobody can remove a file that is open
    fcntl = None

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from ..errors import ConfigError, DataError, RunError
from ..masks.masks import INTEGERS, Masks
from ..typed import checked


@runtime_checkable
class HasModel(Protocol):
    """A run."""

    @property
    def model(self) -> nn.Module: ...


Source = nn.Module | HasModel | Mapping[str, Tensor]
AnyModel = TypeVar("AnyModel", bound=nn.Module)


@checked
def write_atomic(path: str | Path, content: bytes, keep_previous: bool = False) -> None:
    """Write beside the file, flush to disk, rename: a kill leaves the old file or the new one, never a part.

    With `keep_previous` the old file stays beside the new one, as `previous(path)`.
    """
    path = Path(path)
    with writing(path), _beside(path) as (file, partial):
        left = memoryview(content)
        while left:
            left = left[os.write(file.fileno(), left) :]
        os.fsync(file.fileno())
        if not fcntl:
            file.close()  # Windows renames no open file
        if keep_previous:
            _keep(path)
        os.replace(partial, path)
    _flush_folder(path.parent)


class NotWritten(RunError, OSError):
    """A full disk, a folder that is gone, a limit on the size of files."""


@contextmanager
def writing(path: Path) -> Generator[None]:
    """In this block an error of the file system names the file and says what to do."""
    try:
        yield
    except NotWritten:
        raise
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        said = NotWritten(f"{path} could not be written: {why}. The same call writes it once there is room.")
        said.strerror = why
        raise said from error


def previous(path: Path) -> Path:
    """The file that was at `path` before the one that is there."""
    return path.with_name(f"{path.name}.previous")


def _keep(path: Path) -> None:
    """Give the file a second name, so that there is a file by the first one at every moment."""
    if not path.exists():
        return
    spare = _partial(path)
    try:
        os.link(path, spare)
        os.replace(spare, previous(path))
    except OSError:  # a file system without links
        os.replace(path, previous(path))
    finally:
        spare.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")


@contextmanager
def _beside(path: Path) -> Generator[tuple[BinaryIO, Path]]:
    """A new file to become `path`, locked while it is written. What killed writers left there goes first."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(OSError), left.open("rb") as file:
            _lock(file)
            left.unlink()
    file, partial = _begun(path)
    try:
        with file:
            yield file, partial
    finally:
        partial.unlink(missing_ok=True)


def _begun(path: Path) -> tuple[BinaryIO, Path]:
    partial = _partial(path)
    file = partial.open("xb", buffering=0)
    with suppress(OSError):  # a file system without locks
        _lock(file)
    if partial.exists():
        return file, partial
    file.close()  # before it was locked, another writer took it for one that was left
    return _begun(path)


def _lock(file: BinaryIO) -> None:
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _flush_folder(folder: Path) -> None:
    """A new name is on disk only when its folder is."""
    with suppress(OSError):  # a system that opens no folders, or a file system that flushes none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@checked
def check_writable(path: str | Path, what: str) -> Path:
    """Make the folder of `path` and try it now, not after an hour of training."""
    path = Path(path).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"{what}={str(path)!r} cannot be written: {error}. Give a folder that you may write to."
        ) from None
    if path.is_dir():
        raise ConfigError(f"{what}={str(path)!r} is a folder; give the name of a file in it.")
    return path


@checked
def save_state(path: str | Path, state: Mapping[Any, Any], keep_previous: bool = False) -> None:
    """Nested dicts, lists, tuples, numbers, strings and tensors as one safetensors file, the structure in its header.

    They come back as they were, in order and kind. What the file cannot keep is a ConfigError before it is written.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_pack(state, "the state", tensors))
    write_state(path, tensors, structure, keep_previous)


def save_json(path: str | Path, record: Mapping[str, Any]) -> None:
    """A record with a checksum of all its bytes as its first entry."""
    content = json.dumps({"sha256": _BLANK[:16], **record}, indent=1).encode() + b"\n"
    digest = _json_digest(content, _BLANK[:16])
    write_atomic(path, content.replace(_json_marked(_BLANK[:16]), _json_marked(digest), 1))


def load_json(path: str | Path, since: tuple[str, int]) -> dict[str, Any]:
    """What `save_json` wrote, or an older record, which has no checksum: one below the version `since` of its kind.

    What was altered or is no record of the kind is a DataError that names the file.
    """
    kind, version = since
    try:
        with open(path, "rb", buffering=0) as file:  # not by Path: a sweep has a hundred thousand of them
            content = file.read().replace(b"\r\n", b"\n")
        record = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no record: {error}.") from None
    found = record.get(kind) if isinstance(record, dict) else None
    if type(found) is not int or not 1 <= found <= version:
        raise DataError(f"{path} is no record of {kind} 1 to {version} ({kind}: {found!r:.40}); run it again.")
    written = str(record.pop("sha256", None))
    if found == version and _json_digest(content, written) != written:
        raise DataError(f"{path} was altered since it was written: it does not match its checksum. Run it again.")
    return record


def _json_marked(digest: str) -> bytes:
    return f'"sha256": "{digest}"'.encode()


def _json_digest(content: bytes, written: str) -> str:
    """Of the file with zeros in the place of its checksum."""
    return hashlib.sha256(content.replace(_json_marked(written), _json_marked(_BLANK[:16]), 1)).hexdigest()[:16]


class Damaged(DataError):
    """A file that can be read, but is not what was written."""


@checked
def load_state(path: str | Path) -> dict[Any, Any]:
    """What `save_state` wrote. A file that was altered or cut off is a DataError that names it."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read as a state file ({error}).") from None
    try:
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        if _digest(content, metadata["sha256"]) != metadata["sha256"]:
            raise ValueError("its bytes do not match their checksum")
        state = _unpack(json.loads(metadata["state"]), from_safetensors(content))
        if not isinstance(state, dict):
            raise TypeError("it holds no dict")
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise Damaged(
            f"{path} cannot be read as a state file ({error}). It is damaged or was written by another program; "
            "delete it to start anew."
        ) from None
    return state


def write_state(path: str | Path, tensors: dict[str, Tensor], structure: str, keep_previous: bool = False) -> None:
    """One safetensors file with a checksum of all its bytes."""
    content = to_safetensors(tensors, {"state": structure, "sha256": _BLANK})
    marked = _marked(_digest(content, _BLANK))
    write_atomic(path, content.replace(_marked(_BLANK), marked, 1), keep_previous)


_BLANK = "0" * 64


def _marked(digest: str) -> bytes:
    """The checksum as the header has it; inside a JSON string its quotation marks would be escaped."""
    return f'"sha256":"{digest}"'.encode()


def _digest(content: bytes, written: str) -> str:
    """Of the file with zeros in the place of its checksum."""
    return hashlib.sha256(content.replace(_marked(written), _marked(_BLANK), 1)).hexdigest()


def _pack(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """The structure: scalars as they are, all else as a dict of one kind. Tensors are known by number and place."""
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
        return _pack_tensor(value.detach().cpu().resolve_conj().resolve_neg().contiguous(), where, tensors)
    if isinstance(value, Mapping):
        items = [[_pack_key(k, where), _pack(v, f"{where}/{k}", tensors)] for k, v in value.items()]
        return {"masks" if isinstance(value, Masks) else "items": items}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(v, f"{where}/{i}", tensors) for i, v in enumerate(value)]}
    return _scalar(value, where)


def _pack_tensor(tensor: Tensor, where: str, tensors: dict[str, Tensor]) -> Any:
    """A mask as one bit a weight; a tensor with many zeros as such a mask and the other values."""
    name, shape, size = f"{len(tensors)} {where}", list(tensor.shape), tensor.element_size()
    if tensor.dtype == torch.bool:
        tensors[name] = torch.from_numpy(np.packbits(tensor.numpy()))
        return {"bits": [name, shape]}
    if tensor.is_floating_point():
        held = tensor.view(INTEGERS[size]) != 0  # -0 is no zero here
        if size * (tensor.numel() - int(held.sum())) > tensor.numel() / 8 + _SMALL:
            tensors[name] = tensor[held]
            return {"sparse": [name, _pack_tensor(held, where, tensors)]}
    tensors[name] = tensor.clone()
    return {"tensor": name}


_SMALL = 256
"""Bytes below which it does not pay to leave zeros out."""


def _pack_key(key: Any, where: str) -> Any:
    return {"tuple": [_pack_key(k, where) for k in key]} if isinstance(key, tuple) else _scalar(key, where)


def _scalar(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    found = f"{value.layout}, on {value.device}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise ConfigError(
        f"{where} holds {found}, which a state file cannot keep; state may be made of dense tensors, numbers, strings, "
        "lists, tuples and dicts."
    )


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The state of a structure. Each tensor is taken once, so that a small file stays small in memory."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors.pop(content)
    if kind == "bits":
        name, shape = content
        return _from_bits(tensors.pop(name), shape)
    if kind == "sparse":
        name, packed = content
        return _from_sparse(tensors.pop(name), _unpack(packed, tensors))
    if kind in ("items", "masks"):
        items = {_unpack(k, {}): _unpack(v, tensors) for k, v in content}
        return Masks(items) if kind == "masks" else items
    held = [_unpack(v, tensors) for v in content]
    return {"list": list, "tuple": tuple}[kind](held)


def _from_bits(bits: Tensor, shape: list[int]) -> Tensor:
    """A mask of this shape; no more is allocated than the bits in the file fill."""
    if any(length < 0 for length in shape) or -(-(count := prod(shape)) // 8) != len(bits) or bits.dtype != torch.uint8:
        raise ValueError(f"{len(bits):,} bytes for a mask of {shape}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).reshape(shape)


def _from_sparse(values: Tensor, held: Tensor) -> Tensor:
    if held.dtype != torch.bool or values.shape != (int(held.sum()),):
        raise ValueError(f"{tuple(values.shape)} values for {int(held.sum()):,} places")
    return torch.zeros(held.shape, dtype=values.dtype).masked_scatter_(held, values)


def state_dict_of(source: Source) -> Mapping[str, Tensor]:
    """The tensors of a network, a run or a state dict, by name."""
    if isinstance(source, Mapping):
        return source
    return network_of(source).state_dict()


def network_of(source: Any) -> nn.Module:
    model = source if isinstance(source, nn.Module) else getattr(source, "model", None)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{source!r:.60} has no tensors to store; expected a network, a run or a state dict.")
    return model

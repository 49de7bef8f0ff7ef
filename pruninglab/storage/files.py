"""Files that are whole or not there: atomic writes, and state as safetensors."""

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from ..masks.masks import Masks


class HasModel(Protocol):
    """A run."""

    @property
    def model(self) -> nn.Module: ...


Source = nn.Module | HasModel | Mapping[str, Tensor]
AnyModel = TypeVar("AnyModel", bound=nn.Module)


def write_atomic(path: str | Path, content: bytes) -> None:
    """Write beside the file, flush to disk, rename: a kill leaves the old file or the new one, never a part."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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


def save_state(path: str | Path, state: Mapping[Any, Any]) -> None:
    """Nested dicts, lists, tuples, numbers, strings and tensors as one safetensors file, the structure in its header.

    They come back as they were, in order and kind. What the file cannot keep is a ConfigError before it is written.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_pack(state, "the state", tensors))
    write_state(path, tensors, structure)


def load_state(path: str | Path) -> dict[Any, Any]:
    """What `save_state` wrote. A file that was altered or cut off is a DataError that names it."""
    try:
        content = Path(path).read_bytes()
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        if _digest(content, metadata["sha256"]) != metadata["sha256"]:
            raise ValueError("its bytes do not match their checksum")
        state = _unpack(json.loads(metadata["state"]), from_safetensors(content))
        if not isinstance(state, dict):
            raise TypeError("it holds no dict")
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as a state file ({error}). It is damaged or was written by another program; "
            "delete it to start anew."
        ) from None
    return state


def write_state(path: str | Path, tensors: dict[str, Tensor], structure: str) -> None:
    """One safetensors file with a checksum of all its bytes."""
    content = to_safetensors(tensors, {"state": structure, "sha256": _BLANK})
    marked = _marked(_digest(content, _BLANK))
    write_atomic(path, content.replace(_marked(_BLANK), marked, 1))


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
        name = f"{len(tensors)} {where}"
        tensors[name] = value.detach().cpu().resolve_conj().resolve_neg().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        items = [[_pack_key(k, where), _pack(v, f"{where}/{k}", tensors)] for k, v in value.items()]
        return {"masks" if isinstance(value, Masks) else "items": items}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(v, f"{where}/{i}", tensors) for i, v in enumerate(value)]}
    return _scalar(value, where)


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


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind in ("items", "masks"):
        items = {_unpack(k, {}): _unpack(v, tensors) for k, v in content}
        return Masks(items) if kind == "masks" else items
    held = [_unpack(v, tensors) for v in content]
    return tuple(held) if kind == "tuple" else held


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

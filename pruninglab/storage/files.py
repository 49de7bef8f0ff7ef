"""Files that are whole or not there: atomic writes, and state as safetensors."""

import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError, safe_open
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


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Nested dicts, lists, numbers, strings and tensors as one safetensors file, the structure in its header."""
    tensors: dict[str, Tensor] = {}
    structure = _pack(state, "", tensors)
    write_atomic(path, to_safetensors(tensors, {"state": json.dumps(structure)}))


def load_state(path: str | Path) -> dict[str, Any]:
    try:
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            structure = json.loads((file.metadata() or {})["state"])
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as a state file ({error}). It is damaged or was written by another program; "
            "delete it to start anew."
        ) from None
    return _unpack(structure, tensors)


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, Mapping):
        items = [[k, _pack(v, f"{path}/{k}", tensors)] for k, v in value.items()]
        return {"items": items, "masks": True} if isinstance(value, Masks) else {"items": items}
    if isinstance(value, list | tuple):
        return {"list": [_pack(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        f"{path.strip('/')} holds a {type(value).__name__}, which a checkpoint cannot carry; "
        "state may be made of tensors, numbers, strings, lists and dicts."
    )


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "list" in value:
        return [_unpack(v, tensors) for v in value["list"]]
    items = {k: _unpack(v, tensors) for k, v in value["items"]}
    return Masks(items) if value.get("masks") else items


def _state_dict(source: Source) -> Mapping[str, Tensor]:
    if isinstance(source, Mapping):
        return source
    return (source if isinstance(source, nn.Module) else source.model).state_dict()

"""What makes a setting, a function or a set of tensors the same as another: descriptions and hashes of content."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__version__ = "0.1.0"


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """The content of named tensors, whatever their device or memory format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return digest.hexdigest()[:16]


def describe(value: Any) -> Any:
    """Any setting as JSON: dataclasses by their fields, functions by name, tensors by content."""
    if is_dataclass(value) and not isinstance(value, type):
        settings = {f.name: describe(getattr(value, f.name)) for f in fields(value) if f.init}
        return {"type": type(value).__name__, **settings}
    if isinstance(value, Tensor):
        return f"tensor {tensor_hash({'': value})}"
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [describe(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, nn.Module):
        return (
            f"{type(value).__name__} {tensor_hash(value.state_dict())} {short_hash(repr(value) + str(_public(value)))}"
        )
    return label(value)


def label(value: Any) -> str:
    """A name that is the same in every process; the user's own functions with a hash of what they do."""
    if isinstance(value, functools.partial):
        return f"{label(value.func)}{describe(value.args)}{describe(value.keywords)}"
    name = getattr(value, "__name__", None) or type(value).__name__
    is_own = isinstance(value, FunctionType) and value.__module__.partition(".")[0] not in ("torch", "pruninglab")
    return f"{name} {short_hash(_code(value))}" if is_own else name


def _code(function: FunctionType) -> str:
    """What a function does, as text: its code, the constants, defaults and closed-over values."""

    def parts(code: CodeType) -> list[Any]:
        constants = [parts(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
        return [code.co_code.hex(), code.co_names, constants]

    closed = [describe(cell.cell_contents) for cell in function.__closure__ or ()]
    return str([parts(function.__code__), describe(function.__defaults__ or ()), closed])


def _public(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if not k.startswith("_") and isinstance(v, bool | int | float | str)}


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def text(described: Any) -> str:
    """A described setting in one line, as it would be written."""
    if isinstance(described, dict) and "type" in described:
        inside = ", ".join(f"{k}={text(v)}" for k, v in described.items() if k != "type")
        return f"{described['type']}({inside})"
    return str(described)


@functools.cache
def code_hash() -> str:
    """The package's own source, as it is now, committed or not."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]

"""What makes a setting, a function or a set of tensors the same as another: descriptions and hashes of content.

Two settings are equal only if they behave alike. So a function is identified by its code and its state, alike in every
process: bytecode with constants, closed-over values, and the globals that it reads. An object is identified by the code
of its class and by what pickling would keep of it. Functions and classes of torch and of this package are identified by
name.
"""

import dis
import functools
import hashlib
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Inside = tuple[int, ...]
"""The ids of all that is being described, from the outermost on: what holds itself comes to an end."""

_KNOWN_BY_NAME = {"torch", "pruninglab", "numpy", *sys.stdlib_module_names} - {"__main__"}
_DEEPEST = 50
_GENERATED = {f"__{name}__" for name in ("init", "repr", "eq", "hash", "lt", "le", "gt", "ge", "setattr", "delattr")}


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """The content of named tensors, whatever their device or memory format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return digest.hexdigest()[:16]


def describe(value: Any, inside: Inside = ()) -> Any:
    """Any setting as JSON: dataclasses by their fields, functions by name and code, tensors by content."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in inside or len(inside) > _DEEPEST:
        return "…"
    inside = (*inside, id(value))
    if isinstance(value, Tensor):
        return f"tensor {tensor_hash({'': value})}"
    if isinstance(value, nn.Module):
        return _module(value, inside)
    if is_dataclass(value) and not isinstance(value, type):
        settings = {f.name: describe(getattr(value, f.name), inside) for f in fields(value) if f.init}
        code = _class_code(type(value), inside)
        return {"type": type(value).__name__, **settings, **({"code": _hash(code)} if code else {})}
    if isinstance(value, Mapping):
        return {_key(k, inside): describe(v, inside) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((describe(v, inside) for v in value), key=_json)  # their own order changes with every process
    if isinstance(value, list | tuple):
        return [describe(v, inside) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return _array(value, inside) if isinstance(value, np.ndarray) else label(value, inside)


def _array(value: np.ndarray, inside: Inside) -> str:
    content = value.tolist() if value.dtype.hasobject else hashlib.sha256(value.tobytes()).hexdigest()
    return f"array {_hash([value.dtype.str, value.shape, describe(content, inside)])}"


def label(value: Any, inside: Inside = ()) -> str:
    """A name that is the same in every process; what is the user's own, or holds a state, with a hash of that."""
    if isinstance(value, functools.partial):
        keywords = dict(sorted(value.keywords.items()))
        return f"{label(value.func, inside)}{describe(value.args, inside)}{describe(keywords, inside)}"
    if isinstance(value, MethodType):
        owner = value.__self__
        return f"{label(value.__func__, inside)} of {type(owner).__name__} {_hash(describe(owner, inside))}"
    name = getattr(value, "__name__", None) or type(value).__name__
    content = _content(value, inside)
    return f"{name} {_hash(content)}" if content else str(name)


def _content(value: Any, inside: Inside) -> Any:
    """What there is to know of a function, a class or an object beside its name."""
    if isinstance(value, FunctionType):
        return _function_code(value, inside)
    if isinstance(value, type):
        return _class_code(value, inside)
    if isinstance(value, ModuleType):
        return None
    if isinstance(value, BuiltinFunctionType):
        owner = value.__self__  # a module, or for `{...}.get` the dict
        return None if owner is None or isinstance(owner, ModuleType | type) else describe(owner, inside)
    if isinstance(value, bytes | bytearray | complex):
        return repr(value)
    if (wrapped := getattr(value, "__wrapped__", None)) is not None:  # functools.lru_cache, say
        return label(wrapped, inside)
    return list(filter(None, [_class_code(type(value), inside), _state(value, inside)]))


def _state(value: Any, inside: Inside) -> Any:
    """What pickling would keep of an object; nothing of one that cannot be pickled, a lock or a file."""
    try:
        reduced = value.__reduce_ex__(2)
    except Exception:  # it runs code of anyone's
        return vars(value) and describe(vars(value), inside) if hasattr(value, "__dict__") else None
    if isinstance(reduced, str):
        return None
    make, arguments, *rest = reduced
    arguments = arguments[1:] if getattr(make, "__name__", "") == "__newobj__" else arguments
    state, items, pairs = (*rest, None, None, None)[:3]
    found = [arguments, state, list(items or ()), list(pairs or ())]
    return describe(found, inside) if any(map(_is_something, found)) else None


def _is_something(part: Any) -> bool:
    return part is not None and not (isinstance(part, tuple | list | dict) and not part)


def _function_code(function: FunctionType, inside: Inside) -> Any:
    """What a function does: its code, defaults, attributes, closed-over values, and what it reads of its module."""
    if not _is_own(function):
        function = inspect.unwrap(function)  # what checks the arguments is no part of what it does
        return [describe(_cell(cell), inside) for cell in function.__closure__ or ()] or None
    closed = [describe(_cell(cell), inside) for cell in function.__closure__ or ()]
    defaults = (function.__defaults__ or (), function.__kwdefaults__ or {}, vars(function))
    read = {name: function.__globals__[name] for name in _globals(function.__code__) if name in function.__globals__}
    outer = {name: _global(value, inside) for name, value in read.items()}
    return [_instructions(function.__code__), [describe(d, inside) for d in defaults], closed, outer]


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _instructions(code: CodeType) -> list[Any]:
    return [code.co_code.hex(), list(code.co_names), [_constant(c) for c in code.co_consts]]


def _constant(value: Any) -> Any:
    """A constant of the bytecode; `kind in {"a", "b"}` makes a frozenset, whose order changes with every process."""
    if isinstance(value, CodeType):
        return _instructions(value)
    if isinstance(value, frozenset):
        return ["set", *sorted(map(repr, map(_constant, value)))]
    return list(map(_constant, value)) if isinstance(value, tuple) else repr(value)


def _globals(code: CodeType) -> list[str]:
    """The names that this code and the code within it look up in their module."""
    own = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    return list(dict.fromkeys([*own, *(n for c in code.co_consts if isinstance(c, CodeType) for n in _globals(c))]))


def _global(value: Any, inside: Inside) -> Any:
    """Of objects that a function only looks at, such as an open file, the type is enough."""
    if isinstance(value, ModuleType):
        return value.__name__
    plain = (
        bool | int | float | str | Tensor | np.ndarray | np.generic | Mapping | list | tuple | set | frozenset | None
    )
    known = isinstance(value, plain) or is_dataclass(value) or callable(value)
    return describe(value, inside) if known else type(value).__name__


def _class_code(kind: type, inside: Inside) -> Any:
    """The functions and values in the body of a class of the user's and of those that it derives from.

    Of a dataclass the functions alone: its settings are its fields, and what is a `ClassVar` is said to be none.
    """
    bodies = [vars(c) for c in kind.__mro__ if _is_own(c)]
    members = [{name: m for name, m in body.items() if not _is_generated(name, m)} for body in bodies]
    if not any(_functions(member) for body in members for member in body.values()):
        return None  # only fields
    whole = not is_dataclass(kind)
    return [{name: _member(m, inside) for name, m in body.items() if whole or _functions(m)} for body in members]


def _is_generated(name: str, member: Any) -> bool:
    """What Python or `dataclass` puts into a class by itself."""
    if isinstance(member, FunctionType):
        return name in _GENERATED and inspect.unwrap(member).__code__.co_filename == "<string>"
    return name.startswith("__")


def _functions(member: Any) -> list[Any]:
    """The user's own functions in a class member: itself, of a property or static method, or wrapped in another."""
    if isinstance(member, FunctionType):
        inner = [_cell(cell) for cell in member.__closure__ or ()]
        return [member] if _is_own(member) else [f for f in inner if isinstance(f, FunctionType) and _is_own(f)]
    held = (getattr(member, part, None) for part in ("fget", "fset", "__func__", "__wrapped__", "func"))
    return [function for function in held if isinstance(function, FunctionType) and _is_own(function)]


def _member(member: Any, inside: Inside) -> Any:
    return [label(f, inside) for f in _functions(member)] or (
        None if isinstance(member, FunctionType) or hasattr(member, "__get__") else _global(member, inside)
    )


def _module(module: nn.Module, inside: Inside) -> str:
    """A network or a loss with state: class, tensors, and what its own representation and attributes say."""
    tensors = module.state_dict() | dict(module.named_buffers())
    shown = repr(module) + str(_public(module))
    own = [m for m in module.modules() if _is_own(type(m))]
    code = [[_class_code(type(m), inside), describe(_attributes(m), inside)] for m in own]
    return f"{type(module).__name__} {tensor_hash(tensors)} {short_hash(shown + (_json(code) if code else ''))}"


def _public(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if not k.startswith("_") and isinstance(v, bool | int | float | str)}


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if k not in vars(nn.Module()) and not isinstance(v, nn.Module)}


def _is_own(value: Any) -> bool:
    return (getattr(value, "__module__", None) or "").partition(".")[0] not in _KNOWN_BY_NAME


def _key(key: Any, inside: Inside) -> str:
    return key if isinstance(key, str) else f"{type(key).__name__} {text(describe(key, inside))}"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _hash(described: Any) -> str:
    return short_hash(_json(described))


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def text(described: Any) -> str:
    """A described setting in one line, as it would be written."""
    if isinstance(described, dict) and "type" in described:
        inside = ", ".join(f"{k}={text(v)}" for k, v in described.items() if k != "type")
        return f"{described['type']}({inside})"
    return str(described)


def code_of(model: nn.Module) -> str:
    """A hash of the code of a network's own modules, and of every function and class of the user's that they reach."""
    todo: list[Any] = [type(m) for m in model.modules()]
    todo += [v for m in model.modules() for v in vars(m).values() if isinstance(v, FunctionType)]
    seen: dict[int, Any] = {}
    while todo:
        found = todo.pop()
        if id(found) in seen or not isinstance(found, FunctionType | type) or not _is_own(found):
            continue
        members = [m for c in found.__mro__ if _is_own(c) for m in vars(c).values()] if isinstance(found, type) else []
        todo += [function for member in members for function in _functions(member)]
        seen[id(found)] = [found.__qualname__, *(_constants(found, todo) if isinstance(found, FunctionType) else [])]
    return _hash(sorted(map(_json, seen.values())))


def _constants(function: FunctionType, todo: list[Any]) -> list[Any]:
    """The code of one function with the plain values that it reads; what else it reads is put on the list."""
    read = [function.__globals__.get(name) for name in _globals(function.__code__)]
    read += [_cell(cell) for cell in function.__closure__ or ()] + list(function.__defaults__ or ())
    todo += read
    plain = [value for value in read if value is None or isinstance(value, bool | int | float | str)]
    return [_instructions(function.__code__), plain]


_ONLY_SHOW = {
    "_html.py",
    "terminal.py",
    "version.py",
    "__main__.py",
    "console",
    "results",
    "analysis",
    "plots",
    "widgets",
    "sweep",
}


@functools.cache
def code_hash() -> str:
    """The package's own source as far as a training depends on it, as it is now, committed or not."""
    digest, package = hashlib.sha256(), Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in _ONLY_SHOW:
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]

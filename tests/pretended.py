"""A device that is not there: everything is computed on the CPU, and every tensor knows where it would live.

Inside `Pretended("cuda")` a tensor's storage carries the device it was put on (`.to`, `device=`, what it was computed
from). `tensor.device` says that device. Operations refuse tensors of two devices as CUDA does: beside tensors
of the device only single numbers (0-dim tensors) of the CPU may stand in elementwise operations, and indices. What
makes the host wait for the device is counted in `waits`, with the line of the package that asked for it.

`FakeTensorMode` with "cuda" aborts on a build without CUDA; these two modes need none.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
aten = torch.ops.aten
WAITING = {
    *(
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "equal",
        "bincount",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
    ),
    *("segment_reduce", "_linalg_check_errors", "histc", "is_nonzero", "unique_dim_consecutive", "_unique"),
}
"""Operations whose result the host has to know before it goes on."""
INDEXED = {"index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index"}
MAY_MIX = {"copy_", "_to_copy", "set_", "fill_", "masked_fill_", "masked_fill", "where", "index_fill_", "lift_fresh"}
"""Operations that take a single number from the CPU, beside those that torch itself calls pointwise."""
OUTER = torch.Generator


class Source(OUTER):
    """A generator that lives on the pretended device."""

    home: torch.device

    def __new__(cls, device: Any = "cpu") -> Self:
        made = super().__new__(cls, "cpu")  # pyright: ignore[reportCallIssue]
        made.home = _numbered(torch.device(device))
        return made

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.home


def _numbered(device: torch.device) -> torch.device:
    return torch.device("cuda", 0) if device == torch.device("cuda") else device


class Homes:
    """Where each storage would live. Weak, and with no address used twice while it is remembered."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[StorageWeakRef, torch.device]] = {}

    def of(self, tensor: Tensor) -> torch.device:
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # pyright: ignore[reportAttributeAccessIssue]
            tensor = torch._C._functorch.get_unwrapped(tensor)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            address = tensor.untyped_storage()._cdata
        except (RuntimeError, NotImplementedError):
            return CPU
        return self.known.get(address, (None, CPU))[1]

    def settle(self, tensor: Tensor, device: torch.device) -> None:
        try:
            storage = tensor.untyped_storage()
        except (RuntimeError, NotImplementedError):
            return
        self.known[storage._cdata] = StorageWeakRef(storage), device
        if len(self.known) > 20_000:
            self.known = {at: kept for at, kept in self.known.items() if not kept[0].expired()}


def _ours(file: str) -> bool:
    return "pruninglab/" in file and not file.endswith("randomness.py")  # which only hands calls on


def flat(*values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from flat(*value)
        elif isinstance(value, dict):
            yield from flat(*value.values())
        else:
            yield value


class Pretended:
    """`with Pretended("cuda") as device:` and in the block the device is there; `device.waits` counts."""

    def __init__(self, kind: str = "cuda", devices: int = 2):
        self.kind = kind
        self.homes = Homes()
        self.waits: Counter[str] = Counter()
        self.placing: torch.device | None = None
        self.defaults = tuple(Source(f"{kind}:{i}" if kind == "cuda" else kind) for i in range(devices))
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torch, "Generator", Source)
        patch.setattr(torch._C, "DisableTorchFunction", contextlib.nullcontext)  # inside it, `.device` would be true
        grouped = torch._C._group_tensors_by_device_and_dtype
        patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", lambda *a: self.regrouped(grouped(*a)))
        autocast = torch.autocast
        patch.setattr(torch, "autocast", lambda device_type, *args, **options: autocast("cpu", *args, **options))
        if self.kind == "cuda":
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "device_count", lambda: len(self.defaults))
            patch.setattr(torch.cuda, "current_device", lambda: 0)
            patch.setattr(
                torch.cuda, "get_device_name", lambda device=None: f"Pretended {torch.device(device or 'cuda')}"
            )
            patch.setattr(torch.cuda, "default_generators", self.defaults)
            patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        else:
            patch.setattr(torch.backends.mps, "is_available", lambda: True)
            patch.setattr(torch.mps, "_get_default_mps_generator", lambda: self.defaults[0])
        self.stack.enter_context(_Computing(self))
        self.stack.enter_context(_Speaking(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def regrouped(self, groups: dict[Any, Any]) -> dict[Any, Any]:
        """As an optimizer sorts its tensors, who asks where they are without Python."""
        return {(self.homes.of(lists[0][0]), dtype): (lists, at) for (_, dtype), (lists, at) in groups.items()}

    def wait(self, what: str) -> None:
        frame = sys._getframe(1)
        while frame.f_back and not _ours(frame.f_code.co_filename):
            frame = frame.f_back
        file = frame.f_code.co_filename.rpartition("pruninglab/")[2]
        self.waits[f"{what} at {file}:{frame.f_lineno}"] += 1


class _Speaking(TorchFunctionMode):
    """What Python asks: where a tensor is, and that one be put somewhere."""

    def __init__(self, world: Pretended):
        super().__init__()
        self.world, self.homes = world, world.homes
        self.answers = {
            Tensor.device.__get__: lambda home: home,
            Tensor.is_cuda.__get__: lambda home: home.type == "cuda",  # pyright: ignore[reportAttributeAccessIssue]
            Tensor.is_cpu.__get__: lambda home: home.type == "cpu",  # pyright: ignore[reportAttributeAccessIssue]
            Tensor.is_mps.__get__: lambda home: home.type == "mps",  # pyright: ignore[reportAttributeAccessIssue]
            Tensor.get_device: lambda home: -1 if home.type == "cpu" else home.index or 0,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if answer := self.answers.get(func):
            return answer(self.homes.of(args[0]))
        if func in (torch._C._nn._parse_to, torch.device):  # pyright: ignore[reportAttributeAccessIssue]
            return func(*args, **kwargs)
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type_as):
            return self.moved(func, args, kwargs)
        if func in (Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.data_ptr):
            self.read(func, args[0])
        self.check_source(args, kwargs)
        home, args, kwargs = self.without_device(args, kwargs)
        if home is None:
            home = next(
                (h for a in flat(args, kwargs) if isinstance(a, Tensor) and (h := self.homes.of(a)) != CPU), None
            )
        elif home != CPU and func in (torch.tensor, torch.as_tensor, torch.asarray):
            self.world.wait("a copy to the device")
        before, self.world.placing = self.world.placing, home or self.world.placing
        try:
            made = func(*args, **kwargs)
        finally:
            self.world.placing = before
        if func is Tensor.__deepcopy__ or (func in (torch.tensor, torch.as_tensor, torch.asarray) and home):
            self.homes.settle(made, self.homes.of(args[0]) if func is Tensor.__deepcopy__ else home)  # pyright: ignore[reportArgumentType]
        return made

    def without_device(self, args: Any, kwargs: Any) -> tuple[torch.device | None, Any, Any]:
        wanted = kwargs.get("device")
        if wanted is not None:
            return _numbered(torch.device(wanted)), args, {**kwargs, "device": "cpu"}
        if any(isinstance(arg, torch.device) for arg in args):
            home = next(arg for arg in args if isinstance(arg, torch.device))
            return _numbered(home), tuple(CPU if isinstance(arg, torch.device) else arg for arg in args), kwargs
        return None, args, kwargs

    def check_source(self, args: Any, kwargs: Any) -> None:
        if isinstance(source := kwargs.get("generator"), Source):
            tensors = [a for a in flat(args) if isinstance(a, Tensor)]
            where = self.homes.of(tensors[0]) if tensors else _numbered(torch.device(kwargs.get("device") or "cpu"))
            if where != source.home:
                raise RuntimeError(f"Expected a '{where}' generator device but found '{source.home}'")

    def read(self, func: Any, tensor: Tensor) -> None:
        if self.homes.of(tensor) == CPU:
            return
        if func is Tensor.tolist:
            self.world.wait("tolist")
        elif func is not Tensor.data_ptr:
            raise TypeError("can't convert a device tensor to numpy. Use Tensor.cpu() first")

    def moved(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """`.to` and its like, with a copy wherever the device changes."""
        tensor, *rest = args
        home = self.homes.of(tensor)
        if func is Tensor.cpu:
            target, rest = CPU, []
        elif func is Tensor.cuda:
            target, rest = torch.device("cuda", 0), []
        else:
            target, rest, kwargs = self.target(home, rest, kwargs)
        if target == home:
            made = tensor.to(*rest, **kwargs) if func is not Tensor.cpu else tensor
            if made is not tensor:
                self.homes.settle(made, home)
            return made
        if not (kwargs.pop("non_blocking", False) and home == CPU):
            self.world.wait("a copy to the host" if target == CPU else "a copy to the device")
        before, self.world.placing = self.world.placing, target
        try:
            made = tensor.to(*rest, **{**kwargs, "copy": True})
        finally:
            self.world.placing = before
        return made

    def target(
        self, home: torch.device, rest: list[Any], kwargs: dict[str, Any]
    ) -> tuple[Any, list[Any], dict[str, Any]]:
        target = home
        kwargs = dict(kwargs)
        if kwargs.get("device") is not None:
            target = _numbered(torch.device(kwargs.pop("device")))
        kwargs.pop("device", None)
        if rest and isinstance(rest[0], Tensor):
            other = rest.pop(0)
            return self.homes.of(other), [other.dtype, *rest], kwargs
        if (
            rest
            and (isinstance(rest[0], str | torch.device | int) or rest[0] is None)
            and not isinstance(rest[0], bool)
        ):
            first = rest.pop(0)
            target = home if first is None else _numbered(torch.device(first))
            if rest and (rest[0] is None or isinstance(rest[0], torch.dtype)):
                dtype = rest.pop(0)
                kwargs |= {"dtype": dtype} if dtype else {}
            for name in ("non_blocking", "copy"):
                if rest:
                    kwargs[name] = rest.pop(0)
        return target, rest, kwargs


class _Computing(TorchDispatchMode):
    """What is computed, the backward pass included: from where to where, and what waits."""

    def __init__(self, world: Pretended):
        super().__init__()
        self.world, self.homes = world, world.homes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # where operations made of others arrive whole
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        name = func.overloadpacket.__name__
        homes = [(a, self.homes.of(a)) for a in flat(args, kwargs) if isinstance(a, Tensor)]
        home = self.home(func, name, args, homes)
        made = func(*args, **kwargs)
        if name in ("copy_", "fill_"):
            if len(homes) == 2:
                self.count_copy(args, kwargs)
            return made
        if home != CPU:
            self.count(func, name, args, kwargs)
        inputs = {a.untyped_storage()._cdata for a, _ in homes if a.layout is torch.strided}
        for out in flat(made):
            if isinstance(out, Tensor) and out.layout is torch.strided:
                if self.world.kind == "mps" and home.type == "mps" and out.dtype == torch.float64:
                    raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
                if out.untyped_storage()._cdata not in inputs:
                    self.homes.settle(out, home)
        return made

    def home(self, func: Any, name: str, args: Any, homes: list[tuple[Tensor, torch.device]]) -> torch.device:
        """Where the result lives, or a refusal."""
        if name in ("_to_copy", "set_") or not homes:
            return (homes[0][1] if homes and self.world.placing is None else self.world.placing) or CPU
        if name in ("copy_", "fill_"):  # `fill_` reads a number that lies elsewhere
            return homes[0][1]
        if name in INDEXED:
            return homes[0][1]
        found = {home for _, home in homes}
        if len(found) == 1:
            return found.pop()
        placed = found - {CPU}
        strange = [a for a, home in homes if home == CPU and (a.ndim or a.numel() != 1)]
        mixes = torch.Tag.pointwise in func.tags or name in MAY_MIX or name.startswith("_foreach")
        own = homes[0][1] if name.endswith("_") and not name.startswith("_foreach") else None
        if len(placed) > 1 or strange or not mixes or own == CPU:
            shapes = [(tuple(a.shape), str(home)) for a, home in homes]
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} found {shapes}")
        return placed.pop()

    def count(self, func: Any, name: str, args: Any, kwargs: Any) -> None:
        if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.world.wait(name)
        if name in INDEXED:
            for index in args[1]:
                if index is None:
                    continue
                if index.dtype in (torch.bool, torch.uint8):
                    self.world.wait("nonzero of an index")
                if self.homes.of(index) == CPU:
                    self.world.wait("a copy of an index to the device")

    def count_copy(self, args: Any, kwargs: Any) -> None:
        to, source = (self.homes.of(a) for a in args[:2])
        asynchronous = kwargs.get("non_blocking", False) or (len(args) > 2 and args[2])
        if to != source and not (asynchronous and source == CPU):
            self.world.wait("a copy to the host" if to == CPU else "a copy to the device")

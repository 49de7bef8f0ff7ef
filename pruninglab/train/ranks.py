"""One training over several processes, its ranks. Each computes its share of every batch; all else is equal in each.

Every rank holds the whole network, draws the same numbers and sees the logits of the whole batch: loss, terms of
methods, gates and masks are those of one process. Gradients become their mean over the ranks before anything looks at
them. Until then a tensor of a share carries `count` times its gradient, as under DistributedDataParallel. That class is
not used: it shows no method the whole batch, and cannot be differentiated twice.

The ranks agree with each other to the bit. They agree with one process but for rounding: a sum over two shares has
another order than the sum over the batch. In float32 the last digits of the weights differ, so a cut among nearly equal
scores may take another weight, and what follows differs more. `Gradual` by gradients in each layer and `L0` show it
first. In float64 their masks are those of one process at every step. We keep it so: equal bits would need a fixed order
of sums inside every kernel, in one process too.
"""

import atexit
import os
import pickle
import pickletools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from ..errors import ConfigError, RunError
from ..layers.calls import Inputs
from ..layers.precision import exact_dtype
from ..randomness import Share, own_randomness
from ..results.environment import ASLEEP

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others. One that has died is noticed at once, by its closed connection."""


@dataclass
class Ranks:
    """The processes that train one network together, as one of them sees them."""

    number: int
    count: int

    def sizes(self, samples: int) -> list[int]:
        """How many samples of a batch each rank computes."""
        return [samples // self.count + (i < samples % self.count) for i in range(self.count)]

    def share(self, samples: int) -> Share:
        """The samples of this rank. Where there are fewer than ranks, some compute one again that does not count."""
        sizes = self.sizes(samples)
        first = sum(sizes[: self.number])
        return Share(min(first, samples - 1), max(sizes[self.number], 1), samples, counts=sizes[self.number] > 0)

    def average_(self, gradients: Sequence[Tensor], asked: bool = False) -> bool:
        """Their mean over the ranks, in place and in one message each type; whether any rank was asked to stop."""
        flag = torch.full((1,), float(asked), device=gradients[0].device if gradients else None)
        for kind in sorted({g.dtype for g in (*gradients, flag)}, key=str):
            some = [g for g in (*gradients, flag) if g.dtype == kind]
            row = torch.cat([g.flatten() for g in some])
            _together(distributed.all_reduce, row)
            row /= self.count
            for g, mean in zip(some, row.split([g.numel() for g in some]), strict=True):
                g.copy_(mean.view(g.shape))
        return bool(flag)

    def same(self, digests: dict[str, str], when: str) -> None:
        """Refuse to go on where the ranks differ."""
        found: list[Any] = [None] * self.count
        _together(distributed.all_gather_object, found, digests)
        if different := [name for name in digests if len({each.get(name) for each in found}) > 1]:
            raise RunError(
                f"the {self.count} processes of this run differ {when} in {', '.join(different)}. Something draws or "
                "decides by itself in each: take random numbers from torch within the methods' moments, and read no "
                "clock and no process number."
            )

    @contextmanager
    def in_turn(self) -> Generator[None]:
        """The first rank alone, then the others: for a file that the first may have to put right."""
        if self.number:
            _together(distributed.barrier)
        yield
        if not self.number:
            _together(distributed.barrier)

    @contextmanager
    def sharing(self, model: nn.Module, randomness: own_randomness) -> Generator[None]:
        """In this block `model(x)` computes this rank's share of the batch, and answers with the logits of all."""
        own = vars(model).get("forward")
        model.forward = _Shared(self, model, randomness)
        try:
            yield
        finally:
            del model.forward
            if own is not None:
                model.forward = own


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def _together(call: Callable[..., Any], *given: Any) -> None:
    try:
        call(*given)
    except RuntimeError as error:
        raise RunError(
            f"another process of this run has ended ({str(error).splitlines()[0][:120]}); the checkpoint is kept, and "
            "the same call goes on from it, with any number of processes."
        ) from None


class _Gather(torch.autograd.Function):
    """The shares of all ranks, one after the other: (own, …) → (samples, …)."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, ranks: Ranks, samples: int) -> Tensor:
        ctx.ranks = ranks
        sizes = ranks.sizes(samples)
        padded = mine.new_zeros((max(sizes), *mine.shape[1:]))
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in sizes]
        _together(distributed.all_gather, parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Cut.apply(gradient, ctx.ranks), None, None


class _Cut(torch.autograd.Function):
    """Back from all samples to the share of this rank, `count` times."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.samples = ranks, len(whole)
        share = ranks.share(len(whole))
        return (whole[share.rows] if share.counts else whole[:0]) * ranks.count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Gather.apply(gradient, ctx.ranks, ctx.samples), None


class _Sum(torch.autograd.Function):
    """The sum over all ranks."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        whole = mine.clone()
        _together(distributed.all_reduce, whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Sum.apply(gradient.contiguous())


class _Mean(torch.autograd.Function):
    """The mean of gradients over all ranks. What follows from it is equal in each, so its own gradient is too."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *gradients: Tensor) -> tuple[Tensor, ...]:
        means = [g.clone() for g in gradients]
        ranks.average_(means)
        return tuple(means)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, *gradients


def mean(ranks: Ranks, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The mean over the ranks of what `torch.autograd.grad` gave, which can be differentiated once more."""
    means = iter(_Mean.apply(ranks, *[g for g in gradients if g is not None]))
    return [None if g is None else next(means) for g in gradients]


class _Shared:
    """Stands in the place of a network's `forward`. Within itself the network is as it was."""

    def __init__(self, ranks: Ranks, model: nn.Module, randomness: own_randomness):
        self.ranks, self.own, self.randomness, self.inside = ranks, model.forward, randomness, False

    def __call__(self, *given: Any, **named: Any) -> Any:
        if self.inside or not given:
            return self.own(*given, **named)
        x: Tensor | Inputs = given[0]
        share = self.ranks.share(len(x))
        self.inside, self.randomness.share = True, share
        try:
            with self.randomness.also({F.batch_norm: _normed}):
                mine = self.own(x[share.rows], *given[1:], **named)
        finally:
            self.inside, self.randomness.share = False, None
        return self._whole(mine, share)

    def _whole(self, mine: Any, share: Share) -> Tensor:
        if not isinstance(mine, Tensor):
            raise ConfigError(f"a network that returns a {type(mine).__name__} in training runs in one process alone.")
        whole: Any = _Gather.apply(mine if share.counts else mine[:0], self.ranks, share.samples)
        if (loss := getattr(mine, "returned_loss", None)) is not None:
            whole.returned_loss = _Sum.apply(loss * (share.here * share.counts / share.samples))
        return whole


def _normed(randomness: own_randomness, func: Any, args: Any, named: dict[str, Any]) -> Tensor:
    """`F.batch_norm` with the statistics of the whole batch. `SyncBatchNorm` does this on GPUs alone."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}
    given |= dict(zip(names, args, strict=False)) | named
    share = randomness.share
    if share is None or not given["training"]:
        return func(*args, **named)
    x = given["input"]
    x = x.float() if x.dtype.itemsize < 4 else x
    places = [0, *range(2, x.ndim)]
    form = (1, -1, *[1] * (x.ndim - 2))
    number = x.numel() // x.shape[1] // share.here * share.samples

    def average(values: Tensor) -> Tensor:  # (channels,)
        return _Sum.apply(values.sum(places, dtype=exact_dtype(x.device)) * share.counts).to(x.dtype) / number

    middle = average(x)
    x = x - middle.view(form)
    spread = average(x * x)
    with torch.no_grad():
        for buffer, new in (("running_mean", middle), ("running_var", spread * (number / max(number - 1, 1)))):
            if given[buffer] is not None:
                given[buffer].lerp_(new.to(given[buffer].dtype), given["momentum"])
    x = x * (spread + given["eps"]).rsqrt().view(form)
    if given["weight"] is not None:
        x = x * given["weight"].view(form) + given["bias"].view(form)
    return x.to(given["input"].dtype)


def current() -> Ranks | None:
    """The processes that this one trains with, if there are several."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return None
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def join() -> None:
    """Under torchrun: take part. It says how many there are, and which of them this is."""
    if distributed.is_initialized() or "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return
    _open(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "env://", torch.cuda.is_available())
    atexit.register(_close)


def _open(number: int, count: int, where: str, cuda: bool) -> None:
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", number)))
    distributed.init_process_group(
        "nccl" if cuda else "gloo", init_method=where, rank=number, world_size=count, timeout=PATIENCE
    )


def _close() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def together(devices: int, place: torch.device, call: Callable[[], Any]) -> Generator[None]:
    """Start `devices - 1` more processes that train along: each makes the call of `fit` that `call` describes."""
    if devices == 1 or distributed.is_initialized():
        yield
        return
    if place.type not in ("cpu", "cuda") or (place.type == "cuda" and devices > torch.cuda.device_count()):
        there = f"{torch.cuda.device_count()} GPUs" if place.type == "cuda" else f"one {place.type} device"
        raise ConfigError(f"devices={devices}, but there is {there}; expected no more, or device='cpu'.")
    threads = torch.get_num_threads()
    each = max(threads // devices, 1) if place.type == "cpu" else threads
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "call").write_bytes(_packed({"threads": each, "cuda": place.type == "cuda", **call()}))
        helpers = [_Helper(folder, number, devices) for number in range(1, devices)]
        try:
            torch.set_num_threads(each)
            for helper in helpers:
                helper.wait_until_ready()
            _open(0, devices, (folder / "meeting").as_uri(), place.type == "cuda")
            yield
            for helper in helpers:
                helper.process.wait(60)
        except RunError as error:
            said = [text for helper in helpers if (text := helper.last_words())]
            raise RunError(f"{error} It said: {said[0]}" if said else str(error)) from None
        finally:
            _close()
            torch.set_num_threads(threads)
            for helper in helpers:
                helper.end()


def _packed(call: dict[str, Any]) -> bytes:
    why = "comes from a notebook or from the script itself, and other processes cannot read it there"
    try:
        packed = pickle.dumps(call)
        if not any(value == "__main__" for _, value, _ in pickletools.genops(packed)):
            return packed
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        why = f"cannot be sent to other processes ({error})"
    raise ConfigError(
        f"devices=: a part of model, data, methods or options {why}. Put its class or function into a file of its own "
        "and import it; or start everything as torchrun --nproc-per-node=N -m pruninglab run FILE."
    )


class _Helper:
    """One of the processes that a training starts for itself."""

    def __init__(self, folder: Path, number: int, count: int):
        self.ready, self.log = folder / f"ready {number}", folder / f"log {number}"
        code = f"from pruninglab.train.fit import help_out; help_out({str(folder)!r}, {number}, {count})"
        places = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "LOCAL_RANK": str(number)}
        environment = os.environ | ASLEEP | places
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=log, stderr=log)

    def wait_until_ready(self) -> None:
        while not self.ready.exists():
            if self.process.poll() is not None:
                raise RunError("a process that was to train along ended before it began.")
            time.sleep(0.01)

    def last_words(self) -> str:
        """The last line that it wrote, if it has failed. Its connection closes a moment before it ends."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        if not self.process.poll():
            return ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def called(folder: str, number: int, count: int) -> dict[str, Any]:
    """In a helper: the call that it is to make, once all have met."""
    call = pickle.loads((Path(folder) / "call").read_bytes())  # noqa: S301 (of the process that started this one)
    torch.set_num_threads(call.pop("threads"))
    (Path(folder) / f"ready {number}").touch()
    _open(number, count, (Path(folder) / "meeting").as_uri(), call.pop("cuda"))
    atexit.register(_close)
    return call

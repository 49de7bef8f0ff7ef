"""Randomness that belongs to whoever asked for it.

Every draw is derived from a seed, a purpose and a number (`key`), so that nothing needs to be stored to resume a run.
Torch draws from its global generator: weight initialisation, dropout, `torch.rand` in a user's criterion. Inside
`own_randomness` these numbers come from a private generator instead, and the global one is neither read nor moved.
Function modes belong to a thread, so another thread cannot disturb the sequence. A few functions take no generator:
attention and recurrent layers with dropout. For these the global generator of their device is seeded for the call and
restored after it. Only there could a thread that draws at the same moment interfere.
"""

import hashlib
import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import init
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode,
    _get_current_function_mode_stack,
    _pop_mode_temporarily,
)


def key(seed: int, purpose: str, number: int = 0) -> int:
    """A 63-bit seed for one purpose. Hashed, since torch's CPU generator keeps only the low 32 bits of a seed."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str = "", number: int = 0, device: str | torch.device = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(key(seed, purpose, number) if purpose else seed)


@contextmanager
def seeded_outside_torch(seed: int) -> Generator[None]:
    """Seed the global generators of numpy and of `random` for this block, and put them back after it."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002 (what a user's transforms draw from)
    np.random.seed(key(seed, "numpy") % 2**32)  # noqa: NPY002
    random.seed(key(seed, "random"))
    try:
        yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


# Accept `generator=`. The three of `init` are Python functions that hide the draw inside them from a function mode.
_SOURCED = (
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.bernoulli, torch.multinomial, torch.normal),
    *(torch.poisson, torch.binomial),
    *(Tensor.bernoulli, Tensor.multinomial, Tensor.bernoulli_, Tensor.normal_, Tensor.uniform_, Tensor.random_),
    *(Tensor.exponential_, Tensor.geometric_, Tensor.cauchy_, Tensor.log_normal_),
    *(init.uniform_, init.normal_, init.kaiming_uniform_),
)
# With the number of dimensions of one image or sequence, channels first; plain dropout drops single elements.
_DROPOUT = {F.dropout: None, F.dropout1d: 2, F.dropout2d: 3, F.dropout3d: 4}
# Draw where no generator can be passed.
_FORKED = (
    *(F.multi_head_attention_forward, F.scaled_dot_product_attention, F.gumbel_softmax, F.rrelu),
    *(F.alpha_dropout, F.feature_alpha_dropout, torch.rand_like, torch.randn_like, torch.randint_like),
    *(torch.dropout, torch.native_dropout, torch.feature_dropout, torch.alpha_dropout, torch.rrelu),
    *(torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu),
    *(torch._standard_gamma, torch._sample_dirichlet),  # pyright: ignore[reportPrivateImportUsage]
)
_CHANCE: dict[Any, tuple[tuple[int, str], tuple[int, str] | None]] = {
    F.multi_head_attention_forward: ((10, "dropout_p"), (13, "training")),
    F.scaled_dot_product_attention: ((4, "dropout_p"), None),
}
"""Where the chance of a dropout stands among the arguments, and where it is said whether it is felt at all."""
_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


@dataclass(frozen=True)
class Share:
    """Those samples of a batch that one of several processes computes."""

    first: int
    here: int
    samples: int
    """Of the whole batch."""
    counts: bool = True
    """False for a sample that is only there so that no share is empty."""

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.here)

    def of(self, rows: int) -> tuple[int, slice]:
        """How many rows of a tensor the whole batch has where the share has `rows`, and which of them are its own."""
        if rows % self.here:
            return rows, slice(None)
        each = rows // self.here
        return each * self.samples, slice(each * self.first, each * self.first + rows)


class own_randomness(TorchFunctionMode):
    """Draw from a private generator in this block and this thread; `reseed` starts it anew."""

    def __init__(self, seed: int, device: str | torch.device = "cpu"):
        super().__init__()
        self.seed = seed
        self.device = _indexed(device)
        self.source = torch.Generator(self.device).manual_seed(seed)
        # the seeds of forks: to read one from a generator on another device would wait for that device
        self.seeds = self.source if self.device.type == "cpu" else torch.Generator().manual_seed(seed)
        self._handlers: dict[Any, Any] = dict.fromkeys(_SOURCED, self._sourced)
        self._handlers |= dict.fromkeys(_DROPOUT, self._drop) | dict.fromkeys(_FORKED, self._forked)
        self.share: Share | None = None
        """In a network that computes a share of a batch: what is drawn for samples is drawn for the whole batch."""

    def reseed(self, purpose: str, number: int) -> None:
        seed = key(self.seed, purpose, number)
        self.source.manual_seed(seed)
        self.seeds.manual_seed(seed)

    @contextmanager
    def within(self, purpose: str, number: int) -> Generator[None]:
        """Draw on where this generator is in use already; elsewhere from it, set anew for this purpose."""
        if self in _get_current_function_mode_stack():
            yield
            return
        self.reseed(purpose, number)
        with self:
            yield

    @contextmanager
    def aside(self) -> Generator[None]:
        """In this block, which draws nothing, torch's functions are called directly: each look at one costs 15 µs."""
        if _get_current_function_mode() is not self:
            yield
            return
        with _pop_mode_temporarily():
            yield

    @contextmanager
    def also(self, handlers: Mapping[Any, Any]) -> Generator[None]:
        """In this block these functions, too, are called as `handler(self, function, args, kwargs)`."""
        before = self._handlers
        self._handlers = before | {function: partial(handler, self) for function, handler in handlers.items()}
        try:
            yield
        finally:
            self._handlers = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = self._handlers.get(func)
        if handler is None:
            return func(*args, **kwargs) if kwargs else func(*args)
        return handler(func, args, kwargs or {})

    def _sourced(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if _device_of(args, kwargs) != self.device:  # weights drawn on the CPU for a run on a GPU
            return self._forked(func, args, kwargs)
        kwargs = {**kwargs, "generator": self.source}
        return func(*args, **kwargs) if self.share is None else _drawn_for(self.share, func, args, kwargs)

    def _drop(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if _device_of(args, kwargs) != self.device:
            return self._forked(func, args, kwargs)
        return self._drop_elements(*args, **kwargs, sample=_DROPOUT[func])

    def _drop_elements(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, sample: int | None
    ) -> Tensor:
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        if not training or p == 0:
            return input
        leading = input.ndim if sample is None else 1 if input.ndim == sample and sample != 3 else 2
        shape = (*input.shape[:leading], *(1 for _ in input.shape[leading:]))
        own = slice(None)
        if self.share is not None and shape:
            rows, own = self.share.of(shape[0])
            shape = (rows, *shape[1:])
        keep = torch.empty(shape, device=input.device, dtype=input.dtype)
        keep.bernoulli_(1 - p, generator=self.source).div_(max(1 - p, 1e-30))
        keep = keep[own] if self.share is not None and shape else keep
        return input.mul_(keep) if inplace else input * keep

    def _forked(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if not _draws(func, args, kwargs):
            return func(*args, **kwargs)
        seed = int(torch.randint(2**62, (), generator=self.seeds, device="cpu"))
        seed += self.share.first if self.share else 0  # no two shares draw the same
        with _seeded(_device_of(args, kwargs), seed):
            return func(*args, **kwargs)


def _drawn_for(share: Share, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The share's rows of what `func` draws for the whole batch; a function that goes by its input is as ever."""
    if func in (torch.rand, torch.randn) and args:
        first, *others = args[0] if isinstance(args[0], tuple | list) else args
        rows, own = share.of(first)
        return func(rows, *others, **kwargs)[own]
    if getattr(func, "__name__", "").endswith("_") and isinstance(args[0], Tensor) and args[0].ndim:
        rows, own = share.of(len(args[0]))
        whole = torch.empty((rows, *args[0].shape[1:]), dtype=args[0].dtype, device=args[0].device)
        return args[0].copy_(func(whole, *args[1:], **kwargs)[own])
    return func(*args, **kwargs)


def _draws(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """False for attention and recurrent layers whose dropout is 0 or not felt: then there is nothing to fork for."""
    if func in _RECURRENT:  # (…, bias, layers, dropout, training, …); packed sequences have one more before them
        at = 3 if isinstance(args[3], bool) else 4
        return bool(args[at + 2] and args[at + 3])
    if func not in _CHANCE:
        return True

    def given(place: tuple[int, str] | None, default: float) -> Any:
        if place is None:
            return default
        at, name = place
        return args[at] if len(args) > at else kwargs.get(name, default)

    chance, felt = _CHANCE[func]
    return bool(given(chance, 0.0) and given(felt, True))


def _device_of(args: Any, kwargs: Mapping[str, Any]) -> torch.device:
    """Where a call draws: with its first tensor, where it says, or where torch makes tensors."""
    for arg in (*args, *kwargs.values()):
        if isinstance(arg, Tensor):
            return _indexed(arg.device)
    return _indexed(kwargs.get("device") or torch.get_default_device())


def _indexed(device: str | torch.device) -> torch.device:
    """With its number: "cuda" is the current one, which "cuda:1" may or may not be."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device.type) if device.type in ("cpu", "mps") else device


@contextmanager
def _seeded(device: torch.device, seed: int) -> Generator[None]:
    """Seed the global generator of this device for the block, and put it back; no other one is touched."""
    default = _default_generator(device)
    state = default.get_state()
    default.manual_seed(seed)
    try:
        yield
    finally:
        default.set_state(state)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index]
    if device.type == "mps":
        return torch.mps._get_default_mps_generator()
    return torch.default_generator

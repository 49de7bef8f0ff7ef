"""Randomness that belongs to whoever asked for it.

Every draw is derived from a seed, a purpose and a number (`key`), so that nothing needs to be stored to resume a run.
Inside `own_randomness` what torch draws from its global generator (weight initialisation, dropout, `torch.rand` in a
user's criterion) comes from a private generator instead: the global one is neither read nor moved, and since function
modes belong to a thread, another thread cannot disturb the sequence. The few functions that take no generator
(attention and recurrent layers with dropout) run under a fork of the global one, seeded for that call and put back
after it; only there could a thread that draws at the same moment be felt.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import init
from torch.overrides import TorchFunctionMode


def key(seed: int, purpose: str, number: int = 0) -> int:
    """A 63-bit seed for one purpose. Hashed, since torch's CPU generator keeps only the low 32 bits of a seed."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str = "", number: int = 0, device: str | torch.device = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(key(seed, purpose, number) if purpose else seed)


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


class own_randomness(TorchFunctionMode):
    """Draw from a private generator in this block and this thread; `reseed` starts it anew."""

    def __init__(self, seed: int, device: str | torch.device = "cpu"):
        super().__init__()
        self.seed = seed
        self.source = torch.Generator(device).manual_seed(seed)
        self._handlers: dict[Any, Any] = dict.fromkeys(_SOURCED, self._sourced)
        self._handlers |= dict.fromkeys(_DROPOUT, self._drop) | dict.fromkeys(_FORKED, self._forked)

    def reseed(self, purpose: str, number: int) -> None:
        self.source.manual_seed(key(self.seed, purpose, number))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = self._handlers.get(func)
        if handler is None:
            return func(*args, **kwargs) if kwargs else func(*args)
        return handler(func, args, kwargs or {})

    def _sourced(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensor = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        device = tensor.device if tensor is not None else torch.device(kwargs.get("device") or "cpu")
        if kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if device.type != self.source.device.type:  # weights drawn on the CPU for a run on a GPU
            return self._forked(func, args, kwargs)
        return func(*args, **{**kwargs, "generator": self.source})

    def _drop(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
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
        keep = torch.empty(shape, device=input.device, dtype=input.dtype)
        keep.bernoulli_(1 - p, generator=self.source).div_(max(1 - p, 1e-30))
        return input.mul_(keep) if inplace else input * keep

    def _forked(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        device = self.source.device
        seed = int(torch.randint(2**62, (), generator=self.source, device=device))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            return func(*args, **kwargs)

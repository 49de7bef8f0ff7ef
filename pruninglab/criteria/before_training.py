"""Criteria for a cut before training: `OneShot(0.9, SNIP())`, or "snip" for its defaults.

Each scores a copy, so that no weight or buffer moves.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..errors import ConfigError
from ..layers.names import canonical_parameters
from ..layers.precision import exact_device
from .registry import BY_NAME, Batches

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SNIP:
    """|w·∂L/∂w|, the loss's sensitivity to a weight's presence: Lee, Ajanthan and Torr, "SNIP", 2019.

    Its sum is not divided out: that changes no order. Every parameter is scored, biases too; whether they are cut is
    said by `biases` of `fit` (the paper cuts them). `init="fresh"` is the authors' code: scores are taken at weights
    drawn anew (normal, variance 1 / fan-in, biases 0), and training goes on from the model's own. Biases then score 0
    and are cut first. `mode="train"` lets BatchNorm use the batch; the authors' code scores in "eval".
    """

    batches: int = 1
    init: str = "own"
    mode: str = "eval"
    loss: Loss = F.cross_entropy

    def __post_init__(self) -> None:
        _check(self)
        if self.init not in ("own", "fresh"):
            raise ConfigError(f"init={self.init!r} is unknown; expected 'own' or 'fresh'.")

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        probe = _probe(model, self.mode)
        if self.init == "fresh":
            _draw(probe)
        named = _trainable(probe)
        grads = _mean_gradient(named, _losses(probe, self, batches))
        return {name: (w * g).detach().abs() for (name, w), g in zip(named.items(), grads, strict=True)}


@dataclass(frozen=True)
class GraSP:
    """w·Hg, what a weight adds to the norm of the gradient: Wang, Zhang and Grosse, "GraSP", 2020.

    The paper removes the highest -w·Hg; here, as everywhere, the higher is kept. g is the gradient of the loss over
    all `batches`, its logits divided by `temperature`, and H its Hessian, both over every parameter; the authors' code
    takes the weights of convolutions and linear layers alone.
    """

    batches: int = 1
    temperature: float = 200.0
    mode: str = "eval"
    loss: Loss = F.cross_entropy

    def __post_init__(self) -> None:
        _check(self)
        if not self.temperature > 0:
            raise ConfigError(f"temperature={self.temperature:g}; expected a number above 0.")

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        probe = _probe(model, self.mode)
        named = _trainable(probe)
        weights = list(named.values())
        seen = list(islice(batches or (), self.batches))
        samples = sum(len(x) for x, _ in seen)
        g = _mean_gradient(named, _losses(probe, self, seen, self.temperature))
        flows = [torch.zeros_like(w) for w in weights]
        for loss, n in _losses(probe, self, seen, self.temperature):
            with torch.enable_grad():
                first = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
                flow = sum((f * own).sum() for f, own in zip(first, g, strict=True) if f is not None)
                if not isinstance(flow, Tensor) or not flow.requires_grad:
                    continue
                second = torch.autograd.grad(flow, weights, allow_unused=True)
            for total, hg in zip(flows, second, strict=True):
                if hg is not None:
                    total += hg * (n / samples)
        return {name: w.detach() * hg for (name, w), hg in zip(named.items(), flows, strict=True)}


@dataclass(frozen=True)
class SynFlow:
    """|w·∂R/∂w|, R the sum of the outputs for an input of ones, every parameter and buffer replaced by its absolute.

    Tanaka, Kunin, Yamins and Ganguli, "Pruning neural networks without any data by iteratively conserving synaptic
    flow", 2020. In float64, since the products over a deep network leave the range of float32, and in eval mode, since
    BatchNorm would divide the flow out. LayerNorm does so in any mode, and here only scales and shifts. The data gives
    the shape of an input alone; of tokens the input is number 1 at each place. One round of it empties layers;
    `lab.methods.SynFlow` does the paper's hundred. Attention conserves no flow: at equal tokens its queries and keys
    are felt through the places alone, and are cut before its values.
    """

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        x, _ = next(iter(batches or ()), (None, None))
        if x is None:
            raise ConfigError("SynFlow needs data for the shape of an input; pass data=.")
        home, place = x.device, exact_device(x.device)
        probe, x = _probe(model, "eval").to(place).double(), x.to(place)
        for tensor in (*probe.parameters(), *probe.buffers()):
            if tensor.is_floating_point():
                tensor.data.abs_()
        named = _trainable(probe)
        ones = torch.ones_like(x[:1], dtype=torch.float64 if x.is_floating_point() else x.dtype)
        with torch.enable_grad(), _LinearLayerNorm():
            flow = probe(ones).sum()
            grads = torch.autograd.grad(flow, list(named.values()), allow_unused=True)
        scores = {
            name: torch.zeros_like(w) if g is None else (w * g).detach().abs()
            for (name, w), g in zip(named.items(), grads, strict=True)
        }
        if home == place:
            return scores
        largest = max(float(score.max()) for score in scores.values()) or 1.0  # so that float32 holds their order
        return {name: (score / largest).float().to(home) for name, score in scores.items()}


class _LinearLayerNorm(TorchFunctionMode):
    """Layer norms scale and shift, as BatchNorm does in eval mode, and divide nothing out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.layer_norm:
            return func(*args, **(kwargs or {}))
        return _scaled(*args, **(kwargs or {}))


def _scaled(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _check(criterion: Any) -> None:
    if criterion.mode not in ("eval", "train"):
        raise ConfigError(f"mode={criterion.mode!r} is unknown; expected 'eval' or 'train'.")
    if criterion.batches < 1:
        raise ConfigError(f"batches={criterion.batches}: at least one is needed to take a gradient.")


def _probe(model: nn.Module, mode: str) -> nn.Module:
    return copy.deepcopy(model).train(mode == "train")


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: w for name, w in canonical_parameters(model).items() if w.requires_grad}


@torch.no_grad()
def _draw(model: nn.Module) -> None:
    """New weights for every layer that has any; what is 0 has been cut, and stays 0."""
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if any(p.ndim > 1 for p in own.values()):
            for p in own.values():
                if p.ndim > 1:
                    cut = p == 0
                    nn.init.normal_(p, std=p[0].numel() ** -0.5)
                    p.masked_fill_(cut, 0)
                else:
                    p.zero_()
        elif own and callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def _losses(
    model: nn.Module, criterion: Any, batches: Batches | None, temperature: float = 1.0
) -> Iterator[tuple[Tensor, int]]:
    """The loss of each batch, its graph alive, and the number of samples."""
    if batches is None:
        raise ConfigError(f"{type(criterion).__name__} needs data to take gradients; pass data=.")
    none = True
    for x, y in islice(batches, criterion.batches):
        none = False
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the other ways to attend have no second derivative
            loss = criterion.loss(model(x) / temperature, y)
        yield loss, len(x)
    if none:
        raise ConfigError(f"{type(criterion).__name__} got no batches; it needs data, pass data=.")


def _mean_gradient(named: dict[str, nn.Parameter], losses: Iterable[tuple[Tensor, int]]) -> list[Tensor]:
    """Over samples, not over batches."""
    weights, seen = list(named.values()), 0
    sums = [torch.zeros_like(w) for w in weights]
    for loss, n in losses:
        for total, g in zip(sums, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            if g is not None:
                total += g * n
        seen += n
    return [total / seen for total in sums]


BY_NAME.update(snip=SNIP(), grasp=GraSP(), synflow=SynFlow())

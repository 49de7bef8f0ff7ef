"""First and second derivatives of the loss for criteria. `.grad` is neither read nor written."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
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
from ..typed import Checked, Count
from .registry import Batches

Loss = Callable[[Tensor, Tensor], Tensor]
Seen = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class OfGradients(Checked):
    """The settings of criteria that take the mean gradient of `loss` over `batches` batches."""

    batches: Count = 1
    loss: Loss = F.cross_entropy


def first(batches: Batches | None, number: int, whose: str) -> Seen:
    """So many batches, or a ConfigError that names who needs them."""
    seen = list(islice(batches or (), number))
    if not seen:
        raise ConfigError(f"{whose} needs data and got none; pass data=.")
    return seen


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: w for name, w in canonical_parameters(model).items() if w.requires_grad}


def gradients(model: nn.Module, seen: Seen, loss: Loss) -> dict[str, Tensor]:
    """The mean gradient over samples, not over batches, of each parameter that is trained."""
    weights = trainable(model)
    sums = {name: torch.zeros_like(w) for name, w in weights.items()}
    for x, y in seen:
        with torch.enable_grad():
            found = torch.autograd.grad(loss(model(x), y), list(weights.values()), allow_unused=True)
        for total, g in zip(sums.values(), found, strict=True):
            if g is not None:
                total += g * len(x)
    return {name: total / images(seen) for name, total in sums.items()}


def weights_and_gradients(
    model: nn.Module, batches: Batches | None, criterion: Any
) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each parameter that is trained, by the loss of so many batches as the criterion says."""
    found = gradients(model, first(batches, criterion.batches, type(criterion).__name__), criterion.loss)
    return {name: (w.detach(), found[name]) for name, w in trainable(model).items()}


def images(seen: Seen) -> int:
    return sum(len(x) for x, _ in seen)


def gradient_graph(
    weights: Mapping[str, Tensor], model: nn.Module, x: Tensor, y: Tensor, loss: Loss
) -> list[Tensor | None]:
    """The gradient of a batch with its graph alive; None where a second derivative is 0 everywhere."""
    with torch.enable_grad(), differentiable_twice():
        found = torch.autograd.grad(loss(model(x), y), list(weights.values()), create_graph=True, allow_unused=True)
        check_graph(found)
    return [g if g is not None and g.requires_grad else None for g in found]


def products(graph: Sequence[Tensor | None], weights: Mapping[str, Tensor], z: Sequence[Tensor]) -> list[Tensor]:
    """H·z."""
    felt = [(g, v) for g, v in zip(graph, z, strict=True) if g is not None]
    if not felt:
        return [torch.zeros_like(w) for w in weights.values()]
    with differentiable_twice():
        parts = torch.autograd.grad(
            [g for g, _ in felt], list(weights.values()), [v for _, v in felt], retain_graph=True, allow_unused=True
        )
    return [torch.zeros_like(w) if p is None else p for w, p in zip(weights.values(), parts, strict=True)]


def check_graph(gradients: Iterable[Tensor | None]) -> None:
    """Refuse functions that can be differentiated once only; autograd would take their second derivative as 0."""
    seen: set[Any] = set()
    waiting: list[Any] = [g.grad_fn for g in gradients if g is not None]
    while waiting:
        if (node := waiting.pop()) is not None and node not in seen:
            if node.name() == "torch::autograd::Error":
                raise RuntimeError("trying to differentiate twice a function marked with @once_differentiable")
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]


@contextmanager
def differentiable_twice() -> Generator[None]:
    """What runs in it has second derivatives and gradients of single images, or a ConfigError names what has none."""
    with sdpa_kernel(SDPBackend.MATH), _Formulas():  # the other ways to attend have no second derivative
        try:
            yield
        except RuntimeError as error:
            if not any(words in str(error) for words in _NO_DERIVATIVE):
                raise
            said = str(error).splitlines()[0].rstrip(".")
            raise ConfigError(
                f"PyTorch cannot differentiate this network as second-order criteria need it: {said}. Take a criterion "
                "of first order, such as 'taylor'."
            ) from None


_NO_DERIVATIVE = ("derivative for", "do not yet support", "differentiate twice", "Double backward")


class _Formulas(TorchFunctionMode):
    """Activations written out, where PyTorch has no second derivative of them, or none for single images."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _WRITTEN_OUT.get(func, func)(*args, **(kwargs or {}))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    value = F.relu6(input + 3) / 6
    return input.copy_(value) if inplace else value


def _rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    if training:
        return F.rrelu(input, lower, upper, training, inplace)
    return F.leaky_relu(input, (lower + upper) / 2, inplace)


_WRITTEN_OUT: dict[Any, Any] = {F.hardsigmoid: _hardsigmoid, F.rrelu: _rrelu}

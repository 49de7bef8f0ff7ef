"""Accuracy and loss on a split, and scores of a criterion."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..criteria import registry
from ..criteria.registry import Criterion
from ..errors import ConfigError, DataError
from ..identity import describe, text
from ..layers.hooks import evaluating
from ..layers.precision import exact_dtype
from ..randomness import generator
from ..typed import checked
from .losses import loss_arguments
from .metrics import accuracy

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Shuffled:
    """Training batches for a criterion, in an order of their own, not augmented: a function of seed and step alone."""

    train: Any
    size: int
    seed: int
    step: int = 0
    first: int | None = None
    """Only so many samples of that order."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.train), generator=generator(self.seed, "criterion", self.step))
        return iter(self.train.batches(order[: self.first].split(self.size)))


def scored(
    model: nn.Module, criterion: str | Criterion, batches: Batches | None, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A criterion's scores of these weights, taken in eval mode so that no buffer moves."""
    criterion = registry.resolve(criterion)
    with evaluating(model), torch.enable_grad():  # methods score inside moments that record no gradient
        scores = criterion(model, batches)
    if missing := [name for name in weights if name not in scores]:
        raise ConfigError(
            f"{text(describe(criterion))} gave no score for {', '.join(missing)}; it has to score every weight in "
            "scope, or `skip` has to leave these out. A weight that is frozen has no gradient."
        )
    return {name: scores[name].detach() for name in weights}


@checked
def evaluate(
    net: Callable[[Tensor], Tensor],
    batches: Batches,
    loss: Callable[..., Tensor],
    metric: Callable[..., Tensor] = accuracy,
    device: str | torch.device = "cpu",
    each_batch: Callable[[Tensor, Tensor], None] | None = None,
) -> dict[str, float]:
    """Means over samples, whatever the sizes of the batches; the device is read once, at the end.

    `each_batch` is called with the logits and the labels of each batch.
    """
    exact = exact_dtype(device)
    sums, seen = torch.zeros(3, dtype=exact, device=device), 0
    names = ["loss", "accuracy"]
    for x, y in batches:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        logits = net(x)
        each = metric(*loss_arguments(metric, logits, y, x))
        if each.shape != y.shape[:1]:
            raise ConfigError(f"metric gave {tuple(each.shape)} for {len(y)} samples; expected one value for each.")
        values = [loss(*loss_arguments(loss, logits, y, x)) * len(y), each.sum()]
        if logits.ndim == 2 and logits.shape[1] >= 100 and y.ndim == 1:
            names = ["loss", "accuracy", "top5"]
            values.append((logits.topk(5, 1).indices == y[:, None]).sum())
        sums[: len(values)] += torch.stack([v.detach().to(exact) for v in values])
        if each_batch:
            each_batch(logits, y)
        seen += len(y)
    if not seen:
        raise DataError("there is nothing to evaluate: the split gave no batches.")
    return dict(zip(names, (sums / seen).tolist(), strict=False))


class OutOfMemory(Exception):
    """A device has too little memory for what was asked."""


@contextmanager
def memory_watched() -> Generator[None]:
    """Whatever a device calls it, a lack of memory is an `OutOfMemory`; the tensors of the attempt are let go."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error).lower()
        if (
            isinstance(error, torch.OutOfMemoryError | MemoryError)
            or "out of memory" in said
            or "allocate memory" in said
        ):
            raise OutOfMemory(str(error)) from None
        raise

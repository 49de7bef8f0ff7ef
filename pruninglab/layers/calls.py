"""How a network is called, with one tensor or with several, and the one tensor that its answer is read as."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

from ..errors import ConfigError

Forward = Callable[[nn.Module, Any], Any]
"""Calls a network with a batch of inputs, in your way: `lambda model, x: model(x["image"])`."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """A batch for a network that is called with more than one tensor: some by place, others by name.

    It is counted, cut, moved and repeated along the first dimension as one tensor is; `x["mask"]` and `x.places[0]` are
    the tensors themselves.
    """

    places: tuple[Tensor, ...] = ()
    names: Mapping[str, Tensor] = field(default_factory=dict)

    def parts(self) -> dict[str, Tensor]:
        """All tensors, those by place under their numbers."""
        return {**{str(i): part for i, part in enumerate(self.places)}, **self.names}

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(tuple(map(change, self.places)), {name: change(part) for name, part in self.names.items()})

    @property
    def first(self) -> Tensor:
        return next(iter(self.parts().values()))

    @property
    def shape(self) -> torch.Size:
        """Of the first tensor."""
        return self.first.shape

    @property
    def device(self) -> torch.device:
        return self.first.device

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: Any) -> Any:
        return self.names[index] if isinstance(index, str) else self.each(lambda part: part[index])

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(len(self)))

    def to(self, *place: Any, **how: Any) -> Self:
        return self.each(lambda part: part.to(*place, **how))

    def repeat_interleave(self, times: int, dim: int = 0) -> Self:
        return self.each(lambda part: part.repeat_interleave(times, dim))

    def split(self, size: int) -> list[Self]:
        return [self[start : start + size] for start in range(0, len(self), size)]


register_pytree_node(
    Inputs,
    lambda x: ([*x.places, *x.names.values()], (len(x.places), tuple(x.names))),
    lambda parts, form: Inputs(tuple(parts)[: form[0]], dict(zip(form[1], tuple(parts)[form[0] :], strict=True))),
)


def ones_like(x: Tensor | Inputs, dtype: torch.dtype) -> Tensor | Inputs:
    """1 everywhere: in this type where there are numbers with a point, else in their own."""
    if isinstance(x, Inputs):
        return x.each(lambda part: torch.ones_like(part, dtype=dtype if part.is_floating_point() else part.dtype))
    return torch.ones_like(x, dtype=dtype if x.is_floating_point() else x.dtype)


@contextmanager
def calling(model: nn.Module, forward: Forward | None = None, needed: bool = True) -> Generator[None]:
    """In this block `model(x)` takes `Inputs`, and gives one tensor of logits whatever the network returns.

    Copies that are made inside do so for good. Where one block is in another, the outer one holds.
    """
    if not needed or isinstance(vars(model).get("forward"), _Call):
        yield
        return
    own = vars(model).get("forward")
    model.forward = _Call(model, forward)
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own


class _Call:
    """Stands in the place of a network's `forward`. Within itself the network is as it was."""

    def __init__(self, model: nn.Module, forward: Forward | None):
        self.model, self.own, self.forward, self.inside = model, model.forward, forward, False

    def __call__(self, *given: Any, **named: Any) -> Any:
        if self.inside:
            return self.own(*given, **named)
        self.inside = True
        try:
            if self.forward is not None:
                answer = self.forward(self.model, *given, **named)
            elif given and isinstance(given[0], Inputs):
                answer = self.own(*given[0].places, *given[1:], **given[0].names, **named)
            else:
                answer = self.own(*given, **named)
        finally:
            self.inside = False
        return logits_of(answer, type(self.model).__name__)


def logits_of(answer: Any, who: str = "the network") -> Tensor:
    """The tensor that a loss is taken of. A loss that came with it is kept as its `returned_loss`.

    Of a tuple it is the first tensor, of a dict the one under "logits" or the first, of an object its `.logits`. An
    object's logits of shape (samples, places, classes), as those of transformers, become (samples, classes, places).
    """
    if isinstance(answer, Tensor):
        return answer
    named = answer if isinstance(answer, Mapping) else getattr(answer, "__dict__", {})
    parts = answer.values() if isinstance(answer, Mapping) else answer if isinstance(answer, tuple | list) else ()
    found = named.get("logits", getattr(answer, "logits", None))
    if found is None:
        found = next((part for part in parts if isinstance(part, Tensor) and part.ndim), None)
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"{who} returns a {type(answer).__name__} without logits; expected a tensor, a tuple or dict with one, or "
            "an object with .logits. Give forward=, a function of (model, x) that returns the tensor of logits."
        )
    if hasattr(answer, "logits") and found.ndim == 3:
        found = found.movedim(2, 1)
    if (loss := named.get("loss")) is not None:
        found.returned_loss = loss  # pyright: ignore[reportAttributeAccessIssue]
    return found

"""Criteria by name."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches

from torch import Tensor, nn

from ..errors import ConfigError

Batches = Iterable[tuple[Tensor, Tensor]]
Criterion = Callable[[nn.Module, Batches | None], dict[str, Tensor]]
BY_NAME: dict[str, Criterion] = {}
"""Each file of this folder adds its own, when it is imported."""


def resolve(criterion: str | Criterion) -> Criterion:
    """A criterion by name or as it is, so that a notebook parameter can hold one."""
    if callable(criterion):
        return criterion
    if criterion not in BY_NAME:
        near = get_close_matches(str(criterion), BY_NAME, 1)
        raise ConfigError(
            f"criterion {criterion!r} is unknown{f'; did you mean {near[0]!r}?' if near else ''}. "
            f"Expected one of {', '.join(BY_NAME)}, or a function (model, batches) -> {{name: score}}."
        )
    return BY_NAME[criterion]

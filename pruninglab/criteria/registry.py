"""Criteria by name."""

from collections.abc import Callable, Iterable
from typing import Annotated

from torch import Tensor, nn

from ..typed import OneOf, check, checked

Batches = Iterable[tuple[Tensor, Tensor]]
Criterion = Callable[[nn.Module, Batches | None], dict[str, Tensor]]
BY_NAME: dict[str, Criterion] = {}
"""Each file of this folder adds its own, when it is imported."""


CriterionName = Annotated[str, OneOf(BY_NAME)]


@checked
def resolve(criterion: str | Criterion) -> Criterion:
    """A criterion by name or as it is, so that a notebook parameter can hold one."""
    chosen = check("criterion", criterion, CriterionName | Criterion)
    return BY_NAME[chosen] if isinstance(chosen, str) else chosen

"""The order in which a network uses its weights, which need not be the order in which they are defined."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .hooks import evaluating


def forward_order(model: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> list[str]:
    """The names in the order in which a forward pass first computes with the weights; what it leaves out comes last."""
    with evaluating(model), torch.no_grad(), _Uses(weights) as uses:
        model(x)
    return [*uses.found, *uses.missing.values()]


class _Uses(TorchDispatchMode):
    """Notes each weight when an operation first takes it, whatever layer or function asked for the operation."""

    def __init__(self, weights: Mapping[str, Tensor]):
        super().__init__()
        self.missing = {id(weight): name for name, weight in weights.items()}
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = (self.missing.pop(id(leaf), None) for leaf in tree_leaves((args, kwargs)))
        self.found += [name for name in taken if name is not None]
        return func(*args, **kwargs or {})

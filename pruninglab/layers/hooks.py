"""Looking at a network while it runs: hooks by layer name, and eval mode that is undone afterwards."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..typed import checked
from .kinds import LAYERS, Norm

Kinds = tuple[type[nn.Module], ...]


@checked
def norms_after(model: nn.Module, example: Tensor) -> dict[str, str]:
    """The batch norm that reads a convolution's or linear layer's output as it is, by the names of both."""
    made: list[tuple[Tensor, str]] = []  # the tensors themselves, so that no other takes the place of one that is gone
    pairs: dict[str, str] = {}

    def before(name: str, module: nn.Module, given: tuple[Any, ...]) -> None:
        pairs.update({layer: name for output, layer in made if output is given[0]})

    def after(name: str, module: nn.Module, given: Any, output: Tensor) -> None:
        made.append((output, name))

    with hooked(model, (Norm,), before), hooked(model, LAYERS, None, after):
        model(example)
    return pairs


@contextmanager
@checked
def hooked(
    model: nn.Module, kinds: Kinds, before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None
) -> Generator[None]:
    """Look at the modules of these kinds while the network runs in eval mode, with their names as first argument."""
    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, tuple(kinds))]
    handles = [m.register_forward_pre_hook(partial(before, name)) for name, m in modules if before]
    handles += [m.register_forward_hook(partial(after, name)) for name, m in modules if after]
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
@checked
def evaluating(model: nn.Module) -> Generator[None]:
    """Eval mode, and afterwards each module's own mode again: some may have been frozen by their owner."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode

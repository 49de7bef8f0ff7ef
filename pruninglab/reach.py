"""How far the input of a network still reaches: which channels depend on it, and what the others always are.

One pass in which "unknown" is NaN. It is put in as the image and given on by whatever computes with it, and a layer's
output is unknown only where a weight that is not 0 reads something unknown. What comes out as a number is then the same
for every input, and is that number: the bias of a filter of zeros, what a norm and an activation make of it, and what
zero padding makes of that at the borders.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (*CONVS, nn.Linear)
Norm = nn.modules.batchnorm._NormBase
Kinds = tuple[type[nn.Module], ...]


@dataclass(frozen=True)
class Reading:
    """What a layer reads, by input channel: the lowest and the highest of what is there, NaN where it is unknown."""

    low: Tensor
    high: Tensor

    @property
    def zero(self) -> Tensor:
        return (self.low == 0) & (self.high == 0)

    @property
    def even(self) -> Tensor:
        """The same for every input, and at every place."""
        return self.low == self.high


def readings(model: nn.Module, example: Tensor) -> dict[str, Reading]:
    """Of each convolution, linear layer and batch norm that the network calls, in eval mode, what it reads."""
    found: dict[str, Reading] = {}
    unknown: dict[str, Tensor] = {}

    def before(name: str, module: nn.Module, given: tuple[Any, ...]) -> Any:
        x = given[0].detach()
        by_channel = x.movedim(_channels(module, x), 0).flatten(1)
        low, high = by_channel.amin(1), by_channel.amax(1)
        unknown[name] = low.isnan()
        if name in found:
            low, high = torch.minimum(found[name].low, low), torch.maximum(found[name].high, high)
        found[name] = Reading(low, high)
        return (torch.where(x.isnan(), 0.0, x), *given[1:])

    def after(name: str, module: Any, given: Any, output: Tensor) -> Tensor:
        if isinstance(module, nn.Embedding):
            return torch.full_like(output, torch.nan)
        if isinstance(module, Norm):
            reached = unknown[name] if module.weight is None else unknown[name] & (module.weight != 0)
        else:
            linked, groups = links(module), getattr(module, "groups", 1)
            seen = unknown[name].view(groups, 1, -1).expand(groups, len(linked) // groups, -1)
            reached = (linked & seen.flatten(0, 1)).any(1)
        shape = [1] * output.ndim
        shape[_channels(module, output)] = -1
        return output.masked_fill(reached.view(shape), torch.nan)

    x = example[:1]
    with (
        hooked(model, (*LAYERS, Norm), before),
        hooked(model, (*LAYERS, Norm, nn.Embedding), None, after),
    ):
        model(torch.full_like(x, torch.nan) if x.is_floating_point() else x)
    return found


def links(layer: Any) -> Tensor:
    """Whether a weight that is not 0 leads from an input channel (of its group) to an output; a row for each output."""
    linked = layer.weight.detach() != 0
    return linked.flatten(2).any(2) if linked.ndim > 2 else linked


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
def hooked(
    model: nn.Module, kinds: Kinds, before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None
) -> Generator[None]:
    """Look at the modules of these kinds while the network runs in eval mode, with their names as first argument."""
    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    handles = [m.register_forward_pre_hook(partial(before, name)) for name, m in modules if before]
    handles += [m.register_forward_hook(partial(after, name)) for name, m in modules if after]
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Eval mode, and afterwards each module's own mode again: some may have been frozen by their owner."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _channels(module: Any, x: Tensor) -> int:
    """The dimension in which the channels lie."""
    if isinstance(module, nn.Linear):
        return x.ndim - 1
    return x.ndim - 1 - len(module.kernel_size) if isinstance(module, CONVS) else min(1, x.ndim - 1)

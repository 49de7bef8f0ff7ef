"""How far the input of a network still reaches: which channels depend on it, and what the others always are.

One pass in which "unknown" is NaN. It is put in as the image and given on by whatever computes with it, and a layer's
output is unknown only where a weight that is not 0 reads something unknown. What comes out as a number is then the same
for every input, and is that number: the bias of a filter of zeros, what a norm and an activation make of it, and what
zero padding makes of that at the borders.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Conv = nn.modules.conv._ConvNd
Norm = nn.modules.batchnorm._NormBase


@dataclass(frozen=True)
class Reading:
    """What a layer reads, by input channel: the lowest and the highest of what is there, NaN where it is unknown."""

    low: Tensor
    high: Tensor

    @property
    def constant(self) -> Tensor:
        return ~self.low.isnan()

    @property
    def zero(self) -> Tensor:
        return (self.low == 0) & (self.high == 0)

    @property
    def even(self) -> Tensor:
        """Constant, and at every place the same."""
        return self.low == self.high


def readings(model: nn.Module, example: Tensor, alive: Mapping[str, Tensor] | None = None) -> dict[str, Reading]:
    """Of each convolution, linear layer and batch norm that the network calls, in eval mode, what it reads.

    `alive` are masks of weights, to go by instead of which of them are 0.
    """
    alive = alive or {}
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
        kept = alive.get(f"{name}.weight")
        if isinstance(module, Norm):
            passes = kept if kept is not None else None if module.weight is None else module.weight != 0
            reached = unknown[name] if passes is None else unknown[name] & passes
        else:
            reached = _reads(module, unknown[name], kept)
        shape = [1] * output.ndim
        shape[_channels(module, output)] = -1
        return output.masked_fill(reached.view(shape), torch.nan)

    x = example[:1]
    with (
        hooked(model, (Conv, nn.Linear, Norm), before),
        hooked(model, (Conv, nn.Linear, Norm, nn.Embedding), None, after),
    ):
        model(torch.full_like(x, torch.nan) if x.is_floating_point() else x)
    return found


def silent(model: nn.Module, example: Tensor, alive: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The biases, and scales and shifts of batch norms, that only make a constant: of filters of zeros and behind them.

    By parameter name, which entries. What the last layer gives is the answer, and is left alone.
    """
    alive = alive or {}
    found = readings(model, example, alive)
    layers = [name for name in found if not isinstance(model.get_submodule(name), Norm)]
    entries: dict[str, Tensor] = {}
    for name, reading in found.items():
        module: Any = model.get_submodule(name)
        if isinstance(module, Norm):
            scale = alive.get(f"{name}.weight", module.weight)
            dead, tensors = reading.constant | (scale == 0 if scale is not None else False), ("weight", "bias")
        else:
            dead, tensors = ~links(module, alive.get(f"{name}.weight")).any(1), ("bias",)
        if dead.any() and name != layers[-1]:
            entries |= {f"{name}.{t}": dead for t in tensors if isinstance(getattr(module, t, None), nn.Parameter)}
    return entries


def links(module: nn.Module, alive: Tensor | None = None) -> Tensor:
    """Whether a weight that is not 0 leads from an input channel (of its group, in a grouped convolution) to an output:
    a bool matrix, outputs first.
    """
    weight: Any = module.weight
    weight = weight.detach() != 0 if alive is None else alive.to(weight.device)
    if getattr(module, "transposed", False):  # in, out of each group; as a matrix of out, in of each group
        groups: Any = module.groups
        inside = weight.flatten(2).any(2).unflatten(0, (groups, -1))
        return inside.transpose(1, 2).flatten(0, 1)
    return weight.flatten(2).any(2) if weight.ndim > 2 else weight


def norms_after(model: nn.Module, example: Tensor) -> dict[str, str]:
    """The batch norm that reads a convolution's or linear layer's output as it is, by the names of both."""
    made: list[tuple[Tensor, str]] = []  # the tensors themselves, so that no other takes the place of one that is gone
    pairs: dict[str, str] = {}

    def before(name: str, module: nn.Module, given: tuple[Any, ...]) -> None:
        pairs.update({layer: name for output, layer in made if output is given[0]})

    def after(name: str, module: nn.Module, given: Any, output: Tensor) -> None:
        made.append((output, name))

    with hooked(model, (Norm,), before), hooked(model, (Conv, nn.Linear), None, after):
        model(example)
    return pairs


@contextmanager
def hooked(
    model: nn.Module,
    kinds: tuple[type[nn.Module], ...],
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
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


def _reads(module: nn.Module, channels: Tensor, alive: Tensor | None = None) -> Tensor:
    """By output channel, whether any weight that is not 0 reads one of these input channels."""
    linked, groups = links(module, alive), getattr(module, "groups", 1)
    seen = channels.to(linked.device).view(groups, 1, -1).expand(groups, len(linked) // groups, -1)
    return (linked & seen.flatten(0, 1)).any(1)


def _channels(module: nn.Module, x: Tensor) -> int:
    """The dimension in which the channels lie."""
    if isinstance(module, nn.Linear):
        return x.ndim - 1
    return x.ndim - 1 - len(module.kernel_size) if isinstance(module, Conv) else min(1, x.ndim - 1)

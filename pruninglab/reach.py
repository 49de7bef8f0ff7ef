"""How far the input of a network still reaches: which channels depend on it, and what the others always are.

One pass in which "unknown" is NaN. It is put in as the image and given on by whatever computes with it, and a layer's
output is unknown only where a weight that is not 0 reads something unknown. What comes out as a number is then the same
for every input, and is that number: the bias of a filter of zeros, what a norm and an activation make of it, and what
zero padding makes of that at the borders.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Conv = nn.modules.conv._ConvNd
Norm = nn.modules.batchnorm._NormBase


@dataclass
class Reading:
    """What a layer reads, by input channel: the same number everywhere where `low` is `high`, unknown where NaN."""

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
    pending: dict[nn.Module, Tensor] = {}

    def look(name: str, module: nn.Module, x: Tensor) -> Tensor:
        """Note what comes in; which channels of it are unknown."""
        by_channel = _channels_first(module, x.detach())
        low, high = by_channel.amin(1), by_channel.amax(1)  # NaN where any of it is
        if name in found:
            low, high = torch.minimum(found[name].low, low), torch.maximum(found[name].high, high)
        found[name] = Reading(low, high)
        return low.isnan()

    def before(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        x = inputs[0]
        unknown = look(name, module, x)
        pending[module] = unknown
        return (torch.where(x.isnan(), 0.0, x), *inputs[1:])

    def after(name: str, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        unknown, kept = pending.pop(module), alive.get(f"{name}.weight")
        if isinstance(module, Norm):
            reached = unknown if module.weight is None else unknown & (module.weight != 0 if kept is None else kept)
        else:
            reached = reads(module, unknown, kept)
        shape = [1] * output.ndim
        shape[_channel_dimension(module, output)] = -1
        return output.masked_fill(reached.view(shape), float("nan"))

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, Conv | nn.Linear | Norm):
            handles.append(module.register_forward_pre_hook(lambda m, i, n=name: before(n, m, i)))
            handles.append(module.register_forward_hook(lambda m, i, o, n=name: after(n, m, i, o)))
        if isinstance(module, nn.Embedding):
            handles.append(module.register_forward_hook(lambda m, i, o: torch.full_like(o, float("nan"))))
    x = example[:1]
    try:
        with evaluating(model), torch.no_grad():
            model(torch.full_like(x, float("nan")) if x.is_floating_point() else x)
    finally:
        for handle in handles:
            handle.remove()
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


def reads(module: nn.Module, channels: Tensor, alive: Tensor | None = None) -> Tensor:
    """By output channel, whether any weight that is not 0 reads one of these input channels."""
    linked, groups = links(module, alive), getattr(module, "groups", 1)
    seen = channels.to(linked.device).view(groups, 1, -1).expand(groups, len(linked) // groups, -1)
    return (linked & seen.flatten(0, 1)).any(1)


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
    made: dict[int, str] = {}
    kept: list[Tensor] = []  # so that no other tensor takes the place of one that is gone
    pairs: dict[str, str] = {}

    def gave(name: str, output: Tensor) -> None:
        made[id(output)] = name
        kept.append(output)

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, Conv | nn.Linear):
            handles.append(module.register_forward_hook(lambda m, i, o, n=name: gave(n, o)))
        elif isinstance(module, Norm):
            handles.append(
                module.register_forward_pre_hook(
                    lambda m, i, n=name: pairs.update({made[id(i[0])]: n} if id(i[0]) in made else {})
                )
            )
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return pairs


def _channel_dimension(module: nn.Module, x: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return x.ndim - 1
    spatial = len(module.kernel_size) if isinstance(module, Conv) else 0
    return x.ndim - 1 - spatial if spatial else min(1, x.ndim - 1)


def _channels_first(module: nn.Module, x: Tensor) -> Tensor:
    return x.movedim(_channel_dimension(module, x), 0).flatten(1)


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

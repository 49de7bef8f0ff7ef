"""How far the input of a network still reaches: which channels depend on it, and what the others always are.

It takes one pass in which "unknown" is NaN. The image is NaN, and whatever computes with NaN gives NaN. A layer's
output is unknown only where a weight that is not 0 reads something unknown. What comes out as a number is then the same
for every input. It is the bias of a filter of zeros, what a norm and an activation make of it, and what zero padding
makes of that at the borders.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..typed import checked
from .hooks import hooked
from .kinds import LAYERS, Norm, channel_dimension, links


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


@checked
def readings(model: nn.Module, example: Tensor) -> dict[str, Reading]:
    """Of each convolution, linear layer and batch norm that the network calls, in eval mode, what it reads."""
    found: dict[str, Reading] = {}
    unknown: dict[str, Tensor] = {}

    def before(name: str, module: nn.Module, given: tuple[Any, ...]) -> Any:
        x = given[0].detach()
        by_channel = x.movedim(channel_dimension(module, x), 0).flatten(1)
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
        shape[channel_dimension(module, output)] = -1
        return output.masked_fill(reached.view(shape), torch.nan)

    x = example[:1]
    with (
        hooked(model, (*LAYERS, Norm), before),
        hooked(model, (*LAYERS, Norm, nn.Embedding), None, after),
    ):
        model(torch.full_like(x, torch.nan) if x.is_floating_point() else x)
    return found

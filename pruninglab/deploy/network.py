"""What is deployed: a plain copy of a pruned network on the CPU, without the channels that nothing needs."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..data.dataset import Data
from ..errors import ConfigError, RunError
from ..layers.names import canonical_parameters
from ..masks.masks import Masks
from ..structured.shrink import shrink
from ..train.run import Run

Example = Tensor | Data


def images(model: nn.Module | Run, example: Example | None, most: int = 16) -> Tensor:
    """Some inputs of the network, on the CPU."""
    example = model.data if isinstance(model, Run) and example is None else example
    if isinstance(example, Data):
        example = next(iter(example.val.batches([torch.arange(min(most, len(example.val)))])))[0]
    if not isinstance(example, Tensor) or not len(example):
        raise ConfigError(
            f"got a {type(example).__name__} as the example; expected the data set or a batch of its images."
        )
    return example[:most].detach().cpu()


def plain(model: nn.Module | Run, example: Example | None, masks: Mapping[str, Tensor] | None) -> nn.Module:
    """The network to deploy, under its masks: a copy in eval mode, in 32 bits on the CPU.

    Channels are removed where `structured.shrink` can do it.
    """
    x = images(model, example)
    full = model.model if isinstance(model, Run) else model
    if not isinstance(full, nn.Module):
        raise ConfigError(f"got a {type(model).__name__}; expected a torch.nn.Module or a finished run.")
    masks = model.masks if masks is None and isinstance(model, Run) else masks or {}
    full = copy.deepcopy(full).eval().cpu().float().requires_grad_(False)
    named = canonical_parameters(full)
    masks = Masks({name: mask.cpu() for name, mask in masks.items()})
    masks.check({name: named[name] for name in masks if name in named})
    masks.apply_({name: named[name].data for name in masks})
    try:
        small = shrink(full, x).model
    except (ConfigError, RunError):  # a network whose graph is not understood keeps its channels
        small = copy.deepcopy(full)
    return small.eval()

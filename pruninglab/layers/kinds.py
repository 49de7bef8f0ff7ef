"""Kinds of layers: what each reads and gives, how its tensors are shaped, how it is narrowed."""

from typing import Any

import torch
from torch import Tensor, nn

from .modules import PadShortcut

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (*CONVS, nn.Linear)
Norm = nn.modules.batchnorm._NormBase


def links(layer: Any) -> Tensor:
    """Whether a weight that is not 0 leads from an input channel (of its group) to an output; a row for each output."""
    linked = layer.weight.detach() != 0
    return linked.flatten(2).any(2) if linked.ndim > 2 else linked


def channel_dimension(module: Any, x: Tensor) -> int:
    """The dimension in which the channels lie."""
    if isinstance(module, nn.Linear):
        return x.ndim - 1
    return x.ndim - 1 - len(module.kernel_size) if isinstance(module, CONVS) else min(1, x.ndim - 1)


def take(layer: Any, out: Tensor | None, read: Tensor | None) -> dict[str, tuple[Any, ...]]:
    """Narrow one layer to these output and input channels; which entries of its tensors are left."""
    rows, columns = (None if flags is None else flags.nonzero().flatten() for flags in (out, read))
    at = torch.arange(outputs(layer)) if rows is None else rows
    count, width = (old if new is None else len(new) for old, new in ((outputs(layer), rows), (inputs(layer), columns)))
    weight: tuple[Any, ...] = (at,)
    if isinstance(layer, CONVS) and layer.groups > 1:  # by whole groups: what each filter reads stays as it is
        layer.groups = count * layer.groups // outputs(layer)
    elif isinstance(layer, LAYERS) and columns is not None:
        weight = (at[:, None], columns[None, :])
    if isinstance(layer, CONVS):
        layer.in_channels, layer.out_channels = width, count
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = width, count
    elif hasattr(layer, "added"):
        layer.added = count
    else:
        layer.num_features = count
    index = {"weight": weight}
    if rows is not None:
        index |= dict.fromkeys(("bias", "running_mean", "running_var"), (rows,))
    index = {tensor: entries for tensor, entries in index.items() if isinstance(getattr(layer, tensor, None), Tensor)}
    for tensor, entries in index.items():
        set_tensor(layer, tensor, getattr(layer, tensor)[entries])
    return index


def conv_groups(layer: Any) -> int:
    return layer.groups if isinstance(layer, CONVS) else 1


def padded(layer: Any) -> bool:
    """Whether zeros are put around what comes in."""
    if not isinstance(layer, CONVS) or layer.padding_mode != "zeros":
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same" and any(size > 1 for size in layer.kernel_size)
    return any(layer.padding)


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Another parameter or buffer in the place of one, of its kind."""
    old, value = getattr(module, name), value.detach().clone()
    setattr(module, name, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)


def attributes(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, CONVS):
        return "in_channels", "out_channels", "groups"
    if isinstance(module, nn.Linear):
        return "in_features", "out_features"
    return ("num_features",) if isinstance(module, Norm) else getattr(type(module), "widths", ())


def tensor_shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """The shapes that follow from a module's widths, of the tensors that it has."""
    made: dict[str, tuple[int, ...]] = {}
    if isinstance(module, CONVS):
        inputs = module.in_channels // module.groups
        made = {"weight": (module.out_channels, inputs, *module.kernel_size), "bias": (module.out_channels,)}
    elif isinstance(module, nn.Linear):
        made = {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}
    elif isinstance(module, Norm):
        made = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (module.num_features,))
    return {name: shape for name, shape in made.items() if isinstance(getattr(module, name, None), Tensor)}


HANDLED = (*LAYERS, Norm, PadShortcut)


def outputs(layer: Any) -> int:
    """How many channels a layer gives; of the shortcut that pads, how many it adds."""
    if isinstance(layer, LAYERS):
        return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return layer.added if isinstance(layer, PadShortcut) else layer.num_features


def inputs(layer: Any) -> int:
    if isinstance(layer, LAYERS):
        return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    return outputs(layer)


def is_depthwise(layer: Any) -> bool:
    return isinstance(layer, CONVS) and layer.groups == layer.out_channels == layer.in_channels > 1

"""One table of kinds of layers: what each reads and gives, what of it can be pruned, and how it is narrowed.

A new kind is one entry of `KINDS`, under its class, or under the name of a class that is not installed everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Kind:
    """What is known of one kind of layer. What is not said does not hold."""

    prunable: bool = False
    """Its matrices can be pruned. The vectors of a norm are in scope with `norms=True`."""
    norm: bool = False
    reads: str = ""
    """The attribute with the number of channels that it reads, and of those that it `gives`."""
    gives: str = ""
    weight: tuple[int, int] | None = None
    """The dimensions of the weight in which its outputs and its inputs lie, if it is a matrix of both."""
    last: bool = False
    """Its channels lie in the last dimension of what it reads, as those of a linear layer do."""
    widths: tuple[str, ...] = ()
    """The attributes that change when channels are taken out; without any it cannot be narrowed."""
    mixes: bool = False
    """It takes statistics over its channels, so that none can go without a change to the others."""
    heads: str = ""
    """The attribute with the number of heads of attention, or of groups of heads that share keys and values."""
    projection: tuple[str, str] = ("in_proj_weight", "in_proj_bias")
    """Of attention the weight and the bias that give queries, keys and values, one below the other."""
    narrowed: Callable[..., nn.Module] | None = None
    """What makes the smaller module, from it and its new widths, where it cannot be changed in place."""
    recurrent: bool = False
    """It goes through its input step by step. torch has no gradients of single samples of it in one pass."""
    pads: bool = False
    """It hands on what it reads, and gives so many channels of zeros besides."""


_CONV = Kind(True, False, "in_channels", "out_channels", (0, 1), widths=("in_channels", "out_channels", "groups"))
_MATRICES = Kind(prunable=True)

KINDS: dict[type[nn.Module] | str, Kind] = {
    nn.Conv1d: _CONV,
    nn.Conv2d: _CONV,
    nn.Conv3d: _CONV,
    nn.modules.conv._ConvTransposeNd: Kind(True, False, "in_channels", "out_channels", (1, 0)),
    nn.Linear: Kind(
        True, False, "in_features", "out_features", (0, 1), last=True, widths=("in_features", "out_features")
    ),
    "Conv1D": Kind(True, False, "nx", "nf", (1, 0), last=True),  # of transformers: linear, with the weight transposed
    nn.Bilinear: _MATRICES,
    nn.RNNBase: Kind(prunable=True, recurrent=True),
    nn.RNNCellBase: _MATRICES,
    nn.Embedding: Kind(True, gives="embedding_dim", last=True),
    nn.EmbeddingBag: Kind(True, gives="embedding_dim", last=True),
    nn.modules.batchnorm._NormBase: Kind(
        norm=True, reads="num_features", gives="num_features", widths=("num_features",)
    ),
    nn.LayerNorm: Kind(norm=True, mixes=True),
    nn.RMSNorm: Kind(norm=True, mixes=True),
    nn.GroupNorm: Kind(norm=True, mixes=True, reads="num_channels", gives="num_channels"),
}
_UNKNOWN = Kind()

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (*CONVS, nn.Linear)
Norm = nn.modules.batchnorm._NormBase


def kind_of(module: nn.Module | None) -> Kind:
    """The entry of a module: that of its own class, or of the nearest class that it comes from."""
    for cls in type(module).__mro__:
        if found := KINDS.get(cls) or KINDS.get(cls.__name__):
            return found
    return _UNKNOWN


def outputs(layer: Any) -> int:
    """How many channels a layer gives; of the shortcut that pads, how many it adds."""
    return getattr(layer, kind_of(layer).gives)


def inputs(layer: Any) -> int:
    return getattr(layer, kind_of(layer).reads)


def heads(layer: Any) -> int:
    return getattr(layer, kind_of(layer).heads)


def projection_rows(layer: Any) -> Tensor:
    """The rows of its projection that make each channel of attention: 3 x channels, of query, key and value."""
    inner, total = layer.out_proj.in_features, len(inside(layer, kind_of(layer).projection[0]))
    channel, unit, kv = torch.arange(inner), inner // heads(layer), (total - inner) // 2
    size = kv // heads(layer)
    shared = channel // unit * size + channel % size  # heads of one unit have the same keys and values
    return torch.stack([channel, inner + shared, inner + kv + shared])


def inside(module: Any, name: str) -> Any:
    """What lies at a path inside of a module, or None."""
    for part in name.split("."):
        module = getattr(module, part, None)
    return module


def conv_groups(layer: Any) -> int:
    return getattr(layer, "groups", 1)


def is_depthwise(layer: Any) -> bool:
    return conv_groups(layer) == outputs(layer) == inputs(layer) > 1


def padded(layer: Any) -> bool:
    """Whether zeros are put around what comes in."""
    padding = getattr(layer, "padding", 0) if getattr(layer, "padding_mode", "") == "zeros" else 0
    if isinstance(padding, str):
        return padding == "same" and any(size > 1 for size in layer.kernel_size)
    return any(padding) if isinstance(padding, tuple) else bool(padding)


def links(layer: Any) -> Tensor:
    """Whether a weight that is not 0 leads from an input channel (of its group) to an output: outputs x inputs."""
    weight = layer.weight.detach() != 0
    if weight.ndim > 1:
        weight = weight.movedim(kind_of(layer).weight or (0, 1), (0, 1))
    return weight.flatten(2).any(2) if weight.ndim > 2 else weight


def channel_dimension(module: Any, x: Tensor) -> int:
    """The dimension of `x` in which the channels lie that the module reads or gives."""
    if kind_of(module).last:
        return x.ndim - 1
    return x.ndim - 1 - len(module.kernel_size) if hasattr(module, "kernel_size") else min(1, x.ndim - 1)


def tensor_shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """The shapes that follow from a module's widths, of the tensors that it has."""
    kind = kind_of(module)
    if not kind.widths:
        return {}
    made: dict[str, tuple[int, ...]] = {}
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(held := getattr(module, name, None), Tensor):
            shape = list(held.shape)
            if name == "weight" and kind.weight:
                out, read = kind.weight
                shape[out], shape[read] = outputs(module), inputs(module) // conv_groups(module)
            else:
                shape[0] = outputs(module)
            made[name] = tuple(shape)
    return made


def take(layer: Any, out: Tensor | None, read: Tensor | None) -> dict[str, tuple[Any, ...]]:
    """Narrow one layer to these output and input channels; which entries of its tensors are left."""
    kind, shapes = kind_of(layer), tensor_shapes(layer)
    rows, columns = (None if flags is None else flags.nonzero().flatten() for flags in (out, read))
    at = torch.arange(outputs(layer)) if rows is None else rows
    index: dict[str, tuple[Any, ...]] = {name: (at,) for name in shapes if name == "weight" or rows is not None}
    if conv_groups(layer) > 1:  # by whole groups: what each filter reads stays as it is
        layer.groups = len(at) * layer.groups // outputs(layer)
    elif kind.weight and columns is not None:
        index["weight"] = (at[:, None], columns[None, :]) if kind.weight == (0, 1) else (columns[:, None], at[None, :])
    for attribute, left in ((kind.reads, columns), (kind.gives, rows)):
        if left is not None:
            setattr(layer, attribute, len(left))
    for name, entries in index.items():
        set_tensor(layer, name, getattr(layer, name)[entries])
    return index


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Another parameter or buffer in the place of one, of its kind."""
    old, value = getattr(module, name), value.detach().clone()
    setattr(module, name, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)

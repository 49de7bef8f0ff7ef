"""The widths of a network's layers: read off, written into a record or a file, and given to a network built anew."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .errors import ConfigError
from .reach import Conv, Norm

Widths = dict[str, dict[str, int]]
AnyModel = TypeVar("AnyModel", bound=nn.Module)

# What of a module says how wide it is: all that it holds follows from these numbers. Others say it as `widths`.
_ATTRIBUTES: list[tuple[type[nn.Module], tuple[str, ...]]] = [
    (Conv, ("in_channels", "out_channels", "groups")),
    (nn.Linear, ("in_features", "out_features")),
    (Norm, ("num_features",)),
    (nn.PReLU, ("num_parameters",)),
]


def of(model: nn.Module) -> Widths:
    """The widths of every layer that has some, by name."""
    found = {}
    for name, module in model.named_modules():
        if attributes := _attributes(module):
            found[name] = {a: int(getattr(module, a)) for a in attributes}
    return found


def changed(model: nn.Module, full: nn.Module) -> Widths:
    """The widths that differ from those of the network that it was made from."""
    before = of(full)
    return {name: sizes for name, sizes in of(model).items() if sizes != before.get(name)}


@torch.no_grad()
def narrow_(model: AnyModel, widths: Mapping[str, Mapping[str, int]], rescale: bool = False) -> AnyModel:
    """Give `model` these widths in place; what a tensor held first stays in it.

    With `rescale` the weights are multiplied so that they are drawn as for a layer of this many inputs: torch's own
    layers, and those drawn by He's rule, have a deviation in proportion to 1/√inputs.
    """
    if unknown := [name for name in widths if name not in dict(model.named_modules())]:
        raise ConfigError(f"these widths are of another model: it has no {', '.join(unknown[:5])}.")
    for name, sizes in widths.items():
        module = model.get_submodule(name)
        if "heads" in sizes:
            module = _with_heads(model, name, module, sizes)
        elif set(sizes) != set(_attributes(module)):
            raise ConfigError(f"these widths are of another model: {name} is a {type(module).__name__} here.")
        before = _fan_in(module)
        for attribute, size in sizes.items():
            setattr(module, attribute, size)
        for tensor, shape in shapes(module).items():
            old = getattr(module, tensor)
            if any(new > had for new, had in zip(shape, old.shape, strict=True)):
                raise ConfigError(
                    f"{name}.{tensor} has {tuple(old.shape)} here and cannot be {shape}: it only shrinks."
                )
            set_tensor(module, tensor, old[tuple(slice(n) for n in shape)])
        if rescale and before and isinstance(module, Conv | nn.Linear):
            for tensor in (module.weight, module.bias):
                if tensor is not None:
                    tensor.mul_((before / _fan_in(module)) ** 0.5)
    if widths:
        record = vars(model).setdefault("_pruninglab", {})
        record["widths"] = {**record.get("widths", {}), **{name: dict(sizes) for name, sizes in widths.items()}}
    return model


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes that follow from a module's widths, of the tensors that it has."""
    made: dict[str, tuple[int, ...]] = {}
    sizes: Any = module
    if isinstance(module, Conv):
        one, other = sizes.out_channels, sizes.in_channels // sizes.groups
        if sizes.transposed:
            one, other = sizes.in_channels, sizes.out_channels // sizes.groups
        made = {"weight": (one, other, *sizes.kernel_size), "bias": (sizes.out_channels,)}
    elif isinstance(module, nn.Linear):
        made = {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}
    elif isinstance(module, Norm):
        made = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (module.num_features,))
    elif isinstance(module, nn.PReLU):
        made = {"weight": (module.num_parameters,)}
    return {name: shape for name, shape in made.items() if isinstance(getattr(module, name, None), Tensor)}


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Another parameter or buffer in the place of one, of its kind."""
    old = getattr(module, name)
    value = value.detach().clone()
    setattr(module, name, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)


def _attributes(module: nn.Module) -> tuple[str, ...]:
    own = getattr(type(module), "widths", ())
    return own or next((attributes for kind, attributes in _ATTRIBUTES if isinstance(module, kind)), ())


def _fan_in(module: nn.Module) -> int:
    weight = getattr(module, "weight", None)
    return weight[0].numel() if isinstance(weight, Tensor) and weight.ndim > 1 else 0


def _with_heads(model: nn.Module, name: str, module: nn.Module, sizes: Mapping[str, int]) -> nn.Module:
    if not isinstance(module, nn.MultiheadAttention):
        raise ConfigError(f"these widths are of another model: {name} is a {type(module).__name__} here, no attention.")
    from .models.attention import Attention  # the models know the widths, so that these cannot know them first

    small = Attention.like(module, **sizes)
    kept = torch.arange(sizes["heads"] * sizes["head_dim"])
    take_heads(module, small, kept)
    model.set_submodule(name, small)
    return small


@torch.no_grad()
def take_heads(
    full: nn.MultiheadAttention, small: nn.MultiheadAttention, kept: Tensor
) -> dict[str, tuple[Tensor, ...]]:
    """Copy the channels `kept` of all heads; returns which entries of the full tensors the small ones are."""
    inner = full.out_proj.in_features
    rows = torch.cat([kept + i * inner for i in range(3)])
    index: dict[str, tuple[Any, ...]] = {"in_proj_weight": (rows,), "out_proj.weight": (slice(None), kept)}
    if full.in_proj_bias is not None:
        index["in_proj_bias"] = (rows,)
    for name, entries in index.items():
        small.get_parameter(name).copy_(full.get_parameter(name)[entries])
    if full.out_proj.bias is not None:
        small.out_proj.bias.copy_(full.out_proj.bias)
    return index

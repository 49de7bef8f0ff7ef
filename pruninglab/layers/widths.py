"""The widths of a network's layers: read off, written into a record, and given to a network built anew."""

from collections.abc import Mapping
from math import prod
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import ConfigError
from ..typed import Count, checked
from .kinds import kind_of, set_tensor, tensor_shapes

Widths = dict[str, dict[str, int]]
AnyModel = TypeVar("AnyModel", bound=nn.Module)


def of(model: nn.Module) -> Widths:
    """The widths of every layer that has some, by name: all that its tensors' shapes follow from."""
    kinds = {name: (module, kind_of(module).widths) for name, module in model.named_modules()}
    return {name: {w: int(getattr(module, w)) for w in widths} for name, (module, widths) in kinds.items() if widths}


@torch.no_grad()
@checked
def narrow_(model: AnyModel, widths: Mapping[str, Mapping[str, Count]]) -> AnyModel:
    """Give a network with new random weights these widths, in place.

    Its weights are rescaled as if they were drawn for a layer of this many inputs. The standard deviation of torch's
    own layers, and of those drawn by He's rule, is in proportion to 1/√inputs.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    for name, sizes in widths.items():
        module = modules.get(name)
        kind = kind_of(module)
        if kind.narrowed:
            model.set_submodule(name, kind.narrowed(module, **sizes))
            continue
        if module is None or set(sizes) != set(kind.widths):
            raise ConfigError(f"these widths are of another model: {name} is a {type(module).__name__} here.")
        inputs = module.weight[0].numel() if kind.weight else 1
        for attribute, size in sizes.items():
            setattr(module, attribute, size)
        shapes = tensor_shapes(module)
        gain = (inputs / prod(shapes["weight"][1:])) ** 0.5 if kind.weight else 1.0
        for tensor, shape in shapes.items():
            old = getattr(module, tensor)
            if any(new > had for new, had in zip(shape, old.shape, strict=True)):
                raise ConfigError(f"{name}.{tensor} is {tuple(old.shape)} here and cannot be {shape}: it only shrinks.")
            set_tensor(module, tensor, gain * old[tuple(slice(n) for n in shape)])
    record(model, widths)
    return model


def record(model: nn.Module, widths: Mapping[str, Mapping[str, int]]) -> None:
    """Note in a network what it was narrowed to: the records of its runs have it, and `build(…, widths=…)` takes it."""
    if widths:
        noted: Any = getattr(model, "made_of", {})
        before = noted.get("widths", {})
        vars(model)["made_of"] = {**noted, "widths": {**before, **{n: dict(size) for n, size in widths.items()}}}

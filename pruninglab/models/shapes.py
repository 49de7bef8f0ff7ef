"""What every model checks and computes about its options and the images it is built for."""

import inspect
from collections.abc import Callable
from math import ceil
from typing import Annotated, Any

from torch import nn

from ..errors import ConfigError
from ..typed import Count, Range

Width = Annotated[float, Range(0, 100, above=True), "for example 0.5 for half the channels"]
Shape = tuple[Count, Count, Count]


def image_sides(shape: tuple[int, ...], classes: int, smallest: int = 1) -> Shape:
    """`shape` as (channels, height, width), or a ConfigError that says what was expected."""
    sides = tuple(shape)
    if len(sides) != 3 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ConfigError(f"shape is {shape!r}; expected (channels, height, width) as three whole numbers above 0")
    if min(sides[1:]) < smallest:
        raise ConfigError(
            f"the images are {sides[1]}x{sides[2]}; expected at least {smallest}x{smallest}: "
            "enlarge them, or build lenet300, which takes every size"
        )
    if not isinstance(classes, int) or classes < 1:
        raise ConfigError(f"classes is {classes!r}; expected a whole number above 0")
    return sides


def made(make: Callable[..., nn.Module], shape: Shape, classes: int, options: dict[str, Any]) -> Any:
    """What the function returns; an option that it does not have is refused with those that it has."""
    parameters = inspect.signature(make).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        valid = list(parameters)[2:]
        unknown = [option for option in options if option not in valid]
        if unknown:
            label = getattr(make, "__name__", type(make).__name__)
            raise ConfigError(f"{label} has no option {', '.join(unknown)}; it has {', '.join(valid) or 'none'}")
    model = make(shape, classes, **options)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{make!r} returned {type(model).__name__}; expected an nn.Module")
    return model


def scaled(channels: int, width: float) -> int:
    """A layer's channels times the width factor."""
    return max(1, round(channels * width))


def halved(shape: Shape, times: int) -> int:
    """Pixels left after halving both sides, rounded up each time."""
    return ceil(shape[1] / 2**times) * ceil(shape[2] / 2**times)


def dropout_layer(rate: float) -> nn.Dropout:
    return nn.Dropout(rate)

"""What the weights of a network are multiplied with: second moments of inputs, of all layers at once or one by one."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import ConfigError
from ..layers.names import canonical_parameters
from ..layers.precision import exact_device
from .gradients import Seen


class Reached(Exception):
    """All that was asked of a pass has been seen."""


@torch.no_grad()
def layer_by_layer(
    model: nn.Module, seen: Seen, names: Sequence[str], whose: str, *, squares: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """The name and the mean second moment of the inputs of each weight, in the order of their use.

    The caller may change a weight before it asks for the next one: that one's inputs are those of the network as it is
    then. A pass over all batches for each weight ends where it is used, so that only one layer's moment is held.
    """
    weights = {name: canonical_parameters(model)[name] for name in names}
    with Inputs(weights, squares=True) as order:
        model(seen[0][0][:1])
    order.check(whose)
    order.check_reached()
    for name in order.moments:
        inputs = Inputs({name: weights[name]}, squares=squares)
        for x, _ in seen:
            inputs.until = inputs.uses[name] + order.uses[name]
            with suppress(Reached), inputs:
                model(x)
        yield name, inputs.mean(name)


class Inputs(TorchFunctionMode):
    """Collects what each of these weights is multiplied with, whichever module or function does so.

    `squares` takes the squares of the inputs alone. With `until` a pass ends by `Reached` when a weight has been used
    so often.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], *, squares: bool = False, until: int = 0) -> None:
        super().__init__()
        self.weights, self.names = weights, {id(weight): name for name, weight in weights.items()}
        self.squares, self.until = squares, until
        self.moments: dict[str, Tensor] = {}
        """Sums over places: of outer products of inputs, (groups, inputs, inputs), or of squares, (groups, 1, inputs).
        They are in the order in which the network uses the weights."""
        self.places = dict.fromkeys(weights, 0)
        self.uses = dict.fromkeys(weights, 0)
        self.others: dict[str, None] = {}
        """Weights that are used in another way, in order."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        held = [self.names[id(t)] for t in _tensors((args, *kwargs.values())) if id(t) in self.names]
        if held and any(True for _ in _tensors((result,))):  # what gives no tensor asks for a shape or the like
            weight, pieces = _PATCHES[func](*args, **kwargs) if func in _PATCHES else (None, ())
            self.others |= dict.fromkeys(name for name in held if weight is not self.weights[name])
            if id(weight) in self.names:
                self._use(self.names[id(weight)], pieces)
        return result

    def check(self, whose: str, otherwise: str = "") -> None:
        """Refuse weights that are used in another way."""
        if self.others:
            raise ConfigError(
                f"{whose} knows weights that only linear layers and convolutions use, not {', '.join(self.others)}; "
                f"leave these out with `skip`{otherwise}."
            )

    def check_reached(self) -> None:
        if unused := [name for name in self.weights if name not in self.moments]:
            raise ConfigError(f"no input reached {', '.join(unused)} in a forward pass; leave it out with `skip`.")

    def mean(self, name: str) -> Tensor:
        """The moment over all places."""
        return self.moments[name] / self.places[name]

    def _use(self, name: str, pieces: Iterable[Tensor]) -> None:
        for patches in pieces:
            self._add(name, exactly(patches))
        self.uses[name] += 1
        if self.uses[name] == self.until:
            raise Reached

    def _add(self, name: str, patches: Tensor) -> None:
        moment = patches.square().sum(1, keepdim=True) if self.squares else patches.transpose(1, 2) @ patches
        before = self.moments.get(name, moment.new_zeros(1, 1, 1))
        groups = lcm(len(before), len(moment))  # each output has the inputs of its own group in every layer
        both = [m.repeat_interleave(groups // len(m), 0) if len(m) < groups else m for m in (before, moment)]
        self.moments[name] = both[0] + both[1]
        self.places[name] += patches.shape[1]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


Patches = tuple[Tensor, Iterator[Tensor]]
"""A weight, and what each of its outputs is a weighted sum of: groups x places x inputs, of some images at a time."""


def _of_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Patches:
    x = input if input.ndim > 1 else input[None]
    return weight, (some.reshape(1, -1, x.shape[-1]) for some in x.split(16))


def _of_convolution(
    convolve: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Patches:
    x = input if input.ndim == weight.ndim else input[None]
    inputs = weight[0].numel()

    def unfolded(some: Tensor) -> Tensor:
        if convolve is F.conv2d and not isinstance(padding, str):
            patches = F.unfold(some, weight.shape[2:], dilation, padding, stride)
        else:  # each filter takes out one place of the patch, with the layer's own stride, padding and dilation
            unit = torch.eye(inputs).to(some).view(inputs, *weight.shape[1:]).repeat(groups, *[1] * (weight.ndim - 1))
            patches = convolve(some, unit, None, stride, padding, dilation, groups).flatten(2)
        return patches.unflatten(1, (groups, inputs)).permute(1, 0, 3, 2).flatten(1, 2)

    return weight, (unfolded(some) for some in x.split(16))  # of a whole batch they may not fit


_PATCHES: dict[Any, Callable[..., Patches]] = {
    F.linear: _of_linear,
    **{convolve: partial(_of_convolution, convolve) for convolve in (F.conv1d, F.conv2d, F.conv3d)},
}


def exactly(tensor: Tensor) -> Tensor:
    """In double precision, on the CPU where the device has none."""
    return tensor.detach().to(exact_device(tensor.device)).double()

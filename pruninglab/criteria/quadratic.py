"""Squared errors of layers as quadratics of their weights: the cost of each cut, and the best values of what is left.

`layerwise` makes one of each layer, `curvature.full` one of all weights; `lab.methods.OptimalBrainSurgeon` cuts by
them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import ConfigError
from ..layers.names import canonical_parameters
from ..layers.precision import exact_device
from .gradients import first
from .registry import Batches

MOST_WORK, MOST_STEPS = 3e11, 500
"""Rows x inputs³ from which on a layer is large (some 10 seconds a round), and steps of its conjugate gradients."""


@dataclass(frozen=True)
class Quadratic:
    """½·(w - w₀)ᵀH(w - w₀), summed over rows w₀ that share an H: Hassibi and Stork, "Optimal brain surgeon", 1993.

    `weights` are groups x rows x inputs, `hessian` groups x inputs x inputs, symmetric and positive definite.
    """

    weights: Tensor
    hessian: Tensor

    def __post_init__(self) -> None:
        if bool(torch.linalg.cholesky_ex(self.hessian).info.any()):
            raise ConfigError(
                "this Hessian is not positive definite: some weights do not matter, or the loss is not at a minimum. "
                "Give dampening above 0, such as 0.01, or take the Gauss-Newton one."
            )

    def value(self, weights: Tensor) -> float:
        moved = weights - self.weights
        return float(0.5 * ((moved @ self.hessian) * moved).sum())

    def minimum(self, kept: Tensor) -> Tensor:
        """The weights of least value among those that are 0 where nothing is kept: w_K = w₀_K + H_KK⁻¹·H_KR·w₀_R."""
        best = torch.where(kept, self.weights, 0)
        for group, row, own in self._rows(kept):
            if not bool(own.all()):
                hessian = self.hessian[group][own]
                pull = (hessian @ self.weights[group, row])[:, None]
                best[group, row, own] = torch.cholesky_solve(pull, torch.linalg.cholesky(hessian[:, own]))[:, 0]
        return best

    def costs(self, kept: Tensor) -> Tensor:
        """How much the minimum rises when a further weight goes, w_q²/(2·[H_KK⁻¹]_qq); 0 where nothing is kept."""
        costs = torch.zeros_like(self.weights)
        for group, row, own in self._rows(kept):
            costs[group, row, own] = self._costs_of(self.weights[group, row], self.hessian[group], group, own)
        return costs

    def _costs_of(self, weights: Tensor, hessian: Tensor, group: int, own: Tensor) -> Tensor:
        gone = ~own
        if 2 * int(gone.count_nonzero()) < len(own):  # what is gone is the smaller matrix: H_KK⁻¹ from H⁻¹
            inverse = self._inverses[group]
            factor = torch.linalg.cholesky(inverse[gone][:, gone])
            right = torch.cat([inverse[gone][:, own], weights[gone, None]], 1)
            solved = torch.linalg.solve_triangular(factor, right, upper=False)
            best = weights[own] - solved[:, :-1].T @ solved[:, -1]
            diagonal = inverse.diagonal()[own] - solved[:, :-1].square().sum(0)
        else:
            factor = torch.linalg.cholesky(hessian[own][:, own])
            best = torch.cholesky_solve((hessian[own] @ weights)[:, None], factor)[:, 0]
            diagonal = torch.cholesky_inverse(factor).diagonal()
        return 0.5 * best.square() / diagonal

    @cached_property
    def _inverses(self) -> Tensor:
        return torch.cholesky_inverse(torch.linalg.cholesky(self.hessian))

    def _rows(self, kept: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        for group, rows in enumerate(kept):
            for row, own in enumerate(rows):
                if bool(own.any()):
                    yield group, row, own


class LargeQuadratic(Quadratic):
    """The same where rows and inputs are many: all rows are solved for at once, and share one factor of H.

    The minimum is that of conjugate gradients. Costs need [H_KK⁻¹]_qq, which falls from [H⁻¹]_qq towards 1/H_qq as
    inputs go: it is taken in between, by the share of the row that is kept.
    """

    def minimum(self, kept: Tensor) -> Tensor:
        return self._lowest(kept, self.weights.dtype, 1e-6)

    def costs(self, kept: Tensor) -> Tensor:
        share = kept.double().mean(-1, keepdim=True)
        diagonal = share * self._diagonal + (1 - share) / self.hessian.diagonal(dim1=1, dim2=2)[:, None]
        return 0.5 * self._lowest(kept, torch.float32, 1e-2).square() / diagonal

    def _lowest(self, kept: Tensor, dtype: torch.dtype, tolerance: float) -> Tensor:
        """H_KK·w_K = (H·w₀)_K by conjugate gradients from w₀ on, of each input in units of its own curvature."""
        hessian = (self.hessian / self.hessian.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]).to(dtype)
        scale, tiny = hessian.diagonal(dim1=1, dim2=2)[:, None], torch.finfo(dtype).tiny
        whole, best = self.weights.to(dtype), torch.where(kept, self.weights, 0).to(dtype)
        pull = torch.where(kept, (whole - best) @ hessian, 0)  # groups x rows x inputs
        enough = tolerance**2 * (torch.where(kept, whole @ hessian, 0).square() / scale).sum(-1, keepdim=True)
        step, size = pull / scale, (pull.square() / scale).sum(-1, keepdim=True)
        for _ in range(MOST_STEPS):
            if not bool((size > enough).any()):
                break
            felt = torch.where(kept, step @ hessian, 0)
            length = size / (step * felt).sum(-1, keepdim=True).clamp_min(tiny)
            best, pull = best + length * step, pull - length * felt
            before, size = size, (pull.square() / scale).sum(-1, keepdim=True)
            step = pull / scale + size / before.clamp_min(tiny) * step
        return best

    @cached_property
    def _diagonal(self) -> Tensor:
        """Of H⁻¹ = L⁻ᵀL⁻¹, for all rows: groups x 1 x inputs."""
        factor = torch.linalg.cholesky(self.hessian)
        inverse = torch.linalg.solve_triangular(factor, torch.eye(factor.shape[-1]).to(factor), upper=False)
        return inverse.square().sum(1, keepdim=True)


def layerwise(
    model: nn.Module,
    batches: Batches | None,
    names: Sequence[str],
    *,
    number: int = 16,
    dampening: float = 0.0,
) -> dict[str, Quadratic]:
    """Of each layer, its squared output error: Dong, Chen and Pan, "Learning to prune deep neural networks via
    layer-wise optimal brain surgeon", 2017.

    All outputs share the second moment of the layer's inputs as H, for a convolution that of the patches under its
    kernel. A weight that several layers share has the inputs of all of them. Inputs are those of `number` batches, in
    eval mode. Of a layer with rows x inputs³ above 3e11 it is a `LargeQuadratic`.
    """
    seen = first(batches, number, "the surgeon")
    parameters = canonical_parameters(model)
    with torch.no_grad(), _Inputs({name: parameters[name] for name in names}) as inputs:
        for x, _ in seen:
            model(x)
            if inputs.others:
                raise ConfigError(
                    "the layer-wise surgeon knows weights that only linear layers and convolutions use, not "
                    f"{', '.join(inputs.others)}; leave these out with `skip`, or take form='full'."
                )
    if unused := [name for name in names if name not in inputs.moments]:
        raise ConfigError(f"no input reached {', '.join(unused)} in a forward pass; leave it out with `skip`.")
    quadratics = {}
    for name in names:
        moment = inputs.moments[name] / inputs.places[name]
        rows = exactly(parameters[name]).reshape(len(moment), -1, moment.shape[-1])
        kind = LargeQuadratic if rows.numel() * rows.shape[-1] ** 2 > MOST_WORK else Quadratic
        quadratics[name] = kind(rows, dampened(moment, dampening))
    return quadratics


class _Inputs(TorchFunctionMode):
    """Collects what each of these weights is multiplied with, whichever module or function does so."""

    def __init__(self, weights: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.weights, self.names = weights, {id(weight): name for name, weight in weights.items()}
        self.moments: dict[str, Tensor] = {}
        """Sums over places of the outer products of inputs: groups x inputs x inputs."""
        self.places = dict.fromkeys(weights, 0)
        self.others: dict[str, None] = {}
        """Weights that are used in another way, in order."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        held = [self.names[id(t)] for t in _tensors((args, *kwargs.values())) if id(t) in self.names]
        if held and any(True for _ in _tensors((result,))):  # what gives no tensor asks for a shape or the like
            weight, pieces = _PATCHES[func](*args, **kwargs) if func in _PATCHES else (None, ())
            self.others |= dict.fromkeys(name for name in held if weight is not self.weights[name])
            for patches in pieces if id(weight) in self.names else ():
                self._add(self.names[id(weight)], exactly(patches))
        return result

    def _add(self, name: str, patches: Tensor) -> None:
        moment = patches.transpose(1, 2) @ patches
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


def dampened(hessian: Tensor, dampening: float) -> Tensor:
    """With this share of the mean of its diagonal added to the diagonal; of a zero matrix, the share itself."""
    mean = hessian.diagonal(dim1=1, dim2=2).mean(1)
    extra = dampening * torch.where(mean > 0, mean, 1.0)
    return hessian + extra[:, None, None] * torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)


def exactly(tensor: Tensor) -> Tensor:
    """In double precision, on the CPU where the device has none."""
    return tensor.detach().to(exact_device(tensor.device)).double()

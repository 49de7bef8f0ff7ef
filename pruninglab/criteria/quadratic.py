"""Squared errors of layers as quadratics of their weights: the cost of each cut, and the best values of what is left.

`layerwise` makes one of each layer, `curvature.full` one of all weights; `lab.methods.OptimalBrainSurgeon` cuts by
them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..layers.names import canonical_parameters
from ..typed import Checked, Count, Filled, Strength, checked
from .gradients import first
from .inputs import Inputs, exactly
from .registry import Batches

MOST_WORK, MOST_STEPS = 3e11, 500
"""Rows x inputs³ from which on a layer is large (some 10 seconds a round), and steps of its conjugate gradients."""


@dataclass(frozen=True)
class Quadratic(Checked):
    """½·(w - w₀)ᵀH(w - w₀), summed over rows w₀ that share an H: Hassibi and Stork, "Optimal brain surgeon", 1993.

    `weights` are groups x rows x inputs, `hessian` groups x inputs x inputs, symmetric and positive definite.
    """

    weights: Tensor
    hessian: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        groups, inputs = (self.weights.shape[0], self.weights.shape[-1]) if self.weights.ndim == 3 else (-1, -1)
        if self.hessian.shape != (groups, inputs, inputs):
            raise ConfigError(
                f"weights are {tuple(self.weights.shape)} and hessian is {tuple(self.hessian.shape)}; expected "
                "groups x rows x inputs, and groups x inputs x inputs."
            )
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


@checked
def layerwise(
    model: nn.Module,
    batches: Batches | None,
    names: Annotated[Sequence[str], Filled()],
    *,
    number: Count = 16,
    dampening: Strength = 0.0,
) -> dict[str, Quadratic]:
    """Of each layer, its squared output error: Dong, Chen and Pan, "Learning to prune deep neural networks via
    layer-wise optimal brain surgeon", 2017.

    All outputs share the second moment of the layer's inputs as H, for a convolution that of the patches under its
    kernel. A weight that several layers share has the inputs of all of them. Inputs are those of `number` batches, in
    eval mode. Of a layer with rows x inputs³ above 3e11 it is a `LargeQuadratic`.
    """
    seen = first(batches, number, "the surgeon")
    parameters = canonical_parameters(model)
    with torch.no_grad(), Inputs({name: parameters[name] for name in names}) as inputs:
        for x, _ in seen:
            model(x)
            inputs.check("the layer-wise surgeon", "; or take form='full'")
    inputs.check_reached()
    quadratics = {}
    for name in names:
        moment = inputs.mean(name)
        rows = exactly(parameters[name]).reshape(len(moment), -1, moment.shape[-1])
        kind = LargeQuadratic if rows.numel() * rows.shape[-1] ** 2 > MOST_WORK else Quadratic
        quadratics[name] = kind(rows, dampened(moment, dampening))
    return quadratics


def dampened(hessian: Tensor, dampening: float) -> Tensor:
    """With this share of the mean of its diagonal added to the diagonal; of a zero matrix, the share itself."""
    mean = hessian.diagonal(dim1=1, dim2=2).mean(1)
    extra = dampening * torch.where(mean > 0, mean, 1.0)
    return hessian + extra[:, None, None] * torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)

"""Structured sparsity: Wen et al., "Learning structured sparsity in deep neural networks", 2016 (group lasso)."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ...train.method import Method
from ...train.run import Run
from ...typed import Strength


def group_norms(weight: Tensor, kind: str) -> Tensor:
    """‖w_g‖ of each group, in a shape that divides the weight."""
    over = (0,) if kind == "columns" else (0, *range(2, weight.ndim)) if kind == "channels" else range(1, weight.ndim)
    return torch.linalg.vector_norm(weight.detach(), dim=tuple(over), keepdim=True)


def subgradient(weight: Tensor, kind: str, strength: float) -> Tensor:
    """λ·w/‖w_g‖, the gradient of λ·Σ‖w_g‖; 0 in groups that are 0."""
    norm = group_norms(weight, kind)
    return strength * weight / norm.masked_fill(norm == 0, math.inf)


@dataclass
class GroupLasso(Method):
    """Adds λ·Σ‖w_g‖ over groups g of weights to the loss, so that whole groups go to 0 together.

    `over` says which groups. `"filters"` are all weights that make an output channel; `"channels"`, all that read an
    input channel. `"rows"` and `"columns"` are those of the matrix of a linear layer, or of the matrix to which a
    convolution is lowered. There rows are filters, and columns are the paper's shapes: all that read one place of the
    filter. For several kinds of groups give the method several times, each with its own λ. The gradient w/‖w_g‖ is
    added in closed form; that of a group that is 0 is 0. `norms` has the share of groups below a hundredth of their
    layer's largest, by layer and epoch.

    Nothing is cut: add a method that does, such as `OneShot(0.5, "filter_l2", unit="channel")` in a run that goes on.

    Deviations: the paper's depth-wise and its own kernels for sparse columns are left out.

    >>> run = lab.fit(model, data, lab.methods.GroupLasso(1e-4), epochs=2)
    >>> run.status
    'done'
    """

    strength: Strength = 1e-4
    over: Literal["filters", "channels", "rows", "columns"] = "filters"
    norms: list[dict[str, float | str]] = field(init=False)

    def on_start(self, run: Run) -> None:
        self.norms = []

    @torch.no_grad()
    def on_grad(self, run: Run) -> None:
        for weight in run.weights.values():
            if weight.grad is not None and weight.ndim > 1:
                weight.grad.add_(subgradient(weight, self.over, self.strength))

    @torch.no_grad()
    def on_epoch(self, run: Run) -> None:
        for name, weight in run.weights.items():
            if weight.ndim > 1:
                norm = group_norms(weight, self.over)
                small = float((norm < norm.max() / 100).float().mean())
                self.norms.append({"step": run.step, "layer": name, "small": small})

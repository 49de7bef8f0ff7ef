"""Network slimming: Liu et al., "Learning efficient convolutional networks through network slimming", 2017."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...layers.kinds import Norm
from ...train.method import Method
from ...train.run import Run
from ...typed import Positive, Strength


def subgradient(scale: Tensor, strength: float) -> Tensor:
    """λ·sgn(γ), the gradient of λ·|γ|; 0 where γ is 0."""
    return strength * scale.sign()


@dataclass
class Slimming(Method):
    """Adds λ·Σ|γ| over the scales γ of all batch norms to the loss, so that unneeded channels fall silent.

    The gradient of the term is λ·sgn(γ), added after the backward pass; at γ = 0 it is 0. Afterwards the criterion
    `"norm_scale"` ranks the channels of all layers together by |γ|. `structured.prune(run, data, 0.7, "norm_scale")`
    cuts them, and `structured.shrink` removes them. `strength` is λ, 1e-4 to 1e-5 in the paper with SGD. Adam scales
    its steps by the gradients, so it needs other values. `begin` sets all γ at the start, 0.5 in the authors' code. By
    default they start as the network has them. `scales` has |γ| of every channel, by layer, at the end of each epoch.
    """

    strength: Strength = 1e-4
    begin: Positive | None = None
    scales: list[dict[str, Any]] = field(init=False)

    def on_start(self, run: Run) -> None:
        self.scales = []
        for scale in scales(run.model).values():
            if self.begin is not None:
                scale.data.fill_(self.begin)

    @torch.no_grad()
    def on_grad(self, run: Run) -> None:
        for scale in scales(run.model).values():
            if scale.grad is not None:
                scale.grad.add_(subgradient(scale, self.strength))

    def on_epoch(self, run: Run) -> None:
        sizes = {name: scale.detach().abs().tolist() for name, scale in scales(run.model).items()}
        self.scales.append({"step": run.step, "scales": sizes})


def scales(model: nn.Module) -> dict[str, nn.Parameter]:
    """The scales of all batch norms that are trained, by the norms' names."""
    norms = {name: m.weight for name, m in model.named_modules() if isinstance(m, Norm)}
    if not (found := {name: scale for name, scale in norms.items() if scale is not None and scale.requires_grad}):
        raise ConfigError("this network has no batch norm with scales, so that there is nothing to slim.")
    return found

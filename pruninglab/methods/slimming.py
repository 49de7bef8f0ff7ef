"""Network slimming: Liu et al., "Learning efficient convolutional networks through network slimming", 2017."""
# pyright: reportPrivateImportUsage=false

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ..errors import ConfigError
from ..method import Method
from ..reach import Norm

if TYPE_CHECKING:
    from ..run import Run


@dataclass
class Slimming(Method):
    """Adds λ·Σ|γ| over the scales γ of all batch norms to the loss, so that channels that are not needed fall silent.

    The gradient of the term is λ·sgn(γ), added after the backward pass; at γ = 0 it is 0. Afterwards the criterion
    `"norm_scale"` ranks channels by |γ|, all layers together: `structured.prune(run, data, 0.7, "norm_scale")` cuts
    them, and `structured.shrink` takes them out. `strength` is λ, 1e-4 to 1e-5 in the paper with SGD; Adam scales its
    steps by the gradients, so that other values suit. `scales` has quantiles of |γ| by layer at the end of each epoch.

    Deviations: the authors begin with all γ at 0.5; here they begin as the network has them.
    """

    strength: float = 1e-4
    scales: list[dict[str, float | str]] = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise ConfigError(f"strength={self.strength!r}; expected a number of at least 0, such as 1e-4.")

    def on_start(self, run: "Run") -> None:
        self.scales = []
        if not _scales(run):
            raise ConfigError("this network has no batch norm with scales, so that there is nothing to slim.")

    @torch.no_grad()
    def on_grad(self, run: "Run") -> None:
        felt = [w for w in _scales(run).values() if w.grad is not None]
        if felt:
            gradients = [w.grad for w in felt if w.grad is not None]
            torch._foreach_add_(gradients, torch._foreach_sign(felt), alpha=self.strength)

    def on_epoch(self, run: "Run") -> None:
        for name, scale in _scales(run).items():
            low, middle, high = scale.detach().abs().quantile(scale.new_tensor([0.1, 0.5, 0.9])).tolist()
            self.scales.append({"step": run.step, "layer": name, "tenth": low, "median": middle, "ninth": high})


def _scales(run: "Run") -> Mapping[str, torch.Tensor]:
    norms = {name: m.weight for name, m in run.model.named_modules() if isinstance(m, Norm)}
    return {name: scale for name, scale in norms.items() if scale is not None and scale.requires_grad}

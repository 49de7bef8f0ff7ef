"""ADMM pruning: Zhang et al., "A systematic DNN weight pruning framework using ADMM", 2018 (arXiv 1804.03294)."""
# pyright: reportPrivateImportUsage=false

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ...masks.choose import Scope
from ...masks.masks import Sparsity, Unit
from ...masks.projections import largest, project
from ...train.method import Method
from ...train.run import Run
from ...typed import Count, Filled, Strength
from ..penalties.plain import add_terms

Penalty = Strength | Callable[[float], Any]  # any, for a schedule says that its value may be a dict


def gap(w: list[Tensor], z: list[Tensor], u: list[Tensor]) -> list[Tensor]:
    """W - Z + U of each layer."""
    gaps = list(torch._foreach_sub(w, z))
    torch._foreach_add_(gaps, u)
    return gaps


def pull(w: list[Tensor], z: list[Tensor], u: list[Tensor], rho: list[float]) -> list[Tensor]:
    """ρ·(W - Z + U) of each layer, the gradient of ρ/2·‖W - Z + U‖²."""
    gaps = gap(w, z, u)
    torch._foreach_mul_(gaps, rho)
    return gaps


def nearest(w: Mapping[str, Tensor], u: Mapping[str, Tensor], sparsity: Sparsity, **choice: Any) -> dict[str, Tensor]:
    """Z = Π(W + U), the nearest sparse point."""
    shifted = {name: weight + u[name] if name in u else weight for name, weight in w.items()}
    return project(shifted, largest(shifted, sparsity, **choice))


def summed(u: Tensor, w: Tensor, z: Tensor) -> Tensor:
    """U + (W - Z), the sum of all differences so far."""
    return u + (w - z)


@dataclass
class ADMM(Method):
    """Pull the weights W towards a sparse copy Z of themselves, then cut to the largest |W| at the end.

    Minimizes the loss under W = Z, Z sparse, in the scaled form: U is the sum of all differences so far. Training
    minimizes loss + ρ/2·‖W - Z + U‖². `updates` times in the run, at equal intervals, Z = Π(W + U), the nearest sparse
    point, and then U = U + W - Z. It starts from Z = Π(W) and U = 0. Every step of the loss is a plain step of the
    optimizer with ρ·(W - Z + U) added to the gradient, before any adaptive scaling as in the authors' code.

    `rho` is a number (1.5e-3 in the progressive paper, 3e-3 for high rates), a function of progress such as
    `lab.Linear(3e-3, 1.5e-3)`, or a dict from layer patterns to these. Layers that lose no weight have ρ = 0. Weights
    that are pruned already stay pruned ("masked" ADMM: Ye et al., "Progressive weight pruning using ADMM", 2018).
    `residuals` has the distances ‖W - Z‖ (primal) and ‖Z - previous Z‖ (dual) of each layer at each update, and
    `uncut` the weights just before the cut.

    Deviations: Z has exactly as many weights as were asked for, where the authors' percentile also keeps ties. When ρ
    changes, U is rescaled so that the multiplier ρ·U stays (Boyd et al. 2011, section 3.4.1); their ρ is constant.

    >>> run = lab.fit(model, data, lab.methods.ADMM(0.9), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    10%
    """

    in_training = True
    sparsity: Sparsity
    rho: Penalty | Annotated[Mapping[str, Penalty], Filled()] = 1.5e-3
    scope: Scope = "layer"
    unit: Unit = "weight"
    updates: Count = 10
    settled: bool = field(init=False)
    rhos: dict[str, float] = field(init=False)
    z: dict[str, Tensor] = field(init=False)
    u: dict[str, Tensor] = field(init=False)
    residuals: list[dict[str, Any]] = field(init=False)
    uncut: dict[str, Tensor] = field(init=False)

    def on_start(self, run: Run) -> None:
        run.aim(self.sparsity, self.scope, self.unit)
        masks = largest(run.weights, self.sparsity, **self._choice(run))
        together = self.scope == "global" and not isinstance(self.sparsity, Mapping)  # then any layer may lose weights
        losing = [n for n, mask in masks.items() if together or bool((mask != run.masks[n]).any())]
        z = project(run.weights, masks)
        self.settled = False
        self.z = {name: torch.zeros_like(run.weights[name]).copy_(z[name]) for name in losing}
        self.u = {name: torch.zeros_like(run.weights[name]) for name in losing}
        self.rhos = self._rhos(run)
        self.residuals = []
        self.uncut = {}

    @torch.no_grad()
    def on_grad(self, run: Run) -> None:
        names = [name for name in self.z if self.rhos[name] and run.weights[name].grad is not None]
        w, z, u = ([tensors[name] for name in names] for tensors in (run.weights, self.z, self.u))
        if names:
            add_terms(w, pull(w, z, u, [self.rhos[name] for name in names]))

    @torch.no_grad()
    def on_step(self, run: Run) -> None:
        if run.step * self.updates // run.steps == (run.step - 1) * self.updates // run.steps:
            return
        w = project(run.weights, run.masks)  # this moment comes before the masks
        if not all(bool(torch.isfinite(weight).all()) for weight in w.values()):
            return  # the trainer ends the run and says so
        z = nearest(w, self.u, self.sparsity, **self._choice(run))
        for name, u in self.u.items():
            distances = {"primal": float((w[name] - z[name]).norm()), "dual": float((z[name] - self.z[name]).norm())}
            self.residuals.append({"step": run.step, "layer": name, "rho": self.rhos[name], **distances})
            self.z[name].copy_(z[name])
            u.copy_(summed(u, w[name], z[name]))
        old, self.rhos = self.rhos, self._rhos(run)
        for name, u in self.u.items():
            if self.rhos[name] != old[name]:
                u.mul_(old[name] / self.rhos[name] if self.rhos[name] else 0.0)

    def on_end(self, run: Run) -> None:
        if run.status == "diverged":
            return
        self.uncut = {name: weight.detach().clone() for name, weight in run.weights.items()}
        run.masks = largest(run.weights, self.sparsity, **self._choice(run))
        self.settled = True

    def _choice(self, run: Run) -> dict[str, Any]:
        return {"scope": self.scope, "unit": self.unit, "masks": run.masks}

    def _rhos(self, run: Run) -> dict[str, float]:
        """ρ of each layer now; 0 for those that lose no weight and, with a dict, for those that it leaves out."""
        by_pattern = {"*": self.rho} if isinstance(self.rho, float | int) or callable(self.rho) else self.rho
        if unused := [p for p in by_pattern if not any(fnmatchcase(name, p) for name in run.weights)]:
            raise ConfigError(f"rho: {unused[0]!r} matches no prunable layer; the model has {', '.join(run.weights)}.")
        rhos = dict.fromkeys(run.weights, 0.0)
        for name in self.z:
            for rho in (rho for pattern, rho in by_pattern.items() if fnmatchcase(name, pattern)):
                rhos[name] = float(rho(run.progress) if callable(rho) else rho)
            if not 0 <= rhos[name] < math.inf:
                raise ConfigError(f"rho={rhos[name]:g} for {name} at progress {run.progress:g}; expected 0 or more.")
        return rhos

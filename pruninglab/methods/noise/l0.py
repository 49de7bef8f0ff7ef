"""L0 regularization: Louizos, Welling and Kingma, "Learning sparse neural networks through L0 regularization", ICLR
2018 (arXiv 1712.01312).
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from ...masks.masks import UNITS, Masks, Unit
from ...masks.schedules import Schedule
from ...train.method import Method
from ...train.run import Run
from ...typed import Fraction, PartialFraction, PositiveFraction, Range, Strength
from . import steering

LOW, HIGH, BETA = -0.1, 1.1, 2 / 3  # γ, ζ and the temperature
CLOSED = math.log(-LOW / HIGH)
"""From here on down a settled gate is 0."""


def draw(log_alpha: Tensor) -> Tensor:
    """Gates from the hard concrete distribution."""
    u = torch.empty_like(log_alpha).uniform_()
    return stretch(((u.logit_(1e-6) + log_alpha) / BETA).sigmoid())


class Gated(torch.autograd.Function):
    """The weights times gates that are drawn, in fewer passes over memory than autograd takes."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, log_alpha: Tensor) -> Tensor:
        gate = draw(log_alpha)
        ctx.save_for_backward(weight, gate)
        return weight * gate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, gate = ctx.saved_tensors
        return gradient * gate, slope(gate).mul_((gradient * weight).sum_to_size(gate.shape))


def slope(gate: Tensor) -> Tensor:
    """The derivative of a drawn gate with respect to log α: (ζ - γ)·s·(1 - s)/β, and 0 where it is clipped."""
    s = (gate - LOW).div_(HIGH - LOW)
    return torch.addcmul(s, s, s, value=-1).mul_((HIGH - LOW) / BETA).mul_((gate - gate.square()).sign_())


def settle(log_alpha: Tensor) -> Tensor:
    """Gates that are not drawn: those of validation and of the end."""
    return stretch(log_alpha.sigmoid())


def stretch(s: Tensor) -> Tensor:
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def p_open(log_alpha: Tensor, above: float = 0.0) -> Tensor:
    """How probable it is that a gate is drawn above a value, 0 or more."""
    s = (above - LOW) / (HIGH - LOW)
    return (log_alpha - BETA * (math.log(s) - math.log1p(-s))).sigmoid()


def expected(log_alpha: Tensor, alive: Tensor, behind: float) -> Tensor:
    """Σ n·P(z > 0) over a layer's gates that are alive, n weights behind each: how many are expected to count."""
    return behind * (p_open(log_alpha) * alive).sum()


def mean(log_alpha: Tensor, points: int = 64) -> Tensor:
    """The means of the gates: P(z > t), integrated over t."""
    total = torch.zeros_like(log_alpha)
    for i in range(points):
        total += p_open(log_alpha, (i + 0.5) / points)
    return total / points


@dataclass
class L0(Method):
    """Multiply each weight, or each unit, by a gate that is often exactly 0, and learn how often.

    A gate is drawn once a step from the hard concrete distribution: z = s·(ζ - γ) + γ, clipped to [0, 1]. There s =
    sigmoid((log u - log(1 - u) + log α)/β), u uniform, γ = -0.1, ζ = 1.1, β = 2/3. Training minimizes loss + λ/N·Σ
    n·P(z > 0), n the weights behind a gate and N training images: the expected number of weights. In validation and in
    the end a gate is sigmoid(log α)·(ζ - γ) + γ, clipped. The end multiplies it into its weights, and cuts them if it
    is 0. `unit="channel"` or `"kernel"` puts one gate before each of these.

    λ is `strength` times a ramp from 0 at the first share of the training in `warmup` to 1 at the second. log α begins
    near log((1 - droprate)/droprate). The paper has `droprate` 0.5 for a LeNet from scratch; here most gates begin
    open, for a trained network. log α stays within ±`clip` (4.6 in the authors' code) and has the learning rate `lr`.
    None is a rate at which log α can travel over about 20 in the run, between the run's own and 0.1.

    With `sparsity`, a share of the units or a schedule, λ is steered until as many gates are closed. Exactly as many
    units are then cut, by log α, if their gates are less than half open (log α < 0). If too few are, only these are cut
    and the target is missed. A closed gate that is to stay opens to its mean. The cut comes at the share `end` of the
    training; the rest of it is under the mask. `seen` has what was open, λ, and the distribution of log α, by layer and
    epoch.

    Deviations: the paper gates inputs of dense layers and outputs of convolutions; here a unit is an output in both.
    The test uses no averages of the weights. A weight decay acts on all weights, not on the open ones alone.

    >>> run = lab.fit(model, data, lab.methods.L0(strength=1e-3), epochs=2)
    >>> run.status
    'done'
    """

    in_training = True
    sparsity: float | Schedule | None = None
    strength: Strength = 0.1
    unit: Unit = "weight"
    droprate: PartialFraction = 0.1
    warmup: tuple[Fraction, Fraction] = (0.0, 0.1)
    lr: Strength | None = None
    clip: Annotated[float, Range(3, above=True)] = 8.0
    end: PositiveFraction = 1.0
    settled: bool = field(init=False)
    log_alphas: dict[str, Tensor] = field(init=False)
    pull: Tensor = field(init=False)
    strength_now: Tensor = field(init=False)
    missed: str = field(init=False)
    seen: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        steering.check(self.sparsity, self.warmup, self.end)

    def on_start(self, run: Run) -> None:
        steering.begin(run, "L0", self.sparsity, self.unit)
        self.settled, self.missed, self.seen = False, "", []
        self.pull, self.strength_now = (torch.zeros((), device=run.device) for _ in range(2))
        middle = math.log1p(-self.droprate) - math.log(self.droprate)
        self.log_alphas = {}
        for name, weight in run.weights.items():
            leading = UNITS[self.unit] or weight.ndim
            first = weight.detach()[tuple(slice(None if i < leading else 1) for i in range(weight.ndim))]
            self.log_alphas[name] = torch.empty_like(first).normal_(middle, 0.01)
        travel = min(max(run.options.lr, 20 / run.steps), 0.1)
        steering.add_group(run, self.log_alphas, travel if self.lr is None else self.lr)
        self._of: Masks | None = None
        self._install(run)

    def on_loss(self, run: Run) -> Tensor | None:
        if self.settled:
            return None
        self._set_strength(run)
        behind = {name: run.weights[name].numel() / a.numel() for name, a in self.log_alphas.items()}
        if self._of is not run.masks:  # as numbers: to multiply by bools takes five times as long
            self._of = run.masks
            self._alive_ones = {n: self._alive(run, n).to(a.dtype) for n, a in self.log_alphas.items()}
        weights = [expected(a, self._alive_ones[n], behind[n]) for n, a in self.log_alphas.items()]
        return self.strength_now / len(run.data.train) * torch.stack(weights).sum()

    @torch.no_grad()
    def on_step(self, run: Run) -> None:
        if self.settled:
            return
        for log_alpha in self.log_alphas.values():
            log_alpha.clamp_(-self.clip, self.clip)
        if run.step >= max(round(self.end * run.steps), 1):
            self._cut(run)

    def on_epoch(self, run: Run) -> None:
        if not self.settled:
            self._look(run)

    @torch.no_grad()
    def on_end(self, run: Run) -> None:
        if not self.settled and run.status != "diverged":
            self._cut(run)
        steering.explain(run, self.missed)

    def _set_strength(self, run: Run) -> None:
        self.strength_now.fill_(self.strength * steering.ramp(run.progress, self.warmup))
        if self.sparsity is not None and run.progress >= self.warmup[1]:
            alive = {name: self._alive(run, name) for name in self.log_alphas}
            opened = torch.stack([((a > CLOSED) & alive[n]).sum() for n, a in self.log_alphas.items()]).sum()
            total = sum(log_alpha.numel() for log_alpha in self.log_alphas.values())
            self.strength_now *= steering.steer(run, self.pull, opened, total, self.sparsity, self.end)

    def _alive(self, run: Run, name: str) -> Tensor:
        """Which gates have a weight behind them that is not cut."""
        mask, log_alpha = run.masks[name], self.log_alphas[name]
        behind = [i for i in range(mask.ndim) if log_alpha.shape[i] != mask.shape[i]]
        return mask.any(behind, keepdim=True) if behind else mask

    def _opened(self, run: Run) -> dict[str, Tensor]:
        return {n: (settle(a.detach()) > 0) & self._alive(run, n) for n, a in self.log_alphas.items()}

    def _cut(self, run: Run) -> None:
        self._look(run)
        log_alphas = {name: log_alpha.detach() for name, log_alpha in self.log_alphas.items()}
        masks = {n: settle(a) > 0 if self.sparsity is None else a > 0 for n, a in log_alphas.items()}
        masks = Masks({name: mask.expand(run.weights[name].shape) for name, mask in masks.items()})
        if self.sparsity is not None:
            scores = {name: log_alpha.expand(run.weights[name].shape) for name, log_alpha in log_alphas.items()}
            masks, self.missed = steering.choose(run, masks, scores, self.sparsity, self.unit)
        run.masks = masks
        for name, log_alpha in log_alphas.items():
            gate = settle(log_alpha)
            run.weights[name].mul_(torch.where(gate > 0, gate, mean(log_alpha)))
        self.settled = True

    def _look(self, run: Run) -> None:
        for name, opened in self._opened(run).items():
            row = {"step": run.step, "layer": name, "open": int(opened.sum()), "total": opened.numel()}
            counts = steering.tally(self.log_alphas[name][self._alive(run, name)])
            self.seen.append({**row, "strength": float(self.strength_now), "counts": counts})

    def _gated(self, run: Run, weight: Tensor, log_alpha: Tensor) -> Tensor:
        if not run.model.training:
            return weight * settle(log_alpha)
        return Gated.apply(weight, log_alpha)

    def _install(self, run: Run) -> None:
        """Until the cut: gates drawn in training, settled ones in evaluation."""
        names = {weight: name for name, weight in run.model.named_parameters()}
        inside = run.net

        def net(x: Tensor) -> Tensor:
            if self.settled:
                return inside(x)
            gated = {names[w]: self._gated(run, w, self.log_alphas[n]) for n, w in run.weights.items()}
            return functional_call(run.model, gated, (x,))

        run.net = net

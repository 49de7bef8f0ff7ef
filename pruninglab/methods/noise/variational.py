"""Sparse variational dropout: Molchanov, Ashukha and Vetrov, "Variational dropout sparsifies deep neural networks",
2017 (arXiv 1701.05369).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F

from ...errors import ConfigError
from ...masks.masks import Masks
from ...masks.schedules import Schedule
from ...train.method import Method
from ...train.run import Run
from ...typed import Fraction, Positive, PositiveFraction, Strength
from . import steering

# KL = ½·log(1 + u) + u²·P(u)/Q(u) with u = 1/α, fitted to the integral; P ends with its limit for large u.
P = (18.40407, 1.2134687, 0.6351814)
Q = (113.45513, 101.94712, 32.570364, 3.525584, 1.0)
STANDARD = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)


def kl(log_alpha: Tensor) -> Tensor:
    """KL divergence of N(θ, αθ²) from the log-uniform prior, up to the constant that makes its limit for large α 0."""
    u = (-log_alpha).exp()
    return 0.5 * u.log1p() + u * u * polynomial(P, u) / polynomial(Q, u)


def slope(u: Tensor) -> Tensor:
    """The derivative of the KL with respect to u = 1/α."""
    above, below = polynomial((0, 0, *P), u), polynomial(Q, u)
    d_above = polynomial([0, *(i * c for i, c in enumerate(P, 2))], u)
    d_below = polynomial([i * c for i, c in enumerate(Q)][1:], u)
    return d_above.mul_(below).sub_(above.mul_(d_below)).div_(below.square_()).add_(0.5 / (1 + u))


def gradients(weight: Tensor, variance: Tensor, u: Tensor, push: Tensor) -> tuple[Tensor, Tensor]:
    """By the chain rule, those of the KL by θ and by log σ²: u = θ²/σ², `push` is its derivative with respect to u."""
    return 2 * (push * weight) / variance, -(push * u)


def polynomial(coefficients: Sequence[float], u: Tensor) -> Tensor:
    value = torch.full_like(u, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value.mul_(u).add_(c)
    return value


@dataclass
class VariationalDropout(Method):
    """Learn how much noise each weight bears, and cut those that are noise alone.

    A weight is drawn from N(θ, σ²), where θ is the weight itself and σ² is learned beside it. Training minimizes loss +
    ω/N·Σ KL, N training images, with the divergence KL from a log-uniform prior, which falls with α = σ²/θ². In the end
    weights with log α above `threshold` are cut and the others stay θ; validation sees that net all along. What is
    drawn are the outputs of convolution and linear layers, each by its own mean and variance (local reparametrization).
    Some layers do not use their weights in this way, as in attention or under a parametrization. Their weights, and
    those that `sampled` names, are drawn themselves, once a step: noisier gradients, at less cost.

    ω is `strength` times a ramp from 0 at the first share of the training in `warmup` to 1 at the second. log σ² begins
    at `initial`, and log α is clipped to ±`clip`. `lr` is the learning rate of log σ² (None: that of the run). Start
    from a trained net. The paper's `strength` is 1, but with few images the whole KL outweighs the loss and nothing is
    left: 0.02 suits a thousand.

    With `sparsity`, a number or a schedule, ω is steered from there (None: from 0.02) until as many weights as that are
    above the threshold. Exactly as many are then cut, by log α, if they have more noise than weight (log α > 0). If too
    few have, only these are cut and the target is missed. The cut comes at the share `end` of the training; the rest of
    it is under the mask. `seen` has what was open, ω, and the distribution of log α, by layer and epoch.

    Deviations: the KL is within 2e-4 of its integral, the paper's fit within 1e-2. Biases bear no noise. Above the
    threshold a mean is still used in training, which the authors' code omits for LeNet. Beyond the clip log σ² stands.

    >>> run = lab.fit(model, data, lab.methods.VariationalDropout(0.8), epochs=2)
    >>> run.status
    'target_missed'
    """

    in_training = True
    sparsity: float | Schedule | None = None
    strength: Strength | None = None
    threshold: float = 3.0
    warmup: tuple[Fraction, Fraction] = (0.025, 0.1)
    initial: float = -10.0
    lr: Strength | None = None
    clip: Positive = 8.0
    sampled: str | Sequence[str] = ()
    end: PositiveFraction = 1.0
    settled: bool = field(init=False)
    log_variances: dict[str, Tensor] = field(init=False)
    pull: Tensor = field(init=False)
    strength_now: Tensor = field(init=False)
    missed: str = field(init=False)
    seen: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        steering.check(self.sparsity, self.warmup, self.end)
        if not abs(self.threshold) < self.clip:
            raise ConfigError(f"threshold={self.threshold} has to lie within the clip of log α, ±{self.clip}.")

    def on_start(self, run: Run) -> None:
        steering.begin(run, "VariationalDropout", self.sparsity)
        self.settled, self.missed, self.seen = False, "", []
        self.pull, self.strength_now = (torch.zeros((), device=run.device) for _ in range(2))
        self.log_variances = {name: torch.full_like(w, self.initial) for name, w in run.weights.items()}
        steering.add_group(run, self.log_variances, self.lr)
        self._drawn: dict[str, tuple[Tensor, Tensor]] = {}
        self._install(run)

    @torch.no_grad()
    def on_grad(self, run: Run) -> None:
        """The gradients of log σ², from those of σ² and from the KL; to those of the weights the KL's are added."""
        if self.settled:
            return
        variances = [variance for variance, _ in self._drawn.values()]
        for variance, gradient in zip(variances, run.over_ranks([v.grad for v in variances]), strict=True):
            variance.grad = gradient
        inverses = {n: run.weights[n].square().div_(raw) for n, (_, raw) in self._drawn.items()}
        self._set_strength(run, inverses)
        least, most = math.exp(-self.clip), math.exp(self.clip)
        for name, (variance, raw) in self._drawn.items():
            weight, log_variance, u = run.weights[name], self.log_variances[name], inverses[name]
            inside = (u > least) & (u < most)
            push = slope(u.clamp_(least, most)).mul_(inside).mul_(self.strength_now / len(run.data.train))
            of_weight, log_variance.grad = gradients(weight, raw, u, push)
            if weight.grad is not None:
                weight.grad.add_(of_weight)
            if variance.grad is not None:
                log_variance.grad.addcmul_(variance.grad.mul_(inside), raw)
        self._drawn = {}

    def on_step(self, run: Run) -> None:
        if not self.settled and run.step >= max(round(self.end * run.steps), 1):
            self._cut(run)

    def on_epoch(self, run: Run) -> None:
        if not self.settled:
            self._look(run)

    def on_end(self, run: Run) -> None:
        if not self.settled and run.status != "diverged":
            self._cut(run)
        steering.explain(run, self.missed)

    @torch.no_grad()
    def log_alpha(self, run: Run, name: str) -> Tensor:
        """Of each weight of a layer; infinite where it is 0."""
        return self.log_variances[name] - run.weights[name].square().log()

    def _set_strength(self, run: Run, inverses: dict[str, Tensor]) -> None:
        given = self.strength if self.strength is not None else 1.0 if self.sparsity is None else 0.02
        self.strength_now.fill_(given * steering.ramp(run.progress, self.warmup))
        if self.sparsity is not None and run.progress >= self.warmup[1]:
            opened = torch.stack([(u >= math.exp(-self.threshold)).sum() for u in inverses.values()]).sum()
            factor = steering.steer(run, self.pull, opened, run.masks.total, self.sparsity, self.end)
            self.strength_now *= factor.clamp_min(0)  # the KL has no lower limit

    def _cut(self, run: Run) -> None:
        self._look(run)
        log_alphas = {name: self.log_alpha(run, name) for name in run.weights}
        limit = self.threshold if self.sparsity is None else min(self.threshold, 0.0)
        masks = Masks({name: log_alpha <= limit for name, log_alpha in log_alphas.items()})
        if self.sparsity is not None:
            masks, self.missed = steering.choose(run, masks, {n: -a for n, a in log_alphas.items()}, self.sparsity)
        run.masks = masks
        self.settled = True

    def _look(self, run: Run) -> None:
        for name, weight in run.weights.items():
            log_alpha = self.log_alpha(run, name)
            opened = int((log_alpha <= self.threshold).sum())
            row = {"step": run.step, "layer": name, "open": opened, "total": weight.numel()}
            counts = steering.tally(log_alpha[run.masks[name]])
            self.seen.append({**row, "strength": float(self.strength_now), "counts": counts})

    def _install(self, run: Run) -> None:
        """Until the cut: noise in training; in evaluation the means, but those above the threshold."""
        names = {weight: name for name, weight in run.model.named_parameters()}
        layers, inside = self._layers(run), run.net

        def net(x: Tensor) -> Tensor:
            if self.settled:
                return inside(x)
            if not run.model.training:
                opened = {n: self.log_alpha(run, n) <= self.threshold for n in run.weights}
                return functional_call(run.model, {names[w]: w * opened[n] for n, w in run.weights.items()}, (x,))
            self._drawn = {name: self._variance(run, name) for name in run.weights}
            drawn, handles = {}, []
            for name, weight in run.weights.items():
                variance = self._drawn[name][0]
                if name not in layers:
                    drawn[names[weight]] = torch.addcmul(weight, (variance + 1e-16).sqrt(), normal_like(weight))
                for layer in layers.get(name, ()):
                    handles.append(layer.register_forward_hook(Noise(variance), with_kwargs=True))
            try:
                return functional_call(run.model, drawn, (x,)) if drawn else inside(x)
            finally:
                for handle in handles:
                    handle.remove()

        run.net = net

    def _variance(self, run: Run, name: str) -> tuple[Tensor, Tensor]:
        """σ² within the clip, which gets a gradient; and as it was learned."""
        square, raw = run.weights[name].detach().square(), self.log_variances[name].detach().exp()
        return raw.clamp(square * math.exp(-self.clip), square * math.exp(self.clip)).requires_grad_(), raw

    def _layers(self, run: Run) -> dict[str, list[nn.Module]]:
        """By weight the layers that use it, where each does so for outputs with a mean and a variance of their own."""
        patterns = (self.sampled,) if isinstance(self.sampled, str) else tuple(self.sampled)
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in run.weights):
                raise ConfigError(f"sampled={pattern!r} matches no weight in scope: {', '.join(run.weights)}.")
        called = {m for n, m in run.model.named_modules() if type(m).forward in STANDARD and n in run.flops.called}
        layers = {}
        for name, weight in run.weights.items():
            users: list[Any] = [m for m in run.model.modules() if any(p is weight for p in m.parameters(recurse=False))]
            simple = called.issuperset(users) and all(m.weight is weight for m in users)  # a bias is noisy by itself
            if simple and not any(fnmatchcase(name, pattern) for pattern in patterns):
                layers[name] = users
        return layers


@dataclass(frozen=True)
class Noise:
    """Turns the output of a layer, the mean, into a draw: its variance is that of the weights times squared inputs."""

    variance: Tensor

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], mean: Tensor) -> Tensor:
        x = inputs[0] if inputs else named["input"]
        squared = x * x
        if isinstance(layer, nn.Linear):
            variance = F.linear(squared, self.variance)
        else:
            variance = layer._conv_forward(squared, self.variance, None)  # pyright: ignore[reportCallIssue]
        return Draw.apply(mean, variance, normal_like(mean))


class Draw(torch.autograd.Function):
    """mean + √variance·noise, in fewer passes over memory than autograd takes."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
        deviation = (variance + 1e-8).sqrt_()
        drawn = torch.addcmul(mean, deviation, noise)
        ctx.save_for_backward(noise.div_(deviation).mul_(0.5))
        return drawn

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, gradient * ctx.saved_tensors[0], None


def normal_like(tensor: Tensor) -> Tensor:
    """Standard normal numbers, drawn in one row: another memory format would be filled number by number."""
    row = torch.randn(tensor.numel(), device=tensor.device)
    return row.to(tensor.dtype).as_strided(tensor.shape, tensor.stride())

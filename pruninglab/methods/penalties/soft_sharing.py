"""Soft weight-sharing: Ullrich, Meeds and Welling, "Soft weight-sharing for neural network compression", 2017."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import ConfigError
from ...masks.threshold import counted
from ...train.method import Method
from ...train.run import Run
from ...typed import PartialFraction, Positive, Range, Strength

PRECISIONS = ((5e3, 2.0), (250.0, 0.1))  # Gamma priors (shape, rate) of 1/σ²: the zero component's, the others'

BLOCK = 4096  # so many weights by all components stay in the cache


def log_joint(values: Tensor, means: Tensor, log_variances: Tensor, log_proportions: Tensor) -> Tensor:
    """log π_j·N(w; μ_j, σ_j²) by weight and component: (weights, components)."""
    heights = log_proportions - 0.5 * (log_variances + math.log(2 * math.pi))
    return heights - 0.5 * ((values[:, None] - means) * (-0.5 * log_variances).exp()).square()


def log_prior(values: Tensor, means: Tensor, log_variances: Tensor, log_proportions: Tensor) -> Tensor:
    """Σ log p(w) over all weights."""
    return LogPrior.apply(values, means, log_variances, log_proportions)


class LogPrior(torch.autograd.Function):
    """The sum and its derivatives at once, block by block in the cache: a sixth of what autograd takes.

    Let z = (w - μ)/σ, and let r = softmax(log π·N) be the responsibilities. The derivative with respect to w is -Σ
    r·z/σ. That of the sum is Σ r·z/σ with respect to μ, Σ r·(z² - 1)/2 to log σ², and Σ r to log π.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, means: Tensor, log_variances: Tensor, log_proportions: Tensor) -> Tensor:
        inverse = (-0.5 * log_variances).exp()[:, None]  # (components, 1)
        heights = (log_proportions - 0.5 * (log_variances + math.log(2 * math.pi)))[:, None]
        total, of_values, sums = values.new_zeros(()), [], values.new_zeros(3, len(means))
        for block in values.split(BLOCK):
            z = (block - means[:, None]).mul_(inverse)  # (components, weights)
            r = torch.addcmul(heights, z, z, value=-0.5)
            top = r.amax(0)
            whole = r.sub_(top).exp_().sum(0)
            total += top.add_(whole.log()).sum()
            felt = r.div_(whole) * z
            of_values.append((inverse.T @ felt)[0].neg_())
            sums += torch.stack([felt.sum(1), z.mul_(felt).sum(1), r.sum(1)])
        of_means, squares, shares = sums
        ctx.save_for_backward(torch.cat(of_values), of_means * inverse[:, 0], 0.5 * (squares - shares), shares)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(gradient * derivative for derivative in ctx.saved_tensors)


def divergence(means: Tensor, variances: Tensor) -> Tensor:
    """KL(N_i, N_j) of each pair of components: ½·(σ_i²/σ_j² + (μ_i - μ_j)²/σ_j² - 1 - log σ_i²/σ_j²)."""
    ratio = variances[:, None] / variances
    return (ratio + (means[:, None] - means) ** 2 / variances - 1 - ratio.log()) / 2


def merged(means: Tensor, variances: Tensor, proportions: Tensor, below: float) -> tuple[Tensor, Tensor, Tensor]:
    """The mixture in which the most alike pair is one component, again and again while its divergence is below.

    Means and variances are averaged by the proportions. What is merged with the first component stays at 0.
    """
    while len(means) > 1:
        pairs = divergence(means, variances)
        apart = torch.maximum(pairs, pairs.T).fill_diagonal_(math.inf)
        if not float(apart.min()) < below:
            break
        i, j = sorted(divmod(int(apart.argmin()), len(means)))
        both = torch.tensor([i, j], device=means.device)
        shares = proportions[both] / proportions[both].sum()
        means, variances, proportions = means.clone(), variances.clone(), proportions.clone()
        means[i] = 0 if i == 0 else (shares * means[both]).sum()
        variances[i], proportions[i] = (shares * variances[both]).sum(), proportions[both].sum()
        others = torch.arange(len(means), device=means.device) != j
        means, variances, proportions = means[others], variances[others], proportions[others]
    return means, variances, proportions


@dataclass
class SoftSharing(Method):
    """Learn a mixture of Gaussians as the prior of the weights, then put each on the mean of its component.

    Adds -τ/N·(Σ log p(w) + log p(1/σ²)) to the loss, p(w) = Σ π_j·N(w; μ_j, σ_j²), N the number of training images. One
    component stays at 0 with the proportion `zero`; the other means, all σ and the other proportions are trained beside
    the weights. Means begin at equal distances over the range of the weights, σ at that distance. In the end a weight
    is cut if its likeliest component is the one at 0. Every other weight becomes the mean of its own component, so the
    kept weights take at most `components` - 1 values. Start from a trained net. `lrs` are the learning rates of the
    means, and of σ and proportions; the paper has 5e-4 for the weights, and Adam.

    Before that, components whose divergence is below `merge_below` become one (None: none do).

    Deviations: biases are in the mixture only when the run may cut them, and frozen weights are left as they are. The
    divergence of two components is the larger of the two directions.

    >>> run = lab.fit(model, data, lab.methods.SoftSharing(), epochs=2, collapse="allow")
    >>> run.status
    'done'
    """

    in_training = True
    tau: Strength = 5e-3
    components: Annotated[int, Range(2)] = 17
    zero: PartialFraction = 0.999
    lrs: tuple[Strength, Strength] = (1e-4, 3e-3)
    merge_below: Positive | None = None
    settled: bool = field(init=False)
    means: Tensor = field(init=False)
    log_variances: Tensor = field(init=False)
    proportions: Tensor = field(init=False)

    def on_start(self, run: Run) -> None:
        values = self._values(run).detach()
        if values.numel() < 2 or values.min() == values.max():
            raise ConfigError("there is no range of weights to share: expected two different ones or more in scope.")
        self.settled = False
        self.means = torch.linspace(float(values.min()), float(values.max()), self.components - 1).to(values)
        distance = float(values.max() - values.min()) / max(self.components - 2, 1)
        self.log_variances = torch.full((self.components,), 2 * math.log(distance)).to(values)
        self.proportions = torch.zeros_like(self.means)
        trained = (self.means, self.log_variances, self.proportions)
        for tensor, rate in zip(trained, (self.lrs[0], *[self.lrs[1]] * 2), strict=True):
            run.param_groups.append({"params": [tensor.requires_grad_()], "lr": rate, "weight_decay": 0.0})

    def on_loss(self, run: Run) -> Tensor:
        prior = log_prior(self._values(run), *self.mixture())
        for (shape, rate), chosen in zip(PRECISIONS, (slice(1), slice(1, None)), strict=True):
            log_precision = -self.log_variances[chosen]
            prior = prior + ((shape - 1) * log_precision - rate * log_precision.exp()).sum()
        return -self.tau / len(run.data.train) * prior

    @torch.no_grad()
    def on_end(self, run: Run) -> None:
        if run.status == "diverged":
            return
        means, log_variances, log_proportions = self.mixture()
        if self.merge_below:
            parts = merged(means, log_variances.exp(), log_proportions.exp(), self.merge_below)
            means, log_variances, log_proportions = parts[0], parts[1].log(), parts[2].log()
        masks = run.masks.clone()
        for name, weight in self._trained(run).items():
            kept = run.masks[name]
            component = log_joint(weight[kept], means, log_variances, log_proportions).argmax(1)
            weight[kept] = means[component]
            masks[name][kept] = means[component] != 0
        run.masks = masks
        self.settled = True

    def mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means, log σ² and log π of all components, the one at 0 first."""
        others = math.log1p(-self.zero) + self.proportions.log_softmax(0)
        log_proportions = torch.cat((others.new_full((1,), math.log(self.zero)), others))
        return torch.cat((self.means.new_zeros(1), self.means)), self.log_variances, log_proportions

    def _trained(self, run: Run) -> dict[str, Tensor]:
        return {name: weight for name, weight in run.weights.items() if weight.requires_grad}

    def _values(self, run: Run) -> Tensor:
        masks = run.masks
        return torch.cat(
            [
                weight.flatten() if counted(masks[name]) == masks[name].numel() else weight[masks[name]]
                for name, weight in self._trained(run).items()
            ]
        )

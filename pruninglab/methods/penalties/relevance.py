"""Relevance-weighted L2: Bonetta and Cancelliere, "Lightening CNN architectures by regularization driven weights'
pruning", 2022; and the plain L2 and L1 terms that it is measured against.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ...criteria.gradients import check_graph, differentiable_twice
from ...errors import ConfigError
from ...train.losses import loss_arguments
from ...train.method import Method
from ...train.run import Run
from ...typed import Positive, Strength
from .plain import gradients_of, shrink, with_gradient

SIGNS = {"paper": 1.0, "code": -1.0}
EDGES = tuple(10.0 ** (i / 4) for i in range(-36, 9))  # of the bins that |g| is counted in


def relevance(g: Tensor, alpha: float = 1.0) -> Tensor:
    """C = 1/(1 + α·|g|): near 1 where the loss does not feel the weight, small where it does."""
    return 1 / (1 + alpha * g.abs())


def relevance_gradient(g: Tensor, w: Tensor, strength: float, alpha: float = 1.0) -> Tensor:
    """Equation 2, with C taken as constant: g + 2λ·w·C."""
    return torch.addcdiv(g, w, 1 + alpha * g.abs(), value=2 * strength)


def third_term(g: Tensor, w: Tensor, strength: float, alpha: float = 1.0) -> Tensor:
    """Of equation 1 as printed, with sgn(|∂²L/∂w²|) read as 1 wherever g is not 0: λ·α·w²·C²."""
    return alpha * strength * (w / (1 + alpha * g.abs())) ** 2 * g.sign().abs()


def strength_after(strength: float, epochs: float, decay: str, decay_rate: float = 1.0) -> float:
    """λ so many epochs after a cut: down to 0 in one epoch, by exp(-rate) each epoch, or as it was."""
    factors = {"linear": max(0.0, 1 - epochs), "exponential": math.exp(-decay_rate * epochs), "none": 1.0}
    return strength * factors[decay]


@dataclass
class RelevanceL2(Method):
    """Adds λ·Σ C·w² to the loss, C = 1/(1 + α·|g|), g the gradient of the loss: what matters less shrinks more.

    With C taken as constant (equation 2) the gradient is g + 2λ·w·C. The second term is added in closed form after the
    one backward pass; the authors run a second one. It goes through the run's optimizer, any adaptive scaling included.
    With `coupled=False` the step is w ← w - lr·2λ·w·C instead, as in AdamW. Under plain gradient steps both are the
    same. All trainable parameters are pulled, as in the authors' code, or with `only_prunable` those that the run may
    cut. `g` is the gradient as it stands at this method's turn: put it before methods that add to it. `strength` is λ;
    λ = 1e-3 with C = 1 is a weight decay of 2e-3. `alpha=0` is C = 1, the ablation: plain L2 with the same decay of λ.

    `sign="code"`: the released code has C = 1/(1 - α·|g|), so that relevant weights shrink more; C has a pole at
    |g| = 1/α and is negative beyond. `decay`: since the last cut of the run, of whichever method, λ falls to 0 in one
    epoch ("linear", the code), by the factor exp(-`decay_rate`) each epoch ("exponential", the paper, which names no
    rate), or stays ("none").

    `second_order` says what becomes of the derivative of C. "none": neglected. "literal": the third term of equation 1
    as printed, λ·α·w²·sgn(|∂²L/∂w²|)/(1 + α·|g|)², with sgn(|∂²L/∂w²|) read as 1 wherever g is not 0. "exact": the true
    gradient of the whole loss, by a second backward pass through the first (a Hessian-vector product).

    `felt` has |g| of the kept weights at the last step of each epoch. For each layer it has the largest, the median,
    and how many there are in each bin between `EDGES`, the first and the last bin open. Beyond 65,536 weights it takes
    every n-th.

    >>> run = lab.fit(model, data, lab.methods.RelevanceL2(1e-4), lab.methods.OneShot(0.9), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    10%
    """

    strength: Strength = 1e-3
    alpha: Strength = 1.0
    sign: Literal["paper", "code"] = "paper"
    decay: Literal["linear", "exponential", "none"] = "linear"
    decay_rate: Positive = 1.0
    coupled: bool = True
    only_prunable: bool = False
    second_order: Literal["none", "literal", "exact"] = "none"
    felt: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        if not self.coupled and self.second_order != "none":
            raise ConfigError("the derivative of C belongs to the gradient; second_order needs coupled=True.")

    def on_start(self, run: Run) -> None:
        self.felt = []
        if self.second_order == "exact":
            net = run.net

            def twice(x: Tensor) -> Tensor:
                with differentiable_twice():
                    return net(x)

            run.net = twice

    def on_loss(self, run: Run) -> Tensor | None:
        if self.second_order != "exact":
            return None
        chosen = run.weights.values() if self.only_prunable else run.model.parameters()
        weights = [w for w in chosen if w.requires_grad]
        logits = run.logits.float() if run.logits.dtype.itemsize < 4 else run.logits  # autocast gives bfloat16
        loss = run.options.loss(*loss_arguments(run.options.loss, logits, run.y, run.x))
        gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        gradients = run.over_ranks(gradients)
        self._remember(run, dict(zip(weights, gradients, strict=True)))
        terms = [(self.relevance(g) * w**2).sum() for g, w in zip(gradients, weights, strict=True) if g is not None]
        term = self._now(run) * torch.stack(terms).sum()
        if run.step == run.first_step:  # what cannot be differentiated twice is refused before the first step
            with differentiable_twice():
                check_graph(gradients)
                torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        return term

    @torch.no_grad()
    def on_grad(self, run: Run) -> None:
        strength = self._now(run)
        weights = with_gradient(run, self.only_prunable)
        if self.second_order == "exact" or not weights:
            return
        gradients = gradients_of(weights)
        self._remember(run, dict(zip(weights, gradients, strict=True)))
        if not strength:
            return
        alpha = SIGNS[self.sign] * self.alpha
        rates = (
            {} if self.coupled else {p: group["lr"] for group in run.optimizer.param_groups for p in group["params"]}
        )
        for w, g in zip(weights, gradients, strict=True):
            if not self.coupled:
                shrink([w], [2 * strength * rates[w] * relevance(g, alpha)])
                continue
            pulled = relevance_gradient(g, w, strength, alpha)
            g.copy_(pulled + third_term(g, w, strength, alpha) if self.second_order == "literal" else pulled)

    def relevance(self, gradient: Tensor) -> Tensor:
        """C of weights with this gradient."""
        return relevance(gradient, SIGNS[self.sign] * self.alpha)

    def strength_after(self, epochs: float) -> float:
        """λ so long after a cut."""
        return strength_after(self.strength, epochs, self.decay, self.decay_rate)

    @torch.no_grad()
    def _remember(self, run: Run, gradients: Mapping[Tensor, Tensor | None]) -> None:
        if (run.step + 1) % run.steps_per_epoch:
            return
        for name, weight in run.weights.items():
            gradient, kept = gradients.get(weight), run.masks[name]
            if gradient is not None and bool(kept.any()):
                sizes = (gradient if bool(kept.all()) else gradient[kept]).abs().flatten()
                some = sizes[:: max(len(sizes) // 32768, 1)]
                places = (4 * some.log10()).floor().nan_to_num(-37.0).clamp(-37, 8)
                bins = (places.long() + 37).bincount(minlength=len(EDGES) + 1)
                large = {"median": float(some.median()), "largest": float(sizes.max())}
                self.felt.append({"step": run.step + 1, "layer": name, **large, "counts": bins.tolist()})

    def _now(self, run: Run) -> float:
        since = run.last_cut.step if run.last_cut else run.first_step
        return self.strength_after((run.step - since) / run.steps_per_epoch)

"""Optimal brain surgeon: Hassibi and Stork, "Second order derivatives for network pruning", 1993. Layer by layer: Dong,
Chen and Pan, "Learning to prune deep neural networks via layer-wise optimal brain surgeon", 2017.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...criteria.curvature import Estimate, full
from ...criteria.quadratic import Quadratic, layerwise
from ...layers.hooks import evaluating
from ...masks.choose import Scope, keep_top
from ...masks.masks import Masks, Sparsity, parted
from ...masks.schedules import Exponential
from ...train.evaluate import Shuffled
from ...train.method import Method
from ...train.run import Run
from ...typed import Count, Strength


@dataclass
class OptimalBrainSurgeon(Method):
    """Cut once before the first step, and move what is left so that it makes up for what was cut.

    Start from a trained net. Near a minimum with the Hessian H, cutting w_q costs w_q²/(2·[H⁻¹]_qq), if the other
    weights then move by -w_q/[H⁻¹]_qq·H⁻¹e_q. `form="layer"` takes the second moment of a layer's inputs as its H. The
    cost is then the squared error of the layer's output, here as a share of that without any weight. The kept weights
    of each row become the least-squares fit on the kept inputs. `form="full"` takes one H of the loss for all weights
    in scope, at most 10,000, by `estimate`: "gauss_newton", "fisher" or "exact" (`lab.criteria`). H is the mean over
    `batches` batches; `dampening` times the mean of its diagonal is added to its diagonal.

    Cutting goes in `rounds`, each with costs anew: density^(k/rounds) is left after round k. The papers cut one weight
    at a time; many rounds come close to that. In a single round, weights that could replace each other are cut
    together, and a layer may lose all of its weights. `errors` has the rise of the quadratic for each layer (or for
    all), as a share of the rise when everything is cut. It has it with the kept weights as they were, and as they were
    moved.

    Deviations: a layer's inputs are those of the uncut net, as in the paper, and its errors add up in the next. The
    values of what is left are solved for at once, which is what the papers' updates one by one come to. A large layer
    has outputs × inputs³ above 3·10¹¹, with inputs the weights of one output. There conjugate gradients solve for all
    outputs together, and [H⁻¹]_qq is estimated once some inputs have gone: seconds instead of hours.
    """

    sparsity: Sparsity
    form: Literal["layer", "full"] = "layer"
    scope: Scope = "global"
    rounds: Count = 8
    batches: Count = 16
    dampening: Strength = 1e-2
    estimate: Estimate = "gauss_newton"
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    errors: list[dict[str, Any]] = field(init=False)

    @torch.no_grad()
    def on_start(self, run: Run) -> None:
        run.aim(self.sparsity, self.scope)
        parts = self._quadratics(run)
        schedule, masks = Exponential(self.sparsity), run.masks
        for k in range(1, self.rounds + 1):
            costs: dict[str, Tensor] = {}
            for names, quadratic in parts.items():
                rise = quadratic.costs(_together(masks, names, quadratic)) / _most(quadratic)
                costs |= parted(rise.flatten(), {name: masks[name] for name in names})
            scores = {name: costs[name].float().to(run.device) for name in masks}
            masks = keep_top(scores, schedule(k / self.rounds), scope=self.scope, masks=masks, clamp=True)
        self.errors = []
        for names, quadratic in parts.items():
            kept = _together(masks, names, quadratic)
            moved, still = quadratic.minimum(kept), torch.where(kept, quadratic.weights, 0)
            rise = {k: quadratic.value(w) / _most(quadratic) for k, w in (("unmoved", still), ("moved", moved))}
            self.errors.append({"layer": names[0] if self.form == "layer" else "all", "kept": int(kept.sum()), **rise})
            for name, values in parted(moved.flatten(), {name: masks[name] for name in names}).items():
                run.weights[name].copy_(values)
        run.masks = masks

    def _quadratics(self, run: Run) -> dict[tuple[str, ...], Quadratic]:
        batches = Shuffled(run.data.train, run.options.batch_size, run.options.seed, run.step)
        names, how = tuple(run.weights), {"number": self.batches, "dampening": self.dampening}
        with evaluating(run.model):
            if self.form == "layer":
                return {(n,): q for n, q in layerwise(run.model, batches, names, **how).items()}
            one = full(run.model, batches, names, estimate=self.estimate, loss=self.loss, **how)
            return {names: one}


def _most(quadratic: Quadratic) -> float:
    """What cutting everything costs."""
    return max(quadratic.value(torch.zeros_like(quadratic.weights)), 1e-300)


def _together(masks: Masks, names: tuple[str, ...], quadratic: Quadratic) -> Tensor:
    """The masks of these layers as the quadratic's weights are laid out."""
    flat = torch.cat([masks[name].flatten() for name in names])
    return flat.view(quadratic.weights.shape).to(quadratic.weights.device)

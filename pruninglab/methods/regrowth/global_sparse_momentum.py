"""GSM: Ding et al., "Global sparse momentum SGD for pruning very deep neural networks", 2019."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import ConfigError
from ...layers.precision import exact
from ...masks.choose import Scope, keep_top
from ...masks.masks import Sparsity
from ...masks.projections import largest
from ...train.method import Method
from ...train.run import Run
from ...typed import Positive, PositiveFraction


def felt(w: Tensor, g: Tensor) -> Tensor:
    """|w·g|, to first order the change of the loss without the weight; 0 where it is no number."""
    return (w * g).abs().nan_to_num()


def sparse_gradient(w: Tensor, g: Tensor, active: Tensor, decay: float) -> Tensor:
    """g of the active weights alone, and decay·w of all."""
    return torch.add(g * active.to(g.dtype), w, alpha=decay)


@dataclass
class GlobalSparseMomentum(Method):
    """In every step only the top |w·g| get their gradient; all weights decay, and so the others vanish by themselves.

    As many are active in a step as are to stay, ranked over all layers. The decay, `decay`·w, is added to the gradient
    and so goes through the optimizer. That is the paper's rule with `optimizer="sgd", momentum=0.98, decay=5e-4`: in
    some tens of thousands of steps the momentum makes up for the small decay. With `coupled=False` a weight that is
    passive in a step loses the share `decay` of itself, outside the optimizer. The share falls with the learning rate,
    so decay keeps its meaning under Adam and in short runs. At the share `end` of the training all but the largest
    weights are cut. `lost` is the share of the squared norm that this removed: near 0 if the others had vanished.

    The paper starts from a trained net. Deviations: decay is of the weights that may be cut; give `weight_decay` of
    `fit` for others. The authors' code lets ties be active, too.

    >>> run = lab.fit(model, data, lab.methods.GlobalSparseMomentum(0.9), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    10%
    """

    in_training = True
    sparsity: Sparsity
    decay: Positive = 5e-4
    coupled: bool = True
    scope: Scope = "global"
    end: PositiveFraction = 1.0
    settled: bool = field(init=False)
    lost: float = field(init=False)

    def __post_init__(self) -> None:
        if not self.coupled and self.decay >= 1:
            raise ConfigError(f"decay={self.decay:g} makes weights vanish; expected a number below 1 if not coupled.")

    def on_start(self, run: Run) -> None:
        run.aim(self.sparsity, self.scope)
        self.settled = False
        self.lost = 0.0

    @torch.no_grad()
    def on_grad(self, run: Run) -> None:
        if self.settled:
            return
        scores = {n: torch.zeros_like(w) if w.grad is None else felt(w, w.grad) for n, w in run.weights.items()}
        active = keep_top(scores, self.sparsity, scope=self.scope, masks=run.masks, clamp=True)
        decay = self.decay if self.coupled else 0.0
        for name, weight in run.weights.items():
            if weight.grad is None:
                continue
            weight.grad.copy_(sparse_gradient(weight, weight.grad, active[name], decay))
            if not self.coupled:
                weight.lerp_(weight * active[name].to(weight.dtype), self.decay * run.options.lr_factor(run.progress))

    def on_step(self, run: Run) -> None:
        if not self.settled and run.step >= max(round(self.end * run.steps), 1):
            self._cut(run)

    def on_end(self, run: Run) -> None:
        if not self.settled and run.status != "diverged":  # broken off before its time
            self._cut(run)

    @torch.no_grad()
    def _cut(self, run: Run) -> None:
        run.apply_masks()  # on_step comes before them
        masks = largest(run.weights, self.sparsity, scope=self.scope, masks=run.masks)
        norm = torch.stack([exact(weight).square().sum() for weight in run.weights.values()]).sum()
        cut = torch.stack([exact(w[~masks[name]]).square().sum() for name, w in run.weights.items()]).sum()
        self.lost = float(cut / norm.clamp_min(torch.finfo(norm.dtype).tiny))
        run.masks = masks
        self.settled = True

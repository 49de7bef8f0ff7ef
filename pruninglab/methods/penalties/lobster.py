"""LOBSTER: Tartaglione et al., "LOss-Based SensiTivity rEgulaRization: towards deep sparse neural networks", 2021."""
# pyright: reportPrivateImportUsage=false

from dataclasses import dataclass

import torch

from ...train.method import Method
from ...train.run import Run
from ...typed import Strength
from .plain import gradients_of, shrink, with_gradient


@dataclass
class LOBSTER(Method):
    """w ← w - λ·w·max(0, 1 - |∂L/∂w|) beside the optimizer's step, whatever its learning rate; cuts nothing itself.

    Weights that the loss does not feel shrink by the share `strength` (λ) each step. As in the authors' code all
    trainable parameters do, biases and norms too; with `only_prunable` those that the run may cut.

    Deviations: the shrinking is of the weights before the step, theirs of those after it. They cut at a plateau of the
    validation loss, at the largest threshold that costs at most 5 % of it; here `PruneWhileAccurate` or any method
    cuts.
    """

    strength: Strength = 1e-4
    only_prunable: bool = False

    @torch.no_grad()
    def on_grad(self, run: Run) -> None:
        if not (weights := with_gradient(run, self.only_prunable)):
            return
        shares = torch._foreach_abs(gradients_of(weights))
        torch._foreach_mul_(shares, -1.0)
        torch._foreach_add_(shares, 1.0)
        torch._foreach_clamp_min_(shares, 0.0)
        torch._foreach_mul_(shares, self.strength)
        shrink(weights, shares)

"""Projected gradient descent, also called iterative hard thresholding: Blumensath and Davies, 2009.

For networks: Jin et al., "Training skinny deep neural networks with iterative hard thresholding methods", 2016. It is
the control of the ADMM papers, with Zhang et al., "Learning to share", 2018.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...masks.choose import Scope
from ...masks.masks import Sparsity, Unit
from ...masks.projections import largest
from ...train.method import Method
from ...train.run import Run
from ...typed import Count, PositiveFraction


def project_(w: Mapping[str, Tensor], sparsity: Sparsity, **choice: Any) -> None:
    """W = Π(W), the nearest weights that are as sparse: the largest as they are, and 0 elsewhere."""
    largest(w, sparsity, **choice).apply_({name: weight.data for name, weight in w.items()})


@dataclass
class PGD(Method):
    """W = Π(W) every `every_steps` steps: all but the largest are set to 0, and come back where training moves them.

    From the share `end` of the training on the mask is frozen, and the rest is masked retraining.

    Deviations: the step is that of the run's optimizer, whose momentum a projection leaves alone. The papers take plain
    gradient steps. They project to the end, or retrain in a second run.

    >>> run = lab.fit(model, data, lab.methods.PGD(0.9), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    10%
    """

    in_training = True
    sparsity: Sparsity
    scope: Scope = "layer"
    unit: Unit = "weight"
    every_steps: Count = 1
    end: PositiveFraction = 0.75
    settled: bool = field(init=False)

    def on_start(self, run: Run) -> None:
        run.aim(self.sparsity, self.scope, self.unit)
        self.settled = False

    @torch.no_grad()
    def on_step(self, run: Run) -> None:
        if self.settled:
            return
        self.settled = run.step >= max(round(self.end * run.steps), 1)
        choice: dict[str, Any] = {"scope": self.scope, "unit": self.unit, "masks": run.masks}
        if self.settled:
            run.masks = largest(run.weights, self.sparsity, **choice)
        elif run.step % self.every_steps == 0:
            project_(run.weights, self.sparsity, **choice)

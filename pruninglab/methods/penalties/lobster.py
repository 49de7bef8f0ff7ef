"""LOBSTER: Tartaglione et al., "LOss-Based SensiTivity rEgulaRization: towards deep sparse neural networks", 2021."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...train.method import Method
from ...train.run import Run
from ...typed import Count, Strength
from .plain import at_least, gradients_of, largest_threshold, shrink, with_gradient


def insensitive(g: Tensor, strength: float) -> Tensor:
    """λ·max(0, 1 - |∂L/∂w|): the share that a weight loses each step."""
    return strength * (1 - g.abs()).clamp_min(0)


@dataclass
class LOBSTER(Method):
    """w ← w - λ·w·max(0, 1 - |∂L/∂w|) beside the optimizer's step, whatever its learning rate.

    Weights that the loss does not feel shrink by the share `strength` (λ) each step. As in the authors' code all
    trainable parameters do, biases and norms too; with `only_prunable` those that the run may cut.

    With `patience` the method cuts as in the paper. When the validation loss has not improved by 1 % for so many epochs
    (theirs: 20), the weights go back to the best epoch. Bisection then finds the largest threshold that costs at most
    the share `tolerance` of that loss, and all prunable |w| below it are cut. Cutting ends with a cut that removes
    nothing. `thresholds` has the step, the threshold and the loss before of each cut. Without `patience` it cuts
    nothing: `PruneWhileAccurate` or any method can.

    Deviations: the shrinking is of the weights before the step, theirs of those after it. What the optimizer remembers
    does not go back with the weights (theirs remembers nothing). Biases and norms are cut only where the run may.

    >>> run = lab.fit(model, data, lab.methods.LOBSTER(), epochs=2)
    >>> run.status
    'done'
    """

    strength: Strength = 1e-4
    only_prunable: bool = False
    patience: Count | None = None
    tolerance: Strength = 0.05
    settled: bool = field(init=False)
    lowest: float = field(init=False)
    """The validation loss of the best epoch since the last cut."""
    waited: int = field(init=False)
    best: dict[str, Tensor] = field(init=False)
    """Parameters and buffers of that epoch."""
    thresholds: list[dict[str, float]] = field(init=False)

    def on_start(self, run: Run) -> None:
        self.settled = self.patience is None
        self.lowest, self.waited, self.best, self.thresholds = math.inf, 0, {}, []

    @torch.no_grad()
    def on_grad(self, run: Run) -> None:
        weights = with_gradient(run, self.only_prunable)
        shrink(weights, [insensitive(g, self.strength) for g in gradients_of(weights)])

    def on_epoch(self, run: Run) -> None:
        if self.settled:
            return
        loss = run.history[-1]["val_loss"]
        if loss < 0.99 * self.lowest:
            self.lowest, self.waited = loss, 0
            self.best = {name: value.clone() for name, value in run.model.state_dict().items()}
            return
        self.waited += 1
        if self.patience and self.waited >= self.patience:
            self._cut(run)

    def on_end(self, run: Run) -> None:
        self.settled, self.best = True, {}

    def _cut(self, run: Run) -> None:
        if self.best:
            run.model.load_state_dict(self.best)
        bound = (1 + self.tolerance) * self.lowest
        high = max(float(w.detach().abs().max()) for w in run.weights.values())
        threshold = largest_threshold(lambda t: _loss_without(run, t), bound, high)
        self.thresholds.append({"step": run.step, "threshold": threshold, "loss": self.lowest})
        before = run.masks.kept
        run.masks = at_least(run.weights, run.masks, threshold)
        self.settled = run.masks.kept == before
        self.lowest, self.waited, self.best = math.inf, 0, {}


def _loss_without(run: Run, threshold: float) -> float:
    """The validation loss without all |w| below the threshold; the weights stay as they are."""
    own = {name: weight.detach().clone() for name, weight in run.weights.items()}
    for name, mask in at_least(run.weights, run.masks, threshold).items():
        run.weights[name].data.mul_(mask)
    loss = run.evaluate("val")["loss"]
    for name, weight in run.weights.items():
        weight.data.copy_(own[name])
    return loss

"""Sensitivity-driven regularization: Tartaglione et al., "Learning sparse neural networks via sensitivity-driven
regularization", 2018.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ...errors import ConfigError
from ...train.method import Method
from ...train.run import Run
from ...typed import Positive, Strength
from .plain import at_least, shrink


def insensitive(s: Tensor, strength: float) -> Tensor:
    """λ·max(0, 1 - S): the share that a weight with the sensitivity S loses each step."""
    return strength * (1 - s).clamp_min(0)


@dataclass
class Sensitivity(Method):
    """w ← w - λ·w·max(0, 1 - S) beside the optimizer's step, S = how much the outputs feel w.

    "specified": S = |∂y_c/∂w| for the output y_c of the true class, one more backward pass each step. "unspecified":
    the mean of |∂y_k/∂w| over all outputs k, one more pass for each class. The share `strength` (λ) is taken whatever
    the learning rate, of all trainable parameters, or with `only_prunable` of those that the run may cut.

    After each epoch all |w| below `threshold` are cut, as in the paper. Without one it cuts nothing:
    `PruneWhileAccurate` or any method can. `per_sample` takes the absolute value for each sample before the mean, so
    gradients of opposite sign do not cancel. This needs one more pass for each sample (and class).

    Deviations: outputs are the logits, averaged over the batch (of sequences over the places too) before the absolute
    value is taken, except with `per_sample`. The threshold cuts prunable weights alone.

    >>> run = lab.fit(model, data, lab.methods.Sensitivity(), epochs=2)
    >>> run.status
    'done'
    """

    strength: Strength = 1e-4
    kind: Literal["specified", "unspecified"] = "specified"
    only_prunable: bool = False
    threshold: Positive | None = None
    per_sample: bool = False
    settled: bool = field(init=False)
    sensitivities: dict[str, Tensor] = field(init=False)

    def on_start(self, run: Run) -> None:
        self.sensitivities = {}
        self.settled = self.threshold is None

    def on_loss(self, run: Run) -> None:
        chosen = run.weights if self.only_prunable else dict(run.model.named_parameters())
        weights = {name: w for name, w in chosen.items() if w.requires_grad}
        n, *places = run.y.shape
        if run.logits.shape != (n, *run.logits.shape[1:2], *places):
            raise ConfigError(
                f"Sensitivity needs one output for each class of each label; labels are {tuple(run.y.shape)} and "
                f"outputs {tuple(run.logits.shape)}, expected (samples, classes, places of a sequence)."
            )
        logits = run.logits.gather(1, run.y[:, None]) if self.kind == "specified" else run.logits
        outputs = logits.mean((0, *range(2, logits.ndim)))  # (classes,)
        if self.per_sample:
            outputs = logits.flatten(2).mean(2).flatten() if places else logits.flatten()  # (samples x classes,)
        sums = {name: torch.zeros_like(w) for name, w in weights.items()}
        for output in outputs:
            gradients = torch.autograd.grad(output, list(weights.values()), retain_graph=True, allow_unused=True)
            gradients = run.over_ranks(gradients)
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient.abs() / len(outputs)
        self.sensitivities = sums

    @torch.no_grad()
    def on_grad(self, run: Run) -> None:
        named = run.weights | dict(run.model.named_parameters())
        shares = [insensitive(s, self.strength) for s in self.sensitivities.values()]
        shrink([named[name] for name in self.sensitivities], shares)
        self.sensitivities = {}  # nothing for a checkpoint to carry

    def on_epoch(self, run: Run) -> None:
        if self.threshold is not None:
            run.masks = at_least(run.weights, run.masks, self.threshold)

    def on_end(self, run: Run) -> None:
        self.settled = True

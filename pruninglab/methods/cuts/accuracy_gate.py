"""Pruning while accuracy allows: Bonetta and Cancelliere, "Lightening CNN architectures by regularization driven
weights' pruning", 2022, section 2, steps 2 and 3.
"""

from dataclasses import dataclass, field
from itertools import takewhile
from typing import Annotated, Any, Literal

from ...criteria.registry import Criterion, CriterionName
from ...errors import ConfigError
from ...layers.names import NOTHING
from ...masks.choose import Scope, count
from ...masks.masks import Unit, units
from ...train.method import Method
from ...train.metrics import accuracy
from ...train.run import Run, load_optimizer
from ...typed import BelowOne, Count, Fraction, PartialFraction, Range


@dataclass
class PruneWhileAccurate(Method):
    """Every `every_steps` steps: if validation accuracy is above the bound, cut `prune_fraction` of the survivors.

    The bound is `lower_bound`, or `below_dense` under the accuracy at the start, which then has to be a trained net.
    `counting` says whether the steps are those of the run ("global") or begin anew each epoch ("epoch", as in the
    authors' code). With 600 steps an epoch and 250 between evaluations, "epoch" evaluates at steps 250 and 500 of each.
    Any regularizer goes beside it, and any `criterion` ranks. Each cut takes at least one weight.

    Cutting ends at the sparsity `target`, if there is one, or at a plateau: when the best accuracy since the last cut
    is `patience` evaluations old (None: never). The run then trains on at the last mask. `evaluations` has each
    decision: step, accuracy, whether it was accepted, and the weights kept after it. `run.best` is the best state at
    the current mask, from the evaluation after a cut on. With `restore` each evaluation that fails goes back to it, and
    to what the optimizer remembered then. A run that never cuts, or misses its target, ends as `target_missed`, and its
    reason says what the bound was and how near accuracy came.

    Deviations: the authors end an epoch early when the last 25 accuracies never rise, which hardly occurs.

    >>> run = lab.fit(model, data, lab.methods.PruneWhileAccurate(0.1, every_steps=1), epochs=2)
    >>> print(f"{len(run[lab.methods.PruneWhileAccurate].evaluations)} evaluations")
    4 evaluations
    """

    lower_bound: Fraction | None = None
    below_dense: Annotated[float, Range(-1, 1)] | None = None
    prune_fraction: PartialFraction = 0.04
    every_steps: Count = 250
    counting: Literal["global", "epoch"] = "global"
    criterion: CriterionName | Criterion = "magnitude"
    scope: Scope = "global"
    unit: Unit = "weight"
    target: BelowOne | None = None
    patience: Count | None = 25
    restore: bool = False
    settled: bool = field(init=False)
    bound: float = field(init=False)
    accepted: int = field(init=False)
    evaluations: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        if (self.lower_bound is None) == (self.below_dense is None):
            raise ConfigError(
                "PruneWhileAccurate needs one bound: lower_bound=0.987, an accuracy, or below_dense=0.005, half a "
                "point under that at the start."
            )

    @property
    def goes_back(self) -> bool:
        return self.restore

    def on_start(self, run: Run) -> None:
        if self.target is not None:
            run.aim(self.target, self.scope, self.unit)
        if not run.weights:
            raise ConfigError(NOTHING)
        longest = run.steps if self.counting == "global" else min(run.steps, run.steps_per_epoch)
        if self.every_steps > longest:
            where = "the run" if self.counting == "global" else "an epoch"
            raise ConfigError(f"every_steps={self.every_steps}, but {where} has only {longest} steps.")
        below = self.below_dense or 0.0
        if run.options.metric is accuracy and below >= 0.5:
            raise ConfigError(
                f"below_dense={below:g} would give up {below:.0%} of all images; it is a share of 1, so that half a "
                "point is 0.005."
            )
        self.bound = run.evaluate("val")["accuracy"] - below if self.lower_bound is None else self.lower_bound
        if run.options.metric is accuracy and not self.bound < 1:
            hint = f" Did you mean {self.bound / 100:g}?" if self.bound <= 100 else ""
            raise ConfigError(f"no accuracy is above the bound {self.bound:g}; it is a share of 1.{hint}")
        self.settled = units(run.masks, self.unit)[0] <= self._wanted(run)
        self.accepted = 0
        self.evaluations = []

    def on_step(self, run: Run) -> None:
        step = run.step if self.counting == "global" else (run.step - 1) % run.steps_per_epoch + 1
        if self.settled or step % self.every_steps:
            return
        run.apply_masks()  # this moment comes before them, and only the pruned net counts
        reached = run.evaluate("val")["accuracy"]
        accept = reached > self.bound
        self._remember(run, reached)
        if accept:
            self._cut(run)
            self.accepted += 1
        elif self.restore and run.best and reached < (run.best.score or 0.0):
            run.best.load_into(run.model)
            load_optimizer(run, run.best.optimizer or {})
        kept = units(run.masks, self.unit)[0]
        self.evaluations.append({"step": run.step, "accuracy": reached, "accepted": accept, "kept": kept})
        self.settled = kept <= self._wanted(run) or self._stalled()

    def on_epoch(self, run: Run) -> None:
        self._remember(run, run.history[-1]["val_accuracy"])

    def on_end(self, run: Run) -> None:
        above = units(run.masks, self.unit)[0] > self._wanted(run)
        missed = not self.accepted if self.target is None else above
        if missed and run.status in ("running", "stopped"):
            run.end("target_missed", self._why(run))

    def _cut(self, run: Run) -> None:
        kept, total = units(run.masks, self.unit)
        keep = max(kept - max(int(kept * self.prune_fraction + 0.5), 1), self._wanted(run))
        run.cut(self.criterion, (total - keep) / total, self.scope, self.unit)

    def _wanted(self, run: Run) -> int:
        """Where cutting ends: the target, and at the very last a single weight, or one in each layer."""
        if self.target is None:
            return 1 if self.scope == "global" else len(run.masks)
        total = units(run.masks, self.unit)[1]
        return total - count(total, self.target)

    def _since_cut(self) -> list[float]:
        rejected = takewhile(lambda entry: not entry["accepted"], reversed(self.evaluations))
        return [entry["accuracy"] for entry in rejected][::-1]

    def _stalled(self) -> bool:
        since = self._since_cut()
        return bool(since) and self.patience is not None and len(since) - 1 - since.index(max(since)) >= self.patience

    def _remember(self, run: Run, reached: float) -> None:
        """The trainer does this only for a settled run, but the last cut is known only afterwards."""
        if not run.settled:
            run.remember(reached)

    def _why(self, run: Run) -> str:
        since = self._since_cut()
        nearest = f"the best since was {max(since):.4f}" if since else "the run ended there"
        if not self.accepted:
            nearest = f"the best was {max(since):.4f}" if since else "nothing was evaluated"
        done = f"{self.accepted} of {len(self.evaluations)} evaluations were above {self.bound:.4f}; {nearest}"
        asked = "" if self.target is None else f"sparsity {run.sparsity:.4f} was reached, {self.target} was asked for; "
        return asked + done

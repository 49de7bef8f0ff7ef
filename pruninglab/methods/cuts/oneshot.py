"""The two ends of every comparison: no cut at all, and one cut."""

from dataclasses import dataclass

from ...criteria.registry import Criterion, CriterionName
from ...masks.choose import Scope
from ...masks.masks import Sparsity, Unit
from ...train.method import Method
from ...train.run import Run


@dataclass
class OneShot(Method):
    """Cut once before the first step, then train under the mask (the three-stage pipeline's second and third stage).

    With a trained start this is pruning and fine-tuning; with a fresh one, pruning before training.
    """

    sparsity: Sparsity
    criterion: CriterionName | Criterion = "magnitude"
    scope: Scope = "global"
    unit: Unit = "weight"

    def on_start(self, run: Run) -> None:
        run.aim(self.sparsity, self.scope, self.unit)
        run.cut(self.criterion, self.sparsity, self.scope, self.unit)

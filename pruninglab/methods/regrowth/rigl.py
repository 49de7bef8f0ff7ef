"""RigL: Evci, Gale, Menick, Castro and Elsen, "Rigging the lottery: making all tickets winners", 2020."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ...masks.choose import Scope, grow
from ...masks.masks import Masks, Sparsity
from ...train.method import Method
from ...train.run import Run
from ...typed import Count, PartialFraction, PositiveFraction
from .turnover import Turnover, annealed, drops, gradients, last_step, without_smallest


def update(weights: Mapping[str, Tensor], felt: Mapping[str, Tensor], masks: Masks, drop_fraction: float) -> Masks:
    """Of each layer drop the weights with the lowest |w|, and grow as many with the highest |∂L/∂w|."""
    counts = drops(masks, felt, drop_fraction)
    return grow(without_smallest(weights, masks, counts), felt, counts)


@dataclass
class RigL(Method):
    """Train at one sparsity; now and then drop each layer's smallest weights, and grow where the gradient is largest.

    It starts from a random mask whose layers have the shares of `scope`, or from the run's masks where these are as
    sparse already. Each update drops the share of a layer's kept weights with the smallest |w|. It grows as many of the
    missing ones: those with the largest |∂L/∂w| in that batch. A weight that is dropped and grown at once stays as it
    was. A new one starts at 0, and so does what the optimizer remembers of it. The share falls along half a cosine,
    from `drop_fraction` to 0 at the share `end` of the training. `every_steps` is the number of steps from update to
    update. None is the paper's 100, and fewer in a short run: enough for ten updates, or for four if ten would be less
    than 10 steps apart. A new weight starts at 0, and would be the next to go if it had no time to grow.

    Deviations: the authors skip the optimizer's step at an update. Here it is taken, so a new weight is moved at once
    by the gradient that chose it. Adam's count of steps goes on. So the first hundred steps of a new weight are three
    to seven times larger than others.

    >>> run = lab.fit(model, data, lab.methods.RigL(0.9, every_steps=2), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    10%
    """

    in_training = True
    sees_pruned = True
    sparsity: Sparsity
    scope: Scope = "erk"
    drop_fraction: PartialFraction = 0.3
    every_steps: Count | None = None
    end: PositiveFraction = 0.75
    turnover: Turnover = field(init=False)

    @property
    def settled(self) -> bool:
        return self.turnover.settled

    def on_start(self, run: Run) -> None:
        steps = last_step(run, self.end)
        usual = max(min(100, max(steps // 10, min(10, steps // 4))), 1)
        self.turnover = Turnover.begin(run, self.sparsity, self.scope, self.end, self.every_steps or usual)

    def on_grad(self, run: Run) -> None:
        if self.turnover.due(run):
            fraction = annealed(self.drop_fraction, run.step, self.turnover.last)
            self.turnover.exchange(run, update(run.weights, gradients(run), run.masks, fraction))

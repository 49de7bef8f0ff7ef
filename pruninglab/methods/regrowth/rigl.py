"""RigL: Evci, Gale, Menick, Castro and Elsen, "Rigging the lottery: making all tickets winners", 2020."""

from dataclasses import dataclass, field
from typing import Any

from ...masks.choose import grow
from ...masks.masks import Masks, Sparsity
from ...train.method import Method
from ...train.run import Run
from . import turnover


@dataclass
class RigL(Method):
    """Train at one sparsity; now and then drop each layer's smallest weights, and grow where the gradient is largest.

    It starts from a random mask whose layers have the shares of `scope`, or from the run's masks where these are as
    sparse already. Each update drops a share of the kept weights of a layer by |w| and grows as many by |∂L/∂w| of that
    batch, among all that are missing. One that is dropped and grown at once stays as it was; a new one starts at 0, and
    so does what the optimizer remembers of it. The share falls along half a cosine from `drop_fraction` to 0 at the
    share `end` of the training. `every_steps` is the number of steps from update to update; None is the paper's 100,
    and fewer in a short run, for ten updates (four, where these would be less than 10 steps apart): a new weight starts
    at 0, and is the next to go if it has no time to grow.

    Deviations: the step of an update is taken too, where the authors skip it; so a new weight is moved at once by the
    gradient that chose it. Under Adam, whose count of steps goes on, the first steps of a new weight are larger than
    others, three to seven times in the first hundred.
    """

    sparsity: Sparsity
    scope: str = "erk"
    drop_fraction: float = 0.3
    every_steps: int | None = None
    end: float = 0.75
    settled: bool = field(init=False)
    interval: int = field(init=False)
    changes: list[dict[str, Any]] = field(init=False)
    first: Masks = field(init=False)
    ever: Masks = field(init=False)
    original: int = field(init=False)
    explored: int = field(init=False)

    def __post_init__(self) -> None:
        turnover.check(self)

    def on_start(self, run: Run) -> None:
        steps = turnover.last(self, run)
        turnover.start(self, run, min(100, max(steps // 10, min(10, steps // 4))))

    def on_grad(self, run: Run) -> None:
        if turnover.due(self, run):
            felt = turnover.gradients(run)
            counts = turnover.drops(run.masks, felt, turnover.annealed(self, run))
            left = turnover.without_smallest(run.weights, run.masks, counts)
            turnover.exchange(self, run, grow(left, felt, counts))

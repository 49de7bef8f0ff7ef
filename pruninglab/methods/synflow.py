"""SynFlow: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", 2020."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import before_training
from ..errors import ConfigError
from ..masks import Sparsity
from ..method import Method
from ..schedules import Exponential

if TYPE_CHECKING:
    from ..run import Run


@dataclass
class SynFlow(Method):
    """Cut before training in `rounds`, scoring what is left anew each time: density^(k/rounds) after round k.

    Flow is conserved, so no layer is emptied that all of it passes; where there are two ways, as in a residual block,
    one of them may be, and the record names it.
    """

    sparsity: Sparsity
    rounds: int = 100

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"rounds={self.rounds}: at least one is needed to reach a sparsity.")

    def on_start(self, run: "Run") -> None:
        run.aim(self.sparsity)
        schedule, criterion = Exponential(self.sparsity), before_training.SynFlow()
        for k in range(1, self.rounds + 1):
            run.cut(criterion, schedule(k / self.rounds))

"""SynFlow: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", 2020."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from ...criteria import before_training
from ...criteria.registry import Batches
from ...masks.choose import keep_highest
from ...masks.masks import Sparsity
from ...masks.schedules import Exponential
from ...train.method import Method
from ...train.run import Run
from ...typed import Count


@dataclass
class SynFlow(Method):
    """Cut before training in `rounds`, scoring what is left anew each time: density^(k/rounds) after round k.

    Flow is conserved, so no layer is emptied that all of it passes. Where there are two ways, as past a shortcut's
    convolution, the paper's rule empties the weaker one: resnet50's shortcuts at 95 %. Deviation: the best weight of
    each layer stays whatever it scores, if so many stay at all; `keep_one=False` is the paper.

    >>> run = lab.fit(model, data, lab.methods.SynFlow(0.9, rounds=5), epochs=1)
    >>> print(f"{run.masks.density:.0%}")
    10%
    """

    sparsity: Sparsity
    rounds: Count = 100
    keep_one: bool = True

    def on_start(self, run: Run) -> None:
        run.aim(self.sparsity)
        schedule, flow = Exponential(self.sparsity), before_training.SynFlow()
        spares = self.keep_one and run.target is not None and run.target["kept"] >= len(run.masks)

        def criterion(model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
            scores = flow(model, batches)
            for name in run.masks.keys() & scores.keys() if spares else ():  # frozen weights have no score
                score, mask = scores[name].flatten(), run.masks[name]
                score[keep_highest(score, mask.flatten(), 1)] = math.inf
                scores[name] = score.view(mask.shape)
            return scores

        for k in range(1, self.rounds + 1):
            run.cut(criterion, schedule(k / self.rounds))

"""Batch norms estimated anew after a heavy cut: their statistics are still those of the network before it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...randomness import generator
from ...train.method import Method
from ...train.run import Run
from ...typed import Count, Fraction

Norm = nn.modules.batchnorm._NormBase
"""Batch and instance norms: those with running statistics."""


@torch.no_grad()
def estimate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Running mean and variance of each norm in training: the plain averages of those of these batches."""
    norms = [m for m in model.modules() if isinstance(m, Norm) and m.training and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain average
    for x, _ in batches if norms else ():
        model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@dataclass
class Recalibrate(Method):
    """Estimate the statistics of batch norms anew when more than the share `above` of the weights has been cut.

    A cut changes what reaches a norm. Its running statistics follow slowly, and with `epochs=0` not at all. They become
    the averages over `batches` training batches. Put it behind the method that cuts:
    `lab.fit(net, data, OneShot(0.9), Recalibrate(), epochs=0)`. `estimated` has the steps at which it was done. A norm
    that its owner has set to eval is left alone. Li et al., "EagleEye: fast sub-net evaluation for efficient neural
    network pruning", 2020, compare candidates by this.
    """

    above: Fraction = 0.1
    batches: Count = 10
    kept: int = field(init=False)
    estimated: list[int] = field(init=False)

    def on_start(self, run: Run) -> None:
        self.kept, self.estimated = run.cuts[0].before if run.cuts else run.masks.kept, []
        self.on_step(run)

    def on_step(self, run: Run) -> None:
        kept = run.cuts[-1].after if run.cuts else self.kept  # to count the masks would wait for the device
        if self.kept - kept <= self.above * self.kept:
            return
        order = torch.randperm(len(run.data.train), generator=generator(run.options.seed, "norms", run.step))
        with run.masked(), run.autocast():
            estimate(run.model, run.data.train.batches(order.split(run.options.batch_size)[: self.batches]))
        self.kept = kept
        self.estimated.append(run.step)

    def on_epoch(self, run: Run) -> None:
        self.on_step(run)

    def on_end(self, run: Run) -> None:
        self.on_step(run)

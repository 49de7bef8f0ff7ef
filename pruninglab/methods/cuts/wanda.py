"""Wanda: Sun, Liu, Bair and Kolter, "A simple and effective pruning approach for large language models", ICLR 2024."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ...criteria.wanda import of_inputs
from ...masks.choose import keep_top
from ...masks.masks import Sparsity
from ...masks.projections import keeping, n_of_m
from ...train.method import Method
from ...train.run import Run
from ...typed import Count
from .calibrated import check_pattern, prune_layers


@dataclass
class Wanda(Method):
    """Cut once before the first step, by |w|·‖x‖ within each output; the weights that are left stay as they are.

    Start from a trained net. ‖x‖ is the norm of what a weight is multiplied with, over `samples` training samples. The
    layers go one by one: each sees what the pruned layers before it give. `scope="row"` compares within each output and
    keeps equally many of each, as the paper does; "layer" compares within the whole layer. `n_of_m=(2, 4)` keeps 2 of
    every 4 neighbours along the inputs, at sparsity 0.5. `skip=("embeddings", "output")` leaves out what the paper
    leaves out. `errors` has of each layer the squared error of its output, as a share of the output's square, as if the
    inputs were independent.

        lab.fit(dense, data, lab.methods.Wanda(0.5), epochs=0, skip=("embeddings", "output"))

    Deviations: the paper's code goes block by block, so that the layers of one block see the dense inputs of the block.

    >>> run = lab.fit(model, data, lab.methods.Wanda(0.5), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    50%
    """

    sparsity: Sparsity
    n_of_m: tuple[Count, Count] | None = None
    scope: Literal["row", "layer"] = "row"
    samples: Count = 128
    errors: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        check_pattern("Wanda", self.sparsity, self.n_of_m)

    def on_start(self, run: Run) -> None:
        run.aim(self.sparsity, self.scope)
        self.errors = prune_layers(run, self.sparsity, self.scope, self.samples, "Wanda", self._solve, squares=True)

    def _solve(self, weight: Tensor, moment: Tensor, mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        scores = {"w": of_inputs(weight, moment.sqrt())}
        if self.n_of_m is None:
            kept = keep_top(scores, keeping(scores, {"w": keep}), scope=self.scope, masks={"w": mask})["w"]
        else:
            kept = n_of_m({"w": torch.where(mask, scores["w"], 0)}, *self.n_of_m)["w"] & mask
        return weight, kept

"""SparseGPT: Frantar and Alistarh, "SparseGPT: massive language models can be accurately pruned in one-shot", ICML
2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...criteria.inputs import exactly
from ...criteria.quadratic import dampened
from ...masks.choose import keep_highest, spread
from ...masks.masks import Sparsity
from ...masks.projections import n_of_m
from ...train.method import Method
from ...train.run import Run
from ...typed import Count, Strength
from .calibrated import by_group, check_pattern, prune_layers, sections


def factor(hessian: Tensor) -> Tensor:
    """U, upper triangular, with H⁻¹ = UᵀU: row j of U, by u_jj, says how the inputs after j make up for j."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)


def removed(weight: Tensor, kept: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Take inputs out one after the other; those after each make up for it. The weights, and what was taken by u_jj.

    `weight` and `kept` are outputs x inputs, `upper` is U for these inputs.
    """
    weight, taken = weight.clone(), torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        taken[:, j] = torch.where(kept[:, j], 0, weight[:, j]) / upper[j, j]
        weight[:, j:] -= taken[:, j, None] * upper[j, j:]
    return torch.where(kept, weight, 0), taken


def solved(
    weight: Tensor, upper: Tensor, within: Tensor, cuts: Sequence[int], block: int, pattern: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """The new weight and what is kept of it, `block` inputs at a time, chosen by w²/u_jj² as the weight is by then.

    `cuts` says how many go in each block; with a pattern n:m, n of every m inputs stay instead.
    """
    weight, kept = weight.clone(), within.clone()
    step = block if pattern is None else pattern[1]
    for number, at in enumerate(sections(weight.shape[1], block)):
        taken = torch.zeros_like(weight[:, at])
        for part in sections(at.stop - at.start, step):
            own = slice(at.start + part.start, at.start + part.stop)
            scores = weight[:, own].square() / upper.diagonal()[own].square()
            if pattern is None:
                most = int(within[:, own].sum()) - cuts[number]
                kept[:, own] = keep_highest(scores.flatten(), within[:, own].flatten(), most).view(scores.shape)
            else:
                kept[:, own] &= n_of_m({"w": torch.where(within[:, own], scores, 0)}, *pattern)["w"]
            weight[:, own], taken[:, part] = removed(weight[:, own], kept[:, own], upper[own, own])
            rest = slice(own.stop, at.stop)
            weight[:, rest] -= taken[:, part] @ upper[own, rest]
        weight[:, at.stop :] -= taken @ upper[at, at.stop :]
    return weight, kept


@dataclass
class SparseGPT(Method):
    """Cut once before the first step, layer by layer, and move what is left so that it makes up for what was cut.

    Start from a trained net. H is the second moment of a layer's inputs over `samples` training samples, with
    `dampening` times the mean of its diagonal added to the diagonal. The inputs of a layer are visited in order. If an
    output loses its weight of input j, its weights of the later inputs move by what the inverse of H says. Which
    weights go is chosen anew for every `block` inputs, by w²/[H⁻¹]_jj, all outputs together. The layers go one by one:
    each sees what the pruned layers before it give. `n_of_m=(2, 4)` keeps 2 of every 4 neighbours along the inputs, at
    sparsity 0.5. `skip=("embeddings", "output")` leaves out what the paper leaves out. `errors` has of each layer the
    squared error of its output, as a share of the output's square.

        lab.fit(dense, data, lab.methods.SparseGPT(0.5), epochs=0, skip=("embeddings", "output"))

    Deviations: the paper's code goes block by block of the network, so that the layers of one block see the dense
    inputs of the block. The count is exact in every layer. All is computed in double precision.

    >>> run = lab.fit(model, data, lab.methods.SparseGPT(0.5), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    50%
    """

    sparsity: Sparsity
    n_of_m: tuple[Count, Count] | None = None
    block: Count = 128
    samples: Count = 128
    dampening: Strength = 1e-2
    errors: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        check_pattern("SparseGPT", self.sparsity, self.n_of_m)

    def on_start(self, run: Run) -> None:
        run.aim(self.sparsity, "layer")
        self.errors = prune_layers(run, self.sparsity, "layer", self.samples, "SparseGPT", self._solve)

    def _solve(self, weight: Tensor, moment: Tensor, mask: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        order = self._order(weight, moment)
        rows, within = (by_group(t, moment)[..., order] for t in (exactly(weight), mask.to(moment.device)))
        uppers = factor(dampened(moment[:, order][..., order], self.dampening))
        block = self.block if self.n_of_m is None else -(-self.block // self.n_of_m[1]) * self.n_of_m[1]
        cuts = _cuts(within, keep, block) if self.n_of_m is None else [[]] * len(rows)
        parts = [
            solved(row, upper, own, cut, block, self.n_of_m)
            for row, upper, own, cut in zip(rows, uppers, within, cuts, strict=True)
        ]
        back = order.argsort()
        new, kept = (torch.stack(some)[..., back].view(weight.shape) for some in zip(*parts, strict=True))
        return new.to(weight), kept.to(weight.device)

    def _order(self, weight: Tensor, moment: Tensor) -> Tensor:
        """The inputs as they are laid out; for a pattern in a convolution the channels of one place side by side."""
        order = torch.arange(moment.shape[-1], device=moment.device)
        return order if self.n_of_m is None else order.view(weight.shape[1], -1).T.flatten()


def _cuts(within: Tensor, keep: int, block: int) -> list[list[int]]:
    """How many weights go in each block of inputs, by group: the same share of each, as far as it has so many."""
    parts = [[own[:, at] for at in sections(within.shape[-1], block)] for own in within]
    flat = [part for parts_of_group in parts for part in parts_of_group]
    alive = [int(part.sum()) for part in flat]
    density = keep / within.numel()
    wanted = [max(held - density * part.numel(), 0.0) for held, part in zip(alive, flat, strict=True)]
    counts = iter(spread(sum(alive) - keep, wanted, alive))
    return [[next(counts) for _ in parts_of_group] for parts_of_group in parts]

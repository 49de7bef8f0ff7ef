"""ADMM quantization: Ye et al., "A unified framework of DNN weight pruning and weight clustering/quantization using
ADMM", 2018 (arXiv 1811.01907). The numbers are in Table 6 of their "Progressive weight pruning of DNNs using ADMM".
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import ConfigError
from ...masks.choose import grow
from ...masks.masks import Masks
from ...storage import levels
from ...storage.levels import Bits
from ...train.method import Method
from ...train.run import Run
from ...typed import Count, Fraction, Strength
from ..penalties.plain import add_terms
from .admm import gap, summed


def quantized(v: Tensor, kept: Tensor, bits: int, kind: str, zero: bool) -> tuple[Tensor, Tensor]:
    """Π(V) and its levels: each kept weight goes to the nearest of 2^bits levels fitted to all, or with `zero` to 0."""
    book = levels.fit(v[kept], bits, kind, zero)
    with_zero = torch.cat((book, book.new_zeros(1))).sort().values if zero else book
    return levels.project(v, kept, with_zero), book


@dataclass
class Quantize(Method):
    """Pull the kept weights towards a few levels, then put them there, the nearest first, and retrain the others.

    ADMM in the scaled form: ρ·(W - Z + U) is added to the gradient. At first Z = Π(W) and U = 0. `updates` times until
    the share `snap` of the run, Z = Π(W + U), the nearest levels, and then U = U + W - Z. From `snap` to `end` the
    levels are fixed. In `parts` steps each layer's weights are put on them: half of them, then three quarters, … and at
    last all. Those nearest to their level come first. The others, biases and norms train on, to the end of the run.

    `bits`: a number from 1 to 8, or a dict of layer patterns, `"conv"` or `"dense"` to numbers. `levels`: `"equal"`
    distances ±q, … ±2^(bits-1)·q, or `"clustered"` by k-means. 0 is no level, so that what is pruned stays pruned and
    what is kept is not, and a code book has at most 2^bits entries. Together with a method that still cuts, 0 counts
    as one more level until that has settled, and no weight is put on a level before. `residuals` as in `ADMM`.

    The progressive paper gives results alone. Here the interval q and the clusters are renewed at every update, so that
    Π is the exact projection onto all weights with so many levels. Weights are put on their levels in halves (Zhou et
    al., "Incremental network quantization", 2017). Levels are not trained after that; `SharedWeights` does this in a
    run that follows.

    >>> run = lab.fit(model, data, lab.methods.Quantize(3), epochs=2)
    >>> run.status
    'done'
    """

    bits: Bits
    levels: Literal["equal", "clustered"] = "equal"
    rho: Strength = 1.5e-3
    updates: Count = 10
    snap: Fraction = 0.5
    end: Fraction = 0.8
    parts: Count = 4
    settled: bool = field(init=False)
    snapped: int = field(init=False)
    widths: dict[str, int] = field(init=False)
    books: dict[str, Tensor] = field(init=False)
    z: dict[str, Tensor] = field(init=False)
    u: dict[str, Tensor] = field(init=False)
    frozen: Masks = field(init=False)
    residuals: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        if self.snap > self.end:
            raise ConfigError(f"Quantize: snap={self.snap:g} has to come before end={self.end:g}.")

    def on_start(self, run: Run) -> None:
        self.widths = levels.by_layer(run.weights, self.bits)
        levels.check_counts(self.widths, run.masks)
        self.settled, self.snapped = False, 0
        self.books, self.residuals = {}, []
        self.z = {name: torch.zeros_like(run.weights[name]) for name in self.widths}
        self.u = {name: torch.zeros_like(run.weights[name]) for name in self.widths}
        self.frozen = Masks({name: torch.zeros_like(run.masks[name]) for name in self.widths})
        self._project(run)

    @torch.no_grad()
    def on_grad(self, run: Run) -> None:
        names = [name for name in self.z if run.weights[name].grad is not None]
        w, z, u = ([tensors[name] for name in names] for tensors in (run.weights, self.z, self.u))
        if names and self.rho and not self.snapped:
            add_terms(w, gap(w, z, u), self.rho)

    @torch.no_grad()
    def on_step(self, run: Run) -> None:
        first, last = max(round(self.snap * run.steps), 1), max(round(self.end * run.steps), 1)
        if not self.settled and run.step >= first and not self._cutting(run):
            due = 1 + (run.step - first) * (self.parts - 1) // max(last - first, 1)
            self._snap(run, self.parts if run.step >= last else due)
        elif not self.snapped and run.step * self.updates // first != (run.step - 1) * self.updates // first:
            self._update(run)
        self._hold(run)

    @torch.no_grad()
    def on_end(self, run: Run) -> None:
        if run.status != "diverged":
            self._snap(run, self.parts)
            self._hold(run)

    def _cutting(self, run: Run) -> bool:
        return not all(method.settled for method in run.methods if method is not self)

    @torch.no_grad()
    def _project(self, run: Run) -> None:
        """Levels and Z for W + U."""
        zero = self._cutting(run)
        for name, width in self.widths.items():
            shifted = run.weights[name].detach() + self.u[name]
            z, self.books[name] = quantized(shifted, run.masks[name], width, self.levels, zero)
            self.z[name].copy_(z)

    def _update(self, run: Run) -> None:
        if not all(bool(torch.isfinite(run.weights[name]).all()) for name in self.z):
            return  # the trainer ends the run and says so
        before = {name: z.clone() for name, z in self.z.items()}
        self._project(run)
        for name, u in self.u.items():
            z, w = self.z[name], run.weights[name] * run.masks[name]
            u.copy_(summed(u, w, z)).mul_(run.masks[name])
            distances = {"primal": float((w - z).norm()), "dual": float((z - before[name]).norm())}
            self.residuals.append({"step": run.step, "layer": name, "rho": self.rho, **distances})

    def _snap(self, run: Run, due: int) -> None:
        """Fix the levels the first time, and put on them as many weights as are due."""
        if due <= self.snapped < self.parts:
            return
        if not self.snapped:
            for u in self.u.values():
                u.zero_()
            self._project(run)
        share = 1.0 if due == self.parts else 1 - 0.5**due
        scores, counts = {}, {}
        for name, z in self.z.items():
            weight, kept = run.weights[name].detach(), run.masks[name]
            z.copy_(levels.project(weight, kept, self.books[name]))
            scores[name] = torch.where(kept, -(weight - z).abs(), -math.inf)
            self.frozen[name] &= kept
            counts[name] = max(math.ceil(share * int(kept.sum())) - int(self.frozen[name].sum()), 0)
        self.frozen = grow(self.frozen, scores, counts)
        self.snapped, self.settled = due, due == self.parts

    def _hold(self, run: Run) -> None:
        if self.snapped:
            for name, z in self.z.items():
                run.weights[name].copy_(torch.where(self.frozen[name], z, run.weights[name]))

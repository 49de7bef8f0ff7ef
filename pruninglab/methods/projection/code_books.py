"""Trained code books: Han, Mao and Dally, "Deep Compression", 2016, section 3."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ...layers.precision import exact
from ...storage import levels
from ...storage.levels import Bits
from ...train.method import Method
from ...train.run import Run


@dataclass
class SharedWeights(Method):
    """Give the kept weights of a layer 2^bits values that they share, and train these values.

    Before the first step each weight is set to the nearest of its layer's k-means centres. From then on it stays in
    that cluster. Every member gets the sum of the gradients over its cluster, so the optimizer moves all of them as
    one. `bits` as in `Quantize`; the paper's are 8 for convolutions and 5 for dense layers. `centres` is where k-means
    begins. `"linear"`, the paper's choice, puts them at equal distances between the least and the greatest weight.
    `"best"` finds the clusters with the least squared error. A layer that already has no more than 2^bits values keeps
    these: after `Quantize`, this trains its levels.

    A pruned weight has no value to share and stays pruned, so prune first.

    >>> run = lab.fit(model, data, lab.methods.SharedWeights(3), epochs=2)
    >>> run.status
    'done'
    """

    bits: Bits = field(default_factory=lambda: {"conv": 8, "dense": 5})
    centres: Literal["linear", "best"] = "linear"
    books: dict[str, Tensor] = field(init=False)
    codes: dict[str, Tensor] = field(init=False)
    members: dict[str, Tensor] = field(init=False)
    counts: dict[str, Tensor] = field(init=False)
    cuts: int = field(init=False)

    def on_start(self, run: Run) -> None:
        widths = levels.by_layer(run.weights, self.bits)
        levels.check_counts(widths, run.masks)
        kind = "linear" if self.centres == "linear" else "clustered"
        self.books, self.codes = {}, {}
        for name, width in widths.items():
            weight, kept = run.weights[name].detach(), run.masks[name]
            if kept.any():
                self.books[name] = levels.fit(weight[kept], width, kind)
                self.codes[name] = levels.nearest(weight, self.books[name])
        self._sort(run)
        self._write(run)

    @torch.no_grad()
    def on_grad(self, run: Run) -> None:
        for name, codes in self.codes.items():
            if (grad := run.weights[name].grad) is not None:
                of_members = exact(grad.flatten()[self.members[name]])
                sums = torch.segment_reduce(of_members, "sum", lengths=self.counts[name], initial=0)
                grad.copy_(sums.to(grad)[codes])

    @torch.no_grad()
    def on_step(self, run: Run) -> None:
        if self.cuts != len(run.cuts):
            self._sort(run)  # what has come back has no value yet: all take those of the step before
            return self._write(run)
        for name, book in self.books.items():
            used = self.counts[name] > 0
            first = self.members[name][(self.counts[name].cumsum(0) - self.counts[name])[used]]
            book[used] = run.weights[name].flatten()[first]
        self._write(run)

    def on_end(self, run: Run) -> None:
        for name, codes in self.codes.items():  # the best state may have been loaded
            weight, kept = run.weights[name].detach().flatten(), run.masks[name].flatten()
            self.books[name][codes.flatten()[kept]] = weight[kept]

    def _sort(self, run: Run) -> None:
        """The kept weights' positions, ordered by code, and how many there are of each."""
        self.cuts = len(run.cuts)
        self.members, self.counts = {}, {}
        for name, codes in self.codes.items():
            kept = run.masks[name].flatten().nonzero().flatten()
            own = codes.flatten()[kept]
            self.members[name] = kept[own.argsort(stable=True)]
            self.counts[name] = own.bincount(minlength=len(self.books[name]))

    @torch.no_grad()
    def _write(self, run: Run) -> None:
        for name, codes in self.codes.items():
            run.weights[name].copy_(self.books[name][codes].masked_fill_(~run.masks[name], 0))

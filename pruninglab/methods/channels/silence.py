"""Channels that are cut give nothing: what network slimming and filter pruning leave behind in biases and norms."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...coupling.grouping import find_groups
from ...train.method import Method
from ...train.run import Run


@dataclass
class Silence(Method):
    """Hold at 0 the biases, and the norms' scales and shifts, of channels whose filters are cut.

    A filter of zeros still gives its bias, and a norm behind it its shift. That constant, which zero padding makes
    uneven, is all that keeps `structured.shrink` from removing such a channel. Put this method behind the one that
    cuts. In a residual sum a channel is silent when all layers that give it are cut there. `entries` has what is held,
    by parameter name. `structured.silence` does it once, without training. What is frozen stays as it is, and the
    record says so: such a channel still gives its constant.
    """

    entries: dict[str, Tensor] = field(init=False)
    seen: int = field(init=False)

    @property
    def held(self) -> Mapping[str, Tensor]:
        return self.entries

    def on_start(self, run: Run) -> None:
        x, _ = next(iter(run.data.val.batches([torch.arange(1)])))
        self._groups = find_groups(run.model, x)  # follows from the model, so that no checkpoint needs it
        self.seen = -1
        self.on_step(run)

    def on_step(self, run: Run) -> None:
        if len(run.cuts) != self.seen:  # the masks have changed
            self.seen, entries = len(run.cuts), self._groups.silent(run.model, run.masks)
            trained = {name for name in entries if run.model.get_parameter(name).requires_grad}
            self.entries = {name: dead for name, dead in entries.items() if name in trained}
            if frozen := [name for name, dead in entries.items() if name not in trained and bool(dead.any())]:
                run.warn(f"Silence leaves {', '.join(frozen)} as they are, which are frozen.")
        for name, dead in self.entries.items():
            run.model.get_parameter(name).data.masked_fill_(dead, 0)

    def on_epoch(self, run: Run) -> None:
        self.on_step(run)

    def on_end(self, run: Run) -> None:
        self.on_step(run)

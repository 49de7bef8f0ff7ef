"""`TruthMeter`: why a pruned network is not smaller or faster."""

from collections.abc import Sequence
from typing import Annotated, Any

import ipywidgets as ipw

from .. import _html
from ..analysis import cost
from ..analysis.cost import Rounds
from ..errors import ConfigError, RunError
from ..plots import studies
from ..plots.figure import Figure
from ..structured.shrink import Shrunk, shrink
from ..train.run import Run
from ..typed import Count, Filled, checked
from .panel import NARROW, WIDE, Panel, framed


class TruthMeter(Panel):
    """Why is it not smaller, or not faster? A pruned run beside the dense one, and with its dead channels taken out.

    `table` is that of `analysis.truth`: parameters, FLOPs, bytes of each kind of file, and milliseconds of all three,
    taken in turns. `shrunk` is what `structured.shrink` made, or None where it refused.
    """

    @checked
    def __init__(
        self, dense: Run, pruned: Run, batches: Annotated[Sequence[Count], Filled()] = (1, 64), rounds: Rounds = 21
    ):
        self.dense, self.pruned, self.batches, self.rounds = dense, pruned, tuple(batches), rounds
        self._models: dict[str, Any] = {"dense": dense, "with zeros": pruned}
        self.shrunk: Shrunk | None = None
        self._why = ""
        try:
            self.shrunk = shrink(pruned)
            self._models["dead channels removed"] = self.shrunk.model
        except (ConfigError, RunError) as error:
            self._why = str(error)
        self._text, self._picture = ipw.HTML(), ipw.HTML()
        again = ipw.Button(description="Measure again", layout=NARROW)
        again.on_click(lambda _: self.measure())
        self.box = ipw.VBox([again, self._text, self._picture], layout=WIDE)
        self.measure()

    def measure(self) -> None:
        """All of them again, in turns."""
        with self._lock:
            self._measure()

    def _measure(self) -> None:
        self.table = cost.truth(self._models, self.pruned.data, self.batches, self.rounds)
        self._text.value = "".join(f"<p>{_html.cell(line)}</p>" for line in self.words())
        self._picture.value = framed(self.figure())

    def words(self) -> list[str]:
        """What was asked for, what was reached, and what it is worth."""
        most, dense, zeros = max(self.batches), self.table.loc["dense"], self.table.loc["with zeros"]
        target, flops = self.pruned.target, self.pruned.result.flops
        asked = f"Asked for: {target['kept']:,} of {target['total']:,} {target['unit']}s. " if target else ""
        said = [
            f"{asked}Reached: {self.pruned.masks.kept:,} of {self.pruned.masks.total:,} weights.",
            f"The dense file has {dense['bytes']:,.0f} bytes before and {zeros['bytes']:,.0f} after: a zero takes as "
            f"much room as any other number. Compressed by bzip2 it has {zeros['bzip2_bytes']:,.0f}, and the sparse "
            f"file, which leaves zeros out, {zeros['sparse_bytes']:,.0f}.",
            f"On paper it takes {flops['dense'] / max(flops['sparse'], 1):.1f} times fewer operations. Measured, a "
            f"batch of {most} takes {zeros[f'ms_{most}']:.3g} ms and took {dense[f'ms_{most}']:.3g}: dense kernels "
            "multiply zeros too.",
        ]
        if self.shrunk is None:
            return [*said, f"No channel could be removed: {self._why}"]
        removed = self.table.loc["dead channels removed"]
        gone = f"{self.shrunk.removed:,} channels are dead and can go without a change of the answers"
        left = f"leaves {removed['parameters']:,.0f} of {zeros['parameters']:,.0f} parameters"
        return [
            *said,
            f"{gone}. That {left}, and is {removed[f'faster_{most}']:.3g} times as fast as the dense net. To gain "
            'more, cut whole channels: unit="channel", or structured.prune.',
        ]

    def figure(self) -> Figure:
        return studies.truth(self.table)

    def __repr__(self) -> str:
        return "TruthMeter: " + " ".join(self.words())

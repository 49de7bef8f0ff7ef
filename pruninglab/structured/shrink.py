"""Structured pruning: whole channels chosen together, and taken out, so that a smaller plain network is left.

`coupling` finds which layers share their channels and takes out what may go without a change of the logits, and
`check` compares these.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from .. import _html
from ..coupling.grouping import Groups, find_groups
from ..coupling.removal import remove
from ..errors import RunError
from ..layers import widths
from ..layers.names import canonical_parameters
from ..layers.precision import exact_device
from ..layers.widths import Widths
from ..train.run import Run
from ..typed import checked
from .check import difference
from .choose import Example, _masked

TOLERANCE, EXACT = 1e-5, 1e-9  # in 32 bits; in 64, in which all is done again, where the network is not that exact


@dataclass(frozen=True)
class Shrunk:
    """A smaller network with the logits of the one that it was made from.

    `kept` says of each tensor that got smaller which entries of the old one it is: `new = old[kept[name]]`; of all
    other tensors it is the whole. (Biases and running means have taken up constants besides.) `report` has a line for
    each group of channels, and why some that were cut are still there.
    """

    model: nn.Module
    kept: dict[str, tuple[Any, ...]]
    report: pd.DataFrame
    before: int
    error: float
    """The largest difference of logits that was seen, in units of their spread over inputs."""

    @property
    def widths(self) -> Widths:
        """Of the layers that got narrower: `lab.build(name, data, widths=…)` draws new weights in this form."""
        return getattr(self.model, "made_of", {}).get("widths", {})

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def removed(self) -> int:
        """Channels, each counted once in however many layers it was."""
        return sum(row["removed"] for row in self._rows())

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is left of tensors in the old shapes, by parameter name: masks, scores, what an optimizer remembers.

        A mask keeps a bias that was cut and has taken up a constant.
        """
        left = {name: t[self.kept[name]].clone() if name in self.kept else t.clone() for name, t in tensors.items()}
        held = canonical_parameters(self.model)
        return {
            n: t | (held[n] != 0).to(t.device) if t.dtype == torch.bool and n in held else t for n, t in left.items()
        }

    def __repr__(self) -> str:
        share = 1 - self.parameters / self.before
        lines = [
            f"Shrunk({self.before:,} to {self.parameters:,} parameters, {share:.2%} removed; {self.removed:,} channels)"
        ]
        for row in (row for row in self._rows() if row["left"]):
            first, *others = row["layers"].split(", ")
            more = f" and {len(others)} more" if others else ""
            lines.append(f"  {first}{more}: {row['left']} cut but not removed, for {row['why']}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(r["layers"], r["channels"], r["removed"], r["left"] or "", r["why"]) for r in self._rows()]
        head = ("layers", "channels", "removed", "cut but left", "why")
        return f"<b>{_html.cell(repr(self).splitlines()[0])}</b>" + _html.table(head, rows)

    def _rows(self) -> list[dict[str, Any]]:
        return self.report.to_dict("records")


@checked
def shrink(
    model: nn.Module | Run,
    example: Example | None = None,
    masks: Mapping[str, Tensor] | None = None,
    *,
    groups: Groups | None = None,
) -> Shrunk:
    """Take out every channel that the logits do not need: a smaller plain network, with equal logits in eval mode.

    A channel goes if all that read it have only zeros for it. It also goes if it is constant, and either 0 or absorbed
    by a bias or by the running mean of the next norm. That is exact where no zero padding comes between: a constant
    ends at the border of the image. So a channel that still emits one into a padded convolution stays, and the report
    says so; `silence` is the step that sets such constants to 0. In a residual sum a channel goes if all its members
    are dead. A layer keeps at least one channel, and the groups of a grouped convolution go as a whole.

    `masks` are applied first (a run's own by default). The logits are compared on the example and on noise, also with
    batch norms that measure these inputs. It is a RunError if they differ by more than 1e-5 of their spread over inputs
    in 32 bits, and again by more than 1e-9 in 64. `model` is left as it is.

    >>> pruned, masks = lab.structured.prune(model, data, 0.5, 'filter_l2')
    >>> small = lab.structured.shrink(pruned, data, masks)
    >>> lab.storage.sizes(small.model)['bytes'] < lab.storage.sizes(model)['bytes']
    True
    """
    masked, x = _masked(model, example, masks)
    full, small = model.model if isinstance(model, Run) else model, copy.deepcopy(masked)
    found = find_groups(small, x) if groups is None else groups
    report, kept = remove(small, found, x)
    error = difference(small, masked, kept, x)
    if not error <= TOLERANCE:  # a deep network may be no more exact than that by itself
        exact, x = masked.to(exact_device(x.device)).double(), x.to(exact_device(x.device))
        again, x = copy.deepcopy(exact), x.double() if x.is_floating_point() else x
        error = difference(again, exact, remove(again, found, x)[1], x)
        if not error <= EXACT:
            raise RunError(
                f"without these channels the logits differ by {error:.1e} of their spread over inputs: something in "
                "this network mixes channels in a way that its graph does not show. Leave the layers in question out "
                "of the masks."
            )
    wide = widths.of(full)
    widths.record(small, {name: size for name, size in widths.of(small).items() if size != wide.get(name)})
    return Shrunk(small, kept, report, sum(p.numel() for p in full.parameters()), error)

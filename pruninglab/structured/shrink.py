"""Structured pruning: whole channels chosen together, and taken out, so that a smaller plain network is left.

`coupling` finds which layers share their channels, `reach` and `removal` what may go without a change of the logits,
and that these have not changed is checked on the result.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from .. import _html
from ..errors import ConfigError, RunError
from ..layers import widths
from ..layers.precision import exact_device
from ..layers.widths import Widths
from ..randomness import generator
from ..train.run import Run
from .choose import Example, _masked
from .grouping import Groups, find_groups
from .removal import Removal

TOLERANCE, EXACT = 1e-5, 1e-9  # in 32 bits, and in 64 where the network is not that exact in 32


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
    """The largest difference of logits that was seen, in units of the largest logit or 1."""

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
        """What is left of tensors in the old shapes, by parameter name: masks, scores, what an optimizer remembers."""
        return {name: t[self.kept[name]].clone() if name in self.kept else t.clone() for name, t in tensors.items()}

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


def shrink(
    model: nn.Module | Run,
    example: Example | None = None,
    masks: Mapping[str, Tensor] | None = None,
    *,
    groups: Groups | None = None,
) -> Shrunk:
    """Take out every channel that the logits do not need: a smaller plain network, with equal logits in eval mode.

    A channel goes if all that read it have only zeros for it, or if it is the same whatever the input, and 0 or to be
    taken up by a bias or by the running mean of the next norm. That is exact where no zero padding comes between: a
    constant ends at the border of the image. So a channel that still emits one into a padded convolution stays, and
    the report says so; `silence` is the step that sets such constants to 0. In a residual sum a channel goes if all
    its members are dead. A layer keeps at least one channel, and the groups of a grouped convolution go as a whole.

    `masks` are applied first (a run's own by default). The logits are compared on the example and on noise: more than
    1e-5 of the largest (or of 1) apart in 32 bits, and more than 1e-9 in 64, is a RunError. `model` is left as it is.
    """
    small, x = _masked(model, example, masks)
    full = model.model if isinstance(model, Run) else model
    found = find_groups(small, x) if groups is None else groups
    probes = [x, _noise(x)]
    before = [_logits(small, probe) for probe in probes]
    work = Removal(small, found, x)
    work.free()
    report, kept = work.report(), work.take_out()
    error = max(_difference(_try(small, probe), logits) for probe, logits in zip(probes, before, strict=True))
    if not error <= TOLERANCE:  # a deep network may be no more exact than that by itself
        place = exact_device(x.device)
        exact, reference = (m.to(place).double() for m in (copy.deepcopy(small), _masked(model, example, masks)[0]))
        doubles = [_double(probe.to(place)) for probe in probes]
        error = max(_difference(_logits(exact, probe), _logits(reference, probe)) for probe in doubles)
        if not error <= EXACT:
            raise RunError(
                f"without these channels the logits differ by {error:.1e} of the largest: something in this network "
                "mixes channels in a way that its graph does not show. Leave the layers in question out of the masks."
            )
    wide = widths.of(full)
    widths.record(small, {name: size for name, size in widths.of(small).items() if size != wide.get(name)})
    return Shrunk(small, kept, report, sum(p.numel() for p in full.parameters()), error)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(x)
    if not isinstance(logits, Tensor):
        raise ConfigError(f"the model returns a {type(logits).__name__}; expected one tensor of logits.")
    return logits


def _try(model: nn.Module, x: Tensor) -> Tensor:
    try:
        return _logits(model, x)
    except RuntimeError as error:
        raise RunError(
            f"without these channels the network does not run ({error}): its code counts on their number. Leave the "
            "layers in question out of the masks."
        ) from error


def _difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return math.inf
    largest = float((a - b).abs().max()) / max(1.0, float(b.abs().max()))
    return math.inf if math.isnan(largest) else largest


def _noise(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=generator(0, "noise")).to(x) if x.is_floating_point() else x.flip(0)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x

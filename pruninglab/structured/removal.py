"""Taking channels out of a network, step by step and with its logits kept at every step. See `structured.shrink`."""

from collections import defaultdict
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..layers.hooks import norms_after
from ..layers.kinds import conv_groups, inputs, links, outputs, padded, take
from ..layers.modules import Attention
from ..layers.precision import exact
from ..layers.reach import readings
from .grouping import Group, Groups, Part


class Removal:
    """Finds what can go from `model`, a copy of its own, and changes it in place."""

    def __init__(self, model: nn.Module, found: Groups, x: Tensor):
        self.model, self.found, self.x = model, found, x
        self.modules: dict[str, Any] = dict(model.named_modules())
        self.after = norms_after(model, x[:1])
        self.cut = [self._cut(group) for group in found]
        self.gone = [torch.zeros(group.size, dtype=torch.bool) for group in found]

    def free(self) -> None:
        """Find what can go, let others take up its constants, cut it off, and look again.

        A filter that loses all that it reads is dead by that, and so is what only dead filters read.
        """
        while True:
            self.seen = readings(self.model, self.x)
            gone = [self._unneeded(group, old) for group, old in zip(self.found, self.gone, strict=True)]
            if all(torch.equal(now, old) for now, old in zip(gone, self.gone, strict=True)):
                return
            with torch.no_grad():
                for group, now, old in zip(self.found, gone, self.gone, strict=True):
                    self._cut_off(group, now & ~old)
            self.gone = gone

    def report(self) -> pd.DataFrame:
        """By group of channels: how many are removed, how many are cut but still there, and why."""
        rows = []
        for group, gone, cut in zip(self.found, self.gone, self.cut, strict=True):
            left = cut & ~gone
            rows.append(
                {
                    "layers": ", ".join(part.layer for part in group.givers),
                    "channels": group.size,
                    "removed": int(gone.sum()),
                    "left": int(left.sum()),
                    "why": self._why(group, left) if left.any() else "",
                }
            )
        return pd.DataFrame(rows)

    def take_out(self) -> dict[str, tuple[Any, ...]]:
        """Slice every tensor and set the widths. Which entries are left of each that got smaller, by name."""
        kept: dict[str, tuple[Any, ...]] = {}
        sides: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for group, gone in zip(self.found, self.gone, strict=True):
            for part in group.parts if gone.any() else ():
                layer = self.modules[part.layer]
                if part.side == "heads":
                    small, index = _take_heads(layer, group, gone)
                    self.model.set_submodule(part.layer, small)
                    kept |= {f"{part.layer}.{tensor}": entries for tensor, entries in index.items()}
                    continue
                for side, size in (("out", outputs(layer)), ("in", inputs(layer))):
                    if part.side in (side, "through"):
                        left = sides[part.layer].setdefault(side, torch.ones(size, dtype=torch.bool))
                        left[part.index[gone[part.channel]]] = False
        for name, left in sides.items():
            index = take(self.modules[name], left.get("out"), left.get("in"))
            kept |= {f"{name}.{tensor}": entries for tensor, entries in index.items()}
        return kept

    def _unneeded(self, group: Group, old: Tensor) -> Tensor:
        """The channels that nobody needs, by whole units, and such that each layer keeps one."""
        if group.fixed:
            return old
        free = torch.ones(group.size, dtype=torch.bool)
        for part in group.parts:
            if part.side in ("in", "heads"):
                free[part.channel[~self._dispensable(part)[part.index]]] = False
        gone = free | old
        units = int(group.unit.max()) + 1
        kept = torch.zeros(units, dtype=torch.bool).index_fill(0, group.unit[~gone], True)
        intact = torch.zeros(units, dtype=torch.bool).index_fill(0, group.unit[~old], True)
        for some in group.missing(kept):
            kept[some[intact[some]][0]] = True
        return gone & ~kept[group.unit]

    def _dispensable(self, part: Part) -> Tensor:
        """Of all channels that a layer reads, those that it can do without."""
        layer = self.modules[part.layer]
        if part.side == "heads":
            silent = ~_rows(layer.in_proj_weight.chunk(3)[2])  # values that are the same whatever comes in
            if layer.in_proj_bias is not None and layer.out_proj.bias is None:
                silent &= layer.in_proj_bias.chunk(3)[2] == 0
            return (silent | ~_rows(layer.out_proj.weight.T)).cpu()
        if part.layer not in self.seen:
            return torch.zeros(inputs(layer), dtype=torch.bool)
        reading, read = self.seen[part.layer], links(layer).unflatten(0, (conv_groups(layer), -1)).any(1).flatten()
        takes_up = self._taker(part.layer) is not None and not padded(layer)
        return (~read | reading.zero | (reading.even if takes_up else False)).cpu()

    def _taker(self, name: str) -> tuple[str, int] | None:
        """What can take up a constant that comes into a layer, and the sign: its bias, or the mean of its norm."""
        if getattr(self.modules[name], "bias", None) is not None:
            return f"{name}.bias", 1
        norm = self.modules.get(self.after.get(name, ""))
        return (f"{self.after[name]}.running_mean", -1) if getattr(norm, "running_mean", None) is not None else None

    def _cut_off(self, group: Group, gone: Tensor) -> None:
        for part in group.parts if gone.any() else ():
            mine = part.index[gone[part.channel]]
            if part.side == "in":
                self._take_up(part, mine)
            elif part.side == "heads":
                layer = self.modules[part.layer]
                if layer.in_proj_bias is not None and layer.out_proj.bias is not None:
                    constant = layer.in_proj_bias.chunk(3)[2]  # what attention mixes in shares that add up to 1
                    layer.out_proj.bias += layer.out_proj.weight[:, mine] @ constant[mine]
                layer.out_proj.weight[:, mine] = 0
        for name, entries in group.entries(self.model, gone):
            self.model.get_parameter(name)[entries] = 0

    def _take_up(self, part: Part, index: Tensor) -> None:
        """Put into the bias what a layer reads at `index`, as far as it is constant, and read it no more."""
        layer = self.modules[part.layer]
        weight, groups = layer.weight, conv_groups(layer)
        chosen = torch.zeros(inputs(layer), dtype=torch.bool, device=weight.device)
        chosen[index] = True
        constant = exact(torch.where(chosen, self.seen[part.layer].low, 0.0).nan_to_num(0.0))
        if constant.any() and (taker := self._taker(part.layer)):
            summed = exact(weight).flatten(2).sum(2) if weight.ndim > 2 else exact(weight)
            added = (summed.unflatten(0, (groups, -1)) @ constant.view(groups, -1, 1)).flatten()
            name, sign = taker
            tensor = self.model.get_parameter(name) if sign > 0 else self.model.get_buffer(name)
            tensor += (sign * added).to(tensor.dtype)
        columns = chosen.view(groups, 1, -1).expand(groups, len(weight) // groups, -1).flatten(0, 1)
        weight.masked_fill_(columns.view(*columns.shape, *[1] * (weight.ndim - 2)), 0)

    def _cut(self, group: Group) -> Tensor:
        """Channels that at least one layer gives by nothing but zeros."""
        cut = torch.zeros(group.size, dtype=torch.bool)
        for part in group.parts:
            held = getattr(self.modules[part.layer], part.weight.rpartition(".")[2], None)
            if part.side != "in" and held is not None:
                alive = _rows(held.chunk(3)[2] if part.side == "heads" else held)
                cut[part.channel] |= ~alive.cpu()[part.index]
        return cut

    def _why(self, group: Group, left: Tensor) -> str:
        """Why channels that are cut are still there."""
        if group.fixed:
            return group.fixed
        if group.parts[0].side == "heads":
            return "a head goes as a whole, and one stays"
        needed = torch.zeros_like(left)
        reasons: dict[str, None] = {}
        for part in (p for p in group.parts if p.side == "in"):
            wanted = ~self._dispensable(part)[part.index] & left[part.channel]
            if not wanted.any():
                continue
            needed[part.channel[wanted]] = True
            unknown = self.seen[part.layer].low.isnan().cpu()[part.index[wanted]]
            if unknown.any():
                reasons["another layer that gives them is alive: `structured.prune` cuts them in all"] = None
            if not unknown.all():
                stops = "pads with zeros" if padded(self.modules[part.layer]) else "has nothing to take it up"
                reasons[f"they still emit a constant, and {part.layer} {stops}: `silence` sets it to 0"] = None
        if (left & ~needed).any():
            reasons["a layer keeps one channel, and one group of a convolution goes as a whole"] = None
        return "; ".join(reasons)


def _take_heads(layer: Any, group: Group, gone: Tensor) -> tuple[Attention, dict[str, tuple[Any, ...]]]:
    """Attention with the heads that are left; which entries of its tensors they are."""
    left, head_dim = (~gone).nonzero().flatten(), group.size // (int(group.unit.max()) + 1)
    small = Attention(layer, len(left) // head_dim, head_dim)
    rows = torch.cat([left + i * group.size for i in range(3)])
    index = {"in_proj_weight": (rows,), "in_proj_bias": (rows,), "out_proj.weight": (slice(None), left)}
    own = layer.state_dict()
    small.load_state_dict({name: t[index[name]] if name in index else t for name, t in own.items()})
    return small, {name: entries for name, entries in index.items() if name in own}


def _rows(weight: Tensor) -> Tensor:
    """Whether anything in a row is not 0."""
    return (weight.detach() != 0).flatten(1).any(1) if weight.ndim > 1 else weight.detach() != 0

"""Taking channels out of a network, step by step and with its logits kept at every step. See `structured.shrink`."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from . import widths
from .coupling import Group, Groups, Part, inputs, is_depthwise, is_grouped, outputs, width
from .models.attention import Attention
from .reach import Conv, Reading, links, norms_after, readings


class Removal:
    """Finds what can go from `model`, a copy of its own, and changes it in place."""

    def __init__(self, model: nn.Module, found: Groups, x: Tensor, masks: Mapping[str, Tensor]):
        self.model, self.found, self.x = model, found, x
        self.modules: dict[str, Any] = dict(model.named_modules())
        self.after = norms_after(model, x[:1])
        # what the masks leave, or where there are none what is not 0: a layer that only begins with zeros is not dead
        self.alive = {n: masks[n].clone() if n in masks else p.detach() != 0 for n, p in model.named_parameters()}
        self.places: dict[str, list[tuple[int, Part]]] = defaultdict(list)
        for number, group in enumerate(found):
            for part in group.parts:
                self.places[part.layer].append((number, part))
        self.cut = [self._cut(group) for group in found]
        self.gone = [torch.zeros(group.size, dtype=torch.bool) for group in found]

    def free(self) -> None:
        """Find what can go, let others take up its constants, cut it off, and look again.

        A filter that loses all that it reads is dead by that, and so is what only dead filters read.
        """
        while True:
            self.seen = readings(self.model, self.x, self.alive)
            gone = [self._unneeded(group) | old for group, old in zip(self.found, self.gone, strict=True)]
            self._restore(gone)
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
        for name, places in self.places.items():
            layer, (number, part) = self.modules[name], places[0]
            if part.side == "heads":
                index = self._take_heads(name, self.found[number], self.gone[number])
            else:
                rows, columns = (~self._going(name, side, self.gone)[0] for side in ("out", "in"))
                index = {} if rows.all() and columns.all() else _take(layer, rows, columns)
            kept |= {f"{name}.{tensor}": entries for tensor, entries in index.items()}
        return kept

    def _unneeded(self, group: Group) -> Tensor:
        """The channels that nobody needs."""
        free = torch.full((group.size,), not group.fixed)
        for part in group.parts if not group.fixed else ():
            if part.side in ("in", "heads"):
                free[part.channel[~self._dispensable(part)[part.index]]] = False
        return free

    def _dispensable(self, part: Part) -> Tensor:
        """Of all channels that a layer reads, those that it can do without."""
        layer = self.modules[part.layer]
        if part.side == "heads":
            silent = ~self.alive[part.weight].chunk(3)[2].any(1)  # values that are the same whatever comes in
            if layer.in_proj_bias is not None and layer.out_proj.bias is None:
                silent &= layer.in_proj_bias.chunk(3)[2] == 0
            return (silent | ~self.alive[f"{part.layer}.out_proj.weight"].any(0)).cpu()
        if part.layer not in self.seen:
            return torch.zeros(inputs(layer), dtype=torch.bool)
        read = links(layer, self.alive[part.weight]).unflatten(0, (_groups(layer), -1)).any(1).flatten()
        reading: Reading = self.seen[part.layer]
        takes_up = self._taker(part.layer) is not None and not _padded(layer)
        return (~read | reading.zero | (reading.even if takes_up else False)).cpu()

    def _taker(self, name: str) -> tuple[str, int] | None:
        """What can take up a constant that comes into a layer, and the sign: its bias, or the mean of its norm."""
        if getattr(self.modules[name], "bias", None) is not None:
            return f"{name}.bias", 1
        norm = self.modules.get(self.after.get(name, ""))
        return (f"{self.after[name]}.running_mean", -1) if getattr(norm, "running_mean", None) is not None else None

    def _restore(self, gone: list[Tensor]) -> None:
        """Leave each group a unit, heads whole, and grouped convolutions equally wide in every group."""
        for group, mine, old in zip(self.found, gone, self.gone, strict=True):
            if group.parts[0].side == "heads":
                mine.copy_(torch.ones_like(mine).scatter_reduce(0, group.unit, mine, "amin")[group.unit])
            units = int(group.unit.max()) + 1
            kept = torch.zeros(units, dtype=torch.bool).index_fill(0, group.unit[~mine], True)
            intact = torch.zeros(units, dtype=torch.bool).index_fill(0, group.unit[~old], True)
            for some in group.missing(kept):
                back = some[intact[some]][0]
                kept[back] = True
                mine[group.unit == back] = False
        names = [name for name, layer in self.modules.items() if is_grouped(layer) and name in self.places]
        while any([self._balance(name, gone) for name in names]):  # noqa: C419 (each of them, and then again)
            pass

    def _balance(self, name: str, gone: list[Tensor]) -> bool:
        """Keep as many channels in each group of a convolution that keeps any; whether that changed anything."""
        changed, parts = False, self.modules[name].groups
        sides = [self._going(name, side, gone) for side in ("in", "out")]
        kept = [(~going).view(parts, -1).sum(1) for going, _ in sides]
        some = (kept[0] > 0) | (kept[1] > 0)
        for (going, owners), counts in zip(sides, kept, strict=True):
            wanted, size = max(int(counts[some].max()), 1), len(going) // parts
            for section in some.nonzero().flatten().tolist():
                back = going[section * size :][:size].nonzero().flatten()[: wanted - int(counts[section])]
                for number, channel in owners[back + section * size].tolist():
                    gone[number][channel] = False
                    changed = True
        return changed

    def _going(self, name: str, side: str, gone: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Which channels of a layer go, and whose they are: number of the group, and channel in it."""
        layer = self.modules[name]
        count = inputs(layer) if side == "in" else outputs(layer)
        going, owners = torch.zeros(count, dtype=torch.bool), torch.zeros(count, 2, dtype=torch.long)
        for number, part in self.places[name]:
            if part.side in (side, "through"):
                going[part.index] = gone[number][part.channel]
                owners[part.index] = torch.stack([torch.full_like(part.channel, number), part.channel], 1)
        return going, owners

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
                self.alive[f"{part.layer}.out_proj.weight"][:, mine] = False
        for name, entries in group.entries(self.model, gone):
            self.model.get_parameter(name)[entries] = 0
            self.alive[name][entries] = False

    def _take_up(self, part: Part, index: Tensor) -> None:
        """Put into the bias what a layer reads at `index`, as far as it is constant, and read it no more."""
        layer = self.modules[part.layer]
        weight, parts = layer.weight, _groups(layer)
        chosen = torch.zeros(inputs(layer), dtype=torch.bool, device=weight.device)
        chosen[index] = True
        constant = torch.where(chosen, self.seen[part.layer].low, 0.0).nan_to_num(0.0).double()
        if constant.any() and (taker := self._taker(part.layer)):
            summed = weight.double().flatten(2).sum(2) if weight.ndim > 2 else weight.double()
            added = (summed.unflatten(0, (parts, -1)) @ constant.view(parts, -1, 1)).flatten()
            name, sign = taker
            tensor = self.model.get_parameter(name) if sign > 0 else self.model.get_buffer(name)
            tensor += (sign * added).to(tensor.dtype)
        columns = chosen.view(parts, 1, -1).expand(parts, len(weight) // parts, -1).flatten(0, 1)
        columns = columns.view(*columns.shape, *[1] * (weight.ndim - 2)).expand_as(weight)
        weight[columns] = 0
        self.alive[part.weight][columns] = False

    def _cut(self, group: Group) -> Tensor:
        """Channels that at least one layer gives by nothing but zeros."""
        cut = torch.zeros(group.size, dtype=torch.bool)
        for part in group.parts:
            held = self.alive.get(part.weight)
            if part.side != "in" and held is not None and not isinstance(self.modules[part.layer], nn.PReLU):
                rows = held.chunk(3)[2] if part.side == "heads" else held
                cut[part.channel] |= (
                    ~rows.flatten(1).any(1).cpu()[part.index] if rows.ndim > 1 else ~rows.cpu()[part.index]
                )
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
                stops = "pads with zeros" if _padded(self.modules[part.layer]) else "has nothing to take it up"
                reasons[f"they still emit a constant, and {part.layer} {stops}: `silence` sets it to 0"] = None
        if (left & ~needed).any():
            reasons["a layer keeps one channel, and a grouped convolution as many in each group"] = None
        return "; ".join(reasons)

    def _take_heads(self, name: str, group: Group, gone: Tensor) -> dict[str, tuple[Any, ...]]:
        if not gone.any():
            return {}
        layer, left = self.modules[name], (~gone).nonzero().flatten()
        head_dim = group.size // (int(group.unit.max()) + 1)
        small = Attention.like(layer, len(left) // head_dim, head_dim)
        index = widths.take_heads(layer, small, left)
        self.model.set_submodule(name, small)
        return index


def _take(layer: Any, rows: Tensor, columns: Tensor) -> dict[str, tuple[Any, ...]]:
    """Narrow one layer to these output and input channels; which entries of its tensors are left."""
    at, count = rows.nonzero().flatten(), int(rows.sum())
    weight: tuple[Tensor, ...] = (at,)
    if isinstance(layer, Conv) and not is_depthwise(layer):
        by_group = columns.view(layer.groups, -1)
        kept = by_group.any(1) & rows.view(layer.groups, -1).any(1)
        within = torch.stack([flags.nonzero().flatten() for flags in by_group[kept]])
        weight = (at[:, None], within[kept.cumsum(0)[at // (len(rows) // layer.groups)] - 1])
        layer.groups, layer.in_channels, layer.out_channels = int(kept.sum()), int(columns.sum()), count
    elif isinstance(layer, Conv):
        layer.groups = layer.in_channels = layer.out_channels = count
    elif isinstance(layer, nn.Linear):
        weight = (at[:, None], columns.nonzero().flatten()[None, :])
        layer.in_features, layer.out_features = int(columns.sum()), count
    else:
        setattr(layer, width(layer), count)
    index = {"weight": weight, **dict.fromkeys(("bias", "running_mean", "running_var"), (at,))}
    index = {tensor: entries for tensor, entries in index.items() if isinstance(getattr(layer, tensor, None), Tensor)}
    for tensor, entries in index.items():
        widths.set_tensor(layer, tensor, getattr(layer, tensor)[entries])
    return index


def _groups(layer: Any) -> int:
    return layer.groups if isinstance(layer, Conv) else 1


def _padded(layer: Any) -> bool:
    """Whether zeros are put around what comes in."""
    if not isinstance(layer, Conv) or layer.padding_mode != "zeros":
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same" and any(size > 1 for size in layer.kernel_size)
    return any(layer.padding)

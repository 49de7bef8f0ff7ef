"""Taking channels out of a network, step by step and with its logits kept at every step. See `structured.shrink`."""

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from ..layers.hooks import hooked, norms_after
from ..layers.kinds import (
    LAYERS,
    Norm,
    conv_groups,
    heads,
    inputs,
    inside,
    kind_of,
    links,
    outputs,
    padded,
    projection_rows,
    take,
)
from ..layers.precision import exact
from ..layers.reach import Reading, readings
from .grouping import Group, Groups, logits_of


class Layer:
    """A layer that shares channels with others: what it reads, what takes up a constant, and which channels it keeps.

    `norm` is the batch norm that reads its output, where nothing else does.
    """

    sides: ClassVar[dict[str, Callable[[Any], int]]] = {"out": outputs, "in": inputs}
    reading: Reading | None = None

    def __init__(self, module: Any, norm: Any, absorbs: bool = True):
        self.module, self.norm, self.absorbs = module, norm, absorbs
        self.left = {side: torch.ones(size(module), dtype=torch.bool) for side, size in self.sides.items()}

    def alive(self) -> Tensor:
        """Output channels that it makes of anything but zeros."""
        weight = getattr(self.module, "weight", None)
        return torch.ones(outputs(self.module), dtype=torch.bool) if weight is None else _rows(weight)

    def dispensable(self) -> Tensor:
        """Of all channels that it reads, those that it can do without."""
        if self.reading is None:
            return torch.zeros(inputs(self.module), dtype=torch.bool)
        read = links(self.module).unflatten(0, (conv_groups(self.module), -1)).any(1).flatten()
        takes_up = self._taker() is not None and not padded(self.module)
        return (~read | self.reading.zero | (self.reading.even if takes_up else False)).cpu()

    def _taker(self) -> tuple[Tensor, int] | None:
        """What can take up a constant that comes in, and the sign: its bias, or the mean of its norm."""
        if not self.absorbs:
            return None
        if getattr(self.module, "bias", None) is not None:
            return self.module.bias, 1
        mean = getattr(self.norm, "running_mean", None)
        return None if mean is None else (mean, -1)

    def let_go(self, index: Tensor) -> None:
        """Put into the bias what it reads at `index`, as far as it is constant, and read it no more."""
        if self.reading is None:
            return
        weight, groups = self.module.weight, conv_groups(self.module)
        chosen = torch.zeros(inputs(self.module), dtype=torch.bool, device=weight.device)
        chosen[index] = True
        constant = exact(torch.where(chosen, self.reading.low, 0.0).nan_to_num(0.0))
        if constant.any() and (taker := self._taker()):
            summed = exact(weight).flatten(2).sum(2) if weight.ndim > 2 else exact(weight)
            added = (summed.unflatten(0, (groups, -1)) @ constant.view(groups, -1, 1)).flatten()
            tensor, sign = taker
            tensor += (sign * added).to(tensor.dtype)
        columns = chosen.view(groups, 1, -1).expand(groups, len(weight) // groups, -1).flatten(0, 1)
        weight.masked_fill_(columns.view(*columns.shape, *[1] * (weight.ndim - 2)), 0)

    def narrowed(self) -> tuple[nn.Module, dict[str, tuple[Any, ...]]]:
        """The layer without them, and which entries of its tensors are left."""
        out, read = (None if left.all() else left for left in self.left.values())
        return self.module, {} if out is read is None else take(self.module, out, read)


class Heads(Layer):
    """Attention, whose channels lie inside of it: rows of queries, keys and values, read by its own last layer."""

    sides: ClassVar = {"heads": lambda module: module.out_proj.in_features}

    def __init__(self, module: Any, norm: Any, absorbs: bool = True):
        super().__init__(module, norm, absorbs)
        self.values = projection_rows(module)[2]
        self.weight, self.bias = (inside(module, name) for name in kind_of(module).projection)

    def alive(self) -> Tensor:
        return _rows(self.weight)[self.values]

    def dispensable(self) -> Tensor:
        last, silent = self.module.out_proj, ~self.alive()  # values that are the same whatever comes in
        if self.bias is not None and last.bias is None:
            silent &= self.bias[self.values] == 0
        return (silent | ~_rows(last.weight.T)).cpu()

    def let_go(self, index: Tensor) -> None:
        last = self.module.out_proj
        if self.bias is not None and last.bias is not None:  # what attention mixes in shares that add up to 1
            last.bias += last.weight[:, index] @ self.bias[self.values[index]]
        last.weight[:, index] = 0

    def narrowed(self) -> tuple[nn.Module, dict[str, tuple[Any, ...]]]:
        left, kind = self.left["heads"], kind_of(self.module)
        if left.all() or kind.narrowed is None:
            return self.module, {}
        kept, unit = left.nonzero().flatten(), len(left) // heads(self.module)
        rows = torch.cat([some.unique() for some in projection_rows(self.module)[:, kept]])
        index = dict.fromkeys(kind.projection, (rows,)) | {"out_proj.weight": (slice(None), kept)}
        own, small = self.module.state_dict(), kind.narrowed(self.module, len(kept) // unit, unit)
        small.load_state_dict({name: t[index[name]] if name in index else t for name, t in own.items()})
        return small, {name: entries for name, entries in index.items() if name in own}


class Shared:
    """The channels of one group on their way out, and the layers that share them."""

    def __init__(self, group: Group, layers: dict[str, Layer]):
        self.group, self.members = group, [(part, layers[part.layer]) for part in group.parts]
        self.gone, self.cut = (torch.zeros(group.size, dtype=torch.bool) for _ in range(2))
        for part, layer in self.members:
            if part.side != "in":  # at least one layer gives them by nothing but zeros
                self.cut[part.channel] |= ~layer.alive().cpu()[part.index]

    def unneeded(self) -> Tensor:
        """Those that nobody needs any more, by whole units, and such that each layer keeps one."""
        free, group = ~self.gone, self.group
        if group.fixed:
            return torch.zeros_like(free)
        for part, layer in self.members:
            if part.side in ("in", "heads"):
                free[part.channel[~layer.dispensable()[part.index]]] = False
        units = int(group.unit.max()) + 1
        kept = torch.zeros(units, dtype=torch.bool).index_fill(0, group.unit[~(free | self.gone)], True)
        intact = torch.zeros(units, dtype=torch.bool).index_fill(0, group.unit[~self.gone], True)
        for some in group.missing(kept):
            kept[some[intact[some]][0]] = True
        return free & ~kept[group.unit]

    def cut_off(self, model: nn.Module, chosen: Tensor) -> None:
        """Let those that read these take up what is constant of them, and set to 0 what gives them."""
        self.gone |= chosen
        for part, layer in self.members if chosen.any() else ():
            index = part.index[chosen[part.channel]]
            if part.side in ("in", "heads"):
                layer.let_go(index)
            for side in layer.left if part.side == "through" else (part.side,):
                layer.left[side][index] = False
        for name, entries in self.group.entries(model, chosen):
            model.get_parameter(name)[entries] = 0

    def row(self) -> dict[str, Any]:
        left = self.cut & ~self.gone
        return {
            "layers": ", ".join(part.layer for part in self.group.givers),
            "channels": self.group.size,
            "removed": int(self.gone.sum()),
            "left": int(left.sum()),
            "why": self._why(left) if left.any() else "",
        }

    def _why(self, left: Tensor) -> str:
        """Why channels that are cut are still there."""
        if self.group.fixed:
            return self.group.fixed
        if self.group.parts[0].side == "heads":
            return "a head goes as a whole, and one stays"
        needed = torch.zeros_like(left)
        reasons: dict[str, None] = {}
        for part, layer in ((p, layer) for p, layer in self.members if p.side == "in"):
            wanted = ~layer.dispensable()[part.index] & left[part.channel]
            if not wanted.any() or layer.reading is None:
                continue
            needed[part.channel[wanted]] = True
            unknown = layer.reading.low.isnan().cpu()[part.index[wanted]]
            if unknown.any():
                reasons["another layer that gives them is alive: `structured.prune` cuts them in all"] = None
            if not unknown.all():
                stops = "pads with zeros" if padded(layer.module) else "has nothing to take it up"
                reasons[f"they still emit a constant, and {part.layer} {stops}: `silence` sets it to 0"] = None
        if (left & ~needed).any():
            reasons["a layer keeps one channel, and one group of a convolution goes as a whole"] = None
        return "; ".join(reasons)


@torch.no_grad()
def remove(
    model: nn.Module, found: Groups, x: Tensor, absorb: bool = True
) -> tuple[pd.DataFrame, dict[str, tuple[Any, ...]]]:
    """Take out of `model`, in place, what its logits do not need. With `absorb` biases and norms take up constants.

    What comes back is the report, a line by group, and by tensor that got smaller which entries are left of it.
    """
    modules, norms = dict(model.named_modules()), sole_norms(model, x[:1]) if absorb else {}
    kinds = {part.layer: Heads if part.side == "heads" else Layer for group in found for part in group.parts}
    layers = {
        name: kind(modules[name], modules[norms[name]] if name in norms else None, absorb)
        for name, kind in kinds.items()
    }
    groups = [Shared(group, layers) for group in found]
    more = True
    while more:  # a filter that loses all that it reads is dead by that, and so is what only dead filters read
        seen = readings(model, x)
        for name, layer in layers.items():
            layer.reading = seen.get(name)
        chosen = [group.unneeded() for group in groups]
        for group, gone in zip(groups, chosen, strict=True):
            group.cut_off(model, gone)
        more = any(bool(gone.any()) for gone in chosen)
    report = pd.DataFrame([group.row() for group in groups])
    kept: dict[str, tuple[Any, ...]] = {}
    for name, layer in layers.items():
        small, index = layer.narrowed()
        if small is not layer.module:
            model.set_submodule(name, small)
        kept |= {f"{name}.{tensor}": entries for tensor, entries in index.items()}
    return report, kept


def sole_norms(model: nn.Module, x: Tensor) -> dict[str, str]:
    """The batch norm that reads a layer's output, where nothing else reads it, by the names of both."""
    after = norms_after(model, x)
    uses = Counter(after.values())
    return _unheard(model, x, {layer: norm for layer, norm in after.items() if uses[norm] == 1})


def _unheard(model: nn.Module, x: Tensor, pairs: dict[str, str]) -> dict[str, str]:
    """The pairs of which only the norm reads the layer, and the norm nothing else.

    Each output is made NaN, and only its norm gets it as it was: what else there is shows in the logits.
    """
    hidden: list[tuple[Tensor, int, Tensor]] = []

    def after(name: str, module: nn.Module, given: Any, output: Tensor) -> Tensor:
        if name not in pairs:
            return output
        unknown = torch.full_like(output, torch.nan)
        hidden.append((unknown, unknown._version, output))
        return unknown

    def before(name: str, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if name not in pairs.values():
            return given
        own = (real for unknown, version, real in hidden if given[0] is unknown and unknown._version == version)
        return (next(own, torch.full_like(given[0], torch.nan)), *given[1:])

    with hooked(model, (Norm,), before), hooked(model, LAYERS, None, after):
        heard = bool(logits_of(model, x).isnan().any())
    if not (pairs and heard):
        return pairs
    every, half = list(pairs.items()), len(pairs) // 2
    return _unheard(model, x, dict(every[:half])) | _unheard(model, x, dict(every[half:])) if half else {}


def _rows(weight: Tensor) -> Tensor:
    """Whether anything in a row is not 0."""
    return (weight.detach() != 0).flatten(1).any(1) if weight.ndim > 1 else weight.detach() != 0

"""Structured pruning: whole channels chosen together, and taken out, so that a smaller plain network is left.

Which layers share their channels is found by `torch-pruning` (Fang et al., "DepGraph: towards any structural pruning",
CVPR 2023); what may go without a change of the logits is found here, by `reach`, and checked on the result.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import accumulate
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor, nn

from . import criteria, widths
from .data import Data
from .errors import ConfigError, RunError
from .masks import Masks, _named, _unit_scores, canonical, count, prunable, spread
from .models.attention import Attention
from .models.resnet import PadShortcut
from .reach import Conv, Norm, Reading, evaluating, links, norms_after, readings, silent
from .run import Run, Shuffled
from .seeds import generator, own_randomness

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Part:
    """What one layer has to do with the channels of a group: its own channel `index[k]` is the group's `channel[k]`.

    `side` says how: "out" gives them, "in" reads them, "through" hands on each by itself, "heads" has them inside.
    """

    layer: str
    side: str
    index: Tensor
    channel: Tensor


@dataclass(frozen=True)
class Group:
    """Channels that several layers share, such as those that meet in a residual sum; or why they are `fixed`.

    `unit` numbers what goes together: mostly each channel by itself, but all of a head of attention, and all that one
    group of a grouped convolution reads and gives.
    """

    name: str
    size: int
    parts: tuple[Part, ...]
    fixed: str
    unit: Tensor

    @property
    def givers(self) -> list[Part]:
        return [part for part in self.parts if part.side in ("out", "heads")]


class Groups(Sequence[Group]):
    """The groups of channels of a network. Showing it is the table."""

    def __init__(self, found: Sequence[Group]):
        self.found = list(found)

    def __getitem__(self, item: Any) -> Any:
        return self.found[item]

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.found)

    @property
    def channels(self) -> int:
        """How many can be removed, if every group keeps one: these are what a share is of."""
        return sum(group.size for group in self if not group.fixed)

    @property
    def fixed(self) -> list[str]:
        """The weights none of whose output channels can be removed: `skip` of a run that prunes channels."""
        free = {_weight_name(p) for group in self if not group.fixed for p in group.givers}
        return [n for n in dict.fromkeys(_weight_name(p) for g in self if g.fixed for p in g.givers) if n not in free]

    def coupled(self, criterion: str | criteria.Criterion, scope: str = "global") -> "Coupled":
        """A criterion by which all layers that share a channel score it alike, so that a cut takes or leaves it whole.

        For runs: `Gradual(lab.Cubic(0.5), groups.coupled("filter_l1"), unit="channel")` with `skip=groups.fixed`.
        """
        return Coupled(criterion, self, _one_of_scopes(scope))

    def table(self) -> pd.DataFrame:
        rows = [
            {
                "channels": group.size,
                "given by": ", ".join(part.layer for part in group.givers),
                "read by": ", ".join(part.layer for part in group.parts if part.side == "in"),
                "why fixed": group.fixed,
            }
            for group in self
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"Groups({len(self)} groups, {self.channels:,} channels that can be removed)\n{self.table()}"

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False)


def groups(model: nn.Module | Run, example: "Example | None" = None) -> Groups:
    """Which channels of which layers can only go together."""
    model, x = _given(model, example)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it only guesses at; what is guessed wrong shows in the logits
            found = _coupled(model, x)
    except (RuntimeError, ArithmeticError, LookupError, AttributeError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"torch-pruning cannot follow this network ({type(error).__name__}: {error}), so that it is not known which "
            "channels go together."
        ) from error
    found = _with_grouped(model, found)
    found += [_heads(name, m) for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return Groups(sorted(found, key=lambda group: min(order[part.layer] for part in group.givers)))


def prune(
    model: nn.Module | Run,
    example: "Example | None",
    share: float,
    criterion: str | criteria.Criterion = "filter_l1",
    *,
    scope: str = "global",
    skip: str | Sequence[str] = (),
    within: Groups | None = None,
    seed: int = 0,
) -> tuple[nn.Module, Masks]:
    """A copy of `model` with the lowest channels cut in all layers that share them, and the masks.

    `share` is of the channels that can be removed, each counted once in however many layers it is; every group keeps
    one. The count is exact, but for grouped convolutions and attention, where channels go by several. A channel's
    score is the mean over the layers that give it; one that scores infinity stays, and is not counted. `scope="layer"`
    takes the same share of each group, `skip` leaves out groups that give to these weights. What is cut is silenced:
    its biases and its norms' scales and shifts are 0 as well, so that `shrink` can take it out.

    `example` is the data set, or a batch of images where the criterion needs no data; `within` saves finding the groups
    again.
    """
    data = example if isinstance(example, Data) else model.data if isinstance(model, Run) and example is None else None
    before = model.masks if isinstance(model, Run) else None
    model, x = _given(model, example)
    _one_of_scopes(scope)
    found = groups(model, x) if within is None else within
    patterns = (skip,) if isinstance(skip, str) else tuple(skip)
    weights = prunable(model, skip=patterns)
    free = [g for g in found if not g.fixed and all(_weight_name(part) in weights for part in g.givers)]
    scores = _scores(model, criterion, data, free, seed)
    free = [g for g, score in zip(free, scores, strict=True) if bool(torch.isfinite(score).all())]
    scores = [score for score in scores if bool(torch.isfinite(score).all())]
    total = sum(group.size for group in free)
    if not total:
        raise ConfigError("no channel of this model can be removed; `structured.groups(model, example)` says why.")
    cut = _chosen(free, scores, count(total, share), scope)
    masks = Masks.full(prunable(model)) if before is None else before.clone()
    pruned = copy.deepcopy(model)
    for group, gone in zip(free, cut, strict=True):
        for name, entries in _entries(pruned, group, gone):
            if name in masks:
                masks[name][entries] = False
            pruned.get_parameter(name).data[entries] = 0
    return pruned, masks


def silence(model: nn.Module | Run, example: "Example | None" = None, masks: Mapping[str, Tensor] | None = None) -> Any:
    """A copy in which channels that no weight reaches are 0: their biases, and scales and shifts of norms, are.

    Without it a filter of zeros still gives its bias, and what a norm makes of it. This changes the logits; in training
    `methods.Silence` does the same.
    """
    model, x, masks = _masked(model, example, masks)
    for name, entries in silent(model, x, masks).items():
        model.get_parameter(name).data[entries] = 0
    return model


@dataclass(frozen=True)
class Coupled:
    """A criterion for `unit="channel"` and `scope="global"`: the same score in all layers that share a channel.

    The score is the mean over these layers, with `scope="layer"` the rank of that within the group, so that all groups
    lose the same share. The best channel of each stays. A sparsity counts a channel in every layer that gives it; the
    last one may be cut in some of its layers only, and is not removed then.
    """

    criterion: str | criteria.Criterion
    groups: Groups = field(repr=False)
    scope: str = "global"

    def __call__(self, model: nn.Module, batches: criteria.Batches | None) -> dict[str, Tensor]:
        scores = dict(criteria.resolve(self.criterion)(model, batches))
        for group in (g for g in self.groups if not g.fixed):
            mean = _group_scores(group, scores)
            if self.scope == "layer":
                mean = mean.argsort().argsort() / group.size
            mean[mean.argmax()] = math.inf
            for name, rows in _entries(model, group, torch.ones(group.size, dtype=torch.bool)):
                if name in scores and scores[name].ndim > 1:
                    channels = next(p.channel for p in group.parts if _weight_name(p) == name and p.side != "in")
                    by_row = mean[channels].repeat(len(rows) // len(channels)).to(scores[name])
                    scores[name] = scores[name].clone(memory_format=torch.contiguous_format)
                    scores[name][rows] = by_row.view(-1, *[1] * (scores[name].ndim - 1))
        return scores


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
    def widths(self) -> widths.Widths:
        """Of the layers that got narrower: `lab.build(name, data, widths=…)` draws new weights in this form."""
        return vars(self.model).get("_pruninglab", {}).get("widths", {})

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def removed(self) -> int:
        """Channels, each counted once in however many layers it was."""
        return int(self.report["removed"].sum())

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is left of tensors in the old shapes, by parameter name: masks, scores, what an optimizer remembers."""
        return {name: t[self.kept[name]].clone() if name in self.kept else t.clone() for name, t in tensors.items()}

    def __repr__(self) -> str:
        share = 1 - self.parameters / self.before
        lines = [
            f"Shrunk({self.before:,} to {self.parameters:,} parameters, {share:.2%} removed; {self.removed:,} channels)"
        ]
        for row in self._left():
            first, *others = row.layers.split(", ")
            more = f" and {len(others)} more" if others else ""
            lines.append(f"  {first}{more}: {row.left} cut but not removed, for {row.why}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return self.report.to_html(index=False)

    def _left(self) -> Iterator[Any]:
        return self.report[self.report["left"] > 0].itertuples()


def shrink(
    model: nn.Module | Run,
    example: "Example | None" = None,
    masks: Mapping[str, Tensor] | None = None,
    *,
    within: Groups | None = None,
) -> Shrunk:
    """Take out every channel that the logits do not need: a smaller plain network, with equal logits in eval mode.

    A channel goes if all that read it have only zeros for it, or if it is the same whatever the input, and 0 or to be
    taken up by a bias or by the running mean of the next norm. That is exact where no zero padding comes between: a
    constant ends at the border of the image. So a channel that still emits one into a padded convolution stays, and
    the report says so; `silence` is the step that sets such constants to 0. In a residual sum a channel goes if all
    its members are dead. A layer keeps at least one channel, and grouped convolutions as many in each group.

    `masks` are applied first (a run's own by default). The logits are compared on the example and on noise, and a
    difference of more than 1e-5 of the largest, or of 1, is a RunError. `model` is left as it is.
    """
    small, x, masks = _masked(model, example, masks)
    full = model.model if isinstance(model, Run) else model
    found = groups(small, x) if within is None else within
    probes = [x, _noise(x)]
    before, names = [_logits(small, probe) for probe in probes], set(_named(small))
    work = _Removal(small, found, x, masks)
    work.fold_all()
    report = work.report()
    kept = work.take_out()
    error = max(_difference(_try(small, probe), logits) for probe, logits in zip(probes, before, strict=True))
    if not error <= TOLERANCE:
        reference = _masked(model, example, masks)[0].double()
        error = max(
            _difference(_logits(copy.deepcopy(small).double(), p), _logits(reference, p)) for p in _double(probes)
        )
        if not error <= TOLERANCE:
            raise RunError(
                f"without these channels the logits differ by {error:.1e} of the largest: something in this network "
                "mixes channels in a way that its graph does not show. Leave the layers in question out of the masks."
            )
    assert set(_named(small)) == names
    record = vars(small).get("_pruninglab", {})
    changed = dict(record.get("widths", {})) | widths.changed(small, full)
    if changed:
        vars(small)["_pruninglab"] = {**record, "widths": changed}
    return Shrunk(small, kept, report, sum(p.numel() for p in full.parameters()), error)


def semi_structured(model: nn.Module) -> nn.Module:
    """A copy for NVIDIA GPUs from Ampere on, in 16 bits, whose 2:4 linear layers run on their sparse tensor cores.

    The layers need a 2:4 pattern (`scope="2:4"`) and sides that are multiples of 64; the others stay dense.
    """
    ready = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    if not ready:
        here = torch.cuda.get_device_name() if torch.cuda.is_available() else "this machine has none"
        raise ConfigError(
            f"2:4 sparsity is fast only on NVIDIA GPUs from compute capability 8.0 on; {here}. On a CPU it saves bytes "
            "(storage.sizes), not time; `shrink` saves both."
        )
    from torch.sparse import to_sparse_semi_structured

    model = copy.deepcopy(model).eval().half().cuda()
    chosen = [m for m in model.modules() if isinstance(m, nn.Linear) and is_2_to_4(m.weight) and not _odd(m.weight)]
    if not chosen:
        raise ConfigError('no linear layer has a 2:4 pattern and sides that are multiples of 64; cut with scope="2:4".')
    for module in chosen:
        module.weight = nn.Parameter(to_sparse_semi_structured(module.weight.detach()), requires_grad=False)
    return model


def is_2_to_4(weight: Tensor) -> bool:
    """Whether of every 4 neighbours along the input dimension at most 2 are not 0."""
    by_input = (weight.detach() != 0).movedim(1, -1)
    return by_input.shape[-1] % 4 == 0 and int(by_input.unflatten(-1, (-1, 4)).sum(-1).max()) <= 2


def _odd(weight: Tensor) -> bool:
    return any(side % 64 for side in weight.shape)


Example = Tensor | Data
_LAYERS = (Conv, nn.Linear)
_HANDLED = (*_LAYERS, Norm, nn.PReLU, PadShortcut)


class _Removal:
    """The work of `shrink` on its own copy of the network, which keeps its logits at every step."""

    def __init__(self, model: nn.Module, found: Groups, x: Tensor, masks: Mapping[str, Tensor]):
        self.model, self.found, self.x = model, found, x
        self.modules = dict(model.named_modules())
        # what the masks cut, or without them what is 0: a layer that begins with zeros is not dead
        self.alive = {n: masks[n].clone() if n in masks else w.detach() != 0 for n, w in model.named_parameters()}
        self.after = norms_after(model, x[:1])
        self.was_cut = [self._cut(group) for group in found]
        self.gone = [torch.zeros(group.size, dtype=torch.bool) for group in found]
        self.whole = {n: m for n, m in self.modules.items() if _grouped(m)}

    def fold_all(self) -> None:
        """Find what can go, let the next layer take up its constants, cut it off, and look again: a row that loses all
        that it reads is dead by that, and so is what is read by dead rows only.
        """
        while True:
            found = readings(self.model, self.x, self.alive)
            gone = [self._free(group, found) | old for group, old in zip(self.found, self.gone, strict=True)]
            self._restore(gone)
            if all(torch.equal(a, b) for a, b in zip(gone, self.gone, strict=True)):
                self.seen = found
                return
            for group, now, old in zip(self.found, gone, self.gone, strict=True):
                self._cut_off(group, now & ~old, found)
            self.gone = gone

    def _free(self, group: Group, found: Mapping[str, Reading]) -> Tensor:
        """The channels that nobody needs."""
        free = torch.full((group.size,), not group.fixed)
        for part in group.parts:
            if part.side in ("in", "heads") and not group.fixed:
                free[part.channel[~self._unneeded(part, found)[part.index]]] = False
        return free

    def _unneeded(self, part: Part, found: Mapping[str, Reading]) -> Tensor:
        """Of the channels that a layer reads, those that it can do without."""
        layer: Any = self.modules[part.layer]
        if part.side == "heads":
            silent = ~self.alive[f"{part.layer}.in_proj_weight"].chunk(3)[2].any(1)
            if layer.in_proj_bias is not None and layer.out_proj.bias is None:
                silent &= layer.in_proj_bias.chunk(3)[2] == 0
            return (silent | ~self.alive[f"{part.layer}.out_proj.weight"].any(0)).cpu()
        if part.layer not in found:
            return torch.zeros(_inputs(layer), dtype=torch.bool)
        linked = (
            links(layer, self.alive[f"{part.layer}.weight"])
            .unflatten(0, (getattr(layer, "groups", 1), -1))
            .any(1)
            .flatten()
        )
        reading = found[part.layer]
        takes = self._bias(part.layer) is not None and not _padded(layer)
        return (~linked | reading.zero | (reading.even if takes else False)).cpu()

    def _bias(self, name: str) -> tuple[str, int] | None:
        """What can take up a constant that comes into a layer, and the sign: its bias, or the mean of its norm."""
        norm = self.modules.get(self.after.get(name, ""))
        if getattr(norm, "running_mean", None) is not None:
            return f"{self.after[name]}.running_mean", -1
        return (f"{name}.bias", 1) if getattr(self.modules[name], "bias", None) is not None else None

    @torch.no_grad()
    def _cut_off(self, group: Group, gone: Tensor, found: Mapping[str, Reading]) -> None:
        if not gone.any():
            return
        for part in group.parts:
            mine = part.index[gone[part.channel]]
            if part.side == "in":
                self._take_up(part.layer, mine, found)
            elif part.side == "heads":
                layer: Any = self.modules[part.layer]
                if layer.in_proj_bias is not None and layer.out_proj.bias is not None:
                    constant = layer.in_proj_bias.chunk(3)[2]  # the shares of attention add up to 1
                    layer.out_proj.bias += layer.out_proj.weight[:, mine] @ constant[mine]
                self.alive[f"{part.layer}.out_proj.weight"][:, mine] = False
                layer.out_proj.weight[:, mine] = 0
        for name, entries in _entries(self.model, group, gone):
            self.model.get_parameter(name)[entries] = 0
            self.alive[name][entries] = False

    def _take_up(self, name: str, index: Tensor, found: Mapping[str, Reading]) -> None:
        """Of what is read at `index`, put what it adds to the outputs into the bias, and read it no more."""
        layer: Any = self.modules[name]
        parts = getattr(layer, "groups", 1)
        weight, constant = layer.weight, torch.zeros(_inputs(layer), dtype=torch.float64, device=layer.weight.device)
        chosen = torch.zeros(len(constant), dtype=torch.bool, device=weight.device)
        chosen[index] = True
        constant[chosen] = found[name].low[chosen].double().nan_to_num(0.0)
        columns = chosen.view(parts, 1, -1).expand(parts, len(weight) // parts, -1).flatten(0, 1)
        columns = columns.view(*columns.shape, *[1] * (weight.ndim - 2)).expand_as(weight)
        if constant.any():
            each = weight.double().flatten(2).sum(2) if weight.ndim > 2 else weight.double()
            added = (each.unflatten(0, (parts, -1)) @ constant.view(parts, -1, 1)).flatten()
            taker = self._bias(name)
            if taker:
                tensor = self.model.get_buffer(taker[0]) if taker[1] < 0 else self.model.get_parameter(taker[0])
                tensor += (taker[1] * added).to(tensor.dtype)
        weight[columns] = 0
        self.alive[f"{name}.weight"][columns] = False

    def _restore(self, gone: list[Tensor]) -> None:
        """Leave each group a channel, heads whole, and grouped convolutions equally wide in every group."""
        for group, mine, old in zip(self.found, gone, self.gone, strict=True):
            if group.parts[0].side == "heads":
                mine.copy_(torch.ones_like(mine).scatter_reduce(0, group.unit, mine, "amin")[group.unit])
            if mine.all():
                mine[group.unit == group.unit[~old][0]] = False
        changed = True
        while changed:
            changed = False
            for name, layer in self.whole.items():
                sides = [self._side(name, side, gone) for side in ("in", "out")]
                kept = [(~flags).view(layer.groups, -1).sum(1) for flags, _ in sides]
                some = (kept[0] > 0) | (kept[1] > 0)
                for (flags, owners), counts in zip(sides, kept, strict=True):
                    size = len(flags) // layer.groups
                    for section in some.nonzero().flatten().tolist():
                        missing = int(counts[some].max() - counts[section])
                        at = (flags[section * size : (section + 1) * size].nonzero().flatten() + section * size)[
                            :missing
                        ]
                        for i in at.tolist():
                            number, channel = owners[i]
                            gone[number][channel] = False
                            changed = True

    def _side(self, name: str, side: str, gone: Sequence[Tensor]) -> tuple[Tensor, dict[int, tuple[int, int]]]:
        """Which channels of a layer go, and whose they are."""
        layer = self.modules[name]
        flags = torch.zeros(_inputs(layer) if side == "in" else _outputs(layer), dtype=torch.bool)
        owners: dict[int, tuple[int, int]] = {}
        for number, (group, mine) in enumerate(zip(self.found, gone, strict=True)):
            for part in group.parts:
                if part.layer == name and part.side in (side, "through"):
                    flags[part.index] = mine[part.channel]
                    owners |= {i: (number, c) for i, c in zip(part.index.tolist(), part.channel.tolist(), strict=True)}
        return flags, owners

    def _cut(self, group: Group) -> Tensor:
        """Channels that at least one layer gives by nothing but zeros."""
        cut = torch.zeros(group.size, dtype=torch.bool)
        for part in group.parts:
            if part.side != "in" and (weight := self.alive.get(_weight_name(part))) is not None:
                rows = weight.chunk(3)[2] if part.side == "heads" else weight
                cut[part.channel] |= ~rows.view(len(rows), -1).any(1).cpu()[part.index]
        return cut

    def report(self) -> pd.DataFrame:
        rows = []
        for group, gone, cut in zip(self.found, self.gone, self.was_cut, strict=True):
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

    def _why(self, group: Group, left: Tensor) -> str:
        if group.fixed:
            return group.fixed
        alive = torch.zeros_like(left)
        reasons: dict[str, None] = {}
        for part in (p for p in group.parts if p.side == "in"):
            needed = ~self._unneeded(part, self.seen)[part.index] & left[part.channel]
            if needed.any():
                unknown = self.seen[part.layer].low.isnan().cpu()[part.index[needed]]
                alive[part.channel[needed]] = True
                if unknown.any():
                    reasons["another layer that shares them is alive: cut channels with `structured.prune`"] = None
                if not unknown.all():
                    padded = _padded(self.modules[part.layer])
                    takes = "pads with zeros" if padded else "has no bias to take it up"
                    reasons[f"they still emit a constant, and {part.layer} {takes}: `silence` sets it to 0"] = None
        if (left & ~alive).any():
            reasons["a layer keeps one channel, and grouped convolutions as many in each group"] = None
        return "; ".join(reasons)

    def take_out(self) -> dict[str, tuple[Any, ...]]:
        """Slice every tensor and set the widths; which entries are left, by name."""
        kept: dict[str, tuple[Any, ...]] = {}
        for name in {part.layer: None for group in self.found for part in group.parts}:
            layer: Any = self.modules[name]
            if isinstance(layer, nn.MultiheadAttention):
                kept |= self._take_heads(name, layer)
                continue
            rows = ~self._side(name, "out", self.gone)[0]
            columns = ~self._side(name, "in", self.gone)[0]
            if not (rows.all() and columns.all()):
                kept |= {f"{name}.{t}": index for t, index in _take(layer, rows, columns).items()}
        return kept

    def _take_heads(self, name: str, layer: nn.MultiheadAttention) -> dict[str, tuple[Any, ...]]:
        group, gone = next((g, x) for g, x in zip(self.found, self.gone, strict=True) if g.name == name)
        if not gone.any():
            return {}
        left = (~gone).nonzero().flatten()
        head_dim = group.size // (int(group.unit.max()) + 1)
        small = Attention.like(layer, len(left) // head_dim, head_dim)
        index = widths.take_heads(layer, small, left)
        self.model.set_submodule(name, small)
        return {f"{name}.{t}": entries for t, entries in index.items()}


def _take(layer: Any, rows: Tensor, columns: Tensor) -> dict[str, tuple[Any, ...]]:
    """Narrow one layer to these output and input channels."""
    at = rows.nonzero().flatten()
    if isinstance(layer, Conv) and not _depthwise(layer):
        parts = layer.groups
        by_part = columns.view(parts, -1)
        alive = by_part.any(1) & rows.view(parts, -1).any(1)
        within = torch.stack([flags.nonzero().flatten() for flags in by_part[alive]])
        of_row = alive.cumsum(0)[at // (len(rows) // parts)] - 1
        weight = (at[:, None], within[of_row])
        layer.groups = int(alive.sum())
    elif isinstance(layer, nn.Linear):
        weight = (at[:, None], columns.nonzero().flatten()[None, :])
    else:
        weight = (at,)
    for attribute, size in _sizes(layer, rows, columns).items():
        setattr(layer, attribute, size)
    index = {"weight": weight, **dict.fromkeys(("bias", "running_mean", "running_var"), (at,))}
    index = {t: entries for t, entries in index.items() if isinstance(getattr(layer, t, None), Tensor)}
    for tensor, entries in index.items():
        widths.set_tensor(layer, tensor, getattr(layer, tensor)[entries])
    return index


def _sizes(layer: Any, rows: Tensor, columns: Tensor) -> dict[str, int]:
    outputs, inputs = int(rows.sum()), int(columns.sum())
    if isinstance(layer, Conv):
        return {"out_channels": outputs, "in_channels": inputs} | ({"groups": outputs} if _depthwise(layer) else {})
    if isinstance(layer, nn.Linear):
        return {"out_features": outputs, "in_features": inputs}
    return {_width(layer): outputs}


def _entries(model: nn.Module, group: Group, gone: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What gives these channels: rows of weights, their biases, and what norms in between do to them."""
    for part in group.parts:
        layer = model.get_submodule(part.layer)
        if part.side == "in" or isinstance(layer, nn.PReLU):
            continue
        mine = part.index[gone[part.channel]]
        for tensor, size in (("weight", 1), ("bias", 1), ("in_proj_weight", 3), ("in_proj_bias", 3)):
            if isinstance(getattr(layer, tensor, None), nn.Parameter):
                inner = len(getattr(layer, tensor)) // size
                yield f"{part.layer}.{tensor}", torch.cat([mine + i * inner for i in range(size)])


def _one_of_scopes(scope: str) -> str:
    if scope not in ("global", "layer"):
        raise ConfigError(f"scope={scope!r} is unknown; expected 'global' or 'layer'.")
    return scope


def _scores(
    model: nn.Module, criterion: str | criteria.Criterion, data: Data | None, free: Sequence[Group], seed: int
) -> list[Tensor]:
    batches = Shuffled(data.train, 100, seed) if data else None
    with evaluating(model), own_randomness(seed):
        scores = criteria.resolve(criterion)(model, batches)
    return [_group_scores(group, scores) for group in free]


def _group_scores(group: Group, scores: Mapping[str, Tensor]) -> Tensor:
    """By channel the mean over the layers that give it, of those that have a score for it."""
    sums, seen = torch.zeros(group.size, dtype=torch.float64), torch.zeros(group.size)
    for part in group.parts:
        name = _weight_name(part)
        if part.side == "in" or name not in scores or scores[name].ndim < 2:
            continue
        rows = _unit_scores(name, scores[name], "channel").double().cpu()[_rows(part, group)]
        mine = rows.view(-1, len(part.channel)).mean(0)
        if bool(torch.isfinite(mine).all()):
            sums[part.channel] += mine
            seen[part.channel] += 1
    return torch.where(seen > 0, sums / seen, math.inf)


def _chosen(free: Sequence[Group], scores: Sequence[Tensor], cut: int, scope: str) -> list[Tensor]:
    """Which channels go: the lowest units, the best unit of each group never."""
    ranked: list[tuple[float, int, Tensor]] = []
    least = []
    for number, (group, score) in enumerate(zip(free, scores, strict=True)):
        sizes = group.unit.bincount()
        means = torch.zeros(len(sizes), dtype=score.dtype).index_add(0, group.unit, score) / sizes
        order = means.sort(stable=True).indices
        members = group.unit.sort(stable=True).indices.split(sizes.tolist())
        ranked += [(float(means[i]), number, members[i]) for i in order[:-1].tolist()]
        least.append(int(sizes[order[-1]]))
    total = sum(group.size for group in free)
    if cut > total - sum(least):
        raise ConfigError(
            f"{cut:,} of {total:,} channels cannot go if each of the {len(free)} groups is to keep one: at most "
            f"{total - sum(least):,}, a share of {1 - sum(least) / total:.4g}."
        )
    gone = [torch.zeros(group.size, dtype=torch.bool) for group in free]
    left = [cut]
    if scope == "layer":
        keep = spread(total - cut, [group.size for group in free], [group.size for group in free], least=max(least))
        left = [group.size - k for group, k in zip(free, keep, strict=True)]
    for _, number, members in sorted(ranked, key=lambda unit: unit[0]):
        pot = number if scope == "layer" else 0
        if len(members) <= left[pot]:
            gone[number][members] = True
            left[pot] -= len(members)
    return gone


def _given(model: nn.Module | Run, example: "Example | None") -> tuple[nn.Module, Tensor]:
    """A network, and some images on its device."""
    if isinstance(model, Run):
        example = model.data if example is None else example
        model = model.model
    if isinstance(example, Data):
        example = next(iter(example.val.batches([torch.arange(min(8, len(example.val)))])))[0]
    if not isinstance(model, nn.Module) or not isinstance(example, Tensor):
        raise ConfigError(
            f"got a {type(model).__name__} and a {type(example).__name__}; expected a torch.nn.Module or a finished "
            "Run, and the data set or a batch of its images."
        )
    return model, example.to(next(iter(model.parameters())).device)


def _masked(
    model: nn.Module | Run, example: "Example | None", masks: Mapping[str, Tensor] | None
) -> tuple[nn.Module, Tensor, Mapping[str, Tensor]]:
    """A copy of the network under its masks, in eval mode."""
    masks = model.masks if masks is None and isinstance(model, Run) else masks or {}
    model, x = _given(model, example)
    model = copy.deepcopy(model).eval()
    named = _named(model)
    Masks(masks).check({name: named[name] for name in masks if name in named})
    Masks(masks).apply_({name: named[name].data for name in masks})
    if any(name != canonical(name) for name, _ in model.named_parameters()):
        raise ConfigError("this model has parametrized weights; make them plain first, with remove_parametrizations.")
    return model, x, masks


def _coupled(model: nn.Module, x: Tensor) -> list[Group]:
    """The groups as torch-pruning sees them."""
    graph, traced, ends, pads = _graph(model, x[:1])
    found: list[Group] = []
    covered = {m: torch.zeros(_outputs(m), dtype=torch.bool) for m in graph.module2node if isinstance(m, _LAYERS)}
    for module in sorted(covered, key=_outputs, reverse=True):  # the widest first: a shortcut that pads has fewer
        wanted = (~covered[module]).nonzero().flatten().tolist()
        if not wanted:
            continue
        pruner = graph.get_pruner_of_module(module)
        items = list(graph.get_pruning_group(module, pruner.prune_out_channels, wanted))
        found.append(_group(traced, items, wanted, ends, pads))
        for part in found[-1].parts:
            layer = traced.get_submodule(part.layer)
            if layer in covered and part.side != "in":
                covered[layer][part.index] = True
    return found


def _with_grouped(model: nn.Module, found: Sequence[Group]) -> list[Group]:
    """Join what a grouped convolution reads with what it gives: of both, what belongs to one of its groups is a unit."""
    starts = [0, *accumulate(group.size for group in found)]
    links: list[tuple[int, int]] = []
    joined: list[tuple[int, int]] = []
    first: dict[tuple[str, int], tuple[int, int]] = {}
    for number, group in enumerate(found):
        for part in group.parts:
            layer: Any = model.get_submodule(part.layer)
            if not _grouped(layer):
                continue
            section = part.index // ((_inputs(layer) if part.side == "in" else _outputs(layer)) // layer.groups)
            for which, channel in zip(section.tolist(), part.channel.tolist(), strict=True):
                origin = first.setdefault((part.layer, which), (number, channel))
                links.append((starts[origin[0]] + origin[1], starts[number] + channel))
                joined.append((origin[0], number))
    units, together = _components(links, starts[-1]), _components(joined, len(found))
    merged = []
    for mine in dict.fromkeys(together.tolist()):
        members = [i for i, other in enumerate(together.tolist()) if other == mine]
        offsets = [0, *accumulate(found[i].size for i in members)]
        parts = [
            replace(part, channel=part.channel + offset)
            for i, offset in zip(members, offsets, strict=False)
            for part in found[i].parts
        ]
        unit = torch.cat([units[starts[i] : starts[i + 1]] for i in members])
        fixed = next((found[i].fixed for i in members if found[i].fixed), "")
        merged.append(
            Group(found[members[0]].name, offsets[-1], tuple(parts), fixed, unit.unique(return_inverse=True)[1])
        )
    return merged


def _components(links: Sequence[tuple[int, int]], size: int) -> Tensor:
    """Which of `size` things hang together."""
    one, other = zip(*links, strict=True) if links else ((), ())
    matrix = sparse.coo_array((np.ones(len(links)), (np.array(one, int), np.array(other, int))), shape=(size, size))
    return torch.from_numpy(csgraph.connected_components(matrix, directed=False)[1]).long()


def _graph(model: nn.Module, x: Tensor) -> tuple[Any, nn.Module, list[Any], "_Pads"]:
    """torch-pruning's dependency graph of a copy in which everything has a gradient, the copy, where it begins and ends."""
    library = _torch_pruning()
    traced = copy.deepcopy(model).eval()
    for parameter in traced.parameters():
        parameter.requires_grad_(True)
    pads = _Pads()
    for module in traced.modules():
        if isinstance(module, PadShortcut):
            module.register_forward_pre_hook(lambda m, inputs: pads.inputs.update({m: inputs[0].shape[1]}))
    start = x.detach().clone()
    if start.is_floating_point():
        start = start.requires_grad_(True) * 1.0  # so that the graph shows where the image itself goes
    ends = [start.grad_fn]

    def forward(model: nn.Module, images: Tensor) -> Tensor:
        logits = model(images)
        ends.append(logits.grad_fn)
        return logits

    graph = library.DependencyGraph()
    with torch.enable_grad():
        graph.build_dependency(traced, start, forward_fn=forward, customized_pruners={PadShortcut: pads}, verbose=False)
    for module, node in graph.module2node.items():
        if isinstance(module, PadShortcut):
            for dependency in node.dependencies:
                if dependency.target in node.inputs:
                    dependency.index_mapping[0] = _Below(pads.inputs[module])
    return graph, traced, ends, pads


def _torch_pruning() -> ModuleType:
    try:
        return import_module("torch_pruning")
    except ModuleNotFoundError:
        raise ConfigError(
            "which channels go together is found by torch-pruning, which is not installed: "
            "pip install 'pruninglab[structured]'"
        ) from None


class _Pads:
    """How torch-pruning sees the shortcut that adds channels of zeros: it hands on those that it gets."""

    def __init__(self) -> None:
        self.inputs: dict[nn.Module, int] = {}

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return layer

    prune_in_channels = prune_out_channels

    def get_in_channels(self, layer: nn.Module) -> int:
        return self.inputs[layer]

    def get_out_channels(self, layer: Any) -> int:
        return self.inputs[layer] + layer.added


@dataclass(frozen=True)
class _Below:
    """The indices that are there before channels of zeros are added."""

    inputs: int

    def __call__(self, idxs: Sequence[Any]) -> list[Any]:
        return [i for i in idxs if i.idx < self.inputs]


def _group(traced: nn.Module, items: Sequence[Any], roots: Sequence[int], ends: Sequence[Any], pads: "_Pads") -> Group:
    """One group in plain words."""
    names = {module: name for name, module in traced.named_modules()}
    place = {root: i for i, root in enumerate(roots)}
    parts: list[Part] = []
    fixed = ""
    for item in items:
        node, module = item.dep.target, item.dep.target.module
        layer = node.type.name in ("CONV", "LINEAR")
        side = item.dep.handler.__name__.split("_")[1] if layer else "through"
        name = names.get(module, "")
        if side != "in":
            fixed = fixed or _obstacle(node, name, ends)
        if not isinstance(module, _HANDLED) or (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            continue
        index, channel = torch.tensor(item.idxs), torch.tensor([place.get(root, -1) for root in item.root_idxs])
        if isinstance(module, PadShortcut):  # only what it adds is its own
            own = index >= pads.inputs[module]
            index, channel = index[own] - pads.inputs[module], channel[own]
        if (channel < 0).any() or (index >= (_inputs(module) if side == "in" else _outputs(module))).any():
            fixed = fixed or f"how they come to {name} cannot be followed"
            index, channel = index[:0], channel[:0]
        parts.append(Part(name, side, index, channel))
    root = next(part.layer for part in parts if part.side != "in")
    return Group(root, len(roots), tuple(parts), fixed, torch.arange(len(roots)))


def _obstacle(node: Any, name: str, ends: Sequence[Any]) -> str:
    """Why channels that come by here cannot be removed, if so."""
    module, kind = node.module, node.type.name
    if kind == "OUTPUT" or node.grad_fn is ends[1]:
        return "they are what the network gives out"
    if node.grad_fn is ends[0] is not None:
        return "the image itself is one of them"
    if kind in ("SPLIT", "UNBIND"):
        return "the code of the network splits them"
    if kind == "PARAMETER":
        return "a parameter outside of layers belongs to them"
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return f"{name} takes its statistics over all of them"
    if isinstance(module, Conv) and (module.transposed or (kind == "DEPTHWISE_CONV" and not _depthwise(module))):
        return f"{name} is a transposed convolution, or makes several of each"
    return f"{name}, a {type(module).__name__}, cannot be narrowed" if name and not isinstance(module, _HANDLED) else ""


def _heads(name: str, layer: nn.MultiheadAttention) -> Group:
    """The heads of attention, which nothing outside of it sees."""
    inner = layer.out_proj.in_features
    plain = layer.in_proj_weight is not None and layer.bias_k is None and not layer.add_zero_attn
    every = torch.arange(inner)
    heads = layer.heads if isinstance(layer, Attention) else layer.num_heads
    fixed = "" if plain else f"{name} has keys or values of another width, or more of them than it is given"
    return Group(name, inner, (Part(name, "heads", every, every),), fixed, every // (inner // heads))


def _weight_name(part: Part) -> str:
    return f"{part.layer}.{'in_proj_weight' if part.side == 'heads' else 'weight'}"


def _rows(part: Part, group: Group) -> Tensor:
    """The rows of the weight that give the channels of a part: three for one that is inside attention."""
    return torch.cat([part.index + i * group.size for i in range(3)]) if part.side == "heads" else part.index


def _depthwise(layer: Any) -> bool:
    return isinstance(layer, Conv) and layer.groups == layer.out_channels == layer.in_channels > 1


def _width(layer: Any) -> str:
    """The attribute of a module that hands on each channel by itself."""
    return (
        "num_features" if isinstance(layer, Norm) else "added" if isinstance(layer, PadShortcut) else "num_parameters"
    )


def _grouped(layer: Any) -> bool:
    return isinstance(layer, Conv) and layer.groups > 1 and not _depthwise(layer)


def _outputs(layer: Any) -> int:
    """How many channels a layer gives; of the shortcut that pads, how many it adds."""
    if isinstance(layer, _LAYERS):
        return layer.out_channels if isinstance(layer, Conv) else layer.out_features
    return getattr(layer, _width(layer))


def _inputs(layer: Any) -> int:
    if isinstance(layer, _LAYERS):
        return layer.in_channels if isinstance(layer, Conv) else layer.in_features
    return _outputs(layer)


def _padded(layer: Any) -> bool:
    """Whether zeros are put around what comes in."""
    if not isinstance(layer, Conv) or layer.padding_mode != "zeros":
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same" and any(size > 1 for size in layer.kernel_size)
    return any(layer.padding)


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
    return float((a - b).abs().max()) / max(1.0, float(b.abs().max()))


def _noise(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=generator(0, "noise")).to(x) if x.is_floating_point() else x.flip(0)


def _double(probes: Sequence[Tensor]) -> list[Tensor]:
    return [x.double() if x.is_floating_point() else x for x in probes]

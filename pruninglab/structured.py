"""Structured pruning: whole channels chosen together, and taken out, so that a smaller plain network is left.

`coupling` finds which layers share their channels, `reach` and `removal` what may go without a change of the logits,
and that these have not changed is checked on the result.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from . import _html, coupling, criteria, widths
from .coupling import Group, Groups
from .data import Data
from .errors import ConfigError, RunError
from .masks import Masks, _named, _unit_scores, canonical, count, prunable, spread
from .reach import evaluating
from .removal import Removal
from .run import Run, Shuffled
from .seeds import generator, own_randomness

Example = Tensor | Data
TOLERANCE, EXACT = 1e-5, 1e-9  # in 32 bits, and in 64 where the network is not that exact in 32


def groups(model: nn.Module | Run, example: Example | None = None) -> Groups:
    """Which channels of which layers can only go together, by the data set or a batch of its images."""
    return coupling.groups(*_given(model, example))


def prune(
    model: nn.Module | Run,
    example: Example | None,
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
    _check_scope(scope)
    found = coupling.groups(model, x) if within is None else within
    patterns = (skip,) if isinstance(skip, str) else tuple(skip)
    weights = prunable(model, skip=patterns)
    free = [g for g in found if not g.fixed and all(part.weight in weights for part in g.givers)]
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
        for name, entries in group.entries(pruned, gone):
            if name in masks:
                masks[name][entries] = False
            pruned.get_parameter(name).data[entries] = 0
    return pruned, masks


def silence(
    model: nn.Module | Run, example: Example | None = None, masks: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """A copy in which channels whose filters are all zeros give 0: their biases, and norms' scales and shifts, are 0.

    Without it a filter of zeros still gives its bias, and what a norm makes of it. This changes the logits; in training
    `methods.Silence` does the same.
    """
    model, x = _masked(model, example, masks)
    alive = {name: p.detach() != 0 for name, p in model.named_parameters()}
    for name, entries in coupling.groups(model, x).silent(model, alive).items():
        model.get_parameter(name).data[entries] = 0
    return model


@dataclass(frozen=True)
class Coupled:
    """A criterion by which all layers that share a channel score it alike, so that a cut takes or leaves it whole.

    For runs: `Gradual(lab.Cubic(0.5), Coupled("filter_l1", groups), unit="channel")`, with `Silence()` behind it and
    `skip=groups.fixed`. The score of a channel is the mean over the layers that give it, with `scope="layer"` the rank
    of that within the group, so that all groups lose the same share. The best channel of each stays. A sparsity counts
    a channel in every layer that gives it; the last one to go may be cut in some of its layers only, and stays then.
    """

    criterion: str | criteria.Criterion
    groups: Groups = field(repr=False)
    scope: str = "global"

    def __post_init__(self) -> None:
        _check_scope(self.scope)

    def __call__(self, model: nn.Module, batches: criteria.Batches | None) -> dict[str, Tensor]:
        scores = dict(criteria.resolve(self.criterion)(model, batches))
        for group in (g for g in self.groups if not g.fixed):
            mean = _group_scores(group, scores)
            if self.scope == "layer":
                mean = mean.argsort().argsort() / group.size
            mean[mean.argmax()] = math.inf
            for part in group.parts:
                score = scores.get(part.weight)
                if part.side != "in" and score is not None and score.ndim > 1:
                    by_row = mean[part.channel].to(score).view(-1, *[1] * (score.ndim - 1))
                    scores[part.weight] = score = score.clone(memory_format=torch.contiguous_format)
                    score.view(part.blocks, -1, *score.shape[1:])[:, part.index] = by_row
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
    within: Groups | None = None,
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
    found = coupling.groups(small, x) if within is None else within
    probes = [x, _noise(x)]
    before = [_logits(small, probe) for probe in probes]
    work = Removal(small, found, x)
    work.free()
    report, kept = work.report(), work.take_out()
    error = max(_difference(_try(small, probe), logits) for probe, logits in zip(probes, before, strict=True))
    if not error <= TOLERANCE:  # a deep network may be no more exact than that by itself
        exact, reference = copy.deepcopy(small).double(), _masked(model, example, masks)[0].double()
        error = max(_difference(_logits(exact, probe), _logits(reference, probe)) for probe in map(_double, probes))
        if not error <= EXACT:
            raise RunError(
                f"without these channels the logits differ by {error:.1e} of the largest: something in this network "
                "mixes channels in a way that its graph does not show. Leave the layers in question out of the masks."
            )
    wide = widths.of(full)
    widths.record(small, {name: size for name, size in widths.of(small).items() if size != wide.get(name)})
    return Shrunk(small, kept, report, sum(p.numel() for p in full.parameters()), error)


def semi_structured(model: nn.Module) -> nn.Module:
    """A copy for NVIDIA GPUs from Ampere on, in 16 bits, whose 2:4 linear layers run on their sparse tensor cores.

    The layers need a 2:4 pattern (`criteria.NofM`) and sides that are multiples of 64; the others stay dense.
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
        raise ConfigError("no linear layer has a 2:4 pattern and sides that are multiples of 64; cut by criteria.NofM.")
    for module in chosen:
        module.weight = nn.Parameter(to_sparse_semi_structured(module.weight.detach()), requires_grad=False)
    return model


def is_2_to_4(weight: Tensor) -> bool:
    """Whether of every 4 neighbours along the input dimension at most 2 are not 0."""
    by_input = (weight.detach() != 0).movedim(1, -1)
    return by_input.shape[-1] % 4 == 0 and int(by_input.unflatten(-1, (-1, 4)).sum(-1).max()) <= 2


def _odd(weight: Tensor) -> bool:
    return any(side % 64 for side in weight.shape)


def _check_scope(scope: str) -> None:
    if scope not in ("global", "layer"):
        raise ConfigError(f"scope={scope!r} is unknown; expected 'global' or 'layer'.")


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
        name = part.weight
        if part.side == "in" or name not in scores or scores[name].ndim < 2:
            continue
        rows = _unit_scores(name, scores[name], "channel").double().cpu()
        mine = rows.view(part.blocks, -1).mean(0)[part.index]
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
        kept = torch.zeros(len(sizes), dtype=torch.bool)
        for some in group.missing(kept):
            kept[some[means[some].argmax()]] = True
        members = group.unit.sort(stable=True).indices.split(sizes.tolist())
        ranked += [(float(means[i]), number, members[i]) for i in (~kept).nonzero().flatten().tolist()]
        least.append(int(sizes[kept].sum()))
    total = sum(group.size for group in free)
    if cut > total - sum(least):
        raise ConfigError(
            f"{cut:,} of {total:,} channels cannot go if each layer is to keep one: at most {total - sum(least):,}, "
            f"a share of {1 - sum(least) / total:.4g}."
        )
    gone = [torch.zeros(group.size, dtype=torch.bool) for group in free]
    left = [cut]
    if scope == "layer":
        rest = [group.size - n for group, n in zip(free, least, strict=True)]
        left = spread(cut, [group.size for group in free], rest)
    for _, number, members in sorted(ranked, key=lambda unit: unit[0]):
        pot = number if scope == "layer" else 0
        if len(members) <= left[pot]:
            gone[number][members] = True
            left[pot] -= len(members)
    return gone


def _given(model: nn.Module | Run, example: Example | None) -> tuple[nn.Module, Tensor]:
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
    model: nn.Module | Run, example: Example | None, masks: Mapping[str, Tensor] | None
) -> tuple[nn.Module, Tensor]:
    """A copy of the network under its masks, in eval mode."""
    masks = model.masks if masks is None and isinstance(model, Run) else masks or {}
    model, x = _given(model, example)
    model = copy.deepcopy(model).eval()
    named = _named(model)
    Masks(masks).check({name: named[name] for name in masks if name in named})
    Masks(masks).apply_({name: named[name].data for name in masks})
    if any(name != canonical(name) for name, _ in model.named_parameters()):
        raise ConfigError("this model has parametrized weights; make them plain first, with remove_parametrizations.")
    return model, x


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

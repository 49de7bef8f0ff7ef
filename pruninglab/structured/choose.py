"""Choosing channels: all layers that share a channel lose it together."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..criteria import registry
from ..criteria.registry import Batches, Criterion
from ..data.dataset import Data
from ..errors import ConfigError
from ..layers.hooks import evaluating
from ..layers.names import Pattern, canonical_parameters, prunable, real_names
from ..masks.choose import count, spread, unit_scores
from ..masks.masks import Masks
from ..randomness import own_randomness
from ..train.evaluate import Shuffled
from ..train.run import Run
from .grouping import Group, Groups, find_groups

Example = Tensor | Data


def groups(model: nn.Module | Run, example: Example | None = None) -> Groups:
    """Which channels of which layers can only go together, by the data set or a batch of its images."""
    return find_groups(*_given(model, example))


def prune(
    model: nn.Module | Run,
    example: Example | None,
    prune_fraction: float,
    criterion: str | Criterion = "filter_l1",
    *,
    scope: str = "global",
    skip: Pattern | Sequence[Pattern] = (),
    groups: Groups | None = None,
    seed: int = 0,
) -> tuple[nn.Module, Masks]:
    """A copy of `model` with the lowest channels cut in all layers that share them, and the masks.

    `prune_fraction` is of the channels that can be removed, each counted once in however many layers it is; every group
    keeps one. The count is exact, but for grouped convolutions and attention, where channels go by several. A channel's
    score is the mean over the layers that give it; one that scores infinity stays, and is not counted. `scope="layer"`
    takes the same share of each group, `skip` leaves out groups that give to these weights. What is cut is silenced:
    its biases and its norms' scales and shifts are 0 as well, so that `shrink` can take it out.

    `example` is the data set, or a batch of images where the criterion needs no data; `groups` saves finding the groups
    again.
    """
    data = example if isinstance(example, Data) else model.data if isinstance(model, Run) and example is None else None
    before = model.masks if isinstance(model, Run) else None
    model, x = _given(model, example)
    _check_scope(scope)
    found = find_groups(model, x) if groups is None else groups
    weights = prunable(model, skip=skip)
    free = [g for g in found if not g.fixed and all(part.weight in weights for part in g.givers)]
    scores = _scores(model, criterion, data, free, seed)
    free = [g for g, score in zip(free, scores, strict=True) if bool(torch.isfinite(score).all())]
    scores = [score for score in scores if bool(torch.isfinite(score).all())]
    total = sum(group.size for group in free)
    if not total:
        raise ConfigError("no channel of this model can be removed; `structured.groups(model, example)` says why.")
    cut = _chosen(free, scores, count(total, prune_fraction), scope)
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
    for name, entries in find_groups(model, x).silent(model, alive).items():
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

    criterion: str | Criterion
    groups: Groups = field(repr=False)
    scope: str = "global"

    def __post_init__(self) -> None:
        _check_scope(self.scope)

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        scores = dict(registry.resolve(self.criterion)(model, batches))
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


def _check_scope(scope: str) -> None:
    if scope not in ("global", "layer"):
        raise ConfigError(f"scope={scope!r} is unknown; expected 'global' or 'layer'.")


def _scores(
    model: nn.Module, criterion: str | Criterion, data: Data | None, free: Sequence[Group], seed: int
) -> list[Tensor]:
    place = next(model.parameters()).device
    batches = Shuffled(data.train.to(place), 100, seed) if data else None
    with evaluating(model), own_randomness(seed):
        scores = registry.resolve(criterion)(model, batches)
    return [_group_scores(group, scores) for group in free]


def _group_scores(group: Group, scores: Mapping[str, Tensor]) -> Tensor:
    """By channel the mean over the layers that give it, of those that have a score for it."""
    sums, seen = torch.zeros(group.size, dtype=torch.float64), torch.zeros(group.size)
    for part in group.parts:
        name = part.weight
        if part.side == "in" or name not in scores or scores[name].ndim < 2:
            continue
        rows = unit_scores(name, scores[name], "channel").cpu().double()
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
    named = canonical_parameters(model)
    Masks(masks).check({name: named[name] for name in masks if name in named})
    Masks(masks).apply_({name: named[name].data for name in masks})
    if any(name != real for name, real in real_names(model).items()):
        raise ConfigError("this model has parametrized weights; make them plain first, with remove_parametrizations.")
    return model, x

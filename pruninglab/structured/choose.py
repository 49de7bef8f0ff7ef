"""Choosing channels: all layers that share a channel lose it together."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..coupling.grouping import Group, Groups, find_groups
from ..criteria import registry
from ..criteria.channels import norm_scale
from ..criteria.registry import Batches, Criterion, CriterionName
from ..data.dataset import Data
from ..errors import ConfigError
from ..layers.calls import Inputs
from ..layers.hooks import evaluating
from ..layers.names import Pattern, canonical_parameters, prunable, real_names
from ..masks.choose import count, spread, unit_scores
from ..masks.masks import Masks
from ..randomness import own_randomness
from ..train.evaluate import Shuffled
from ..train.run import Run
from ..typed import CountFromZero, Fraction, check, check_settings, checked

Example = Tensor | Data
Scope = Literal["global", "layer", "raw"]


@checked
def groups(model: nn.Module | Run, example: Example | None = None) -> Groups:
    """Which channels of which layers can only go together, by the data set or a batch of its images.

    >>> lab.structured.groups(model, data).channels
    400
    """
    return find_groups(*_given(model, example))


@checked
def prune(
    model: nn.Module | Run,
    example: Example | None,
    prune_fraction: Fraction,
    criterion: str | Criterion = "filter_l1",
    *,
    scope: str = "global",
    skip: Pattern | Sequence[Pattern] = (),
    groups: Groups | None = None,
    seed: CountFromZero = 0,
) -> tuple[nn.Module, Masks]:
    """A copy of `model` with the lowest channels cut in all layers that share them, and the masks.

    `prune_fraction` is of the channels that can be removed, each counted once in however many layers it is; every layer
    keeps one. The count is exact, but for grouped convolutions and attention, where channels go by several. What a run
    has cut before counts, and goes first. A channel's score is the mean over the layers that give it; one that scores
    infinity stays, and is not counted. What is cut is silenced: its biases and its norms' scales and shifts are 0 as
    well, so that `shrink` can take it out.

    Most scores grow with the size of a layer. `scope="global"` therefore compares how far a score lies from the mean of
    its group, in standard deviations. Only the scales of `norm_scale` are compared as they are, as its paper does;
    `"raw"` does so with any criterion, and can leave a layer one channel. `"layer"` takes the same share of each group.
    `skip` leaves out groups that give to these weights.

    `example` is the data set, or a batch of images where the criterion needs no data; `groups` saves finding the groups
    again.
    """
    data = example if isinstance(example, Data) else model.data if isinstance(model, Run) and example is None else None
    masks = model.masks.clone() if isinstance(model, Run) else None
    model, x = _given(model, example)
    masks = Masks.full(prunable(model)) if masks is None else masks
    check("scope", scope, Scope)
    found = find_groups(model, x) if groups is None else groups
    weights = prunable(model, skip=skip)
    free = [group for group in found if all(part.weight in weights for part in group.givers)]
    scores = _scores(model, criterion, data, seed)
    values = [_unit_scores(group, scores) for group in free]
    for group, value in zip(free, values, strict=True):
        alive = group.unit[~group.dead(masks)]
        value[~torch.isin(torch.arange(len(value)), alive)] = -math.inf
    pruned = copy.deepcopy(model)
    for group, gone in zip(free, _chosen(free, values, prune_fraction, criterion, scope), strict=True):
        for name, entries in group.entries(pruned, gone):
            if name in masks:
                masks[name][entries] = False
            pruned.get_parameter(name).data[entries] = 0
    return pruned, masks


@checked
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
    `skip=groups.fixed`. The score of a channel is its place in the order in which `structured.prune` would remove
    channels; `scope` means the same there. The best channel of each layer is kept, and so are all that are fixed. A
    sparsity counts a channel in every layer that gives it. The last channel may be cut in only some of its layers; then
    `structured.shrink` keeps it.
    """

    criterion: CriterionName | Criterion
    groups: Groups = field(repr=False)
    scope: Scope = "global"

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        scores = dict(registry.resolve(self.criterion)(model, batches))
        values = [_unit_scores(group, scores) for group in self.groups]
        places = [torch.full_like(value, math.inf) for value in values]
        for place, (number, unit) in enumerate(_order(self.groups, values, self.criterion, self.scope)):
            places[number][unit] = place
        for group, by_unit in zip(self.groups, places, strict=True):
            for part in group.parts:
                score = scores.get(part.weight)
                if part.side != "in" and score is not None and score.ndim > 1:
                    by_row = by_unit[group.unit[part.channel]].to(score).view(-1, *[1] * (score.ndim - 1))
                    scores[part.weight] = score = score.clone(memory_format=torch.contiguous_format)
                    for rows in part.made_by:
                        score[rows] = by_row
        return scores


def _scores(model: nn.Module, criterion: str | Criterion, data: Data | None, seed: int) -> Mapping[str, Tensor]:
    place = next(model.parameters()).device
    batches = Shuffled(data.train.to(place), 100, seed) if data else None
    with evaluating(model), own_randomness(seed):
        return registry.resolve(criterion)(model, batches)


def _unit_scores(group: Group, scores: Mapping[str, Tensor]) -> Tensor:
    """By unit the mean over its channels; of a channel that over the layers that give it and have a score for it.

    What is fixed, or has no score, scores infinity.
    """
    sums, seen = torch.zeros(group.size, dtype=torch.float64), torch.zeros(group.size)
    for part in () if group.fixed else group.parts:
        name = part.weight
        if part.side == "in" or name not in scores or scores[name].ndim < 2:
            continue
        rows = unit_scores(name, scores[name], "channel").cpu().double()
        mine = rows[part.made_by].mean(0)
        known = mine.isfinite()
        sums[part.channel[known]] += mine[known]
        seen[part.channel[known]] += 1
    by_channel, sizes = torch.where(seen > 0, sums / seen, math.inf), group.unit.bincount()
    return torch.zeros(len(sizes), dtype=torch.float64).index_add(0, group.unit, by_channel) / sizes


def _order(
    groups: Sequence[Group], values: Sequence[Tensor], criterion: str | Criterion, scope: str
) -> list[tuple[int, int]]:
    """All units that can go, the first to go first, as (number of the group, number of the unit).

    Of those that are equal each group gives the same share. What a layer needs to keep one is not there.
    """
    raw = scope == "raw" or registry.resolve(criterion) is norm_scale
    order: list[tuple[float, float, int, int]] = []
    for number, (group, value) in enumerate(zip(groups, values, strict=True)):
        share = value.argsort(stable=True).argsort() / len(value)
        compared = share if scope == "layer" else value if raw else _standardised(value)
        can_go = (~_needed(group, value)).nonzero().flatten().tolist()
        order += [(float(compared[unit]), float(share[unit]), number, unit) for unit in can_go]
    return [(number, unit) for _, _, number, unit in sorted(order)]


def _standardised(value: Tensor) -> Tensor:
    """How far from the mean of the group, in standard deviations: 0 for all, where they differ by rounding alone."""
    known = value[value.isfinite()]
    deviation = known.std(correction=0) if len(known) else known.sum()
    if deviation <= 1e-6 * known.abs().sum() / max(len(known), 1):
        return torch.where(value.isfinite(), 0.0, value)
    return (value - known.mean()) / deviation


def _needed(group: Group, value: Tensor) -> Tensor:
    """Units that stay whatever is cut: those that score infinity, and of each layer without any of these the best."""
    kept = value == math.inf
    for some in group.missing(kept):
        kept[some[value[some].argmax()]] = True
    return kept


def _chosen(
    free: Sequence[Group], values: Sequence[Tensor], share: float, criterion: str | Criterion, scope: str
) -> list[Tensor]:
    """Which channels go, by group."""
    sizes = [group.unit.bincount() for group in free]
    counted = [int(size[value < math.inf].sum()) for size, value in zip(sizes, values, strict=True)]
    if not (total := sum(counted)):
        raise ConfigError("no channel of this model can be removed; `structured.groups(model, example)` says why.")
    order, most = _order(free, values, criterion, scope), [0] * len(free)
    for number, unit in order:
        most[number] += int(sizes[number][unit])
    if (cut := count(total, share)) > sum(most):
        raise ConfigError(
            f"{cut:,} of {total:,} channels cannot go if each layer is to keep one: at most {sum(most):,}, "
            f"a share of {sum(most) / total:.4g}."
        )
    left = spread(cut, counted, most) if scope == "layer" else [cut]
    gone = [torch.zeros(len(size), dtype=torch.bool) for size in sizes]
    for number, unit in order:
        pot, size = number if scope == "layer" else 0, int(sizes[number][unit])
        if size <= left[pot]:
            gone[number][unit] = True
            left[pot] -= size
    return [flags[group.unit] for flags, group in zip(gone, free, strict=True)]


def _given(model: nn.Module | Run, example: Example | None) -> tuple[nn.Module, Tensor]:
    """A network, and some images on its device."""
    if isinstance(model, Run):
        example = model.data if example is None else example
        model = model.model
    if isinstance(example, Data):
        example = next(iter(example.val.batches([torch.arange(min(8, len(example.val)))])))[0]
    if isinstance(example, Inputs):
        raise ConfigError(
            f"{type(model).__name__} takes several inputs ({', '.join(example.parts())}), so it cannot be followed "
            "which of its channels go together. Give a network that takes one tensor, or prune single weights by "
            "`lab.prune`."
        )
    if not isinstance(model, nn.Module) or not isinstance(example, Tensor):
        raise ConfigError(
            f"got a {type(model).__name__} and a {type(example).__name__}; expected a torch.nn.Module or a finished "
            "Run, and the data set or a batch of its images."
        )
    return model, example.to(next(iter(model.parameters()), example).device)


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

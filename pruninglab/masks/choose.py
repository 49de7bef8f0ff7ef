"""Which weights are kept: `Masks`, the scope (`prunable`), and the two choices, `keep_top` and `grow`.

A sparsity is a fraction in [0, 1), or a dict from layer patterns to fractions. Counts are exact and ties are broken by
position, so the same scores give the same masks everywhere.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..typed import BelowOne, CountFromZero, checked
from .masks import UNITS, Masks, Scores, Sparsity, Unit, check_named, unit_alive, whole
from .threshold import counted, highest

Scope = Literal["global", "layer", "erk", "row"]


@checked
def keep_top(
    scores: Scores,
    sparsity: Sparsity,
    *,
    scope: Scope = "global",
    unit: Unit = "weight",
    masks: Mapping[str, Tensor] | None = None,
    clamp: bool = False,
) -> Masks:
    """Keep the highest scores, exactly as many as `sparsity` leaves.

    `scope`: `"global"` ranks all layers together, `"layer"` gives every layer the same share, `"erk"` gives each a
    density in proportion to (sum of its dimensions) / (their product). Both shares are rounded so that the total is
    exact, and never empty a layer. `"row"` compares within each output (the first dimension) and keeps equally many of
    each, one more of the first ones where the number does not divide. A dict as `sparsity` sets each layer by itself;
    layers that no pattern matches stay.
    `unit`: whole `"channel"`s (first dimension) or `"kernel"`s (first two) by their mean score; a sparsity then counts
    units. `masks`: what may only shrink; nothing outside them is kept. To keep more than they hold is refused,
    or with `clamp` means to keep all that they hold.

    >>> lab.keep_top({'a': torch.tensor([1.0, 3.0, 2.0, 4.0])}, 0.5)['a'].tolist()
    [False, True, False, True]
    """
    if scope == "row" and unit == "channel":
        raise ConfigError(
            "scope='row' compares within a channel, and unit='channel' cuts it whole: take another of them."
        )
    if not scores:
        raise ConfigError("there is nothing to prune: no scores were given. Does the model have conv or linear layers?")
    check_named(masks, scores)
    flat = {name: unit_scores(name, score, unit) for name, score in scores.items()}
    alive = {n: None if masks is None else unit_alive(masks[n], unit) for n in scores}
    caps = [len(flat[n]) if mask is None else counted(mask) for n, mask in alive.items()]
    alive = {n: None if cap == len(flat[n]) else alive[n] for n, cap in zip(alive, caps, strict=True)}
    if isinstance(sparsity, Mapping):
        keeps = _by_pattern(sparsity, {name: len(s) for name, s in flat.items()}, caps, clamp)
    else:
        total = sum(len(s) for s in flat.values())
        keep = total - count(total, sparsity)
        keep = min(keep, sum(caps)) if clamp else keep
        if keep > sum(caps):
            raise ConfigError(
                f"sparsity {float(sparsity):g} asks to keep {keep:,} of {total:,}, but only {sum(caps):,} are left. "
                "Pruned weights are never revived by a cut; `grow` brings weights back."
            )
        if scope == "global":
            top = highest([*flat.values()], [*alive.values()], keep)
            return _expand(dict(zip(flat, top, strict=True)), scores, unit, masks)
        keeps = spread(keep, _quotas(scope, scores, flat, unit), caps, least=1)
    if scope == "row":
        rows = {n: len(s) if s.ndim > 1 else 1 for n, s in scores.items()}
        chosen = {n: keep_in_rows(flat[n], alive[n], k, rows[n]) for n, k in zip(flat, keeps, strict=True)}
    else:
        chosen = {n: highest([flat[n]], [alive[n]], k)[0] for n, k in zip(flat, keeps, strict=True)}
    return _expand(chosen, scores, unit, masks)


@checked
def grow(masks: Masks, scores: Scores, counts: CountFromZero | Mapping[str, CountFromZero]) -> Masks:
    """Bring back the dead weights with the highest scores: `counts` of all together, or as many of each layer.

    >>> masks = lab.Masks(a=torch.tensor([True, False, False]))
    >>> lab.grow(masks, {'a': torch.tensor([0.0, 1.0, 2.0])}, {'a': 1})['a'].tolist()
    [True, False, True]
    """
    if not scores:
        raise ConfigError("scores={} name no layer; expected those of the layers that may grow.")
    check_named(masks, scores)
    dead = {name: ~masks[name].reshape(-1) for name in scores}
    flat = {name: unit_scores(name, score, "weight") for name, score in scores.items()}
    if isinstance(counts, Mapping):
        new = {
            name: keep_highest(flat[name], dead[name], _growable(counts.get(name, 0), dead[name])) for name in scores
        }
    else:
        top = highest([*flat.values()], [*dead.values()], _growable(counts, *dead.values()))
        new = dict(zip(flat, top, strict=True))
    return masks | {n: new[n].view(m.shape) if n in new else m for n, m in masks.items()}


@checked
def count(total: CountFromZero, share: BelowOne) -> int:
    """How many of `total` a share is, half rounded up; refuses what is no fraction or leaves nothing."""
    check_sparsity(share)
    cut = math.floor(total * share + 0.5)
    if cut >= total > 0:
        raise ConfigError(
            f"sparsity {float(share):g} would cut all {total:,}: the most that can be cut of them is {total - 1:,}."
        )
    return cut


@checked
def check_sparsity(sparsity: Sparsity) -> None:
    """Refuse what is no sparsity."""


@checked
def spread(
    total: CountFromZero, quotas: Sequence[float], caps: Sequence[CountFromZero], least: CountFromZero = 0
) -> list[int]:
    """Split `total` in proportion to `quotas`, none above its cap (the rest goes to the others), the sum exact.

    The remainders go to the largest fractions, then by position. Each with a cap gets `least` or more where it can.
    """
    if len(quotas) != len(caps):
        raise ConfigError(f"there are {len(quotas)} quotas for {len(caps)} caps; give one for each layer.")
    floor = [min(least, cap) for cap in caps]
    if not sum(floor) <= total <= sum(caps):
        raise ConfigError(
            f"{total:,} cannot be spread over {len(caps)} layers that hold from {sum(floor):,} to {sum(caps):,}. "
            "Ask for a sparsity between, or leave the small layers out with `skip`."
        )
    share = _filled(total, quotas, floor, caps)
    counts = [min(math.floor(s + 1e-9), cap) for s, cap in zip(share, caps, strict=True)]
    by_remainder = sorted(range(len(caps)), key=lambda i: (counts[i] - share[i], i))
    for i in (i for _ in range(len(caps)) for i in by_remainder):
        if sum(counts) == total:
            break
        counts[i] += counts[i] < caps[i]
    return counts


def _filled(total: int, quotas: Sequence[float], floor: Sequence[int], caps: Sequence[int]) -> list[float]:
    """The shares in proportion, each between its floor and its cap, before they are rounded."""
    share = [0.0] * len(caps)
    fixed: dict[int, float] = {}
    while True:  # water-filling: who exceeds a bound is fixed there, the others share what is left
        free = [i for i in range(len(caps)) if i not in fixed]
        weight = sum(quotas[i] for i in free)
        rest = total - sum(fixed.values())
        for i in free:
            share[i] = rest * quotas[i] / weight if weight > 0 else rest / len(free)
        above = {i: float(caps[i]) for i in free if share[i] > caps[i]}
        below = {i: float(floor[i]) for i in free if share[i] < floor[i]}
        if not above and not below:
            break
        over = sum(share[i] - b for i, b in above.items()) - sum(b - share[i] for i, b in below.items())
        fixed |= above if over > 0 or not below else below
    return [fixed.get(i, share[i]) for i in range(len(caps))]


@checked
def keep_highest(scores: Tensor, alive: Tensor, keep: CountFromZero) -> Tensor:
    """The `keep` highest of the alive; of equal scores the first."""
    return highest([scores.detach().flatten()], [alive.flatten()], keep)[0].view(scores.shape)


def keep_in_rows(scores: Tensor, alive: Tensor | None, keep: int, rows: int) -> Tensor:
    """The highest of the alive in each row, `keep` in all: equally many of each row, as far as it has so many."""
    alive = torch.ones_like(scores, dtype=torch.bool) if alive is None else alive
    scores, alive = scores.view(rows, -1), alive.view(rows, -1)
    quota = _evenly(keep, alive.sum(1))[:, None]
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, alive.gather(1, order).argsort(dim=1, descending=True, stable=True))  # the alive first
    first = torch.arange(scores.shape[1], device=quota.device) < quota
    return torch.zeros_like(alive).scatter_(1, order, first).flatten()


def _evenly(total: int, caps: Tensor) -> Tensor:
    """Equal shares of whole numbers, none above its cap; what does not divide goes to the first that have room."""
    level, above = 0, int(caps.max()) + 1
    while above - level > 1:  # the highest level that all can be filled to
        middle = (level + above) // 2
        level, above = (middle, above) if int(caps.clamp(max=middle).sum()) <= total else (level, middle)
    shares, room = caps.clamp(max=level), caps > level
    return shares + (room & (room.cumsum(0) <= total - shares.sum()))


def unit_scores(name: str, score: Tensor, unit: str) -> Tensor:
    score = score.detach().float() if score.dtype != torch.float64 else score.detach()
    by_unit = score.flatten() if whole(score, unit) else score.flatten(UNITS[unit]).mean(-1).flatten()
    if len(by_unit) and by_unit.amax().isnan():  # a unit of inf and -inf has no mean either
        raise ConfigError(f"the criterion gave NaN for {name}; scores must be numbers. Is the model's weight finite?")
    return by_unit


def _expand(chosen: Mapping[str, Tensor], scores: Scores, unit: str, within: Mapping[str, Tensor] | None) -> Masks:
    """Masks from the chosen units. Of a unit that was pruned in part, only what was left of it stays."""
    masks = Masks()
    for name, kept in chosen.items():
        shape = scores[name].shape
        if whole(scores[name], unit):
            masks[name] = kept.view(shape)
        else:
            leading = UNITS[unit] or 0
            masks[name] = kept.view(*shape[:leading], *(1 for _ in shape[leading:])).expand(shape).contiguous()
            if within is not None:
                masks[name] &= within[name]
    return masks


def _quotas(scope: str, scores: Scores, flat: Scores, unit: str) -> list[float]:
    if scope != "erk":
        return [float(len(s)) for s in flat.values()]
    sizes = ((sum(s.shape) if unit == "weight" else s.shape[0]) if s.ndim else 1 for s in scores.values())
    return list(map(float, sizes))


def _by_pattern(targets: Mapping[str, float], sizes: Mapping[str, int], caps: Iterable[int], clamp: bool) -> list[int]:
    for pattern in targets:
        if not any(fnmatchcase(name, pattern) for name in sizes):
            raise ConfigError(f"{pattern!r} matches no prunable layer; the model has {', '.join(sizes)}.")
    keeps = []
    for (name, size), cap in zip(sizes.items(), caps, strict=True):
        matching = [share for pattern, share in targets.items() if fnmatchcase(name, pattern)]
        keep = size - count(size, matching[-1]) if matching else cap
        keep = min(keep, cap) if clamp else keep
        if keep > cap:
            raise ConfigError(
                f"{name}: sparsity {float(matching[-1]):g} asks to keep {keep:,}, but only {cap:,} are left. "
                "Pruned weights are never revived by a cut; `grow` brings weights back."
            )
        keeps.append(keep)
    return keeps


def _growable(count: int, *dead: Tensor) -> int:
    most = sum(map(counted, dead))
    if not 0 <= count <= most:
        raise ConfigError(f"cannot grow {count:,} weights; between 0 and {most:,} are pruned here.")
    return count

"""The highest of many scores, exactly: without sorting them, and almost without copies."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Row = tuple[Tensor, Tensor | None]
"""The scores of a layer, flat, and which of them are alive; None is all of them."""
FEW = 1 << 15
"""Up to so many scores torch's own selection is the faster, and on other devices than the CPU always."""
CHUNK = 1 << 17
"""As many scores as stay in a core's cache while they are compared several times."""
JOINED = 1 << 20
"""Up to so many scores, layers are copied into one row: fewer calls, and still a small copy."""


def highest(scores: Sequence[Tensor], alive: Sequence[Tensor | None], keep: int) -> list[Tensor]:
    """The `keep` highest of the alive, of all layers together.

    The threshold comes first, then the position: `topk` leaves the order of ties open.
    """
    rows: list[Row] = list(zip(scores, alive, strict=True))
    sizes, kinds = [len(score) for score in scores], {(score.device.type, score.dtype) for score in scores}
    if len(rows) > 1 and (sum(sizes) <= JOINED or len(kinds) > 1 or scores[0].device.type != "cpu"):
        masks = None if all(mask is None for mask in alive) else torch.cat([_mask(row) for row in rows])
        return list(highest([torch.cat(list(scores))], [masks], keep)[0].split(sizes))
    held = sum(map(_held, rows))
    if keep >= held:
        return [_mask(row) for row in rows]
    if keep == 0:
        return [torch.zeros_like(score, dtype=torch.bool) for score in scores]
    threshold = kth_highest(rows, keep, held)
    chosen = [_within(_from(score, threshold), mask) for score, mask in rows]
    if spare := sum(map(counted, chosen)) - keep:
        _drop_last_ties(list(zip(scores, chosen, strict=True)), threshold, spare)
    return chosen


def kth_highest(rows: Sequence[Row], k: int, held: int) -> Tensor:
    """The k-th highest of the `held` alive: a sample brackets it, and only what lies between is ranked.

    After Floyd and Rivest, "Expected time bounds for selection", 1975. Where the sample misleads, all are ranked.
    On the CPU numpy compares and selects, several times as fast as torch.
    """
    first = rows[0][0]
    if held > FEW and first.device.type == "cpu":
        found = _between([(score.numpy(), None if m is None else m.numpy()) for score, m in rows], k, held)
        if found is not None:
            return torch.tensor(found, dtype=first.dtype)
    candidates = torch.cat([score if mask is None else score[mask] for score, mask in rows])
    return torch.kthvalue(candidates, len(candidates) - k + 1).values


def _between(rows: Sequence[tuple[Any, Any]], k: int, held: int) -> float | None:
    """The k-th highest of the alive, if it lies in the bracket."""
    low, high = _bracket(rows, k / held)
    above, inside, middle = 0, 0, []
    for score, mask in _chunks(rows):
        over, found = score > high, score >= low
        if mask is not None:
            over &= mask
            found &= mask
        found ^= over
        above += np.count_nonzero(over)
        places = np.flatnonzero(found) if low < high else ()
        inside += np.count_nonzero(found)
        middle.append(score[places] if low < high else score[:0])
    rank = inside - (k - above)  # from below, among those inside
    if not 0 <= rank < inside:
        return None
    return low if low == high else float(np.partition(np.concatenate(middle), rank)[rank])


def _bracket(rows: Sequence[tuple[Any, Any]], share: float) -> tuple[float, float]:
    """Two scores of an evenly spaced sample; all but surely the lowest of the highest `share` lies between them."""
    total = sum(len(score) for score, _ in rows)
    step = int(total ** (1 / 3) / 2) | 1  # odd, or rows of a power of two would be sampled in the same columns
    parts = [score[::step] if mask is None else score[::step][mask[::step]] for score, mask in rows]
    sample = np.sort(np.concatenate(parts))
    size = len(sample)
    slack = 4 * math.sqrt(size * share * (1 - share)) + 8  # four standard deviations of a rank in the sample
    low, high = math.floor(size - share * size - slack), math.ceil(size - share * size + slack)
    return (float(sample[low]) if low >= 0 else -math.inf), (float(sample[high]) if high < size else math.inf)


def _drop_last_ties(rows: Sequence[tuple[Tensor, Tensor]], threshold: Tensor, spare: int) -> None:
    """Take the last `spare` of those that equal the threshold out of the chosen, the masks of these rows."""
    for score, chosen in reversed(_chunks(rows)):
        ties = _within(score == threshold, chosen)
        number = counted(ties)
        chosen ^= ties & (ties.cumsum(0) > number - spare)
        spare -= min(number, spare)
        if not spare:
            return


def _chunks(rows: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    return [
        (score[i : i + CHUNK], None if mask is None else mask[i : i + CHUNK])
        for score, mask in rows
        for i in range(0, len(score), CHUNK)
    ]


def counted(mask: Tensor) -> int:
    """How many are True: numpy counts bytes five times as fast as torch."""
    return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else mask.count_nonzero())


def _held(row: Row) -> int:
    return len(row[0]) if row[1] is None else counted(row[1])


def _mask(row: Row) -> Tensor:
    return torch.ones_like(row[0], dtype=torch.bool) if row[1] is None else row[1].clone()


def _from(score: Tensor, threshold: Tensor) -> Tensor:
    if score.device.type != "cpu":
        return score >= threshold
    return torch.from_numpy(np.atleast_1d(score.numpy() >= threshold.numpy()))


def _within(found: Tensor, mask: Tensor | None) -> Tensor:
    return found if mask is None else found.logical_and_(mask)

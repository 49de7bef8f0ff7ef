"""The highest of many scores, exactly: without sorting them, and almost without copies."""

import math
from collections.abc import Sequence

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
    chosen = [_within(score >= threshold, mask) for score, mask in rows]
    if spare := sum(int(kept.count_nonzero()) for kept in chosen) - keep:
        _drop_last_ties(list(zip(scores, chosen, strict=True)), threshold, spare)
    return chosen


def kth_highest(rows: Sequence[Row], k: int, held: int) -> Tensor:
    """The k-th highest of the `held` alive: a sample brackets it, and only what lies between is ranked.

    After Floyd and Rivest, "Expected time bounds for selection", 1975. Where the sample misleads, all are ranked.
    """
    found = None
    if held > FEW and rows[0][0].device.type == "cpu":
        found = _between(rows, k, *_bracket(rows, k / held))
    candidates, k = found or (torch.cat([_alive(row) for row in rows]), k)
    return torch.kthvalue(candidates, len(candidates) - k + 1).values


def _bracket(rows: Sequence[Row], share: float) -> tuple[float, float]:
    """Two scores of an evenly spaced sample; all but surely the lowest of the highest `share` lies between them."""
    total = sum(len(score) for score, _ in rows)
    step = int(total ** (1 / 3) / 2) | 1  # odd, or rows of a power of two would be sampled in the same columns
    every = [(score[::step], None if mask is None else mask[::step]) for score, mask in rows]
    sample = torch.cat([_alive(row) for row in every])
    size = len(sample)
    slack = 4 * math.sqrt(size * share * (1 - share)) + 8  # four standard deviations of a rank in the sample
    first, last = math.floor(share * size - slack), math.ceil(share * size + slack)
    high = float(torch.kthvalue(sample, size - first + 1).values) if first > 0 else math.inf
    low = float(torch.kthvalue(sample, size - last + 1).values) if last <= size else -math.inf
    return low, high


def _between(rows: Sequence[Row], k: int, low: float, high: float) -> tuple[Tensor, int] | None:
    """The alive scores from `low` to `high`, and the rank of the k-th highest among them; None if it is elsewhere."""
    above, inside, middle = 0, 0, []
    for score, mask in _chunks(rows):
        over, found = _within(score > high, mask), _within(score >= low, mask)
        found ^= over
        above += int(over.count_nonzero())
        inside += int(found.count_nonzero())
        if low < high:
            middle.append(score[found])
    if not above < k <= above + inside:
        return None
    if low == high:  # all alike
        return torch.full((1,), low, dtype=rows[0][0].dtype), 1
    return torch.cat(middle), k - above


def _drop_last_ties(rows: Sequence[Row], threshold: Tensor, spare: int) -> None:
    """Take the last `spare` of those that equal the threshold out of the chosen, the masks of these rows."""
    for score, chosen in reversed(_chunks(rows)):
        ties = _within(score == threshold, chosen)
        number = int(ties.count_nonzero())
        if chosen is not None:
            chosen ^= ties & (ties.cumsum(0) > number - spare)
        spare -= min(number, spare)
        if not spare:
            return


def _chunks(rows: Sequence[Row]) -> list[Row]:
    chunks: list[Row] = []
    for score, mask in rows:
        parts = score.split(CHUNK if score.device.type == "cpu" else max(len(score), 1))
        masks = [None] * len(parts) if mask is None else mask.split(len(parts[0]))
        chunks += zip(parts, masks, strict=True)
    return chunks


def _alive(row: Row) -> Tensor:
    return row[0] if row[1] is None else row[0][row[1]]


def _held(row: Row) -> int:
    return len(row[0]) if row[1] is None else int(row[1].count_nonzero())


def _mask(row: Row) -> Tensor:
    return torch.ones_like(row[0], dtype=torch.bool) if row[1] is None else row[1].clone()


def _within(found: Tensor, mask: Tensor | None) -> Tensor:
    return found if mask is None else found.logical_and_(mask)

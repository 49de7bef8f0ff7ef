"""Three splits of one data set: validation images are held out of the training images by the seed."""

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import ConfigError
from ..randomness import key
from .dataset import AnySplit, Data
from .soundness import noted
from .splits import Augmentation, Split
from .streams import StreamSplit


def _subset(split: AnySplit, n: int | None, what: str) -> AnySplit:
    if n is None or n == len(split):
        return split
    if n > len(split):
        raise ConfigError(f"{n:,} {what} were asked for, there are {len(split):,}: ask for at most that many")
    return split.take(stratified(split.y, n, key(0, "subset")))


def statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of uint8 images, of values in [0, 1], to four digits."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    shares = torch.stack([x[:, c].flatten().bincount(minlength=256) for c in range(x.shape[1])]).double()
    shares /= shares.sum(1, keepdim=True)
    mean = shares @ levels
    std = (shares @ levels**2 - mean**2).clamp_min(0).sqrt()
    return tuple(round(m, 4) for m in mean.tolist()), tuple(round(s, 4) or 1.0 for s in std.tolist())


def stratified(y: Tensor, n: int, seed: int) -> Tensor:
    """Positions of `n` items, ascending, with every class in its share as nearly as whole numbers allow.

    Items with a label at each place are of one kind, and so are those whose label is a number with a point.
    """
    y = y if y.dim() == 1 and not y.is_floating_point() else torch.zeros(len(y))
    _, counts = y.unique(return_counts=True)
    exact = counts.double() * n / len(y)
    quota = exact.floor().long()
    quota[(exact - quota).argsort(descending=True, stable=True)[: n - int(quota.sum())]] += 1
    g = torch.Generator().manual_seed(seed)
    classes = y.argsort(stable=True).split(counts.tolist())
    chosen = [at[torch.randperm(len(at), generator=g)[:k]] for at, k in zip(classes, quota.tolist(), strict=True)]
    return torch.cat(chosen).sort().values


def whole_groups(groups: Tensor, n: int, seed: int) -> Tensor:
    """Positions of about `n` items, ascending: all of some groups, which the seed draws. At least one group stays."""
    sizes = groups.bincount()
    held = sizes.nonzero()[:, 0]
    order = held[torch.randperm(len(held), generator=torch.Generator().manual_seed(seed))][:-1]
    enough = int((sizes[order].cumsum(0) < n).sum()) + 1
    return torch.isin(groups, order[:enough]).nonzero()[:, 0]


def _others(index: Tensor, n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool).index_fill_(0, index, False).nonzero()[:, 0]


def _assembled(
    name: str,
    pool: AnySplit,
    val: float | str | AnySplit,
    test: AnySplit,
    class_names: tuple[str, ...],
    seed: int,
    augment: tuple[Augmentation, ...],
    groups: Tensor | None = None,
    source: str = "",
    notes: tuple[str, ...] = (),
) -> Data:
    """`groups` says which training items may only be held out together."""
    if val == "test":
        val = test
    if not isinstance(val, Split | StreamSplit):
        n = len(pool)
        if n < 2:
            raise ConfigError(f"with {n} training image none is left once {val:.0%} are held out: give 2 or more")
        wanted, drawn = min(max(1, round(float(val) * n)), n - 1), key(seed, "validation")
        held = stratified(pool.y, wanted, drawn) if groups is None else whole_groups(groups, wanted, drawn)
        pool, val = pool.take(_others(held, n)), pool.take(held)
    train = replace(pool, augment=augment)
    if isinstance(train, StreamSplit):
        train = replace(train, varied=True)
    made = Data(name, len(class_names), class_names, train.shape, train, val, test, seed, source, notes)
    return noted(made)

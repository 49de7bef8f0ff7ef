"""What is wrong with a data set, found once, when it is made: before a training learns from it."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import DataError
from .dataset import AnySplit, Data
from .splits import Split
from .streams import not_finite

FEW = 10
"""So many classes may be counted without an item, before labels are taken for something else."""


def check_pixels(split: AnySplit, part: str) -> None:
    """Refuse NaN and infinity, which end as an accuracy of numbers that are none."""
    if not isinstance(split, Split):
        return  # a stream looks at each batch that it reads
    strange = not_finite(split.x)
    if len(strange):
        raise DataError(
            f"item {strange[0]} of the {part} dataset holds NaN or infinity, {len(strange):,} of {len(split):,} items "
            "do: leave them out, or put a number where one is missing."
        )


def check_labels(splits: Sequence[AnySplit], names_given: bool) -> None:
    """Refuse labels that can be no class numbers: a single large one makes a network of so many classes."""
    if any(split.y.is_floating_point() or not split.y.numel() for split in splits):
        return
    y = torch.cat([split.y.flatten() for split in splits])
    found, classes = len(y.unique()), int(y.max()) + 1
    if not names_given and classes > 2 * found + FEW:
        raise DataError(
            f"only {found} labels occur, but they run to {classes - 1:,}: that would make {classes:,} classes. Number "
            "the classes from 0 without gaps, or give class_names= for all of them."
        )


def check_taught(pool: AnySplit, test: AnySplit, names: Sequence[str]) -> None:
    """Refuse a test of classes that no training item has."""
    if not _has_classes(pool):
        return
    missing = sorted({*test.y.unique().tolist()} - {*pool.y.unique().tolist()})
    if missing:
        raise DataError(
            f"no training item has the class {_some(missing, names)}, which test items have: add some, or leave these "
            "out of the test."
        )


def noted(data: Data) -> Data:
    """The set with what is odd about it as `notes`, which its records hold; images that are all alike are refused."""
    notes = [*data.notes]
    for part, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        if len(split) == 1:
            notes.append(f"the {part} split is a single item")
        if _has_classes(split) and (absent := sorted({*range(data.classes)} - {*split.y.unique().tolist()})):
            notes.append(f"no {part} item has the class {_some(absent, data.class_names)}")
    if _all_alike(data.train):
        raise DataError(
            f"all {len(data.train):,} training items are the same, although their labels differ: there is nothing to "
            "learn from. Are they converted or scaled twice?"
        )
    if blank := _blank(data.train):
        notes.append(f"{blank:,} of {len(data.train):,} training images are of one colour throughout")
    return replace(data, notes=tuple(notes)) if notes else data


def _has_classes(split: AnySplit) -> bool:
    """Whether each item has one class."""
    return split.y.dim() == 1 and not split.y.is_floating_point()


def _all_alike(split: AnySplit) -> bool:
    """Whether items in memory are all one and the same, of several classes."""
    x = split.x if isinstance(split, Split) else None
    if not isinstance(x, Tensor) or not _has_classes(split) or len(split.y.unique()) < 2:
        return False
    return bool((x[0] == x[-1]).all()) and bool((x == x[:1]).all())  # nearly always the first look tells


def _blank(split: AnySplit) -> int:
    """How many images in memory, of more than a pixel, are of one colour."""
    x = split.x if isinstance(split, Split) else None
    if not isinstance(x, Tensor) or x.dim() != 4 or x[0, 0].numel() == 1:
        return 0
    flat = x.flatten(2)  # (n, C, H * W)
    return int((flat.amax(2) == flat.amin(2)).all(1).count_nonzero())


def _some(classes: Sequence[int], names: Sequence[str]) -> str:
    shown = [names[c] if c < len(names) else str(c) for c in classes[:3]]
    return ", ".join(shown) + (f" (and {len(classes) - 3} more)" if len(classes) > 3 else "")

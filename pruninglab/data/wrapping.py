"""Your own `Dataset` as `Data`."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from ..errors import ConfigError, DataError
from .assembling import _assembled, _check_share, statistics
from .dataset import AnySplit, Data
from .loading import Augment
from .splits import Split, augmentations
from .streams import DatasetItems, StreamSplit, as_tensor, stacked


def wrap(
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    val: float | Dataset[Any] = 0.1,
    seed: int = 0,
    name: str = "custom",
    class_names: Sequence[str] | None = None,
    augment: Augment = (),
    resident: bool = True,
    workers: int = 2,
) -> Data:
    """Your own data: anything with a length that gives `(x, y)`.

    y is a whole number from 0, or one for each place of a sequence (`(length,)`), as `sorting` has.

    `resident` reads every item once and keeps it: PIL images and uint8 tensors as uint8, normalised by the training
    images; other tensors as they are. Otherwise items are read by `workers` processes whenever they are needed.
    """
    chosen = augmentations(augment)
    given = {"train": train, "test": test}
    if isinstance(val, Dataset):
        given["val"] = val
    else:
        _check_share(val)
    splits: dict[str, AnySplit] = {
        part: _gathered(dataset, part) if resident else _streamed(dataset, part, workers)
        for part, dataset in given.items()
    }
    pool = splits["train"]
    _check_alike(splits)
    if chosen and len(pool.shape) != 3:
        raise ConfigError(f"augmentations are for images (C, H, W), these items are {pool.shape}: leave augment= out")
    names = _class_names(splits, class_names)
    if _sample(pool, 1).dtype == torch.uint8:
        mean, std = statistics(_sample(pool, 1000))
        splits = {part: replace(split, mean=mean, std=std) for part, split in splits.items()}
    held = splits["val"] if isinstance(val, Dataset) else float(val)
    return _assembled(name, splits["train"], held, splits["test"], names, seed, chosen)


def _items(dataset: Dataset[Any], part: str) -> DatasetItems:
    count = getattr(dataset, "__len__", None)
    if count is None:
        raise ConfigError(
            f"the {part} dataset ({type(dataset).__name__}) has no length: give one with __len__ and __getitem__, "
            "or read an iterable one into a TensorDataset first"
        )
    if count() == 0:
        raise DataError(f"the {part} dataset is empty: it must hold at least one image")
    return DatasetItems(dataset, torch.arange(count()))


def _gathered(dataset: Dataset[Any], part: str) -> Split:
    items = _items(dataset, part)
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        x, y = dataset.tensors
        return Split(x.reshape(len(x), *as_tensor(x[0]).shape), _labels(y, part))
    xs, ys = zip(*(items.pair((position, None)) for position in range(len(items.index))), strict=True)
    return Split(stacked(xs), _labels(ys, part))


def _streamed(dataset: Dataset[Any], part: str, workers: int) -> StreamSplit:
    items = _items(dataset, part)
    known = _known_labels(dataset)
    if known is None:
        known = [items.pair((position, None))[1] for position in range(len(items.index))]
    return StreamSplit(items, _labels(known, part), tuple(items[0, None].shape), workers=workers)


def _known_labels(dataset: Dataset[Any]) -> Any:
    """Labels that a dataset tells without reading its items, or None."""
    if isinstance(dataset, Subset):
        inner = _known_labels(dataset.dataset)
        return None if inner is None else [inner[i] for i in dataset.indices]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return dataset.tensors[1]
    if getattr(dataset, "target_transform", None) is not None:
        return None  # what it tells is not what it gives
    return getattr(dataset, "targets", None)


def _labels(labels: Any, part: str) -> Tensor:
    y = _label_tensor(labels, part)
    if y.dim() not in (1, 2) or y.is_floating_point() or y.is_complex():
        raise DataError(
            f"labels of the {part} dataset must be one whole number per item or per place of an item, got {y.dtype} of "
            f"shape {tuple(y.shape)}: give class numbers counted from 0"
        )
    if strange := _first(y, y < 0):
        raise DataError(f"item {strange[0]} of the {part} dataset has the label {strange[1]}: count classes from 0")
    return y.long()


def _label_tensor(labels: Any, part: str) -> Tensor:
    """(n,), or (n, places): a tensor, a list of numbers, of lists or of tensors."""
    with suppress(ValueError, TypeError):  # which torch raises for a list of lists or of tensors that differ in size
        return torch.as_tensor(labels)
    each = [torch.as_tensor(label) for label in labels]
    sizes = [tuple(label.shape) for label in each]
    if different := next((i for i, size in enumerate(sizes) if size != sizes[0]), None):
        raise DataError(
            f"item {different} of the {part} dataset has labels of shape {sizes[different]}, item 0 {sizes[0]}: give "
            "each item one label, or as many places with labels as the others"
        )
    return torch.stack(each)


def _first(y: Tensor, strange: Tensor) -> tuple[int, int] | None:
    """The first item with a strange label, and that label."""
    at = strange.nonzero()
    return (int(at[0, 0]), int(y[tuple(at[0])])) if len(at) else None


def _check_alike(splits: dict[str, AnySplit]) -> None:
    expected = splits["train"].shape, _sample(splits["train"], 1).dtype
    for part, split in splits.items():
        found = split.shape, _sample(split, 1).dtype
        if found != expected:
            raise DataError(
                f"{part} items are {found[0]} {found[1]}, train items {expected[0]} {expected[1]}: make them alike"
            )
        if split.y.shape[1:] != splits["train"].y.shape[1:]:
            raise DataError(
                f"a {part} item has labels of shape {tuple(split.y.shape[1:])}, a train item of shape "
                f"{tuple(splits['train'].y.shape[1:])}: make them alike"
            )


def _class_names(splits: dict[str, AnySplit], class_names: Sequence[str] | None) -> tuple[str, ...]:
    names = range(int(splits["train"].y.max()) + 1) if class_names is None else class_names
    for part, split in splits.items():
        if strange := _first(split.y, split.y >= len(names)):
            raise DataError(
                f"item {strange[0]} of the {part} dataset has the label {strange[1]}, but there are "
                f"{len(names)} classes (0 to {len(names) - 1}): correct the label or give all class_names"
            )
    return tuple(str(name) for name in names)


def _sample(split: AnySplit, n: int) -> Tensor:
    """Raw items: all of a resident split, up to `n` evenly spaced ones of a stream."""
    if isinstance(split, Split):
        return split.x
    positions = torch.linspace(0, len(split) - 1, min(n, len(split))).long().tolist()
    return stacked([split.items[position, None] for position in positions])

"""Your own data as `Data`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from ..errors import ConfigError, DataError
from ..layers.calls import Inputs
from ..typed import Count, CountFromZero, PartialFraction, check, checked
from .assembling import _assembled, statistics
from .dataset import AnySplit, Data
from .loading import Augment
from .soundness import check_labels, check_pixels, check_taught
from .splits import NO_LABEL, Split, augmentations
from .streams import DatasetItems, StreamSplit, as_tensor, pair_of, stacked


@checked
def wrap(
    train: Any,
    test: Any,
    *,
    val: Any = 0.1,
    seed: CountFromZero = 0,
    name: str = "custom",
    class_names: Sequence[str] | None = None,
    augment: Augment = (),
    labels: str | None = "labels",
    collate: Callable[[list[Any]], Any] | None = None,
    length: Count | None = None,
    resident: bool = True,
    workers: CountFromZero = 2,
) -> Data:
    """Your own data as three splits: a `Dataset`, a `DataLoader`, a Hugging Face data set, or a pair of arrays.

    An item is `(x, y)`, or a dict with its label under the key `labels`. x is a tensor, an array, an image, or a tuple
    or dict of arrays for a network that takes several. y is a whole number from 0, one for each place of a sequence
    (-100 where a place does not count), or a number with a point for regression. With `labels=None` the network gets
    all of an item and returns its loss itself.

    `collate` makes one batch of a list of items, and so pads them. Of what has no length, `length` items are read.
    `resident` reads every item once and keeps it: PIL images and uint8 tensors as uint8, normalised by the training
    images; other tensors as they are. Otherwise items are read by `workers` processes whenever they are needed.

    >>> pairs = [(torch.full((1, 8, 8), i / 20), i % 2) for i in range(20)]
    >>> lab.wrap(pairs, pairs).classes
    2
    """
    chosen = augmentations(augment)
    given = {"train": train, "test": test}
    share = isinstance(val, int | float | str)
    if share:
        check("wrap: val", val, PartialFraction)
    else:
        given["val"] = val
    read = partial(_read, labels=labels, collate=collate, length=length, workers=None if resident else workers)
    splits: dict[str, AnySplit] = {part: read(dataset, part) for part, dataset in given.items()}
    pool = splits["train"]
    _check_alike(splits)
    if chosen and len(pool.shape) != 3:
        raise ConfigError(f"augmentations are for images (C, H, W), these items are {pool.shape}: leave augment= out")
    for part, split in splits.items():
        check_pixels(split, part)
    check_labels(list(splits.values()), class_names is not None)
    names = _class_names(splits, class_names)
    check_taught(pool, splits["test"], names)
    sample = _sample(pool, 1000 if _types(_sample(pool, 1)) == ["torch.uint8"] else 1)
    if isinstance(sample, Tensor) and sample.dtype == torch.uint8:
        mean, std = statistics(sample)
        splits = {part: replace(split, mean=mean, std=std) for part, split in splits.items()}
    held = float(val) if share else splits["val"]
    return _assembled(name, splits["train"], held, splits["test"], names, seed, chosen)


def _read(
    dataset: Any,
    part: str,
    labels: str | None,
    collate: Callable[[list[Any]], Any] | None,
    length: int | None,
    workers: int | None,
) -> AnySplit:
    """One split: held in memory where `workers` is None, read when asked for otherwise."""
    if isinstance(dataset, DataLoader):
        own = dataset.collate_fn if dataset.collate_fn is not default_collate else None
        dataset, collate = dataset.dataset, collate or own
    if isinstance(dataset, str | Mapping):
        raise ConfigError(f"{part} is a {type(dataset).__name__}; expected a Dataset, a DataLoader or (x, y).")
    if isinstance(dataset, tuple):
        return _whole(dataset, part, labels)
    if not hasattr(dataset, "__len__"):
        dataset = _first_items(dataset, part, length)
    items = DatasetItems(dataset, torch.arange(len(dataset)), labels)
    if not len(items.index):
        raise DataError(f"the {part} dataset is empty: it must hold at least one image")
    if workers is not None:
        if collate:
            raise ConfigError("collate= makes one batch of a whole split, so take resident=True; or pad in the dataset")
        return _streamed(items, part, workers)
    if collate:
        return _whole(collate([dataset[position] for position in range(len(dataset))]), part, labels)
    return _gathered(items, part)


def _first_items(dataset: Any, part: str, length: int | None) -> list[Any]:
    if length is None:
        raise ConfigError(
            f"the {part} dataset ({type(dataset).__name__}) has no length: give one with __len__ and __getitem__, "
            "or length=, how many of its items to read"
        )
    items = list(islice(dataset, length))
    if len(items) < length:
        raise DataError(f"the {part} dataset gave {len(items):,} items; length={length:,} asked for more")
    return items


def _whole(batch: Any, part: str, labels: str | None) -> Split:
    """A split that comes as one batch of arrays."""
    x, y = pair_of(batch, labels)
    x = x if isinstance(x, Inputs | Tensor) else torch.as_tensor(x)
    lengths = {name: len(tensor) for name, tensor in x.parts().items()} if isinstance(x, Inputs) else {"x": len(x)}
    lengths |= {"labels": len(y)} if labels is not None else {}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        told = ", ".join(f"{name} {n:,}" for name, n in lengths.items())
        raise DataError(f"the arrays of the {part} data have different lengths, or none: {told}")
    return Split(x, _labels(y if labels is not None else torch.empty(len(x), 0), part))


def _gathered(items: DatasetItems, part: str) -> Split:
    dataset = items.dataset
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2 and items.labels is not None:
        x, y = dataset.tensors
        return Split(x.reshape(len(x), *as_tensor(x[0]).shape), _labels(y, part))
    xs, ys = zip(*(items.pair((position, None)) for position in range(len(items.index))), strict=True)
    return Split(stacked(xs), _labels(ys, part))


def _streamed(items: DatasetItems, part: str, workers: int) -> StreamSplit:
    known = _known_labels(items.dataset) if items.labels is not None else torch.empty(len(items.index), 0)
    if known is None:
        known = [items.pair((position, None))[1] for position in range(len(items.index))]
    return StreamSplit(items, _labels(known, part), tuple(items[0, None].shape), workers=workers)


def _known_labels(dataset: Any) -> Any:
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
    if y.is_floating_point():
        return y.float()
    if y.dim() not in (1, 2) or y.is_complex():
        raise DataError(
            f"labels of the {part} dataset must be one whole number per item or per place of an item, got {y.dtype} of "
            f"shape {tuple(y.shape)}: give class numbers counted from 0"
        )
    if strange := _first(y, (y < 0) & ((y != NO_LABEL) | (y.dim() == 1))):
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
    expected = splits["train"].shape, _types(_sample(splits["train"], 1))
    labels = tuple(splits["train"].y.shape[1:])
    for part, split in splits.items():
        found = split.shape, _types(_sample(split, 1))
        if found != expected:
            told, wanted = (f"{shape} {' '.join(types)}" for shape, types in (found, expected))
            raise DataError(f"{part} items are {told}, train items {wanted}: make them alike")
        if split.y.shape[1:] != labels:
            raise DataError(
                f"a {part} item has labels of shape {tuple(split.y.shape[1:])}, a train item of shape "
                f"{labels}: make them alike"
            )
        if split.y.dtype != splits["train"].y.dtype:
            raise DataError(
                f"labels of the {part} dataset are {split.y.dtype}, of the train dataset {splits['train'].y.dtype}: "
                "give whole numbers for classes, numbers with a point for regression"
            )


def _types(x: Any) -> list[str]:
    """The types of a batch, and of several inputs their names and shapes too."""
    if isinstance(x, Tensor):
        return [str(x.dtype)]
    return [f"{name} {part.dtype} {tuple(part.shape[1:])}" for name, part in x.parts().items()]


def _class_names(splits: dict[str, AnySplit], class_names: Sequence[str] | None) -> tuple[str, ...]:
    y = splits["train"].y
    if y.is_floating_point():
        return tuple(class_names or ())
    names = range(int(y.max()) + 1) if class_names is None else class_names
    for part, split in splits.items():
        if strange := _first(split.y, split.y >= len(names)):
            raise DataError(
                f"item {strange[0]} of the {part} dataset has the label {strange[1]}, but there are "
                f"{len(names)} classes (0 to {len(names) - 1}): correct the label or give all class_names"
            )
    return tuple(str(name) for name in names)


def _sample(split: AnySplit, n: int) -> Any:
    """Raw items: all of a resident split, up to `n` evenly spaced ones of a stream."""
    if isinstance(split, Split):
        return split.x
    positions = torch.linspace(0, len(split) - 1, min(n, len(split))).long().tolist()
    return stacked([split.items[position, None] for position in positions])

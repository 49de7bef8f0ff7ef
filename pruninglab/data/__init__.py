"""Data sets by name, or from any `Dataset`: three splits, and a fingerprint that says which images are in which.

    data = load("digits", augment="shift")
    for x, y in data.val: ...                 # normalised float batches, in order

The test split is the same for every seed; validation images are held out of the training images by the seed.
"""

import difflib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset, TensorDataset

from .._html import table
from ..errors import ConfigError, DataError
from ..seeds import key
from .generated import DIGITS, NUMBERS, TEXTURES, sorting, strokes, textures
from .splits import Augmentation, Crop, Cutout, Flip, Shift, Split, augmentations
from .stored import PUBLISHED, Pairs, cached, data_folder, read_digits, read_published, read_tree
from .streams import DatasetItems, ImageFiles, StreamSplit, as_tensor, stacked

__all__ = ["Crop", "Cutout", "Data", "Flip", "Shift", "Split", "StreamSplit", "available", "load", "wrap"]

AnySplit = Split | StreamSplit
Augment = str | Sequence[str | Augmentation]


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set in three splits. Choices look at `val`; `test` is for the end."""

    name: str
    classes: int
    class_names: tuple[str, ...]
    shape: tuple[int, ...]
    train: AnySplit
    val: AnySplit
    test: AnySplit
    seed: int = 0

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two data sets that hold the same images in the same splits."""
        digest = hashlib.sha256()
        for _, split in self._parts():
            split.digest(digest)
        return digest.hexdigest()[:16]

    @cached_property
    def val_is_test(self) -> bool:
        """Whether choices are made on the very images that test accuracy is of: a paper's habit, never a default."""
        if len(self.val) != len(self.test):
            return False
        digests = [hashlib.sha256(), hashlib.sha256()]
        for split, digest in zip((self.val, self.test), digests, strict=True):
            split.digest(digest)
        return digests[0].digest() == digests[1].digest()

    def to(self, device: str | torch.device) -> Self:
        moved = replace(self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device))
        if "fingerprint" in vars(self):
            vars(moved)["fingerprint"] = self.fingerprint
        return moved

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {len(split):,}" for part, split in self._parts())
        return f"Data({self._title()}, {sizes})"

    def _repr_html_(self) -> str:
        return table(("split", "images"), [(part, f"{len(split):,}") for part, split in self._parts()], self._title())

    def _title(self) -> str:
        label = ", choices are made on test" if self.val_is_test else ""
        return f"{self.name}: {self.classes} classes, {'x'.join(map(str, self.shape))}, seed {self.seed}{label}"

    def _parts(self) -> tuple[tuple[str, AnySplit], ...]:
        return ("train", self.train), ("val", self.val), ("test", self.test)


# --- by name ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generated:
    about: str
    draw: Callable[[int, int], Pairs]
    train: int
    test: int
    class_names: tuple[str, ...]


GENERATED = {
    "strokes": Generated("drawn digits, 28x28 grey, as many as wanted", strokes, 8000, 2000, DIGITS),
    "textures": Generated("drawn patterns in colour, 32x32, as many as wanted", textures, 5000, 2000, TEXTURES),
    "sorting": Generated("sequences of numbers, to be put in order", sorting, 8000, 2000, NUMBERS),
}
TRAIN_SEED, TEST_SEED = 1, 2
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def available() -> list[tuple[str, str, bool]]:
    """Name, description, and whether `load` needs no download, of every set with a name of its own."""
    root = data_folder()
    return [
        ("digits", "1,797 handwritten digits of scikit-learn, 8x8 grey brought to 28x28", True),
        *((name, kind.about, True) for name, kind in GENERATED.items()),
        *((name, kind.about, not kind.missing(root)) for name, kind in PUBLISHED.items()),
    ]


def load(
    name: str,
    *,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    size: int | None = None,
    train: int | None = None,
    test: int | None = None,
    val: float | str = 0.1,
    augment: Augment = (),
    workers: int = 2,
) -> Data:
    """A data set by name: those of `available()`, or `folder:PATH` for PATH/train/CLASS/*.jpg and the like.

    `train` and `test` are numbers of images: how many to draw, or a subset with every class in its share. `val` is the
    share of the training images held out by `seed`; nothing else depends on the seed. `val="test"` holds nothing out
    and chooses on the test images, as some papers do; data, runs and records then say so. `size` is the side of the
    images.
    `augment` is applied to training batches: shift, crop, flip, cutout, joined by "+". Image files are read by
    `workers` processes; their training images are also cut at random and mirrored.
    """
    if val != "test":
        _check_share(val)
    _check_counts(train=train, test=test, size=size)
    chosen = augmentations(augment)
    held: float | str | AnySplit = val
    if name.startswith("folder:"):
        pool, own_val, tested, class_names = _folder(Path(name.removeprefix("folder:")), size or 224, workers)
        held = held if val == "test" else own_val or held
    else:
        pool, tested, class_names = _resident(name, data_folder(root), download, size, train, test)
    pool = _subset(pool, train, f"training images of {name}")
    tested = _subset(tested, test, f"test images of {name}")
    return _assembled(name, pool, held, tested, class_names, seed, chosen)


def _check_share(val: Any) -> None:
    if not isinstance(val, int | float) or not 0 < val < 1:
        raise ConfigError(
            f"val={val!r} is the share of training images held out: take one between 0 and 1, as 0.1; "
            "load(val='test') chooses on the test images"
        )


def _check_counts(**counts: int | None) -> None:
    for what, count in counts.items():
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ConfigError(f"{what}={count!r} must be a whole number of 1 or more, or None for the default")


def _resident(
    name: str, root: Path, download: bool, size: int | None, train: int | None, test: int | None
) -> tuple[Split, Split, tuple[str, ...]]:
    if name in GENERATED:
        kind = GENERATED[name]
        pool, tested = (
            cached(kind.draw, train or kind.train, TRAIN_SEED),
            cached(kind.draw, test or kind.test, TEST_SEED),
        )
        class_names = kind.class_names
        if pool[0].dim() != 4:  # tokens, not images
            return Split(*pool), Split(*tested), class_names
        mean, std = statistics(pool[0])
    elif name in PUBLISHED:
        pool, tested, class_names = read_published(name, root, download)
        mean, std = PUBLISHED[name].mean, PUBLISHED[name].std
    elif name == "digits":
        size = size or 28
        x, y = read_digits()
        held = stratified(y, 360, key(0, "digits"))
        rest = _others(held, len(y))
        pool, tested, class_names = (x[rest], y[rest]), (x[held], y[held]), tuple("0123456789")
        mean, std = statistics(_resized(pool[0], size))
    else:
        raise ConfigError(_unknown(name))
    splits = (Split(_resized(x, size), y, mean, std) for x, y in (pool, tested))
    return next(splits), next(splits), class_names


def _unknown(name: str) -> str:
    names = [known for known, _, _ in available()]
    nearest = difflib.get_close_matches(name.lower(), [known.lower() for known in names], n=1, cutoff=0.5)
    meant = next((f", did you mean {known!r}?" for known in names if [known.lower()] == nearest), ":")
    return f"no data set is called {name!r}{meant} There are {', '.join(names)}, and folder:PATH for image files"


def _folder(
    path: Path, size: int, workers: int
) -> tuple[StreamSplit, StreamSplit | None, StreamSplit, tuple[str, ...]]:
    """Training pool, validation split where it has a folder of its own, and test split.

    Without a `test` folder `val` is the published test split, as it is for ImageNet.
    """
    path = path.expanduser()
    layout = f"{path}/train/CLASS/*.jpg and {path}/test/CLASS/*.jpg (or val)"
    if not path.is_dir():
        raise DataError(f"there is no folder {path}: expected {layout}")
    given = [part for part in ("train", "val", "test") if (path / part).is_dir()]
    if "train" not in given or len(given) < 2:
        lacking = "test or val" if "train" in given else "train"
        raise DataError(f"{path} lacks a {lacking} folder: expected {layout}")
    class_names: tuple[str, ...] = ()
    splits: dict[str, StreamSplit] = {}
    for part in given:
        paths, y, class_names = read_tree(path / part, class_names)
        items = ImageFiles(path / part, paths, size)
        splits[part] = StreamSplit(items, y, (3, size, size), IMAGENET_MEAN, IMAGENET_STD, workers=workers)
    tested = splits.pop("test") if "test" in splits else splits.pop("val")
    return splits["train"], splits.get("val"), tested, class_names


def _resized(x: Tensor, size: int | None) -> Tensor:
    if size is None or size == x.shape[-1]:
        return x
    blocks = [F.interpolate(b.float(), (size, size), mode="bicubic", antialias=True) for b in x.split(1000)]
    return torch.cat([block.round_().clamp_(0, 255).byte() for block in blocks])


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

    Items with a label at each place are of one kind.
    """
    y = y if y.dim() == 1 else torch.zeros(len(y))
    _, counts = y.unique(return_counts=True)
    exact = counts.double() * n / len(y)
    quota = exact.floor().long()
    quota[(exact - quota).argsort(descending=True, stable=True)[: n - int(quota.sum())]] += 1
    g = torch.Generator().manual_seed(seed)
    classes = y.argsort(stable=True).split(counts.tolist())
    chosen = [at[torch.randperm(len(at), generator=g)[:k]] for at, k in zip(classes, quota.tolist(), strict=True)]
    return torch.cat(chosen).sort().values


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
) -> Data:
    if val == "test":
        val = test
    if not isinstance(val, Split | StreamSplit):
        n = len(pool)
        if n < 2:
            raise ConfigError(f"with {n} training image none is left once {val:.0%} are held out: give 2 or more")
        held = stratified(pool.y, min(max(1, round(float(val) * n)), n - 1), key(seed, "validation"))
        pool, val = pool.take(_others(held, n)), pool.take(held)
    train = replace(pool, augment=augment)
    if isinstance(train, StreamSplit):
        train = replace(train, varied=True)
    return Data(name, len(class_names), class_names, train.shape, train, val, test, seed)


# --- from any Dataset ------------------------------------------------------------------------------------------------


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
    """Your own data: anything with a length that gives `(x, y)`, y a whole number from 0.

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
        return None if inner is None else [int(inner[i]) for i in dataset.indices]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return dataset.tensors[1]
    if getattr(dataset, "target_transform", None) is not None:
        return None  # what it tells is not what it gives
    return getattr(dataset, "targets", None)


def _labels(labels: Any, part: str) -> Tensor:
    y = torch.as_tensor(labels)
    if y.dim() != 1 or y.is_floating_point() or y.is_complex():
        raise DataError(
            f"labels of the {part} dataset must be one whole number per item, got {y.dtype} of shape {tuple(y.shape)}: "
            "give class numbers counted from 0"
        )
    if int(y.min()) < 0:
        at = int((y < 0).nonzero()[0])
        raise DataError(f"item {at} of the {part} dataset has the label {int(y[at])}: count classes from 0")
    return y.long()


def _check_alike(splits: dict[str, AnySplit]) -> None:
    expected = splits["train"].shape, _sample(splits["train"], 1).dtype
    for part, split in splits.items():
        found = split.shape, _sample(split, 1).dtype
        if found != expected:
            raise DataError(
                f"{part} items are {found[0]} {found[1]}, train items {expected[0]} {expected[1]}: make them alike"
            )


def _class_names(splits: dict[str, AnySplit], class_names: Sequence[str] | None) -> tuple[str, ...]:
    names = range(int(splits["train"].y.max()) + 1) if class_names is None else class_names
    for part, split in splits.items():
        strange = (split.y >= len(names)).nonzero()[:, 0].tolist()
        if strange:
            raise DataError(
                f"item {strange[0]} of the {part} dataset has the label {int(split.y[strange[0]])}, but there are "
                f"{len(names)} classes (0 to {len(names) - 1}): correct the label or give all class_names"
            )
    return tuple(str(name) for name in names)


def _sample(split: AnySplit, n: int) -> Tensor:
    """Raw items: all of a resident split, up to `n` evenly spaced ones of a stream."""
    if isinstance(split, Split):
        return split.x
    positions = torch.linspace(0, len(split) - 1, min(n, len(split))).long().tolist()
    return stacked([split.items[position, None] for position in positions])

"""Data sets by name."""

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch

from ..errors import ConfigError, DataError
from ..randomness import key
from ..typed import Count, CountFromZero, PartialFraction, Range, checked
from . import code
from .assembling import _assembled, _others, _subset, statistics, stratified
from .dataset import AnySplit, Data
from .generated import DIGITS, NUMBERS, TEXTURES, sorting, strokes, textures
from .resizing import resized
from .soundness import check_taught
from .splits import Augmentation, Split, augmentations
from .stored import PUBLISHED, Pairs, cached, data_folder, read_digits, read_published, read_tree
from .streams import ImageFiles, StreamSplit

Side = Annotated[int, Range(1, 4096)]
Augment = str | Sequence[str | Augmentation]


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
    """Name, description, and whether `load` needs no download, of every set with a name of its own.

    >>> 'digits' in [name for name, about, here in lab.data.available()]
    True
    """
    root = data_folder()
    return [
        ("digits", "1,797 handwritten digits of scikit-learn, 8x8 grey brought to 28x28", True),
        *((name, kind.about, True) for name, kind in GENERATED.items()),
        ("code", "the sources of Python's own standard library, in windows of 128 bytes", True),
        *((name, kind.about, not kind.missing(root)) for name, kind in PUBLISHED.items()),
    ]


@checked
def load(
    name: str,
    *,
    seed: CountFromZero = 0,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    size: Side | None = None,
    train: Count | None = None,
    test: Count | None = None,
    val: PartialFraction | Literal["test"] = 0.1,
    augment: Augment = (),
    workers: CountFromZero = 2,
    unreadable: Literal["refuse", "skip"] = "refuse",
) -> Data:
    """A data set by name: those of `available()`, or `folder:PATH` for `PATH/train/CLASS/*.jpg` and the like.

    `train` and `test` are numbers of images: how many to draw, or a subset with every class in its share. `val` is the
    share of the training images held out by `seed`; nothing else depends on the seed. `val="test"` holds nothing out
    and chooses on the test images, as some papers do; data, runs and records then say so. `size` is the side of the
    images. `code` has windows of text for images: `size` is their length in bytes, and a file is in one split alone.
    `augment` is applied to training batches: shift, crop, flip, alternate, cutout, joined by "+". Image files are read
    by `workers` processes; their training images are also cut at random and mirrored. A file that is no image ends the
    run that meets it; with `unreadable="skip"` all files are read once now, and those are left out and counted.

    >>> data = lab.load('digits', size=8)
    >>> len(data.train), data.shape, data.classes
    (1293, (1, 8, 8), 10)
    """
    chosen = augmentations(augment)
    held: float | str | AnySplit = val
    groups, source = None, ""
    notes: tuple[str, ...] = ()
    if name.startswith("folder:"):
        path = Path(name.removeprefix("folder:"))
        pool, own_val, tested, class_names, notes = _folder(path, size or 224, workers, unreadable == "skip")
        check_taught(pool, tested, class_names)
        held = held if val == "test" else own_val or held
    elif name == "code":
        pairs, test_pairs, groups = code.read_code(size, train, test)
        pool, tested, class_names, source = Split(*pairs), Split(*test_pairs), code.BYTES, code.SOURCE
    else:
        pool, tested, class_names = _resident(name, data_folder(root), download, size, train, test)
    if chosen and len(pool.shape) != 3:
        raise ConfigError(
            f"augmentations are for images, and {name} has items of shape {pool.shape}: leave augment out"
        )
    pool = _subset(pool, train, f"training images of {name}")
    tested = _subset(tested, test, f"test images of {name}")
    return _assembled(name, pool, held, tested, class_names, seed, chosen, groups, source, notes)


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
        mean, std = statistics(resized(pool[0], size))
    else:
        raise ConfigError(_unknown(name))
    splits = (Split(resized(x, size), y, mean, std) for x, y in (pool, tested))
    return next(splits), next(splits), class_names


def _unknown(name: str) -> str:
    names = [known for known, _, _ in available()]
    nearest = difflib.get_close_matches(name.lower(), [known.lower() for known in names], n=1, cutoff=0.5)
    meant = next((f", did you mean {known!r}?" for known in names if [known.lower()] == nearest), ":")
    return f"no data set is called {name!r}{meant} There are {', '.join(names)}, and folder:PATH for image files"


def _folder(
    path: Path, size: int, workers: int, skip: bool
) -> tuple[StreamSplit, StreamSplit | None, StreamSplit, tuple[str, ...], tuple[str, ...]]:
    """Training pool, validation split where it has a folder of its own, test split, class names, and notes.

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
    notes: list[str] = []
    splits: dict[str, StreamSplit] = {}
    for part in given:
        paths, y, class_names = read_tree(path / part, class_names)
        items = ImageFiles(path / part, paths, size)
        if skip and len(found := items.readable()) < len(paths):
            notes.append(f"{len(paths) - len(found):,} of {len(paths):,} {part} files are no images and left out")
            if not found:
                raise DataError(f"none of the {len(paths):,} files in {path / part} can be read as an image.")
            items, y = items.take(torch.tensor(found)), y[found]
        splits[part] = StreamSplit(items, y, (3, size, size), IMAGENET_MEAN, IMAGENET_STD, workers=workers)
    tested = splits.pop("test") if "test" in splits else splits.pop("val")
    return splits["train"], splits.get("val"), tested, class_names, tuple(notes)

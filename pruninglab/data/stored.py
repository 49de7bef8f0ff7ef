"""Files that images come from: published sets, checked byte for byte, and a cache of the generated ones."""

import contextlib
import gzip
import hashlib
import inspect
import io
import os
import pickle
import tempfile
import warnings
import zlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import _torchvision
from ..errors import ConfigError, DataError

DIGEST = 32
"""Bytes of checksum at the beginning of a file in the cache."""
Pairs = tuple[Tensor, Tensor]  # images and labels


def cache_folder() -> Path:
    return Path(os.environ.get("PRUNINGLAB_CACHE") or "~/.cache/pruninglab").expanduser()


def data_folder(root: str | os.PathLike[str] | None = None) -> Path:
    """Where published sets are looked for: `root`, else PRUNINGLAB_DATA, else `data` in the cache folder."""
    chosen = root or os.environ.get("PRUNINGLAB_DATA")
    return Path(chosen).expanduser() if chosen else cache_folder() / "data"


def cached(draw: Callable[[int, int], Pairs], n: int, seed: int) -> Pairs:
    """`draw(n, seed)`, read from the cache folder where it lies there whole. The cache may fail, the set may not."""
    source = inspect.getsource(inspect.getmodule(draw) or draw)
    version = hashlib.sha256(source.encode()).hexdigest()[:8]  # a changed generator is another set
    path = cache_folder() / f"{draw.__name__}-{n}-{seed}-{version}.data"
    with contextlib.suppress(Exception):  # broken in many ways
        content = memoryview(path.read_bytes())
        if hashlib.sha256(content[DIGEST:]).digest() == content[:DIGEST]:
            with np.load(io.BytesIO(content[DIGEST:])) as file:
                return torch.from_numpy(file["x"]), torch.from_numpy(file["y"])
    x, y = draw(n, seed)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        packed = io.BytesIO()
        np.savez(packed, x=x.numpy(), y=y.numpy())
        content = packed.getvalue()
        with _replacing(path) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
    return x, y


@contextlib.contextmanager
def _replacing(path: Path) -> Generator[Path]:
    """A temporary name that becomes `path` at the end, or goes: nobody ever reads half a file."""
    handle, name = tempfile.mkstemp(prefix=path.stem, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Published:
    """A set in the folder layout of torchvision, with the MD5 of each file."""

    about: str
    folder: str
    md5: Mapping[str, str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()
    pickled: tuple[str, ...] = ()  # the keys of labels and of class names, where the files are pickles

    def missing(self, root: Path) -> list[str]:
        return [file for file in self.md5 if not _present(root / self.folder / file).is_file()]


IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MNIST_MD5 = (
    *("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624"),
    *("2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
)
_FASHION_MD5 = (
    *("f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9"),
    *("8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
)
_CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
_CIFAR100_MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PUBLISHED = {
    "MNIST": Published(
        about="70,000 handwritten digits, 28x28 grey (LeCun et al., 1998)",
        folder="MNIST/raw",
        md5=dict(zip(IDX, _MNIST_MD5, strict=True)),
        mean=(0.1307,),
        std=(0.3081,),
        class_names=tuple("0123456789"),
    ),
    "FashionMNIST": Published(
        about="70,000 articles of clothing, 28x28 grey (Xiao et al., 2017)",
        folder="FashionMNIST/raw",
        md5=dict(zip(IDX, _FASHION_MD5, strict=True)),
        mean=(0.2860,),
        std=(0.3530,),
        class_names=_CLOTHES,
    ),
    "CIFAR10": Published(
        about="60,000 photographs in 10 classes, 32x32 colour (Krizhevsky, 2009)",
        folder="cifar-10-batches-py",
        md5=_CIFAR10_MD5,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        pickled=("labels", "label_names"),
    ),
    "CIFAR100": Published(
        about="60,000 photographs in 100 classes, 32x32 colour (Krizhevsky, 2009)",
        folder="cifar-100-python",
        md5=_CIFAR100_MD5,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        pickled=("fine_labels", "fine_label_names"),
    ),
}


def read_published(name: str, root: Path, download: bool) -> tuple[Pairs, Pairs, tuple[str, ...]]:
    """Training pool, test set and class names of a published set; each file is checked before it is used."""
    kind = PUBLISHED[name]
    if download and kind.missing(root):
        _download(name, root)
    if missing := kind.missing(root):
        raise DataError(
            f"{name} is not in {root / kind.folder} ({', '.join(missing)} missing): set PRUNINGLAB_DATA or root= to "
            f"the folder that holds {kind.folder!r}, or fetch it with load({name!r}, download=True)"
        )
    files = {file: _checked(root / kind.folder / file, md5) for file, md5 in kind.md5.items()}
    return _from_pickles(files, kind) if kind.pickled else _from_idx(files, kind)


def _download(name: str, root: Path) -> None:

    try:
        getattr(_torchvision.torchvision.datasets, name)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} could not be fetched into {root} ({error}): look at the network and the room on the disk and "
            "try again, or put the files there by hand"
        ) from error


def _present(path: Path) -> Path:
    """The file itself, or as it was downloaded where nobody has unpacked it."""
    return path if path.is_file() else path.with_name(path.name + ".gz")


def _checked(path: Path, md5: str) -> bytes:
    path = _present(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_LARGEST)  # more is no published file, and fails its checksum
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): {_MEND}") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"{path} is damaged: its content has MD5 {found} instead of {md5}: {_MEND}")
    return content


_LARGEST = 2**26
_MEND = "delete it, then copy it anew or load the set with download=True"


def _from_idx(files: Mapping[str, bytes], kind: Published) -> tuple[Pairs, Pairs, tuple[str, ...]]:
    x, y, test_x, test_y = (_idx(files[file]) for file in IDX)
    return (x[:, None], y.long()), (test_x[:, None], test_y.long()), kind.class_names


def _idx(content: bytes) -> Tensor:
    dims = content[3]  # then one big-endian 32-bit length for each dimension
    lengths = [int.from_bytes(content[4 * d : 4 * d + 4], "big") for d in range(1, dims + 1)]
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * dims).view(lengths)


def _from_pickles(files: Mapping[str, bytes], kind: Published) -> tuple[Pairs, Pairs, tuple[str, ...]]:
    labels, names = kind.pickled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the arrays were pickled by a NumPy of 2009, and today's says so
        # Safe to unpickle: each file is, to the byte, the published one.
        entries = {file: pickle.loads(content, encoding="latin1") for file, content in files.items()}  # noqa: S301
    meta = next(entry for file, entry in entries.items() if "meta" in file)

    def pairs(*prefixes: str) -> Pairs:
        parts = [entry for file, entry in entries.items() if file.startswith(prefixes)]
        x = torch.from_numpy(np.concatenate([part["data"] for part in parts])).view(-1, 3, 32, 32)
        return x, torch.tensor([label for part in parts for label in part[labels]])

    return pairs("data_batch", "train"), pairs("test"), tuple(meta[names])


def read_digits() -> Pairs:
    """The 1,797 handwritten digits that come with scikit-learn, 8x8 grey. Importing that would take longer by far."""
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise ConfigError("the digits come with scikit-learn, which is not installed: `pip install scikit-learn`")
    table = np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    x = torch.from_numpy(table[:, :64]).view(-1, 1, 8, 8) * (255 / 16)  # 64 pixels of 0 to 16, and the label
    return x.round().byte(), torch.from_numpy(table[:, 64]).long()


SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}


def read_tree(folder: Path, class_names: tuple[str, ...] = ()) -> tuple[tuple[str, ...], Tensor, tuple[str, ...]]:
    """Paths below `folder`, their labels and the class names: one folder per class, all of them among `class_names`."""
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise DataError(f"{folder} has no class folders: expected {folder}/CLASS/*.jpg, one folder for each class")
    strange = [name for name in found if class_names and name not in class_names]
    if strange:
        raise DataError(
            f"{folder} holds a class {strange[0]!r} that the training folder does not: expected only "
            f"{', '.join(class_names[:5])}{', ...' if len(class_names) > 5 else ''}; "
            "remove it or give it training images"
        )
    class_names = class_names or tuple(found)
    paths: list[str] = []
    labels: list[int] = []
    for name in found:
        files = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in SUFFIXES and f.name[0] != ".")
        if not files:
            kinds = ", ".join(sorted(SUFFIXES))
            raise DataError(f"{folder / name} holds no image: put some there ({kinds}) or remove the folder")
        paths += [str(file.relative_to(folder)) for file in files]
        labels += [class_names.index(name)] * len(files)
    return tuple(paths), torch.tensor(labels), class_names

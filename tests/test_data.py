"""Data: which images lie in which split, what a batch holds, and what is said when something is wrong."""

import gzip
import hashlib
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from pruninglab import build, fit, models
from pruninglab import data as lab
from pruninglab.data import (
    AlternatingFlip,
    Crop,
    Cutout,
    Data,
    Flip,
    Shift,
    Split,
    StreamSplit,
    available,
    load,
    stored,
    wrap,
)
from pruninglab.data.generated import strokes, textures
from pruninglab.data.loading import GENERATED
from pruninglab.data.resizing import resized
from pruninglab.data.splits import Augmentation, coins
from pruninglab.errors import ConfigError, DataError


def images_of(split: lab.AnySplit) -> Tensor:
    assert isinstance(split, Split)
    assert isinstance(split.x, Tensor)
    return split.x


def rows(split: lab.AnySplit) -> set[bytes]:
    return {image.numpy().tobytes() for image in images_of(split)}


def joined(batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    xs, ys = zip(*batches, strict=True)
    return torch.cat(xs), torch.cat(ys)


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits")


# --- splits ----------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_splits(digits: Data):
    again = load("digits", seed=0)
    assert again.fingerprint == digits.fingerprint
    assert torch.equal(again.val.y, digits.val.y)


def test_another_seed_holds_out_other_images_but_keeps_the_test_split(digits: Data):
    other = load("digits", seed=1)
    assert rows(other.val) != rows(digits.val)
    assert rows(other.test) == rows(digits.test)
    assert rows(other.train) | rows(other.val) == rows(digits.train) | rows(digits.val)
    assert other.fingerprint != digits.fingerprint


def test_splits_are_disjoint_and_complete():
    x, y = torch.arange(100)[:, None], torch.arange(100) % 3
    data = wrap(TensorDataset(x, y), TensorDataset(x[:7], y[:7]), val=0.25)
    train, val = (set(images_of(split).flatten().tolist()) for split in (data.train, data.val))
    assert len(train) == 75
    assert len(val) == 25
    assert train | val == set(range(100))


def test_splits_keep_the_share_of_every_class(digits: Data):
    assert [len(split) for split in (digits.train, digits.val, digits.test)] == [1293, 144, 360]
    pool = torch.cat([digits.train.y, digits.val.y]).bincount()
    assert (digits.val.y.bincount() - pool / 1437 * 144).abs().max() < 1
    assert (digits.test.y.bincount() - (pool + digits.test.y.bincount()) / 1797 * 360).abs().max() < 1


def test_choosing_on_test_is_asked_for_by_name_and_said(digits: Data):
    data = load("digits", val="test")
    assert rows(data.val) == rows(data.test) == rows(digits.test)
    assert rows(data.train) == rows(digits.train) | rows(digits.val)
    assert data.val_is_test
    assert data.to("cpu").val_is_test
    assert "choices are made on test" in repr(data)
    assert not digits.val_is_test
    assert "choices" not in repr(digits)
    with pytest.raises(ConfigError, match="or 'test'"):
        load("digits", val="val")  # pyright: ignore[reportArgumentType]


def test_a_subset_has_the_exact_size_and_the_share_of_every_class(digits: Data):
    small = load("digits", train=200, test=50, val=0.2)
    assert [len(split) for split in (small.train, small.val, small.test)] == [160, 40, 50]
    assert rows(small.test) < rows(digits.test)
    assert small.test.y.bincount(minlength=10).tolist() == [5] * 10
    other = load("digits", train=200, test=50, val=0.2, seed=1)
    assert rows(other.test) == rows(small.test)
    assert rows(other.train) | rows(other.val) == rows(small.train) | rows(small.val)


def test_a_tiny_share_still_holds_out_one_image():
    assert len(load("digits", train=20, val=0.001).val) == 1


def test_images_stay_bytes_of_the_size_asked_for(digits: Data):
    for data, side in ((digits, 28), (load("digits", size=8), 8), (load("strokes", train=20, test=10, size=32), 32)):
        assert images_of(data.train).dtype == torch.uint8
        assert data.shape == (1, side, side) == tuple(images_of(data.train).shape[1:])
    assert images_of(digits.train).float().std() > 50


def test_a_data_set_shows_itself_without_its_tensors(digits: Data):
    assert repr(digits) == "Data(digits: 10 classes, 1x28x28, seed 0, train 1,293, val 144, test 360)"
    assert repr(digits.val) == "Split(144 of 1x28x28 on cpu)"
    html = digits._repr_html_()
    assert html == load("digits")._repr_html_()
    assert "1,293" in html
    assert "digits: 10 classes" in html


def test_a_copy_on_a_device_keeps_the_fingerprint(digits: Data):
    moved = digits.to("cpu")
    assert moved.fingerprint == digits.fingerprint
    assert "fingerprint" in vars(moved)


def test_one_changed_pixel_changes_the_fingerprint(digits: Data):
    assert isinstance(digits.test, Split)
    x = images_of(digits.test).clone()
    x[0, 0, 14, 14] ^= 1
    assert replace(digits, test=replace(digits.test, x=x)).fingerprint != digits.fingerprint


# --- batches ---------------------------------------------------------------------------------------------------------


def test_index_batches_give_exactly_these_images_normalised(digits: Data):
    split = digits.train
    assert isinstance(split, Split)
    assert split.mean is not None
    assert split.std is not None
    index = [torch.tensor([5, 3, 3]), torch.tensor([700])]
    batches = list(split.batches(index))
    for at, (x, y) in zip(index, batches, strict=True):
        assert torch.allclose(x, (split.x[at].float() / 255 - split.mean[0]) / split.std[0], atol=1e-5)
        assert torch.equal(y, split.y[at])
        assert x.dtype == torch.float32


def test_colour_channels_are_normalised_each_by_its_own_and_laid_out_last():
    x = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x[:, 1] //= 4
    data = wrap(TensorDataset(x, torch.arange(50) % 2), TensorDataset(x, torch.arange(50) % 2))
    seen, _ = joined(data.test.batches(20))
    assert torch.allclose(seen.mean((0, 2, 3)), torch.zeros(3), atol=0.01)
    assert torch.allclose(seen.std((0, 2, 3)), torch.ones(3), atol=0.01)
    assert next(iter(data.test))[0].is_contiguous(memory_format=torch.channels_last)


def test_iterating_gives_every_item_once_in_order(digits: Data):
    x, y = joined(iter(digits.train))
    assert len(x) == len(digits.train)
    assert torch.equal(y, digits.train.y)
    assert [len(y) for _, y in digits.train.batches(500)] == [500, 500, 293]


def test_a_batch_does_not_alias_the_stored_images():
    x = torch.ones(4, 2, 3, 3)
    data = wrap(TensorDataset(x, torch.zeros(4, dtype=torch.long)), TensorDataset(x, torch.zeros(4, dtype=torch.long)))
    next(iter(data.test))[0].zero_()
    assert bool((x == 1).all())


def test_batches_ask_for_one_seed_each_and_a_size(digits: Data):
    with pytest.raises(ConfigError, match="2 seeds for 3 batches"):
        list(digits.train.batches(500, seeds=[1, 2]))
    with pytest.raises(ConfigError, match="1 or more"):
        list(digits.train.batches(0))


# --- augmentation ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randint(1, 256, (40, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("augment", [Shift(2), Crop(3), Flip(), Cutout(4)], ids=str)
def test_an_augmentation_is_a_function_of_its_generator(augment: Augmentation, photos: Tensor):
    before = photos.clone()
    once, again, other = augment(photos, g(1)), augment(photos, g(1)), augment(photos, g(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert once.shape == photos.shape
    assert once.dtype == torch.uint8
    assert torch.equal(photos, before)


def test_augmented_batches_repeat_with_their_seeds_wherever_the_batch_stands():
    data = load("digits", augment="shift")
    index = [torch.arange(10), torch.arange(10, 20)]
    first, second = (x for x, _ in data.train.batches(index, seeds=[7, 8]))
    (resumed,) = (x for x, _ in data.train.batches(index[1:], seeds=[8]))
    plain, _ = next(data.train.batches(index))
    (other,) = (x for x, _ in data.train.batches(index[:1], seeds=[8]))
    assert torch.equal(second, resumed)
    assert not torch.equal(first, plain)
    assert not torch.equal(first, other)


def test_only_training_batches_are_augmented():
    data = load("digits", augment="shift")
    assert data.train.augment == (Shift(2),)
    assert data.val.augment == data.test.augment == ()
    assert torch.equal(next(data.val.batches(10, [1] * 15))[0], next(data.val.batches(10))[0])


def test_augmentation_leaves_the_global_generator_alone():
    data = load("digits", augment="crop+flip+cutout")
    before = torch.random.get_rng_state()
    list(data.train.batches(500, [1, 2, 3]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_crop_equals_a_loop_over_images(photos: Tensor):
    cropped = Crop(3)(photos, g(5))
    tops, lefts = torch.randint(7, (2, len(photos)), generator=g(5)).tolist()
    for image, out, top, left in zip(photos, cropped, tops, lefts, strict=True):
        padded = torch.zeros(3, 18, 18, dtype=torch.uint8)
        padded[:, 3:15, 3:15] = image
        assert torch.equal(out, padded[:, top : top + 12, left : left + 12])
    assert len(set(tops)) == len(set(lefts)) == 7


def test_flips_alternate_by_seed_epoch_and_image_alone(photos: Tensor):
    """Each image is shown both ways in two epochs in a row, whatever the order and the batches."""
    flip, places = AlternatingFlip(), torch.arange(len(photos))
    shown = [flip(photos, places, 3, epoch) for epoch in range(4)]
    assert torch.equal(shown[0], shown[2])
    assert torch.equal(shown[1], shown[3])
    assert torch.equal(shown[1], shown[0].flip(3))
    order = places.flip(0)
    assert torch.equal(flip(photos[order], order, 3, 1), shown[1][order])
    many = torch.arange(10_000)
    first, second = coins(many, 3), coins(many, 4)
    assert 4_800 < int(first.sum()) < 5_200
    assert 4_800 < int((first == second).sum()) < 5_200  # seeds know nothing of one another
    assert 4_800 < int((first[1:] == first[:-1]).sum()) < 5_200  # nor do neighbours


def test_a_run_shows_each_image_both_ways_in_two_epochs():
    data = load("digits", size=8, augment="alternate", train=40)
    seen: list[dict[int, Tensor]] = []
    for epoch in (0, 1):
        order = torch.randperm(len(data.train), generator=g(epoch))
        batches = data.train.batches(order.split(7), list(range(6)), 0, (5, epoch))
        images = torch.cat([x for x, _ in batches])
        seen.append({int(place): image for place, image in zip(order, images, strict=True)})
    assert len(seen[0]) == 36
    assert all(torch.equal(seen[0][place], seen[1][place].flip(2)) for place in seen[0])


def test_flip_mirrors_about_half_of_the_images_left_to_right(photos: Tensor):
    flipped = Flip()(photos, g(3))
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, photos, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, photos, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 10 <= sum(mirrored) <= 30


def test_cutout_covers_one_square_with_the_mean_colour(photos: Tensor):
    cut = Cutout(4)(photos, g(3))
    for image, out in zip(photos, cut, strict=True):
        changed = (image != out).any(0)
        high, wide = changed.any(1).nonzero(), changed.any(0).nonzero()
        assert 0 < int(high.max() - high.min()) + 1 <= 4
        assert 0 < int(wide.max() - wide.min()) + 1 <= 4
        assert torch.equal(out[:, changed][:, 0], image.float().mean((1, 2)).byte())


def test_augmentations_are_named_or_given():
    wanted = [load("digits", augment=a).train.augment for a in ("crop+flip", ["crop", "flip"], [Crop(4), Flip()])]
    assert wanted == [(Crop(4), Flip())] * 3


# --- generated sets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("draw", "shape"), [(strokes, (1, 28, 28)), (textures, (3, 32, 32))])
def test_a_generated_set_is_a_balanced_function_of_number_and_seed(draw: Callable, shape: tuple[int, ...]):
    x, y = draw(60, 1)
    again, labels = draw(60, 1)
    assert x.shape == (60, *shape)
    assert x.dtype == torch.uint8
    assert y.bincount().tolist() == [6] * 10
    assert torch.equal(x, again)
    assert torch.equal(y, labels)
    assert not torch.equal(x, draw(60, 2)[0])


def test_strokes_of_one_class_look_more_alike_than_those_of_two():
    x, y = strokes(1000, 3)
    means = torch.stack([x[y == c].float().mean(0).flatten() for c in range(10)])
    fresh, labels = strokes(500, 4)
    nearest = torch.cdist(fresh.float().flatten(1), means).argmin(1)
    assert 0.4 < (nearest == labels).float().mean() < 0.95  # legible, and not solved by a template


def test_textures_hide_the_relation_of_their_hues_from_grey():
    x, y = textures(2000, 3)
    pixels = x.float() / 255
    grey, opposed = pixels.mean(1).flatten(1), y % 2 == 1
    for feature in (grey.mean(1), grey.std(1)):
        gap = (feature[opposed].mean() - feature[~opposed].mean()).abs() / feature.std()
        assert gap < 0.35
    chroma = (pixels - pixels.mean(1, keepdim=True)).flatten(2).std(2).mean(1)
    assert (chroma[opposed].mean() - chroma[~opposed].mean()) / chroma.std() > 0.5


def test_generated_splits_share_no_image_and_the_seed_only_holds_out():
    a, b = (load("strokes", train=50, test=50, seed=seed) for seed in (0, 1))
    assert not rows(a.test) & (rows(a.train) | rows(a.val))
    assert rows(a.test) == rows(b.test)
    assert rows(a.train) | rows(a.val) == rows(b.train) | rows(b.val)


def test_the_cache_is_used_and_a_damaged_file_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PRUNINGLAB_CACHE", str(tmp_path / "new"))
    calls = []

    def squares(n: int, seed: int) -> tuple[Tensor, Tensor]:
        calls.append(n)
        return torch.full((n, 1, 2, 2), seed, dtype=torch.uint8), torch.arange(n)

    def fetch() -> bool:
        x, y = stored.cached(squares, 5, 3)
        return bool((x == 3).all()) and y.tolist() == list(range(5))

    assert fetch()
    assert fetch()
    assert len(calls) == 1
    (file,) = (tmp_path / "new").iterdir()  # and no temporary file beside it
    whole = file.read_bytes()
    for damaged in (b"", b"not an archive", whole[: len(whole) // 2], whole.replace(b"\3\3\3\3", b"\3\3\4\3")):
        file.write_bytes(damaged)
        calls.clear()
        assert fetch()
        assert calls == [5]
        assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PRUNINGLAB_CACHE", str(tmp_path / "file" / "cache"))
    assert len(load("strokes", train=20, test=10).test) == 10


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setenv("PRUNINGLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(Path, "write_bytes", full)
    assert len(load("strokes", train=20, test=10).test) == 10
    assert list(tmp_path.iterdir()) == []


# --- published sets --------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def publish(monkeypatch: pytest.MonkeyPatch, name: str, root: Path, files: dict[str, bytes]) -> Path:
    """Write files as those of a published set, and let their MD5 be the right one."""
    folder = root / stored.PUBLISHED[name].folder
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    monkeypatch.setitem(stored.PUBLISHED, name, replace(stored.PUBLISHED[name], md5=md5))
    return folder


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    drawn = np.random.default_rng(0)
    contents = []
    for n in (40, 20):
        contents += [
            idx(drawn.integers(256, size=(n, 28, 28), dtype=np.uint8)),
            idx(np.arange(n, dtype=np.uint8) % 10),
        ]
    return publish(monkeypatch, "MNIST", tmp_path, dict(zip(stored.IDX, contents, strict=True)))


def test_mnist_is_read_and_normalised_by_the_published_constants(mnist: Path, tmp_path: Path):
    data = load("MNIST", root=tmp_path)
    assert repr(data) == "Data(MNIST: 10 classes, 1x28x28, seed 0, train 36, val 4, test 20)"
    raw = np.frombuffer((mnist / stored.IDX[2]).read_bytes(), np.uint8, offset=16).reshape(20, 28, 28)
    x, y = joined(iter(data.test))
    assert torch.allclose(x[:, 0], (torch.tensor(raw) / 255 - 0.1307) / 0.3081, atol=1e-5)
    assert y.tolist() == [*range(10), *range(10)]


def test_the_folder_may_come_from_the_environment(mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert ("MNIST", stored.PUBLISHED["MNIST"].about, False) in available()
    monkeypatch.setenv("PRUNINGLAB_DATA", str(tmp_path))
    assert ("MNIST", stored.PUBLISHED["MNIST"].about, True) in available()
    assert len(load("MNIST").test) == 20


def test_packed_files_do_as_well(mnist: Path, tmp_path: Path):
    expected = load("MNIST", root=tmp_path).fingerprint
    for file in stored.IDX:
        (mnist / f"{file}.gz").write_bytes(gzip.compress((mnist / file).read_bytes()))
        (mnist / file).unlink()
    assert load("MNIST", root=tmp_path).fingerprint == expected
    (mnist / f"{stored.IDX[0]}.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz cannot be read.*delete it"):
        load("MNIST", root=tmp_path)


def test_a_damaged_file_is_named_with_what_to_do(mnist: Path, tmp_path: Path):
    file = mnist / "t10k-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte is damaged.*delete it.*download=True"):
        load("MNIST", root=tmp_path)


def test_missing_files_are_named_with_the_folder_and_what_to_do(tmp_path: Path):
    with pytest.raises(DataError) as error:
        load("FashionMNIST", root=tmp_path)
    for part in (str(tmp_path), "FashionMNIST/raw", "train-images", "PRUNINGLAB_DATA", "root=", "download=True"):
        assert part in str(error.value)


CIFAR = {
    "CIFAR10": (("data_batch_1", "data_batch_2"), "test_batch", "batches.meta", "labels", "label_names", 10),
    "CIFAR100": (("train",), "test", "meta", "fine_labels", "fine_label_names", 100),
}


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_read_in_the_order_of_its_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trains, test, meta, labels, names, classes = CIFAR[name]
    drawn = np.random.default_rng(0)
    arrays = {file: drawn.integers(256, size=(100, 3072), dtype=np.uint8) for file in (*trains, test)}
    entries: dict[str, Any] = {
        file: {"data": x, labels: [i % classes for i in range(100)]} for file, x in arrays.items()
    }
    entries[meta] = {names: [f"class {i}" for i in range(classes)]}
    publish(monkeypatch, name, tmp_path, {file: pickle.dumps(entry) for file, entry in entries.items()})
    data = load(name, root=tmp_path)
    assert (data.classes, data.class_names[-1], data.shape) == (classes, f"class {classes - 1}", (3, 32, 32))
    assert len(data.train) + len(data.val) == 100 * len(trains)
    assert isinstance(data.test, Split)
    assert torch.equal(images_of(data.test).flatten(1), torch.from_numpy(arrays[test]))
    assert torch.equal(data.test.y, torch.arange(100) % classes)


def test_the_published_checksums_are_those_of_torchvision():
    from pruninglab._torchvision import torchvision

    for name in CIFAR:
        kind = getattr(torchvision.datasets, name)
        theirs = dict([*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]])
        assert stored.PUBLISHED[name].md5 == theirs
        assert stored.PUBLISHED[name].folder == kind.base_folder


def test_a_download_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pruninglab._torchvision import torchvision

    def offline(root: str, download: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(DataError, match=r"could not be fetched into .*no route to host.*network"):
        load("CIFAR10", root=tmp_path, download=True)


# --- the same bytes on every processor -------------------------------------------------------------------------------

FINGERPRINTS = {
    ("digits", 8): "dd476acd5d413378",
    ("digits", 16): "4f6979a52f24ab9a",
    ("digits", 28): "ca768f9ede81b25a",
    ("strokes", None): "10b4808a473e3a9b",
    ("strokes", 20): "a6c745f6e52dd0b6",
    ("textures", None): "9e57722cab8c7dbf",
    ("textures", 16): "f2a7afd0a8c5088d",
    ("sorting", None): "da101bda1feacdae",
}


def test_every_set_that_is_made_here_has_its_fingerprint_in_the_list():
    assert {name for name, _ in FINGERPRINTS} == {"digits", *GENERATED}


@pytest.mark.parametrize(("name", "size"), FINGERPRINTS)
def test_built_in_sets_have_one_fingerprint_everywhere(name: str, size: int | None):
    train, test = (None, None) if name == "digits" else (210, 60)
    assert load(name, size=size, train=train, test=test).fingerprint == FINGERPRINTS[name, size]


def test_the_plainest_kernels_give_the_same_bytes(tmp_path: Path):
    code = (
        "import torch, pruninglab as lab; print(torch.backends.cpu.get_cpu_capability(),"
        "[lab.load('digits', size=s).fingerprint for s in (16, 28)],"
        "[lab.load(n, train=210, test=60).fingerprint for n in ('strokes', 'textures', 'sorting')])"
    )
    environ = os.environ | {"ATEN_CPU_CAPABILITY": "default", "PRUNINGLAB_CACHE": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    wanted = [("digits", 16), ("digits", 28)], [("strokes", None), ("textures", None), ("sorting", None)]
    digits, drawn = ([FINGERPRINTS[which] for which in some] for some in wanted)
    assert run.stdout.strip() == f"DEFAULT {digits} {drawn}"


@pytest.mark.parametrize(("side", "size"), [(8, 28), (28, 12), (32, 32), (5, 1), (1, 7), (7, 64)])
def test_resized_images_are_those_of_the_exact_filter(side: int, size: int):
    x = torch.randint(256, (3, 2, side, side), generator=torch.Generator().manual_seed(side), dtype=torch.uint8)
    exact = torch.nn.functional.interpolate(x.double(), (size, size), mode="bicubic", antialias=True)
    out = resized(x, size)
    assert out.dtype == torch.uint8
    assert (out - exact.clamp(0, 255)).abs().max() < 0.501
    flat = torch.full((1, 1, side, side), 255, dtype=torch.uint8)
    assert (resized(flat, size) == 255).all()


# --- image files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    drawn = np.random.default_rng(0)
    for part, n in (("train", 10), ("val", 3)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                image = Image.fromarray(drawn.integers(256, size=(40 + i, 50, 3), dtype=np.uint8))
                image.save(root / part / name / f"{i}.jpg")
    return root


def test_a_folder_without_test_takes_val_as_test_and_holds_val_out(tree: Path):
    data = load(f"folder:{tree}", size=16, workers=0, val=0.2)
    assert data.class_names == ("cat", "dog")
    assert [len(split) for split in (data.train, data.val, data.test)] == [16, 4, 6]
    assert data.val.y.tolist() == [0, 0, 1, 1]
    assert all(isinstance(split, StreamSplit) for split in (data.train, data.val, data.test))
    x, _ = joined(iter(data.test))
    assert x.shape == (6, 3, 16, 16)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_a_folder_with_all_three_keeps_them(tree: Path, tmp_path: Path):
    for part, source in (("train", "train"), ("val", "val"), ("test", "val")):
        (tmp_path / part).symlink_to(tree / source)
    data = load(f"folder:{tmp_path}", size=16, workers=0)
    assert [len(split) for split in (data.train, data.val, data.test)] == [20, 6, 6]


def test_streamed_batches_do_not_depend_on_the_number_of_workers(tree: Path):
    index, seeds = [torch.tensor([3, 1, 4]), torch.tensor([1, 5])], [11, 12]
    alone, shared = (load(f"folder:{tree}", size=16, workers=workers, augment="cutout").train for workers in (0, 2))
    before = torch.random.get_rng_state()
    for (x, y), (other, labels) in zip(alone.batches(index, seeds), shared.batches(index, seeds), strict=True):
        assert torch.equal(x, other)
        assert torch.equal(y, labels)
    assert torch.equal(torch.random.get_rng_state(), before)
    (resumed,) = alone.batches(index[1:], seeds[1:])
    assert torch.equal(resumed[0], list(alone.batches(index, seeds))[1][0])


def test_streamed_images_vary_with_the_seed_in_training_alone(tree: Path):
    data = load(f"folder:{tree}", size=16, workers=0)
    index = [torch.tensor([0, 0])]
    (plain,), (first,), (second,) = (list(data.train.batches(index, seeds)) for seeds in (None, [1], [2]))
    assert torch.equal(plain[0][0], plain[0][1])
    assert torch.equal(first[0][0], first[0][1])  # the same image under the same seed
    assert not torch.equal(first[0][0], plain[0][0])
    assert not torch.equal(first[0], second[0])
    assert torch.equal(next(data.val.batches(index, [1]))[0], next(data.val.batches(index))[0])


def test_judged_images_are_the_normalised_middle(tmp_path: Path):
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        image = np.full((64, 128, 3), (255, 0, 0), np.uint8)  # red, with a green middle
        image[:, 36:92] = (0, 255, 0)
        for i in range(2):
            Image.fromarray(image).save(tmp_path / part / "a" / f"{i}.png")
    x, _ = next(iter(load(f"folder:{tmp_path}", size=28, workers=0).test))
    expected = torch.tensor([(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0 - 0.406) / 0.225])
    inner = x[0][:, :, 1:-1]  # at the cut the filter sees both colours
    assert torch.allclose(inner, expected[:, None, None].expand_as(inner), atol=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(tree: Path, tmp_path: Path, workers: int):
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        for i in range(2):
            (tmp_path / part / "a" / f"{i}.jpg").write_bytes((tree / "train" / "cat" / "0.jpg").read_bytes())
    broken = tmp_path / "test" / "a" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(DataError, match=r"^\S*test/a/1\.jpg \(item \d\) cannot be read as an image.*replace the file"):
        list(load(f"folder:{tmp_path}", size=16, workers=workers).test)


def test_a_folder_of_another_shape_is_refused_before_any_work(tree: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"there is no folder .*nowhere: expected .*train/CLASS"):
        load(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="lacks a train folder"):
        load(f"folder:{tmp_path}")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="lacks a test or val folder"):
        load(f"folder:{tmp_path}")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="train has no class folders"):
        load(f"folder:{tmp_path}")
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(DataError, match=r"train/cat holds no image"):
        load(f"folder:{tmp_path}")
    (tmp_path / "train" / "cat" / "1.jpg").touch()
    (tmp_path / "test" / "cow").mkdir()
    with pytest.raises(DataError, match=r"test holds a class 'cow'"):
        load(f"folder:{tmp_path}")


def test_the_fingerprint_of_a_folder_sees_a_changed_image(tree: Path, tmp_path: Path):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for file in (tree / part / name).iterdir():
                (tmp_path / part / name / file.name).write_bytes(file.read_bytes())
    expected = load(f"folder:{tree}", size=16).fingerprint
    assert load(f"folder:{tmp_path}", size=16).fingerprint == expected
    assert load(f"folder:{tree}", size=24).fingerprint != expected
    Image.new("RGB", (40, 50)).save(tmp_path / "train" / "cat" / "0.jpg")
    assert load(f"folder:{tmp_path}", size=16).fingerprint != expected


# --- from any Dataset ------------------------------------------------------------------------------------------------


def pairs(x: Tensor, y: list[int]) -> TensorDataset:
    return TensorDataset(x, torch.tensor(y))


class Listed(Dataset[Any]):
    def __init__(self, *items: Any):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


class Noisy(Listed):
    def __getitem__(self, i: int) -> Any:
        return torch.rand(3), i % 2


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(
    "x", [torch.linspace(-1, 1, 40).view(10, 4), torch.arange(40).view(10, 4)], ids=["float", "int"]
)
def test_tensors_that_are_no_bytes_come_through_as_they_are(x: Tensor, resident: bool):
    data = wrap(pairs(x, [0, 1] * 5), pairs(x[:4], [1, 0, 1, 0]), resident=resident, workers=0, name="mine")
    seen, y = joined(data.test.batches(3))
    assert seen.dtype == x.dtype
    assert torch.equal(seen, x[:4])
    assert y.tolist() == [1, 0, 1, 0]
    assert (data.name, data.classes, data.shape, data.train.mean) == ("mine", 2, (4,), None)


@pytest.mark.parametrize("resident", [True, False])
def test_pictures_and_byte_tensors_become_normalised_images(resident: bool):
    grey = [torch.full((6, 5), 20 * i, dtype=torch.uint8) for i in range(10)]
    as_tensors = Listed(*((x, i % 2) for i, x in enumerate(grey)))
    as_pictures = Listed(*((Image.fromarray(x.numpy()), i % 2) for i, x in enumerate(grey)))
    a, b = (wrap(items, items, resident=resident, workers=0) for items in (as_tensors, as_pictures))
    assert a.shape == b.shape == (1, 6, 5)
    (x, _), (other, _) = joined(iter(a.test)), joined(iter(b.test))
    assert torch.equal(x, other)
    assert x.mean().abs() < 1e-3
    assert a.fingerprint == b.fingerprint


def test_a_validation_set_of_ones_own_is_kept():
    x = torch.rand(10, 4)
    data = wrap(pairs(x, [0, 1] * 5), pairs(x, [0, 1] * 5), val=pairs(x[:3], [1, 1, 0]))
    assert (len(data.train), data.val.y.tolist()) == (10, [1, 1, 0])


def test_random_transforms_of_a_streamed_dataset_follow_the_seed_and_not_the_workers():
    items = Noisy(*range(12))
    alone, shared = (wrap(items, items, resident=False, workers=workers) for workers in (0, 2))
    index = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    for a, b in zip(alone.train.batches(index, [1, 2]), shared.train.batches(index, [1, 2]), strict=True):
        assert torch.equal(a[0], b[0])
    assert torch.equal(joined(iter(alone.test))[0], joined(iter(alone.test))[0])
    assert not torch.equal(next(alone.train.batches(index, [1, 2]))[0], next(alone.train.batches(index, [3, 4]))[0])


class Transformed(Listed):
    """Item i moved by what each of the three global generators draws."""

    def __getitem__(self, i: int) -> Any:
        drawn = [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002
        return torch.tensor([float(i), *drawn]), i % 2


def epochs(workers: int, batch_size: int = 5) -> tuple[dict[int, list[float]], ...]:
    """What a run of two epochs has seen: by image what each generator drew."""
    seen: tuple[dict[int, list[float]], ...] = ({}, {})

    class Flat(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if self.training:
                seen[counted["epoch"]].update({int(row[0]): row[1:].tolist() for row in input})
            return super().forward(input)

    counted = {"epoch": 0}

    def watch(run: Any) -> None:
        counted["epoch"] = min(run.step // run.steps_per_epoch, 1)

    items = Transformed(*range(24))
    data = wrap(items, items, resident=False, workers=workers, val=0.25)
    fit(Flat(4, 2), data, epochs=2, batch_size=batch_size, progress=watch, device="cpu")
    return seen


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of fewer cores
def test_augmentation_follows_from_seed_epoch_and_image_whatever_draws_it():
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    first, second = epochs(workers=0)
    assert (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()) == before  # noqa: NPY002
    assert first.keys() == second.keys()
    assert len(first) == 18
    for i in first:
        assert all(a != b for a, b in zip(first[i], second[i], strict=True))  # another epoch, another draw
    for draws in zip(*first.values(), strict=True):
        assert len(set(draws)) == len(first)  # each image its own
    random.seed(6)
    np.random.seed(6)  # noqa: NPY002
    assert epochs(workers=1) == epochs(workers=3) == epochs(workers=0, batch_size=7) == (first, second)


def test_images_are_judged_alike_each_time_and_with_any_number_of_workers():
    items = Transformed(*range(6))
    alone, shared = (wrap(items, items, resident=False, workers=workers, val=0.5).test for workers in (0, 2))
    expected, _ = joined(iter(alone))
    assert torch.equal(joined(iter(alone))[0], expected)
    assert torch.equal(joined(shared.batches(2))[0], expected)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("form", ["tensors", "lists", "one tensor"])
def test_an_item_may_have_a_label_at_each_place(resident: bool, form: str):
    x = torch.randint(5, (12, 4), generator=torch.Generator().manual_seed(0))
    y = x.sort(1).values
    labels = {"tensors": list(y), "lists": y.tolist()}
    items = TensorDataset(x, y) if form == "one tensor" else Listed(*zip(x, labels[form], strict=True))
    data = wrap(items, Subset(items, [3, 1]), resident=resident, workers=0, val=0.25)
    assert (data.classes, data.train.y.shape, data.val.y.shape) == (5, (9, 4), (3, 4))
    assert torch.equal(data.test.y, y[[3, 1]])
    model = build(models.transformer, data, seed=0, width=8, heads=2)
    assert fit(model, data, epochs=1, progress=False, device="cpu").status == "done"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 1], [1, 0, 1]], r"item 1 of the train dataset has labels of shape \(3,\), item 0 \(2,\)"),
        ([[0, 1], [1, -3]], "item 1 of the train dataset has the label -3"),
        ([[[0]], [[1]]], "one whole number per item or per place"),
        ([[0, 1, 1], [1, 1, 1]], r"a test item has labels of shape \(2,\), a train item of shape \(3,\)"),
        ([0, 1], r"a test item has labels of shape \(2,\), a train item of shape \(\)"),
    ],
)
def test_labels_at_places_that_do_not_fit_are_refused(labels: list[Any], message: str):
    test = Listed((torch.zeros(3), [0, 1]), (torch.zeros(3), [0, 1]))
    with pytest.raises(DataError, match=message):
        wrap(Listed(*((torch.zeros(3), label) for label in labels)), test, val=0.5)


def test_labels_are_known_without_reading_items_where_the_dataset_tells_them():
    class Told(Listed):
        targets = (0, 1, 0, 1)
        read = 0

        def __getitem__(self, i: int) -> Any:
            Told.read += 1
            return torch.zeros(2), self.targets[i]

    data = wrap(Subset(Told(*range(4)), [3, 1, 0]), Told(*range(4)), resident=False, workers=0, val=0.34)
    assert sorted([*data.train.y.tolist(), *data.val.y.tolist()]) == [0, 1, 1]
    assert data.test.y.tolist() == [0, 1, 0, 1]
    assert Told.read < 8


def test_labels_are_read_where_a_transform_changes_what_the_dataset_tells():
    class Changed(Listed):
        targets = (5, 5)
        target_transform = "minus five"

    data = wrap(Changed((FOUR[0], 0), (FOUR[0], 1)), GOOD, resident=False, workers=0, val=0.5)
    assert sorted([*data.train.y.tolist(), *data.val.y.tolist()]) == [0, 1]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(2), 0


FOUR = torch.zeros(4, 3)
GOOD = pairs(FOUR, [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("train", "test", "options", "kind", "message"),
    [
        (
            pairs(FOUR, [0, -1, 0, 1]),
            GOOD,
            {},
            DataError,
            "item 1 of the train dataset has the label -1: count classes from 0",
        ),
        (
            GOOD,
            pairs(FOUR, [0, 1, 5, 1]),
            {},
            DataError,
            r"item 2 of the test dataset has the label 5.*2 classes \(0 to 1\)",
        ),
        (GOOD, GOOD, {"class_names": ["one"]}, DataError, "item 1 of the train dataset has the label 1.*1 classes"),
        (
            TensorDataset(FOUR, FOUR[:, 0]),
            GOOD,
            {},
            DataError,
            r"labels of the test dataset are torch\.int64, of the train",
        ),
        (pairs(FOUR[:0], []), GOOD, {}, DataError, "the train dataset is empty"),
        (Endless(), GOOD, {}, ConfigError, r"\(Endless\) has no length"),
        (
            GOOD,
            pairs(torch.zeros(4, 2), [0, 1, 0, 1]),
            {},
            DataError,
            r"test items are \(2,\) .*train items \(3,\) .*: make them alike",
        ),
        (pairs(FOUR[:1], [0]), pairs(FOUR[:1], [0]), {}, ConfigError, "give 2 or more"),
        (pairs(FOUR.byte(), [0, 1, 0, 1]), GOOD, {}, DataError, r"must be an image \(H, W\)"),
        (GOOD, GOOD, {"val": 0.0}, ConfigError, "above 0 and below 1"),
        (GOOD, GOOD, {"augment": "flip"}, ConfigError, r"augmentations are for images.*\(3,\)"),
        (
            Listed((torch.zeros(3), 0), (torch.zeros(3), 0), (torch.zeros(2), 1)),
            GOOD,
            {},
            DataError,
            r"item 2 has the shape \(2,\), item 0 \(3,\).*resident=False",
        ),
    ],
)
def test_what_cannot_be_wrapped_is_refused(train: Any, test: Any, options: Any, kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        wrap(train, test, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("minst", {}, r"no data set is called 'minst', did you mean 'MNIST'\? There are digits, strokes.*folder:PATH"),
        ("cifar10", {}, "did you mean 'CIFAR10'"),
        ("zzz", {}, "no data set is called 'zzz': There are digits"),
        ("digits", {"val": 0}, "val=0; expected a number above 0 and below 1 or 'test'"),
        ("digits", {"val": 1.0}, "above 0 and below 1"),
        ("digits", {"train": 0}, "train=0; expected a whole number of at least 1"),
        ("digits", {"test": -5}, "test=-5; expected"),
        ("digits", {"size": 2.5}, r"size=2\.5; expected"),
        ("digits", {"train": 2000}, "2,000 training images of digits were asked for, there are 1,437"),
        ("digits", {"test": 361}, "361 test images of digits were asked for, there are 360"),
        ("digits", {"train": 1}, "give 2 or more"),
        (
            "digits",
            {"augment": "crop+flop"},
            "no augmentation is called 'flop': take shift, crop, flip, cutout, alternate",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused(name: str, options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        load(name, **options)


def test_every_set_is_listed_with_whether_it_is_here():
    listed = {name: here for name, _, here in available()}
    assert list(listed) == [
        "digits",
        "strokes",
        "textures",
        "sorting",
        "code",
        "MNIST",
        "FashionMNIST",
        "CIFAR10",
        "CIFAR100",
    ]
    assert listed["digits"]
    assert listed["strokes"]

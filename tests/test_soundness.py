"""A data set is looked at once, when it is made: what cannot be learned from is refused, what is odd is noted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import pruninglab as lab

X, Y = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4


def holding(value: float, at: int = 7) -> Tensor:
    x = X.clone()
    x[at, 0, 2, 3] = value
    return x


def labelled(value: int, at: int = 7) -> Tensor:
    return Y.index_fill(0, torch.tensor(at), value)


GOOD = TensorDataset(X, Y)
BAD: dict[str, tuple[Any, Any, str]] = {
    "NaN to train on": (TensorDataset(holding(torch.nan), Y), GOOD, "item 7 of the train dataset holds NaN"),
    "infinity to test on": (GOOD, TensorDataset(holding(torch.inf), Y), "item 7 of the test dataset holds NaN"),
    "a label of 1000": (TensorDataset(X, labelled(1000)), GOOD, "only 5 labels occur, but they run to 1,000"),
    "a label of 1000 to test on": (GOOD, TensorDataset(X, labelled(1000)), "that would make 1,001 classes"),
    "a class without teaching": (TensorDataset(X, Y.clamp(min=1)), GOOD, "no training item has the class 0"),
    "all images the same": (
        TensorDataset(torch.ones(40, 3, 6, 6) / 3, Y),
        TensorDataset(torch.ones(4, 3, 6, 6), Y[:4]),
        "nothing to learn",
    ),
}


class Plain(Dataset[Any]):
    """Tells nothing but its items."""

    def __init__(self, given: TensorDataset) -> None:
        self.given = given

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: int) -> Any:
        return self.given[index]


@pytest.mark.parametrize("kind", [lambda given: given, Plain], ids=["tensors", "items"])
@pytest.mark.parametrize("case", BAD)
def test_what_nothing_can_be_learned_from_is_refused(case, kind):
    train, test, said = BAD[case]
    with pytest.raises(lab.DataError, match=said):
        lab.wrap(kind(train), kind(test))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_refuses_what_is_no_number_when_it_meets_it(workers):
    data = lab.wrap(GOOD, TensorDataset(holding(torch.nan, 39), Y), resident=False, workers=workers)
    with pytest.raises(lab.DataError, match="item 39 holds NaN or infinity"):
        list(data.test.batches(10))


def test_labels_that_are_sparse_on_purpose_have_their_names():
    names = list(map(str, range(1001)))
    data = lab.wrap(TensorDataset(X, labelled(1000)), GOOD, class_names=names)
    assert data.classes == 1001
    assert "no test item has the class 4, 5, 6 (and 994 more)" in data.notes


def test_what_is_odd_is_in_the_record(tmp_path):
    x = X.clone()
    x[3] = 0.5
    data = lab.wrap(TensorDataset(x, Y), TensorDataset(X[:1], Y[:1]), val=TensorDataset(X[:3], Y[:3]))
    notes = [
        *("no val item has the class 3", "the test split is a single item", "no test item has the class 1, 2, 3"),
        "1 of 40 training images are of one colour throughout",
    ]
    assert list(data.notes) == notes
    assert data.fingerprint == replace(data, notes=()).fingerprint
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    run = lab.fit(net, data, epochs=1, record=tmp_path / "r.json", progress=False)
    assert [f"data: {note}" for note in notes] == lab.Result.read(tmp_path / "r.json").warnings[: len(notes)]
    assert run.result.warnings == lab.Result.read(tmp_path / "r.json").warnings


def test_sets_with_a_name_have_nothing_odd_about_them():
    assert lab.load("digits").notes == ()
    for name in ("strokes", "textures", "sorting"):
        assert lab.load(name, train=400, test=100).notes == ()


def folder(tmp_path: Path, broken: int) -> Path:
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            place = tmp_path / part / kind
            place.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (number, 9, 9)).save(place / f"{number}.png")
    for number in range(broken):
        (tmp_path / "train" / "dog" / f"{number}.png").write_bytes(b"no image")
    return tmp_path


def test_files_that_are_no_images_are_named_or_left_out_and_counted(tmp_path):
    path = folder(tmp_path, 2)
    data = lab.load(f"folder:{path}", size=8, workers=0)
    with pytest.raises(lab.DataError, match=r"dog/[01]\.png \(item [0-7]\) cannot be read as an image"):
        [list(split) for split in (data.train, data.val)]
    data = lab.load(f"folder:{path}", size=8, workers=0, unreadable="skip")
    assert len(data.train) + len(data.val) == 6
    assert data.notes == (
        "2 of 8 train files are no images and left out",
        "the val split is a single item",
        "no val item has the class dog",
    ) or data.notes[0].startswith("2 of 8")
    assert len([*data.train.batches(2)]) == 3


def test_a_folder_in_which_nothing_is_an_image_is_refused(tmp_path):
    path = folder(tmp_path, 4)
    for number in range(4):
        (path / "train" / "cat" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(lab.DataError, match="none of the 8 files"):
        lab.load(f"folder:{path}", size=8, workers=0, unreadable="skip")

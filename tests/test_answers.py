"""What a network answered to each test image stands in the record, and is what an independent pass finds."""

import base64
import zlib

import numpy as np
import pytest
import torch

import pruninglab as lab
from pruninglab.results.answers import Answers, unpack


def test_offsets_by_hand():
    answers = Answers()
    answers.add(torch.tensor([[0.0, 1.0, 0.0], [2.0, 1.0, 0.0]]), torch.tensor([1, 2]))
    answers.add(torch.tensor([[0.0, 0.0, 5.0]]), torch.tensor([1]))
    assert unpack(answers.entry() or {}, 3).tolist() == [0, 1, 1]


@pytest.mark.parametrize("classes", [2, 10, 256, 1000])
def test_every_answer_comes_back(classes):
    logits, y = torch.randn(500, classes), torch.randint(classes, (500,))
    answers = Answers()
    for rows in torch.arange(500).split(64):
        answers.add(logits[rows], y[rows])
    found = torch.from_numpy(unpack(answers.entry() or {}, 500))
    assert torch.equal((found + y) % classes, logits.argmax(1))


def test_a_record_holds_them(tmp_path):
    data = lab.load("digits")
    run = lab.fit(lab.build("lenet300", data, seed=0), data, epochs=2, record=tmp_path / "a.json", progress=False)
    x, y = next(iter(data.test.batches(len(data.test))))
    with torch.no_grad():
        expected = (run.model(x).argmax(1) - y) % 10
    found = lab.results.Result.read(tmp_path / "a.json").answers()
    assert found is not None
    assert found.tolist() == expected.tolist()
    assert (found == 0).mean() == pytest.approx(run.test)


def test_no_classes_no_answers():
    answers = Answers()
    answers.add(torch.randn(3, 1), torch.randn(3))
    assert answers.entry() is None


def entry(content: bytes, classes: int = 10) -> dict[str, object]:
    return {"classes": classes, "offsets": base64.b64encode(zlib.compress(content)).decode()}


@pytest.mark.parametrize(
    "damaged",
    [{}, entry(bytes(9)), entry(bytes(11)), entry(bytes([10] * 10)), {"classes": 10, "offsets": "x"}, entry(b"", 0)],
)
def test_damage_is_noticed(damaged):
    with pytest.raises(lab.DataError, match="damaged"):
        unpack(damaged, 10)


def test_a_bomb_is_not_unpacked():
    with pytest.raises(lab.DataError):
        unpack(entry(bytes(50_000_000)), 10)


def test_bytes_are_few():
    answers = Answers()
    y = torch.randint(10, (10_000,))
    wrong = torch.from_numpy(np.random.default_rng(0).choice(10_000, 80, replace=False))
    logits = torch.nn.functional.one_hot(y, 10).float()
    logits[wrong] = logits[wrong].roll(1, 1)
    answers.add(logits, y)
    assert len(str(answers.entry())) < 600


def test_answers_are_those_to_the_test_split_alone():
    data = lab.load("digits", train=100, test=50)
    run = lab.fit(lab.build("lenet300", data, seed=0), data, epochs=1, progress=False)
    assert run.answers is not None
    run.evaluate(data.val.batches(10))
    assert run.answers is None  # not those to other images

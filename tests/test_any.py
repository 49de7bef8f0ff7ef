"""Data and networks of any form: the same numbers whatever the form, and refusals in words."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pruninglab as lab
from pruninglab.layers.calls import Inputs, calling, logits_of, ones_like
from pruninglab.methods.cuts.gradual import Gradual
from pruninglab.results.protocol import training
from pruninglab.train import negative_squared_error, returned_loss

N = 48
SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(N, 6, generator=SOURCE)
Y = (X[:, 0] + X[:, 3] > 0).long()
FIT: dict[str, Any] = {"epochs": 2, "batch_size": 8, "progress": False, "collapse": "allow", "device": "cpu"}


class Net(nn.Module):
    """Takes one tensor, or its halves by name or by place; answers with logits, or with these in something."""

    def __init__(self, answer: Any = None):
        super().__init__()
        self.fc1, self.fc2, self.answer = nn.Linear(6, 8), nn.Linear(8, 2), answer

    def forward(self, left: Tensor, right: Tensor | None = None, labels: Tensor | None = None) -> Any:
        logits = self.fc2(self.fc1(left if right is None else torch.cat([left, right], 1)).relu())
        return logits if self.answer is None else self.answer(logits, labels)


class Answer:
    """As transformers answer."""

    def __init__(self, logits: Tensor, labels: Tensor | None):
        self.logits, self.loss = logits, None if labels is None else F.cross_entropy(logits, labels)


def net(answer: Any = None) -> Net:
    torch.manual_seed(0)
    return Net(answer)


def halves(i: int) -> dict[str, Tensor]:
    return {"left": X[i, :3], "right": X[i, 3:]}


def plain() -> lab.Data:
    return lab.wrap(TensorDataset(X, Y), TensorDataset(X[:16], Y[:16]), name="plain")


def named() -> lab.Data:
    items = [{**halves(i), "label": int(Y[i])} for i in range(N)]
    return lab.wrap(items, items[:16], name="plain")


def placed() -> lab.Data:
    parts = X[:, :3], X[:, 3:], Y
    return lab.wrap(TensorDataset(*parts), TensorDataset(*(part[:16] for part in parts)), name="plain")


def weights(run: lab.Run) -> list[Tensor]:
    return [p.detach() for p in run.model.parameters()]


def same(one: lab.Run, other: lab.Run) -> bool:
    return all(map(torch.equal, weights(one), weights(other)))


@pytest.fixture(scope="module")
def expected() -> lab.Run:
    return lab.fit(net(), plain(), Gradual(lab.Cubic(0.5)), **FIT)


@pytest.mark.parametrize("form", [named, placed], ids=["by name", "by place"])
def test_inputs_in_parts_train_to_the_same_bits(expected: lab.Run, form: Any):
    run = lab.fit(net(), form(), Gradual(lab.Cubic(0.5)), **FIT)
    assert same(run, expected)
    assert (run.val, run.test, run.flops.dense) == (expected.val, expected.test, expected.flops.dense)
    assert "forward" not in vars(run.model)
    assert run.evaluate("test")["accuracy"] == run.test


ANSWERS = {
    "tuple": lambda logits, labels: (logits, logits + 1),
    "dict": lambda logits, labels: {"logits": logits},
    "object": Answer,
    "loss first": lambda logits, labels: (logits.mean(), logits),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_in_something_trains_to_the_same_bits(expected: lab.Run, answer: str):
    assert same(lab.fit(net(ANSWERS[answer]), plain(), Gradual(lab.Cubic(0.5)), **FIT), expected)


def test_forward_calls_the_network_in_the_users_way(expected: lab.Run):
    def halved(model: nn.Module, x: Tensor) -> Any:
        return model(x[:, :3], right=x[:, 3:]).logits

    run = lab.fit(net(Answer), plain(), Gradual(lab.Cubic(0.5)), forward=halved, **FIT)
    assert same(run, expected)
    assert run.config["forward"].startswith("halved")
    assert "forward" not in expected.config


def test_a_network_that_returns_its_loss_needs_no_labels(expected: lab.Run):
    items = [{**halves(i), "labels": int(Y[i])} for i in range(N)]
    data = lab.wrap(items, items[:16], labels=None, val=[items[int(i)] for i in range(8)])
    items_of = [{**halves(i), "labels": int(Y[i])} for i in range(N)]
    other = lab.wrap(items_of, items_of[:16], val=items_of[:8])
    run = lab.fit(net(Answer), data, loss=returned_loss, **FIT)
    assert same(run, lab.fit(net(), other, **FIT))
    assert run.val == pytest.approx(-run.evaluate("val")["loss"])
    with pytest.raises(lab.ConfigError, match=r"has no labels; give loss=lab\.train\.returned_loss"):
        lab.fit(net(Answer), data, **FIT)
    with pytest.raises(lab.ConfigError, match=r"and it returned none\. Wrap the data with labels=None"):
        lab.fit(net(Answer), other, loss=returned_loss, **FIT)


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow", "taylor", "obd", "magnitude"])
def test_every_criterion_scores_inputs_in_parts_alike(criterion: str):
    _, one = lab.prune(net(), 0.5, criterion, data=plain())
    _, other = lab.prune(net(Answer), 0.5, criterion, data=named())
    assert one.fingerprint == other.fingerprint


def test_a_run_on_dicts_resumes_to_the_same_bits(tmp_path: Any):
    whole = lab.fit(net(), named(), Gradual(lab.Cubic(0.5)), **FIT)

    def stop(run: lab.Run) -> None:
        if run.step == 5:
            run.interrupt()

    stopping: dict[str, Any] = {**FIT, "progress": stop, "checkpoint": tmp_path / "run"}
    path = stopping["checkpoint"]
    lab.fit(net(), named(), Gradual(lab.Cubic(0.5)), **stopping)
    assert same(lab.fit(net(), named(), Gradual(lab.Cubic(0.5)), checkpoint=path, **FIT), whole)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        i = 0
        while True:
            yield {**halves(i % N), "label": int(Y[i % N])}
            i += 1


def together(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.stack([torch.as_tensor(item[name]) for item in items]) for name in items[0]}


def test_data_of_every_form_holds_the_same():
    items = [{**halves(i), "label": int(Y[i])} for i in range(N)]
    arrays = {"left": X[:, :3].numpy(), "right": X[:, 3:].numpy()}, Y.numpy()
    listed: Any = items
    forms: list[Any] = [items, arrays, DataLoader(listed, batch_size=5), DataLoader(listed, collate_fn=together)]
    prints = {lab.wrap(form, items[:9]).fingerprint for form in forms}
    prints |= {lab.wrap(Endless(), items[:9], length=N).fingerprint}
    assert len(prints) == 1


@pytest.mark.slow
def test_a_data_set_of_hugging_face_is_a_list_of_dicts():
    datasets = pytest.importorskip("datasets")
    items = [{**halves(i), "label": int(Y[i])} for i in range(N)]
    table = datasets.Dataset.from_list(
        [{name: torch.as_tensor(v).tolist() for name, v in item.items()} for item in items]
    )
    expected = lab.wrap(items, items[:9]).fingerprint
    for form in (table, table.with_format("torch")):
        assert lab.wrap(form, form.select(range(9))).fingerprint == expected
    endless = table.with_format("torch").to_iterable_dataset()
    assert lab.wrap(endless, items[:9], length=N).fingerprint == expected


class Summed(nn.Module):
    """Reads sequences of different length: what the mask leaves out counts nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.out((self.embed(tokens) * mask[..., None]).sum(1))


def padded(items: list[dict[str, Any]], by: int) -> dict[str, Tensor]:
    """A batch in which short sequences end in the token `by`, under a mask of zeros."""
    tokens = [torch.tensor(item["tokens"]) for item in items]
    fill = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    found = {"tokens": fill(tokens, padding_value=by), "mask": fill([torch.ones(len(row)) for row in tokens])}
    return found | {"label": torch.tensor([item["label"] for item in items])}


def test_what_stands_in_the_padding_changes_no_bit():
    rows = [{"tokens": list(range(1, 2 + i % 7)), "label": i % 2} for i in range(N)]
    torch.manual_seed(0)
    model = Summed()
    one, other = (lab.wrap(rows, rows, val=rows, collate=partial(padded, by=by)) for by in (0, 19))
    assert one.fingerprint != other.fingerprint
    assert one.train.shape == (7,)
    runs = [lab.fit(model, data, Gradual(lab.Cubic(0.5)), skip="embeddings", **FIT) for data in (one, other)]
    assert same(*runs)
    assert runs[0].masks.fingerprint == runs[1].masks.fingerprint


@pytest.mark.parametrize("resident", [True, False])
def test_dicts_are_streamed_as_they_are_held(resident: bool):
    items = [{**halves(i), "label": int(Y[i])} for i in range(N)]
    data = lab.wrap(items, items[:9], resident=resident, workers=0)
    x, y = next(iter(data.test.batches(4)))
    assert isinstance(x, Inputs)
    assert torch.equal(x["left"], X[:4, :3])
    assert torch.equal(y, Y[:4])


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([{"x": X[0], "target": 1}] * 4, {}, "an item has no 'labels', only x, target: name the key"),
        ([{"x": X[0], "text": "one", "label": 1}] * 4, {}, "text of an item is text: turn it into numbers"),
        (({"x": X[:4]}, Y[:3]), {}, "different lengths, or none: x 4, labels 3"),
        ([{"x": X[0], "label": 1}, {"x": X[0, :2], "label": 1}] * 2, {}, r"x of item 1 has the shape \(2,\).*collate="),
        ([{"x": X[0], "label": 1}, {"z": X[0], "label": 1}] * 2, {}, "item 1 has z, item 0 x: make them alike"),
        (iter([(X[0], 1)] * 4), {"length": 9}, "gave 4 items; length=9 asked for more"),
    ],
)
def test_data_that_cannot_be_read_is_refused(given: Any, options: dict[str, Any], message: str):
    with pytest.raises(lab.DataError, match=message):
        lab.wrap(given, given, **options)


def test_places_without_a_label_do_not_count():
    logits = torch.tensor([[[5.0, 5, 0], [0, 0, 5]]])  # (1, 2 classes, 3 places): answers 0, 0, 1
    assert lab.train.accuracy(logits, torch.tensor([[0, 1, -100]])).tolist() == [0.5]
    assert lab.train.accuracy(logits, torch.tensor([[-100, -100, -100]])).tolist() == [0]


def test_numbers_are_learned_with_a_loss_and_a_metric_for_them():
    data = lab.wrap((X, X @ torch.randn(6, 2)), (X[:9], X[:9] @ torch.randn(6, 2)))
    assert (data.classes, data.train.y.dtype) == (0, torch.float32)
    fit = partial(lab.fit, data=data, loss=F.mse_loss, metric=negative_squared_error, **FIT)
    run = fit(nn.Linear(6, 2))
    assert run.val == pytest.approx(-run.history[-1]["val_loss"])
    with pytest.raises(lab.ConfigError, match="are numbers with a point, not classes"):
        lab.fit(nn.Linear(6, 2), data, **FIT)
    with pytest.raises(lab.ConfigError, match=r"gives \(2, 1\) for labels of shape \(2, 2\); expected one shape"):
        fit(nn.Linear(6, 1))


def test_classes_in_the_last_dimension_are_told():
    data = lab.load("sorting", train=40, test=20)
    model = nn.Sequential(nn.Embedding(data.classes, 8), nn.Linear(8, data.classes))
    with pytest.raises(lab.ConfigError, match=r"seem to lie in the last dimension: forward=lambda model, x"):
        lab.fit(model, data, **FIT)
    run = lab.fit(model, data, forward=lambda model, x: model(x).movedim(-1, 1), **FIT)
    assert run.status == "done"


def test_an_optimizer_of_the_users_is_made_from_groups_rate_and_decay():
    ours = lab.fit(net(), plain(), optimizer="sgd", lr=0.1, weight_decay=0.01, **FIT)
    own = partial(torch.optim.SGD, momentum=0.9, fused=True)
    assert same(lab.fit(net(), plain(), optimizer=own, lr=0.1, weight_decay=0.01, **FIT), ours)
    with pytest.raises(lab.ConfigError, match=r"made a LBFGS; expected a torch\.optim\.Optimizer"):
        lab.fit(net(), plain(), optimizer=torch.optim.LBFGS, **FIT)


def test_the_record_says_in_which_type_the_weights_are(expected: lab.Run):
    data = lab.wrap((X.bfloat16(), Y), (X[:16].bfloat16(), Y[:16]))
    narrow = lab.fit(net().bfloat16(), data, **FIT)
    assert training(expected.config)["precision"] == "fp32"
    assert training(narrow.config)["precision"] == "fp32, weights in bfloat16"
    assert "dtype" not in expected.config["model"]


def test_a_batch_in_parts_trains_as_the_whole_batch_does():
    whole = lab.fit(net(), plain(), optimizer="sgd", **FIT)
    parts = lab.fit(net(), plain(), optimizer="sgd", accumulate=3, **FIT)
    for one, other in zip(weights(parts), weights(whole), strict=True):
        torch.testing.assert_close(one, other)
    assert parts.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"])
    assert parts.config["accumulate"] == 3


def test_gradients_are_clipped_to_a_norm():
    norms: list[float] = []

    def step(run: lab.Run) -> None:
        norms.append(float(sum(((w - b) ** 2).sum() for w, b in zip(weights(run), before, strict=True))) ** 0.5)

    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    how: dict[str, Any] = {
        **FIT,
        "epochs": 1,
        "batch_size": N,
        "progress": step,
        "optimizer": "sgd",
        "lr_schedule": "constant",
    }
    run = lab.fit(model, plain(), lr=1.0, clip=0.01, **how)
    assert norms == pytest.approx([0.01], rel=1e-3)
    assert "clipped at 0.01" in training(run.config)["optimizer"]


def test_a_network_is_itself_again_after_it_was_called_in_another_way():
    model = net(Answer)
    with calling(model):
        assert isinstance(model(X), Tensor)
        with calling(model):
            assert isinstance(model(Inputs(names={"left": X[:, :3], "right": X[:, 3:]})), Tensor)
        assert isinstance(model(X), Tensor)
    assert isinstance(model(X), Answer)


def test_of_two_ways_to_call_a_network_the_outer_one_holds():
    model = net()
    with calling(model, lambda model, x: 2 * model(x)), calling(model, lambda model, x: 3 * model(x)):
        twice = model(X)
    assert torch.equal(twice, 2 * model(X))


def test_what_stands_beside_the_inputs_is_handed_on():
    model, labels = net(Answer), torch.zeros(N).long()
    parts = Inputs((X[:, :3], X[:, 3:]))
    expected = model(X, None, labels).loss
    with calling(model):
        assert torch.equal(returned_loss(model(parts, labels), labels), expected)
        assert torch.equal(returned_loss(model(parts, labels=labels), labels), expected)


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3), (4, 5, 6, 3)])
def test_only_an_object_s_sequences_of_logits_have_their_classes_last(shape: tuple[int, ...]):
    logits = torch.randn(shape)
    for answer in (logits, (logits, 0), [torch.tensor(0.5), logits], {"logits": logits}, {"loss": None, "of": logits}):
        assert logits_of(answer) is logits
    found = logits_of(Answer(logits, None))
    assert torch.equal(found, logits.movedim(2, 1) if len(shape) == 3 else logits)


def test_ones_are_of_the_type_that_they_replace():
    parts = Inputs((X[:2], torch.tensor([[1, 2], [3, 4]])), {"mask": torch.tensor([[True], [False]])})
    found: Any = ones_like(parts, torch.float64)
    assert [part.dtype for part in found.parts().values()] == [torch.float64, torch.int64, torch.bool]
    assert all(bool(part.all()) for part in found.parts().values())
    ones: list[Any] = [ones_like(x, torch.float64) for x in parts.places]
    assert [part.dtype for part in ones] == [torch.float64, torch.int64]
    assert [len(part) for part in parts.repeat_interleave(3).parts().values()] == [6, 6, 6]
    assert [part.tolist() for part in parts.split(1)[1].parts().values()] == [X[1:2].tolist(), [[3, 4]], [[False]]]

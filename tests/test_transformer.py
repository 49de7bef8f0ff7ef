"""The sequence task and the transformer that learns it: counts by hand, the metric, pruning under it."""

import pytest
import torch

import pruninglab as lab
from pruninglab import identity
from pruninglab.train import accuracy, whole


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("sorting", train=3000, test=500)


def test_labels_are_the_numbers_in_order(data):
    x, y = next(iter(data.test))
    assert x.shape == y.shape == (500, 12)
    assert x.dtype == torch.int64
    assert (y.diff(dim=1) >= 0).all()
    assert torch.equal(x.sort(1).values, y)
    assert (data.classes, data.shape, len(data.val)) == (16, (12,), 300)
    again = lab.load("sorting", train=3000, test=500)
    assert again.fingerprint == data.fingerprint != lab.load("sorting", train=3000, test=500, seed=1).fingerprint


def test_metrics_by_hand():
    """Two sequences of three: one with two places right, one with all."""
    y = torch.tensor([[0, 1, 1], [1, 1, 0]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1, 0], [1, 1, 0]]), 2).float().transpose(1, 2)
    assert accuracy(logits, y).tolist() == pytest.approx([2 / 3, 1.0])
    assert whole(logits, y).tolist() == [0.0, 1.0]
    assert accuracy(torch.eye(3), torch.tensor([0, 1, 0])).tolist() == [1.0, 1.0, 0.0]


def test_weights_and_flops_by_hand(data):
    model = lab.build(lab.models.transformer, data, width=8, layers=1, heads=2)
    weights = lab.prunable(model)
    assert {n: w.numel() for n, w in weights.items()} == {
        "token.weight": 128,
        "place.weight": 96,
        "blocks.0.attention.in_proj_weight": 192,
        "blocks.0.attention.out_proj.weight": 64,
        "blocks.0.fc1.weight": 256,
        "blocks.0.fc2.weight": 256,
        "fc.weight": 128,
    }
    run = lab.fit(model, data, epochs=0, progress=False)
    products = 2 * 12 * 12 * 8 * 2  # queries with keys, and what they weigh with values
    multiplied = sum(w.numel() for n, w in weights.items() if n not in ("token.weight", "place.weight"))
    assert run.result.flops["dense"] == 2 * 12 * multiplied + products


@pytest.mark.slow
def test_it_learns_and_is_pruned_by_its_own_metric(data):
    model = lab.build("transformer", data)
    settings = {"lr": 3e-3, "metric": whole, "progress": False}
    dense = lab.fit(model, data, epochs=8, **settings)
    guess = lab.fit(model, data, epochs=0, progress=False).result.accuracy["test"]["accuracy"]
    places = lab.fit(dense, data, epochs=0, progress=False).result.accuracy["test"]["accuracy"]
    assert guess < 0.15
    assert places > 0.8
    assert dense.result.accuracy["metric"] == "whole"
    assert 0.0 < dense.result.accuracy["test"]["accuracy"] < places
    pruned = lab.fit(dense, data, lab.methods.Gradual(lab.Cubic(0.5)), epochs=1, **settings)
    assert pruned.masks.kept == 25984 // 2
    assert not pruned.model.get_parameter("fc.weight")[~pruned.masks["fc.weight"]].any()
    again = lab.fit(dense, data, lab.methods.Gradual(lab.Cubic(0.5)), epochs=1, **settings)
    assert identity.tensor_hash(again.model.state_dict()) == identity.tensor_hash(pruned.model.state_dict())


def test_what_it_cannot_read_is_said(data):
    with pytest.raises(lab.ConfigError, match="reads sequences of tokens"):
        lab.build("transformer", lab.load("digits"))
    with pytest.raises(lab.ConfigError, match="expected 3 values"):
        lab.build("lenet5", data)
    with pytest.raises(lab.ConfigError, match="heads that divide the width"):
        lab.build(lab.models.transformer, data, heads=5)
    model = lab.build(lab.models.transformer, data)
    with pytest.raises(lab.ConfigError, match="each image has one label"):
        lab.impact([model], [model], data.test)

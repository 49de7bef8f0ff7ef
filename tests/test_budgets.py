"""How much each layer keeps: what cutting it alone costs, and budgets that hold after training too."""

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab import analysis, identity


@pytest.fixture(scope="module")
def dense() -> lab.Run:
    data = lab.load("digits", train=400, test=60, size=16)
    return lab.fit(lab.build("lenet5", data), data, epochs=4, progress=False)


def test_one_layer_alone_is_cut(dense):
    before = identity.tensor_hash(dense.model.state_dict())
    curves = analysis.sensitivity(dense, (0.9, 0.5))
    assert identity.tensor_hash(dense.model.state_dict()) == before
    assert curves["layer"].unique().tolist() == list(dense.masks)
    assert curves.groupby("layer")["sparsity"].apply(list).loc["fc1.weight"] == pytest.approx([0.0, 0.5, 0.9])
    # an independent way to one of the points
    pruned, _ = lab.prune(dense, {"conv2.weight": 0.9})
    by_hand = lab.fit(pruned, dense.data, epochs=0, progress=False).result.accuracy["val"]
    row = curves[(curves["layer"] == "conv2.weight") & (curves["sparsity"] > 0.8)].iloc[0]
    assert [row["loss"], row["accuracy"]] == pytest.approx([by_hand["loss"], by_hand["accuracy"]])
    assert len({r["accuracy"] for r in curves.to_dict("records") if r["sparsity"] == 0}) == 1


def test_a_small_layer_keeps_one_weight_at_least(dense):
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10), nn.Linear(10, 10, bias=False), nn.Linear(10, 10))
    run = lab.fit(model, dense.data, epochs=0, progress=False)
    curves = analysis.sensitivity(run, (0.5, 0.99, 0.999))
    assert curves[curves["layer"] == "2.weight"]["kept"].tolist() == [100, 50, 1]


def test_targets_stop_at_the_first_drop():
    accuracies = {"a": [0.9, 0.9, 0.85, 0.9], "b": [0.9, 0.895, 0.89, 0.2]}
    rows = [
        {"layer": layer, "sparsity": s, "accuracy": a}
        for layer, values in accuracies.items()
        for s, a in zip((0.0, 0.5, 0.7, 0.9), values, strict=True)
    ]
    assert analysis.tolerated(pd.DataFrame(rows), 0.01) == {"a": 0.5, "b": 0.7}
    with pytest.raises(lab.ConfigError, match="at least 0 and below 1"):
        analysis.tolerated(pd.DataFrame(rows), 1.0)


def test_a_layer_that_can_spare_more_keeps_less():
    """The first output of the first layer is all that counts; the second layer is small and needed."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(400, 1, 2, 10, generator=source)
    y = (x[:, 0, 0, 0] > 0).long()
    data = lab.wrap(TensorDataset(x[:300], y[:300]), TensorDataset(x[300:], y[300:]), val=0.3)

    def net(shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(20, 20, bias=False), nn.Linear(20, classes, bias=False))

    run = lab.fit(lab.build(net, data), data, epochs=20, lr=1e-2, progress=False)
    shares = analysis.allocate(run, 4, "sensitivity")
    kept = [round(w.numel() * (1 - shares[n])) for n, w in run.weights.items()]
    assert sum(kept) == 110
    assert kept[0] / 400 < kept[1] / 40


@pytest.mark.parametrize("by", ["magnitude", "sensitivity"])
def test_a_file_fits_also_after_training(dense, by, tmp_path):
    shares = analysis.fitting(dense, bytes=20_000, by=by)
    run = lab.fit(dense, dense.data, lab.methods.OneShot(shares), epochs=2, progress=False)
    written = lab.storage.save(run, tmp_path / "net", values="fp32")["sparse_bytes"]
    assert written <= 20_000
    assert lab.storage.sizes(run.model)["sparse_bytes"] <= 20_000
    assert written > 19_600  # as many weights as fit, with biases that no code makes shorter


def test_a_file_fits_also_where_norms_have_yet_to_learn(dense, tmp_path):
    """Scales of 1 and means of 0 take a code book of one entry; trained ones do not."""
    untrained = lab.fit(lab.build("resnet20", dense.data, width=0.25), dense.data, epochs=0, progress=False)
    least = analysis.fitting(untrained, bytes=14_000)
    run = lab.fit(untrained, dense.data, lab.methods.OneShot(least), epochs=1, progress=False)
    assert 13_000 < lab.storage.save(run, tmp_path / "net", values="fp32")["sparse_bytes"] <= 14_000


def test_flops_fit(dense):
    wanted = dense.result.flops["dense"] / 5
    shares = analysis.fitting(dense, flops=wanted)
    run = lab.fit(dense, dense.data, lab.methods.OneShot(shares), epochs=0, progress=False)
    assert 0.98 * wanted < run.result.flops["sparse"] <= wanted
    # what fits anyway is left as it is
    assert set(analysis.fitting(dense, flops=1e12).values()) == {0.0}


def test_what_cannot_be_is_said(dense):
    with pytest.raises(lab.ConfigError, match="either bytes= or flops="):
        analysis.fitting(dense)
    with pytest.raises(lab.ConfigError, match="2,000 bytes are not enough"):
        analysis.fitting(dense, bytes=2_000)
    with pytest.raises(lab.ConfigError, match="numbers of at least 0 and below 1"):
        analysis.sensitivity(dense, (1.0,))

"""Whom pruning harms: hand-worked cases, scipy beside our own arithmetic, and harm that was planted to be found."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab.analysis import Impact, Votes, calibration_error, holm, impact, welch


def votes(labels, confidence=0.9) -> Votes:
    labels = np.array(labels)
    return Votes(labels, np.broadcast_to(np.array(confidence, dtype=float), labels.shape))


def verdicts(found: Impact) -> list[str]:
    return found.per_class()["verdict"].tolist()


@pytest.fixture
def by_hand() -> Impact:
    """Three networks a side, five images of three classes."""
    dense = votes([[0, 0, 1, 1, 2], [0, 1, 1, 1, 2], [0, 0, 1, 2, 2]])
    pruned = votes([[0, 1, 1, 0, 2], [0, 1, 1, 0, 2], [0, 0, 1, 1, 2]])
    return Impact(np.array([0, 0, 1, 1, 2]), dense, pruned, ("a", "b", "c"))


def test_exemplars_are_where_the_most_frequent_label_differs(by_hand):
    assert by_hand.exemplars.tolist() == [1, 3]
    assert by_hand.pruned.count(3)[3].tolist() == [2, 1, 0]
    table = by_hand.accuracy()
    assert table.loc["exemplars"].tolist() == [2, pytest.approx(4 / 6), pytest.approx(2 / 6)]
    assert table.loc["others", ["dense", "pruned"]].tolist() == [1.0, 1.0]
    assert table.loc["all"].tolist() == [5, pytest.approx(13 / 15), pytest.approx(11 / 15)]


def test_a_tie_makes_an_exemplar_only_if_no_label_is_shared():
    """Half of the pruned networks still agree with the dense ones on the first two images, whatever the order."""
    tied = Impact(np.array([0, 1, 0]), votes([[0, 1, 0], [0, 1, 0]]), votes([[1, 0, 1], [0, 1, 2]]), ("a", "b", "c"))
    assert tied.exemplars.tolist() == [2]


def test_to_be_wrong_alike_is_no_exemplar():
    alike = Impact(np.array([1]), votes([[0]]), votes([[0]]), ("a", "b"))
    assert alike.exemplars.tolist() == []
    assert repr(alike) == alike._repr_html_() == "1 dense and 1 pruned networks on 1 images: 0 exemplars"


def test_churn_counts_pairs(by_hand):
    """Dense: networks 1 and 2 differ in image 2, 1 and 3 in image 4, 2 and 3 in both."""
    churn = by_hand.churn()
    assert churn["dense"] == pytest.approx((1 + 1 + 2) / 15)
    assert churn["pruned"] == pytest.approx((0 + 2 + 2) / 15)
    assert churn["dense to pruned"] == pytest.approx((2 + 2 + 0 + 1 + 1 + 1 + 2 + 2 + 1) / 45)
    one = Impact(np.array([0]), votes([[0]]), votes([[0]]), ("a",))
    assert np.isnan(one.churn()["dense"])


def test_change_is_beyond_the_whole(by_hand):
    table = by_hand.per_class().set_index("class")
    assert table.loc["c", ["dense_recall", "pruned_recall"]].tolist() == [1.0, 1.0]
    # class c keeps all of its recall while the whole loses two in fifteen
    assert table.loc["c", "change"] == pytest.approx(2 / 15)
    assert table.loc["b", "change"] == pytest.approx(4 / 6 - 5 / 6 + 2 / 15)
    assert table["images"].tolist() == [2, 2, 1]
    with pytest.raises(lab.ConfigError, match="two networks"):
        Impact(by_hand.y, votes([[0] * 5]), by_hand.pruned, by_hand.class_names).per_class()


def test_welch_is_scipys():
    draw = np.random.default_rng(0)
    for _ in range(20):
        a, b = draw.normal(size=draw.integers(2, 9)), draw.normal(0.5, 3, size=draw.integers(2, 9))
        ours: dict[str, float] = welch(a, b, 0.1)
        theirs: Any = stats.ttest_ind(a, b, equal_var=False)
        interval = theirs.confidence_interval(0.9)
        assert [ours["t"], ours["p"], ours["df"]] == pytest.approx([theirs.statistic, theirs.pvalue, theirs.df])
        assert [ours["low"], ours["high"]] == pytest.approx([interval.low, interval.high])


def test_one_image_more_is_no_claim():
    """Five networks miss one image of 36, five miss none: not a spread that could be trusted."""
    y = np.repeat(np.arange(2), 36)
    right, missed = np.tile(y, (5, 1)), np.tile(y, (5, 1))
    missed[:, 0] = 1
    table = Impact(y, votes(right), votes(missed), ("a", "b")).per_class()
    assert table["change"].tolist() == pytest.approx([-1 / 72, 1 / 72])
    assert table["p"].tolist() == pytest.approx([2 * stats.t.sf((1 / 72) / (0.5 / 36 * (2 / 5) ** 0.5), 8)] * 2)


def test_samples_without_spread_are_certain():
    same, other = np.full(3, 0.5), np.full(4, 0.25)
    assert welch(same, same)["p"] == 1.0
    assert welch(same, other) | {"t": 0} == {"change": 0.25, "low": 0.25, "high": 0.25, "t": 0, "df": 5, "p": 0}
    assert (welch(same, other)["p"], welch(other, same)["t"]) == (0.0, -np.inf)


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03, 0.2])).tolist() == pytest.approx([0.04, 0.09, 0.09, 0.2])
    assert holm(np.array([0.6, 0.9])).tolist() == [1.0, 1.0]


def test_calibration_by_hand():
    """Two answers of 0.95, one right, and two of 0.55, both right, in bins of a tenth."""
    confidence, right = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, False, True, True])
    assert calibration_error(confidence, right, 10) == pytest.approx((0.45 + 0.45) / 2)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0.0
    two = Impact(np.array([0, 1]), votes([[0, 1], [0, 1]], 0.9), votes([[0, 0], [0, 1]], 0.9), ("a", "b"))
    table = two.calibration()
    assert table.loc["dense", "ece"] == pytest.approx(0.1)
    assert table.loc["pruned", "ece"] == pytest.approx((0.4 + 0.1) / 2)
    curve = two.reliability().set_index("population")
    assert curve.loc["pruned", ["count", "accuracy"]].tolist() == [4, 0.75]


def test_without_harm_no_class_is_flagged_in_19_of_20():
    """Populations of one distribution: the share of comparisons that flag any of ten classes is at most the level.

    Some images are hard for all networks, most for none: classes in which only one image is ever missed are the trap.
    """
    draw, flagged, y = np.random.default_rng(1), 0, np.repeat(np.arange(10), 36)
    for _ in range(200):
        wrong = draw.random((10, 360)) < draw.beta(0.05, 1.0, 360)
        labels = np.where(wrong, (y + 1) % 10, y)
        one = Impact(y, votes(labels[:5]), votes(labels[5:]), tuple("0123456789"))
        flagged += any(verdicts(one))
    assert flagged / 200 <= 0.05


def test_a_harmed_class_is_flagged_alone():
    draw, y = np.random.default_rng(2), np.repeat(np.arange(10), 30)
    wrong = draw.random((12, 300)) < np.where((np.arange(12)[:, None] >= 6) & (y == 4), 0.5, 0.1)
    labels = np.where(wrong, (y + 1) % 10, y)
    found = verdicts(Impact(y, votes(labels[:6]), votes(labels[6:]), tuple("0123456789")))
    assert [c for c, verdict in enumerate(found) if verdict == "harmed"] == [4]


def small(shape, classes) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(40, 256), nn.ReLU(), nn.Linear(256, classes))


@pytest.fixture(scope="module")
def planted() -> tuple[lab.Data, np.ndarray]:
    """Four clusters, and 2 % of one class carry another label: to be learned by heart, or not at all."""
    source = torch.Generator().manual_seed(0)
    y = torch.arange(2400) % 4
    x = 1.2 * torch.randn(4, 40, generator=source)[y] + torch.randn(2400, 40, generator=source)
    known, given = y[:2000], y[:2000].clone()
    of_class = (known == 1).nonzero()[:, 0]
    chosen = of_class[:: len(of_class) // 10][:10]
    given[chosen] = 2
    x = x.view(-1, 1, 5, 8)
    held = TensorDataset(x[2000:2200], y[2000:2200])
    data = lab.wrap(TensorDataset(x[:2000], given), TensorDataset(x[2200:], y[2200:]), val=held, name="planted")
    return data, chosen.numpy()


def test_planted_exemplars_are_found(planted):
    data, chosen = planted
    dense, pruned = [], []
    for seed in range(3):
        model = lab.build(small, data, seed=seed)
        settings = {"lr": 5e-3, "seed": seed, "progress": False}
        dense.append(lab.fit(model, data, epochs=40, **settings))
        pruned.append(lab.fit(dense[-1], data, lab.methods.Gradual(lab.Cubic(0.95)), epochs=15, **settings))
    assert min(run.result.accuracy["val"]["accuracy"] for run in pruned) > 0.99  # the clusters are far apart
    found = impact(dense, pruned, data.train)
    hits = len(np.intersect1d(found.exemplars, chosen))
    assert hits / len(chosen) > 0.8  # recall
    assert hits / len(found.exemplars) > 0.8  # precision
    # learned by heart: the dense networks are right on them by the labels given, the pruned ones are not
    exemplars = found.accuracy().loc["exemplars"]
    assert exemplars["dense"] > 0.9
    assert exemplars["pruned"] < 0.1


def test_networks_of_other_seeds_alone_flag_nothing(planted):
    """No harm planted: five and five dense networks of one recipe, on digits they have not seen."""
    data = lab.load("digits", size=14)
    runs = [
        lab.fit(lab.build("lenet300", data, seed=s), data, epochs=3, seed=s, progress=False).model for s in range(10)
    ]
    none = impact(runs[:5], runs[5:], data.test, data.class_names)
    assert not any(verdicts(none))
    assert none.churn()["dense to pruned"] == pytest.approx(none.churn()["dense"], abs=0.01)
    assert "5 dense and 5 pruned networks on 360 images" in repr(none)
    assert none._repr_html_().count("<tr>") == 11


def test_what_cannot_be_is_said(planted):
    data, _ = planted
    model = small((1, 5, 8), 4)
    with pytest.raises(lab.ConfigError, match="not empty"):
        impact([model], [], data.test)
    with pytest.raises(lab.ConfigError, match="2 class names"):
        impact([model], [model], data.test, ("a", "b"))
    with pytest.raises(lab.ConfigError, match="one row of logits"):
        impact([nn.Identity()], [model], data.test)

"""Image by image, and over several tasks: against numbers by hand and independent formulas."""

import math

import numpy as np
import pandas as pd
import pytest

import pruninglab as lab
from pruninglab.analysis import Aggregate, aggregate, mcnemar, nested_interval
from pruninglab.analysis.aggregate import above, iqm


@pytest.fixture(scope="module")
def pair():
    data = lab.load("digits")
    model = lab.build("lenet300", data, seed=0)
    dense = lab.fit(model, data, epochs=3, progress=False)
    cut = lab.fit(dense, data, lab.methods.OneShot(0.95, "random"), epochs=1, progress=False)
    return dense, cut


def test_mcnemar_by_hand(pair):
    dense, cut = pair
    a, b = dense.result.answers() == 0, cut.result.answers() == 0
    found = mcnemar(dense, cut)
    assert (found.both, found.neither) == ((a & b).sum(), (~a & ~b).sum())
    k, n = found.first_only, found.first_only + found.second_only
    assert (k, n) == ((a & ~b).sum(), (a != b).sum())
    tail = sum(math.comb(n, i) for i in range(max(k, n - k), n + 1)) / 2**n
    assert found.p == pytest.approx(min(1.0, 2 * tail))
    assert (found.both + k) / len(a) == pytest.approx(dense.test)
    assert "McNemar" in str(found)


def test_equal_runs_do_not_differ(pair):
    assert mcnemar(pair[0], pair[0].result).p == 1.0


def test_nested_interval_has_both_spreads(pair):
    dense, cut = pair
    one = nested_interval([dense], draws=2000)
    n, p = len(dense.result.answers()), dense.test
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    assert one[1] == pytest.approx(p)
    assert one[2] - one[0] == pytest.approx(2 * half, rel=0.15)  # one seed: the images alone
    wider = nested_interval([dense, cut], draws=2000)
    assert wider[2] - wider[0] > 2 * (one[2] - one[0])
    low, mean, high = nested_interval([dense, dense], [cut, cut], draws=500)
    assert mean == pytest.approx(dense.test - cut.test)
    assert low <= mean <= high


def test_a_run_without_answers_is_refused(pair):
    result = lab.results.Result(**{**vars(pair[0].result), "accuracy": {**pair[0].result.accuracy, "answers": None}})
    with pytest.raises(lab.ConfigError, match="no answers"):
        mcnemar(result, pair[1])


def test_interquartile_mean_and_improvement_by_hand():
    assert iqm(np.array([0.0, 1.0, 2.0, 100.0])) == 1.5
    assert above(np.array([1.0, 3.0]), np.array([2.0, 3.0])) == (0 + 0 + 1 + 0.5) / 4


def frame(**scores):
    rows = [
        {"data": data, "model": "m", "level": 0.9, "method": method, "test_accuracy": value}
        for data, of in scores.items()
        for method, values in of.items()
        for value in values
    ]
    return pd.DataFrame(rows)


def test_tasks_that_not_all_have_are_left_out():
    runs = frame(a={"x": [0.5, 0.6], "y": [0.4, 0.4]}, b={"x": [0.9]})
    found = aggregate(runs)
    assert found.tasks == [("a", "m", 0.9)]
    assert found.table()["method"].tolist() == ["x", "y"]
    assert found.improvement("x", "y")[1] == 1.0
    assert found.profile([0.45])["x"].tolist() == [1.0]


def test_relative_to_a_method():
    runs = frame(a={"x": [0.5], "dense": [1.0]}, b={"x": [0.09], "dense": [0.1]})
    assert aggregate(runs, relative_to="dense").scores["x"][1] == pytest.approx(0.9)


def test_the_interval_covers():
    """Of 100 pairs of equal methods, about 95 intervals of the probability of improvement hold one half."""
    random, held = np.random.default_rng(0), 0
    for _ in range(100):
        scores = {m: [random.normal(size=8) for _ in range(3)] for m in "xy"}
        low, _, high = Aggregate(scores, [], draws=200).improvement("x", "y")
        held += low <= 0.5 <= high
    assert held >= 85


@pytest.mark.parametrize("wrong", [{"by": "z"}, {"score": "z"}, {"relative_to": "z"}])
def test_what_is_not_there_is_refused(wrong):
    with pytest.raises(lab.ConfigError):
        aggregate(frame(a={"x": [0.5]}), **wrong)

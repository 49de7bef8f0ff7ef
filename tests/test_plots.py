"""Figures draw what they are given, show themselves, say themselves in words, and never call for a window."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib import pyplot as plt

import pruninglab as lab
from pruninglab.methods import Gradual, OneShot


@pytest.fixture(scope="module")
def runs() -> list[lab.Run]:
    data = lab.load("digits", train=200, test=60, size=14)
    model = lab.build("lenet5", data)
    made = [OneShot(0.9), OneShot({"fc1.weight": 0.99}), Gradual(lab.Cubic(0.9))]
    return [lab.fit(model, data, m, epochs=3, progress=False) for m in made]


def test_history_draws_one_line_a_run(runs):
    figure = lab.plots.history(*runs)
    left, right = figure.axes
    drawn = [np.asarray(line.get_ydata()).tolist() for line in left.lines]
    assert drawn == [[h["val_accuracy"] for h in r.history] for r in runs]
    assert len(right.lines) == 3
    assert "OneShot (1): accuracy" in figure.alt


def test_layers_marks_what_has_collapsed(runs):
    masks = lab.Masks({n: m & (n != "conv1.weight") for n, m in runs[0].masks.items()})
    figure = lab.plots.layers(runs[0], masks, labels=["a", "b"])
    assert "conv1.weight 0.00%" in figure.alt
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x" and len(line.get_xdata())]  # pyright: ignore[reportArgumentType]
    assert len(crosses) == 1


def test_comparison_draws_a_single_run_hollow():
    frame = pd.DataFrame({"data": "d", "settings": ["a", "a", "b"], "test_accuracy": [0.5, 0.7, 0.6]})
    figure = lab.plots.comparison(frame)
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "none" for line in dots] == [False, True]
    assert "a 0.600 (n = 2)" in figure.alt


def test_accuracy_by_rate_has_a_line_a_way_a_dot_a_run_and_an_interval_from_three_runs_on():
    rows = [("a", 0.5, 0.9), ("a", 0.75, 0.7), ("a", 0.75, 0.8), ("a", 0.75, 0.9), ("b", 0.5, 0.6), ("no", 0.0, 0.95)]
    frame = pd.DataFrame(rows, columns=pd.Index(["way", "sparsity_weights", "test_accuracy"]))
    figure = lab.plots.by_rate(frame, by="way")
    (axes,) = figure.axes
    drawn = {line.get_label(): np.round(np.asarray(line.get_xydata(), float), 6).tolist() for line in axes.lines}
    assert drawn["a"] == [[2, 0.9], [4, 0.8]]
    assert drawn["b"] == [[2, 0.6]]
    assert drawn["dense"][0][1] == 0.95
    (low, high), *others = [s[:, 1] for bar in axes.collections for s in bar.get_segments()]  # pyright: ignore[reportAttributeAccessIssue]
    assert not others
    assert (low, high) == pytest.approx(scipy.stats.t.interval(0.95, 2, 0.8, 0.1 / 3**0.5))
    assert "a: 2 times 0.9000 (n = 1), 4 times 0.8000 (n = 3)" in figure.alt


def test_schedules_and_filters_draw(runs):
    assert "Cubic(final=0.9" in lab.plots.schedule(lab.Cubic(0.9), lab.Narang({"a": 0.5})).alt
    assert "conv1" in lab.plots.filters(runs[0].model, "conv1").alt
    assert "of 5,000 left" in lab.plots.filters(runs[0].model, "fc2", runs[0].masks).alt


def test_a_figure_shows_itself_and_needs_no_window(runs):
    figure = lab.plots.history(runs[0])
    shown, about = figure._repr_mimebundle_()
    assert shown["image/png"].startswith("iVBOR")
    assert shown["text/plain"] == about["image/png"]["alt"] == figure.alt
    assert plt.get_fignums() == []


def test_what_cannot_be_drawn_is_said(runs):
    with pytest.raises(lab.ConfigError, match="at least one run"):
        lab.plots.history()
    with pytest.raises(lab.ConfigError, match="1 labels for 2 runs"):
        lab.plots.history(runs[0], runs[1], labels=["a"])
    with pytest.raises(lab.ConfigError, match="same label"):
        lab.plots.layers(runs[0], runs[1], labels=["a", "a"])
    with pytest.raises(lab.ConfigError, match="nothing to draw"):
        lab.plots.layers()
    with pytest.raises(lab.ConfigError, match="different layers"):
        lab.plots.layers(runs[0], lab.Masks(a=runs[0].masks["fc1.weight"]))
    with pytest.raises(lab.ConfigError, match="differ in data"):
        lab.plots.comparison(pd.DataFrame({"data": ["a", "b"], "settings": "s", "test_accuracy": 0.5}))
    with pytest.raises(lab.ConfigError, match="no results"):
        lab.plots.comparison(pd.DataFrame())

"""Figures draw what they are given, show themselves, say themselves in words, and never call for a window."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
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


def test_ways_draw_a_line_each_and_the_dense_net_dashed():
    rows = [("dense", 0.0, 0.9), ("ticket", 0.5, 0.8), ("ticket", 0.5, 0.9), ("ticket", 0.9, 0.7), ("ticket", 0.9, 0.8)]
    rows += [("random mask", 0.9, 0.3)]
    table = pd.DataFrame(rows, columns=pd.Index(["way", "sparsity", "test_accuracy"])).assign(
        start="a", seconds_in_all=1.0
    )
    figure = lab.plots.ways(pd.concat([table, table[:1].assign(seconds_in_all=2.0)]))  # the dense run in two tables
    assert figure.legends[0].get_texts()[0].get_text() == "dense (n = 1)"
    axes = figure.axes[0]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert np.asarray(dashed[0].get_ydata()).tolist() == [0.9, 0.9]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in dots] == [False, True]  # one run is drawn hollow
    bars: Any = axes.containers[0]
    half = np.diff(bars.lines[2][0].get_segments()[0][:, 1])[0] / 2
    assert half == pytest.approx(12.706 * 0.1 / 2, rel=1e-3)  # t of one degree of freedom, deviation 0.1 / sqrt 2
    assert "ticket 0.750 at 10.0%, 0.850 at 50.0%" in figure.alt
    with pytest.raises(lab.ConfigError, match="nothing to draw"):
        lab.plots.ways(pd.DataFrame())


def test_sensitivity_draws_a_line_a_layer(runs):
    curves = lab.budgets.sensitivity(runs[2], (0.5, 0.95))
    lines = lab.plots.sensitivity(curves).axes[0].lines
    drawn = [np.asarray(line.get_ydata()).tolist() for line in lines]
    assert drawn == [c["accuracy"].tolist() for _, c in curves.groupby("layer", sort=False)]


@pytest.fixture(scope="module")
def found() -> lab.impact.Impact:
    """Of 40 images in two classes, five pruned networks turn the first and one turns the second."""
    split = lab.load("digits", train=200, test=60, size=14).test.take(torch.arange(40))
    y = np.repeat([0, 1], 20)
    dense, pruned = np.tile(y, (5, 1)), np.tile(y, (5, 1))
    pruned[:, 0], pruned[0, 1] = 1, 1
    pruned[:, 2:9] = 1
    votes = [lab.impact.Votes(labels, np.full(labels.shape, 0.7)) for labels in (dense, pruned)]
    return lab.impact.Impact(y, votes[0], votes[1], ("cat", "dog"), split)


def test_classes_are_coloured_by_the_test(found):
    figure = lab.plots.classes(found)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["cat (20)", "dog (20)"]
    assert "Harmed: cat." in figure.alt
    table = found.per_class()
    ends = np.asarray(figure.axes[0].lines[0].get_xdata())
    assert ends.tolist() == pytest.approx([100 * table["low"][0], 100 * table["high"][0]])


def test_exemplars_show_both_votes(found):
    figure = lab.plots.exemplars(found, number=3)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["label cat\ndense: cat ×5\npruned: dog ×5"] * 3
    assert "8 exemplars" in figure.alt
    same = lab.impact.Impact(found.y, found.dense, found.dense, found.class_names, found.split)
    with pytest.raises(lab.ConfigError, match="no exemplars"):
        lab.plots.exemplars(same)
    assert lab.plots._votes(np.array([1, 4]), ["a", "b"]) == "b ×4, a"


def test_calibration_draws_what_it_measures(found):
    figure = lab.plots.calibration(found)
    curve = figure.axes[0].lines[2]
    assert (np.asarray(curve.get_xdata()).tolist(), np.asarray(curve.get_ydata()).tolist()) == (
        pytest.approx([0.7]),
        pytest.approx([1 - 41 / 200]),
    )
    assert "dense 0.300, pruned 0.095" in figure.alt

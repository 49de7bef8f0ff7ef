"""Figures draw what they are given, show themselves, say themselves in words, and never call for a window."""

import html
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn

import pruninglab as lab
from pruninglab.methods import (
    L0,
    L2,
    Gradual,
    OneShot,
    PruneWhileAccurate,
    RelevanceL2,
    RigL,
    VariationalDropout,
    WeightMom,
)
from pruninglab.plots import studies
from pruninglab.plots.looks import MARKERS


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
    dots = [line for line in figure.axes[0].lines if str(line.get_marker()) in MARKERS]
    assert [line.get_markerfacecolor() == "none" for line in dots] == [False, True]
    assert "a 0.600 (n = 2)" in figure.alt


@pytest.fixture(scope="module")
def watched() -> lab.Run:
    data = lab.load("digits", train=200, test=60, size=14)
    method = WeightMom(lab.Cubic(0.8), watch=9, begin=0.25, end=0.75)
    return lab.fit(lab.build("lenet5", data), data, method, epochs=4, progress=False)


def drawn(axes: Any, markers: str = MARKERS) -> list[list[float]]:
    return [np.asarray(line.get_xdata()).tolist() for line in axes.lines if str(line.get_marker()) in markers]


def test_trajectories_end_where_a_weight_is_cut(watched):
    layer = "conv2.weight"
    figure: Any = lab.plots.trajectories(watched, layer)
    method: Any = watched.methods[0]
    magnitude, momentum, threshold = method.trajectories[layer].unbind(1)
    kept = watched.masks[layer].flatten()[method.watched[layer]]
    assert 0 < kept.sum() < 9
    for axes, values in zip(figure.axes, (magnitude, momentum), strict=True):
        curves = [line for line in axes.lines if line.get_marker() != "x"]
        if axes is figure.axes[0]:  # |w| is held against the threshold, the momentum is not
            assert np.array_equal(curves.pop().get_ydata(), threshold[:, 0], equal_nan=True)
        assert [line.get_linestyle() for line in curves] == ["-"] * 5 + [":"] * 4
        crosses = [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "x"]
        ends = []
        for i, curve in enumerate(curves):
            last = 4 if kept[i] else int((magnitude[:, i] > 0).sum())
            assert np.array_equal(curve.get_ydata(), values[:last, i], equal_nan=True)
            ends += [] if kept[i] else [[last, float(values[last - 1, i])]]
        assert crosses == ends
        assert {cut.step // watched.steps_per_epoch for cut in watched.cuts} >= {end[0] for end in ends}
    assert f"{int(kept[:5].sum())} of 5 chosen and {int(kept[5:].sum())} of 4 random stay" in figure.alt
    assert figure.axes[0].get_ylabel() == "|w| in conv2"
    assert "fc1" in lab.plots.trajectories(watched).alt  # the largest layer
    with pytest.raises(lab.ConfigError, match=r"layer='conv9'; expected one of 'conv1"):
        lab.plots.trajectories(watched, "conv9")


def test_importance_shows_the_readings_side_by_side(watched):
    figure = lab.plots.importance(watched.masks, ("text", "formula", "literal"))
    sizes, mean = [500, 25_000, 225_000, 5_000], 255_500 / 4
    expected = [
        [size / mean * place for place, size in enumerate(sizes, 1)],
        [size / mean / place for place, size in enumerate(sizes, 1)],
        [255_500 / place for place in (1, 2, 3, 4)],
    ]
    for axes, ratios in zip(figure.axes, expected, strict=True):
        assert drawn(axes) == [pytest.approx(ratios)]
    assert [axes.get_xlabel() for axes in figure.axes] == [
        '"text": the cut share grows with it',
        '"formula": the kept share grows with it',
        '"literal": the kept share grows with it',
    ]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["conv1", "conv2", "fc1", "fc2"]
    assert "text: conv1 0.00783" in lab.plots.importance(watched).alt
    method, data = WeightMom(lab.Cubic(0.0), basis="density"), watched.data
    even = lab.fit(lab.build("lenet5", data), data, method, epochs=1, progress=False)
    assert "conv1 1, conv2 2, fc1 3, fc2 4" in lab.plots.importance(even).alt


def test_survival_has_a_row_a_layer_and_a_column_an_epoch(watched):
    figure: Any = lab.plots.survival(watched)
    shares = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    expected = [[h["kept"][n] / m.numel() for h in watched.history] for n, m in watched.masks.items()]
    assert np.allclose(shares, expected)
    assert len(shares[0]) == 4
    assert f"fc1 100.00% to {expected[2][-1]:.2%}" in figure.alt
    data = watched.data
    late = lab.fit(lab.build("lenet5", data), data, WeightMom(lab.Cubic(0.8), end=1.0), epochs=2, progress=False)
    figure = lab.plots.survival(late)
    assert figure.axes[0].images[0].get_array().shape == (4, 3)  # cut after the last validation
    emptied = lab.fit(
        watched, data, masks=watched.masks & lab.Masks(hollow(watched)), epochs=1, collapse="allow", progress=False
    )
    figure = lab.plots.survival(emptied.result)
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[0]]
    with pytest.raises(lab.ConfigError, match="no epochs"):
        lab.plots.survival(lab.fit(watched, data, epochs=0, progress=False))


def hollow(run: lab.Run) -> dict[str, torch.Tensor]:
    return {n: torch.full_like(m, n != "conv1.weight") for n, m in run.masks.items()}


def test_agreement_is_the_jaccard_index_of_each_pair(runs):
    a = lab.Masks(x=torch.tensor([1, 1, 0, 0]).bool(), y=torch.tensor([1, 0, 0, 0]).bool())
    b = lab.Masks(x=torch.tensor([0, 1, 1, 0]).bool(), y=torch.tensor([1, 1, 0, 0]).bool())
    c = lab.Masks(x=torch.tensor([0, 0, 0, 0]).bool(), y=torch.tensor([1, 0, 0, 0]).bool())
    figure = lab.plots.agreement(a, b, c, labels=["a", "b", "c"])
    assert drawn(figure.axes[0]) == [[1 / 3, 1 / 2], [0, 1], [0, 1 / 2]]
    # of random masks with 2 and 2 of 4: 1/4 in both of 3/4 in either; with 1 and 2 of 4: 1/8 of 5/8
    assert drawn(figure.axes[0], "|")[0] == pytest.approx([1 / 3, 1 / 5])
    assert "a and b: x 0.33, y 0.50; a and c: x 0.00, y 1.00" in figure.alt
    nothing = lab.Masks(x=c["x"], y=c["y"])
    assert np.isnan(drawn(lab.plots.agreement(c, nothing, labels=["c", "d"]).axes[0])[0][0])
    same = lab.plots.agreement(runs[0], runs[0], labels=["one", "again"])
    assert drawn(same.axes[0]) == [[1, 1, 1, 1]]
    with pytest.raises(lab.ConfigError, match="1 masks cannot agree"):
        lab.plots.agreement(a)
    with pytest.raises(lab.ConfigError, match="different layers"):
        lab.plots.agreement(a, runs[0])


def test_schedules_and_filters_draw(runs):
    assert "Cubic(final=0.9" in lab.plots.schedule(lab.Cubic(0.9), lab.Narang({"a": 0.5})).alt
    assert "conv1" in lab.plots.filters(runs[0].model, "conv1").alt
    assert "of 5,000 left" in lab.plots.filters(runs[0].model, "fc2", runs[0].masks).alt


@pytest.fixture(scope="module")
def gated() -> lab.Run:
    """Eight evaluations of which the first three are above the bound, and λ that restarts at each cut."""
    data = lab.load("digits", train=200, test=60, size=14)
    dense = lab.fit(lab.build("lenet5", data), data, epochs=4, progress=False)
    methods = [RelevanceL2(1e-3, alpha=10.0), PruneWhileAccurate(0.3, prune_fraction=0.7, every_steps=2, patience=None)]
    return lab.fit(dense, data, *methods, epochs=8, batch_size=90, progress=False)


def y_of(line) -> list[float]:
    return np.asarray(line.get_ydata()).tolist()


def test_relevance_draws_what_was_felt(gated):
    method = gated.methods[0]
    figure = lab.plots.relevance(gated)
    left, right = figure.axes
    layers = list(gated.weights)
    shares = [patch.get_data().values for patch in left.patches]  # pyright: ignore[reportAttributeAccessIssue]
    assert [s.sum() for s in shares] == pytest.approx([1.0] * len(layers))
    last = {row["layer"]: row for row in method.felt}
    assert shares[2].tolist() == pytest.approx([c / sum(last[layers[2]]["counts"]) for c in last[layers[2]]["counts"]])
    of_conv1 = [row for row in method.felt if row["layer"] == "conv1.weight"]
    assert y_of(right.lines[0]) == pytest.approx([1 / (1 + 10 * row["largest"]) for row in of_conv1])
    assert y_of(right.lines[1]) == pytest.approx([1 / (1 + 10 * row["median"]) for row in of_conv1])
    assert np.asarray(right.lines[0].get_xdata()).tolist() == list(range(1, 9))
    assert f"conv1 {1 / (1 + 10 * of_conv1[-1]['largest']):.4g}" in figure.alt


def test_gate_draws_each_decision_and_what_it_did(gated):
    gate = gated.methods[1]
    figure = lab.plots.gate(gated)
    accuracy, sparsity, strength = figure.axes
    cut, not_cut, bound = accuracy.lines
    assert y_of(cut) == [e["accuracy"] for e in gate.evaluations if e["accepted"]]
    assert y_of(not_cut) == [e["accuracy"] for e in gate.evaluations if not e["accepted"]]
    assert len(y_of(cut)) == gate.accepted >= 1
    assert y_of(bound) == [0.3, 0.3]
    assert y_of(sparsity.lines[0])[-1] == pytest.approx(gated.sparsity)
    steps, values = (np.asarray(v) for v in strength.lines[0].get_data())
    for cut in gated.cuts:  # λ falls to 0 within two steps, an epoch, and restarts at each cut
        after = values[steps >= cut.step][0]
        assert after == pytest.approx(1e-3, rel=0.02)
    assert values[steps < gated.cuts[0].step][-1] == pytest.approx(0, abs=2e-5)
    assert f"{gate.accepted} of 8 evaluations were above 0.3" in figure.alt
    assert (
        len(lab.plots.gate(lab.fit(gated, gated.data, L2(), gate, epochs=1, batch_size=90, progress=False)).axes) == 2
    )


def test_regrowth_draws_shares_by_layer_and_epoch(runs):
    data = lab.load("digits", train=200, test=60, size=14)
    run = lab.fit(
        lab.build("lenet5", data), data, RigL(0.9, every_steps=1, end=1.0), epochs=3, batch_size=60, progress=False
    )
    figure: Any = lab.plots.regrowth(run)
    moved: Any = run.methods[0]
    table = pd.DataFrame(moved.turnover.changes)
    assert sorted(table["step"].unique()) == [1, 2, 3, 4, 5, 6, 7, 8]  # three steps an epoch
    second: Any = table[table["layer"].eq("fc1.weight") & table["step"].between(3, 5)]
    shown = figure.axes[1].images[0].get_array()
    assert shown.shape == (4, 3)
    assert shown[2, 1] == pytest.approx(second["grown"].sum() / second["kept"].iloc[-1])
    curve = np.asarray(figure.axes[2].lines[0].get_ydata())
    assert curve[0] == 1
    assert curve[-1] == pytest.approx(moved.turnover.original / run.masks.kept)
    assert f"{table['grown'].sum():,} weights grew in 8 updates" in figure.alt
    with pytest.raises(lab.ConfigError, match="moved no weights"):
        lab.plots.regrowth(runs[0])


def test_two_weights_end_where_they_are_cut():
    """By hand: magnitude cuts the first at 2/2, damage the second at 1.1²/2, and the surgeon moves the first along."""
    one = torch.tensor([[[1.0, 1.1]]], dtype=torch.float64)
    quadratic = lab.criteria.Quadratic(one, torch.tensor([[[2.0, 1.0], [1.0, 1.0]]], dtype=torch.float64))
    figure: Any = lab.plots.two_weights(quadratic)
    ends = [line.get_xydata()[-1].tolist() for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert ends == [[0, 1.1], [1, 0], [pytest.approx(1.55), 0]]
    assert "magnitude 1; damage (diagonal of H) 0.605; surgeon (all of H) 0.303" in figure.alt
    with pytest.raises(lab.ConfigError, match="3 weights"):
        lab.plots.two_weights(lab.criteria.Quadratic(torch.ones(1, 1, 3), torch.eye(3)[None]))


def test_layers_beside_a_reference(runs):
    figure = lab.plots.layers(runs[0], reference={"fc1.weight": 0.001, "conv1.weight": 0.3})
    diamonds = next(line for line in figure.axes[0].lines if line.get_marker() == "D")
    assert (np.asarray(diamonds.get_xdata()).tolist(), y_of(diamonds)) == ([0.001, 0.3], [2, 0])
    assert figure.axes[0].get_xlim()[0] < 0.001
    assert "reference: fc1.weight 0.10%, conv1.weight 30.00%" in figure.alt
    with pytest.raises(lab.ConfigError, match="reference names fc9"):
        lab.plots.layers(runs[0], reference={"fc9": 0.3})


def test_sizes_draws_three_bars_a_run(runs):
    figure = lab.plots.sizes(*runs[:2], labels=["a", "b"])
    widths = [[bar.get_width() * 1000 for bar in bars] for bars in figure.axes[0].containers]
    kinds = ("bytes", "bzip2_bytes", "sparse_bytes")
    sizes = [lab.storage.sizes(run.model, compressed=True) for run in runs[:2]]
    assert widths == [pytest.approx([size[kind] for size in sizes]) for kind in kinds]
    assert f"b: dense file {runs[1].result.size['bytes']:,}, dense file after bzip2" in figure.alt


@pytest.mark.parametrize("epochs", [1, 2, 3, 40])
def test_epochs_have_whole_numbers_also_where_there_is_one(epochs):
    axes = lab.plots.figure.panels(1)[1][0]
    axes.plot(range(1, epochs + 1), [0.5] * epochs, "o")
    lab.plots.figure.whole(axes.xaxis)
    low, high = axes.get_xlim()
    seen = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 1 <= len(seen) <= 12
    assert all(tick == round(tick) for tick in seen)


def test_a_figure_shows_itself_and_needs_no_window(runs):
    figure = lab.plots.history(runs[0])
    shown, about = figure._repr_mimebundle_()
    style = r'style="max-width:100%;min-width:(\d+)px"'
    size = re.findall(
        rf'^<img src="data:image/png;base64,iVBOR[^"]+" width="940" {style} alt="[^"<>]+">$', shown["text/html"]
    )
    assert 0.6 * 940 <= int(size[0]) < 940  # smaller letters cannot be read
    assert f'alt="{html.escape(figure.alt)}"' in shown["text/html"]  # what a screen reader says
    assert shown["text/plain"] == figure.alt
    assert about["text/html"]["touching"] == []
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
    with pytest.raises(lab.ConfigError, match=r"trained with lab\.methods\.WeightMom"):
        lab.plots.trajectories(runs[0])
    with pytest.raises(lab.ConfigError, match=r"trained with lab\.methods\.RelevanceL2"):
        lab.plots.relevance(runs[0])
    with pytest.raises(lab.ConfigError, match=r"trained with lab\.methods\.PruneWhileAccurate"):
        lab.plots.gate(runs[0])
    with pytest.raises(lab.ConfigError, match="differ in chosen_on"):
        lab.plots.comparison(pd.DataFrame({"data": "a", "chosen_on": ["val", "test"], "settings": "s"}))
    with pytest.raises(lab.ConfigError, match="no results"):
        lab.plots.comparison(pd.DataFrame())


def test_ways_draw_a_line_each_and_the_dense_net_dashed():
    rows = [("dense", 0.0, 0.9), ("ticket", 0.5, 0.8), ("ticket", 0.5, 0.9), ("ticket", 0.9, 0.7), ("ticket", 0.9, 0.8)]
    rows += [("random mask", 0.9, 0.3)]
    table = pd.DataFrame(rows, columns=pd.Index(["method", "sparsity", "test_accuracy"])).assign(
        start="a", seconds_in_all=1.0
    )
    figure = lab.plots.by_method(
        pd.concat([table, table[:1].assign(seconds_in_all=2.0)])
    )  # the dense run in two tables
    assert figure.legends[0].get_texts()[0].get_text() == "dense (n = 1)"
    axes = figure.axes[0]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert np.asarray(dashed[0].get_ydata()).tolist() == [0.9, 0.9]
    marks = [line for line in axes.lines if line.get_linestyle() == "None" and line.get_marker() in ("*", "v")]
    marks = [line for line in marks if len(np.asarray(line.get_xdata()))]
    assert [line.get_markerfacecolor() == "white" for line in marks] == [False, True]  # one run is drawn hollow
    first, second = (np.asarray(line.get_xdata())[-1] for line in marks)
    assert first != second  # apart, but at 10 % both
    assert first == pytest.approx(0.1, rel=0.05)
    assert second == pytest.approx(0.1, rel=0.05)
    low, high = axes.get_ylim()
    assert 0 <= low < 0.3
    assert 0.9 < high <= 1.02
    bars: Any = axes.containers[0]
    half = np.diff(bars.lines[2][0].get_segments()[0][:, 1])[0] / 2
    assert half == pytest.approx(12.706 * 0.1 / 2, rel=1e-3)  # t of one degree of freedom, deviation 0.1 / sqrt 2
    assert "ticket 0.750 at 10.0%, 0.850 at 50.0%" in figure.alt
    records = table.drop(columns="seconds_in_all").rename(columns={"sparsity": "sparsity_weights"})
    records["target"] = [{"conv*": 0.5}] * len(records)  # as a record may have it
    assert lab.plots.by_method(records).alt == lab.plots.by_method(table).alt
    other = lab.plots.by_method(table.assign(distance=3.0), "distance")
    assert [t.get_text() for t in other.axes[0].get_yticklabels() if "%" in t.get_text()] == []
    assert "accuracy" not in other.get_suptitle()
    with pytest.raises(lab.ConfigError, match="no results"):
        lab.plots.by_method(pd.DataFrame())


def test_sensitivity_draws_a_line_a_layer(runs):
    curves = lab.analysis.sensitivity(runs[2], (0.5, 0.95))
    lines = lab.plots.sensitivity(curves).axes[0].lines
    drawn = [np.asarray(line.get_ydata()).tolist() for line in lines]
    assert drawn == [c["accuracy"].tolist() for _, c in curves.groupby("layer", sort=False)]


@pytest.fixture(scope="module")
def found() -> lab.analysis.Impact:
    """Of 40 images in two classes, five pruned networks turn the first and one turns the second."""
    split = lab.load("digits", train=200, test=60, size=14).test.take(torch.arange(40))
    y = np.repeat([0, 1], 20)
    dense, pruned = np.tile(y, (5, 1)), np.tile(y, (5, 1))
    pruned[:, 0], pruned[0, 1] = 1, 1
    pruned[:, 2:9] = 1
    votes = [lab.analysis.Votes(labels, np.full(labels.shape, 0.7)) for labels in (dense, pruned)]
    return lab.analysis.Impact(y, votes[0], votes[1], ("cat", "dog"), split)


def test_classes_are_coloured_by_the_test(found):
    figure = lab.plots.classes(found)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["cat (20 images)", "dog (20 images)"]
    assert "Harmed: cat." in figure.alt
    table = found.per_class()
    ends = np.asarray(figure.axes[0].lines[0].get_xdata())
    assert ends.tolist() == pytest.approx([100 * table["low"][0], 100 * table["high"][0]])


def test_exemplars_show_both_votes(found):
    figure = lab.plots.exemplars(found, number=3)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["label cat\ndense: cat ×5\npruned: dog ×5"] * 3
    assert "8 exemplars" in figure.alt
    same = lab.analysis.Impact(found.y, found.dense, found.dense, found.class_names, found.split)
    with pytest.raises(lab.ConfigError, match="no exemplars"):
        lab.plots.exemplars(same)
    assert studies._votes(np.array([1, 4]), ["a", "b"]) == "b ×4, a"


def test_calibration_draws_what_it_measures(found):
    figure = lab.plots.calibration(found)
    curve = figure.axes[0].lines[2]
    assert (np.asarray(curve.get_xdata()).tolist(), np.asarray(curve.get_ydata()).tolist()) == (
        pytest.approx([0.7]),
        pytest.approx([1 - 41 / 200]),
    )
    assert "dense 0.300, pruned 0.095" in figure.alt


@pytest.fixture(scope="module")
def slimmed() -> tuple[lab.Run, lab.structured.Shrunk]:
    data = lab.load("digits", train=200, test=60, size=16)
    model = lab.build("vgg16", data, width=0.0625)
    run = lab.fit(model, data, lab.methods.Slimming(0.1, begin=0.5), epochs=2, batch_size=45, progress=False)
    pruned, masks = lab.structured.prune(run, data, 0.5)
    return run, lab.structured.shrink(pruned, data, masks)


def test_scales_are_sorted_and_marked(slimmed):
    run, _ = slimmed
    figure = lab.plots.scales(run, 0.5)
    *curves, mark = figure.axes[0].lines
    assert len(curves) == 2
    last = np.concatenate(list(run.methods[0].scales[-1]["scales"].values()))
    assert np.allclose(curves[-1].get_ydata(), np.sort(last))
    assert np.asarray(mark.get_xdata()).tolist() == [0.5, 0.5]
    assert f"50% are below {np.quantile(last, 0.5):.3g}" in figure.alt
    with pytest.raises(lab.ConfigError, match=r"trained with lab\.methods\.Slimming"):
        lab.plots.scales(lab.fit(run, run.data, epochs=0, progress=False))


def test_widths_before_and_after(slimmed):
    _, small = slimmed
    figure: Any = lab.plots.widths(small)
    before, after = ([bar.get_width() for bar in bars] for bars in figure.axes[0].containers)
    assert sum(before) - sum(after) == small.removed
    assert f"conv1_1 {after[0]:.0f} of {before[0]:.0f}" in figure.alt
    with pytest.raises(lab.ConfigError, match="no channel was removed"):
        lab.plots.widths(lab.structured.shrink(small.model, torch.zeros(1, 1, 16, 16)))


def test_milliseconds_have_their_intervals():
    columns = {"ms_1": [2.0, 1.0], "ms_low_1": [1.0, 0.5], "ms_high_1": [4.0, 1.5]}
    figure = lab.plots.milliseconds(pd.DataFrame(columns, index=["dense", "removed"]))
    assert figure.alt == "Milliseconds of a forward pass, batch of 1: dense 2, removed 1."
    segments = figure.axes[0].collections[0].get_segments()  # pyright: ignore[reportAttributeAccessIssue]
    assert [segment[:, 0].tolist() for segment in segments] == [[1, 4], [0.5, 1.5]]
    with pytest.raises(lab.ConfigError, match="no times"):
        lab.plots.milliseconds(pd.DataFrame({"parameters": [1]}))


@pytest.mark.parametrize("method", [VariationalDropout(strength=0.01), L0(droprate=0.8, unit="channel")])
def test_learned_gates_are_drawn_as_they_were_seen(blobs, method):
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))
    run = lab.fit(net, blobs, method, epochs=3, batch_size=40, progress=False)
    ours: Any = run.methods[0]
    figure: Any = lab.plots.learned_gates(run, "0.weight")
    heat, shares, strength, _ = figure.axes
    counts = np.array([row["counts"] for row in ours.seen if row["layer"] == "0.weight"]).T
    assert np.array_equal(np.ma.filled(heat.collections[0].get_array(), 0), counts)
    assert counts.sum() == 3 * (320 if isinstance(method, VariationalDropout) else 32)
    drawn = [np.asarray(line.get_ydata()).tolist() for line in shares.lines]
    assert drawn == [[r["open"] / r["total"] for r in ours.seen if r["layer"] == name] for name in run.weights]
    assert strength.lines[0].get_ydata()[-1] == ours.seen[-1]["strength"]
    assert figure.alt.startswith("Open gates by layer, at the first and the last epoch: 0 ")
    with pytest.raises(lab.ConfigError, match=r"layer=.*expected one of"):
        lab.plots.learned_gates(run, "fc")


def test_no_gates_to_draw(runs):
    with pytest.raises(lab.ConfigError, match=r"trained with lab\.methods\.VariationalDropout"):
        lab.plots.learned_gates(runs[0])


def test_truth_draws_how_many_times_smaller_and_faster():
    counts = {"nonzero": [100, 10, 10], "parameters": [100, 100, 20], "flops": [400, 400, 50], "bytes": [800, 800, 160]}
    table = pd.DataFrame({**counts, "faster_64": [1.0, 0.9, 4.0]}, index=["dense", "zeros", "removed"])
    figure: Any = lab.plots.truth(table)
    assert sorted(bar.get_width() + 1 for bar in figure.axes[0].patches) == pytest.approx(
        [0.9, 1, 1, 1, 4, 5, 5, 8, 10, 10]
    )
    assert "removed: numbers not 0 10, parameters 5, FLOPs 8, dense file 5, time, batch of 64 4" in figure.alt
    with pytest.raises(lab.ConfigError, match="two networks or more"):
        lab.plots.truth(table.head(1))

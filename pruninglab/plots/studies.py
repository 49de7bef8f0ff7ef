"""Figures of studies: many runs, compared."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.ticker import NullFormatter

from ..analysis import statistics
from ..analysis.compare import Comparison
from ..analysis.impact import Impact
from ..errors import ConfigError
from ..recipes.trials import Trials
from ..results.record import Result
from ..train.run import Run
from ..typed import Count, PartialFraction, checked
from .figure import (
    FONT,
    Figure,
    check_columns,
    check_comparable,
    colour_bar,
    face,
    finish,
    images,
    interval,
    legend,
    log_levels,
    panels,
    percent,
    results_of,
    row_labels,
    short,
    whole,
)
from .looks import BLACK, BLUE, GREY, ORANGE, looks


@checked
def comparison(results: pd.DataFrame, by: str = "settings") -> Figure:
    """Test accuracy of each row group: one dot a run, hollow where there is only one; a bar at the mean of several.

    >>> path = run.save(folder / 'run.json')
    >>> lab.plots.comparison(lab.results.load(folder)).alt[:14]
    'Test accuracy:'
    """
    check_comparable(results)
    check_columns(results, by)
    groups = list(results.groupby(by, sort=False)["test_accuracy"])
    figure, (axes,) = panels(1, height=0.45 * len(groups) + 1.2)
    given = looks(str(name or "Dense") for name, _ in groups)
    for i, ((_, values), look) in enumerate(zip(groups, given.values(), strict=True)):
        inside = "none" if len(values) == 1 else look.colour
        axes.plot(values, [i] * len(values), look.marker, color=look.colour, mfc=inside)
        if len(values) > 1:
            axes.plot([values.mean()] * 2, [i - 0.25, i + 0.25], color=BLACK)
    axes.set(xlabel="test accuracy")
    percent(axes.xaxis)
    row_labels(axes, [f"{name or 'Dense'} (n = {len(values)})" for name, values in groups])
    said = ", ".join(f"{n} {v.mean():.3f} (n = {len(v)})" for n, v in groups)
    return finish(figure, "What accuracy do the runs reach? Hollow: a single run", f"Test accuracy: {said}.")


@checked
def survival(run: Run | Result) -> Figure:
    """The share of weights left in each layer when an epoch was validated; an x where nothing is left.

    A last column is the end, where something was cut after the last validation.

    >>> lab.plots.survival(run).alt[:30]
    'Share of weights left by layer'
    """
    (result,) = results_of([run])
    if not result.history:
        raise ConfigError("this run has no epochs, so there is nothing to follow; plots.layers shows its end.")
    totals = {layer["layer"]: layer["total"] for layer in result.layers}
    end = {layer["layer"]: layer["kept"] for layer in result.layers}
    kept = [h["kept"] for h in result.history]
    kept += [end] if kept[-1] != end else []
    shares = np.array([[counts[name] / total for counts in kept] for name, total in totals.items()])
    figure, (axes,) = panels(1, width=7.0, height=0.27 * len(totals) + 1.2)
    least = shares[shares > 0].min(initial=0.5)
    image = axes.imshow(
        np.where(shares > 0, shares, np.nan),
        norm=LogNorm(least, 1),
        cmap="viridis",
        aspect="auto",
        extent=(0.5, len(kept) + 0.5, len(totals) - 0.5, -0.5),
    )
    rows, columns = np.nonzero(shares == 0)
    axes.plot(columns + 1, rows, "x", color=BLACK, ms=6, mew=2)
    axes.set(xlabel="epoch")
    row_labels(axes, map(short, totals))
    whole(axes.xaxis)
    axes.grid(False)
    colour_bar(figure, image, axes, "share of weights left", shares=True)
    words = "; ".join(f"{short(n)} {row[0]:.2%} to {row[-1]:.2%}" for n, row in zip(totals, shares, strict=True))
    return finish(
        figure,
        "When does each layer lose its weights?",
        f"Share of weights left by layer, at the first epoch and at the end: {words}.",
    )


@checked
def by_method(trials: Trials | pd.DataFrame, score: str = "test_accuracy") -> Figure:
    """Accuracy against the share of weights left, a line for each method: its mean, a mark for each run, hollow if
    alone.

    `trials` is what a recipe returned, its table, or loaded records with a column `method`; tables of several seeds can
    be joined. `score` is any of its columns of numbers. Bars are 95 % intervals of the mean where several runs have one
    sparsity; the dense net is the dashed line. Methods at one sparsity are drawn a little apart.

    >>> lab.plots.by_method(lab.recipes.iterative(dense, data, 0.5, rounds=1, epochs=1, progress=False)).alt[:40]
    'Test accuracy by share of weights left: '
    """
    table = _with_left(trials.table() if isinstance(trials, Trials) else trials)
    check_columns(table, score)
    figure, (axes,) = panels(1, width=7.5, height=3.6)
    shown = sorted({*table["left"]} - {1.0}, reverse=True)
    cut = [method for method, of in table.groupby("method", sort=False) if {*of["left"]} != {1.0}]
    near = min((above / below for above, below in pairwise(shown)), default=2.0)
    apart = {method: min(1.03, near ** (0.5 / len(cut))) ** ((len(cut) - 1) / 2 - i) for i, method in enumerate(cut)}
    said, given = [], looks(map(str, table["method"].unique()))
    for method, of_way in table.groupby("method", sort=False):
        runs = {float(str(left)): of[score].to_numpy(float) for left, of in of_way.groupby("left")}
        mean, n = [float(scores.mean()) for scores in runs.values()], min(map(len, runs.values()))
        said.append(f"{method} " + ", ".join(f"{m:.3f} at {left:.1%}" for left, m in zip(runs, mean, strict=True)))
        if method not in apart:
            axes.axhline(mean[0], color=BLACK, ls="--", lw=1, label=f"{method} (n = {n})")
            continue
        look = given[str(method)]
        half = [float(np.nan_to_num(statistics.interval(scores)[2] - scores.mean())) for scores in runs.values()]
        mark: dict[str, Any] = {"marker": look.marker, "ms": 6, "color": look.colour, "mfc": face(look, n)}
        interval(axes, [left * apart[method] for left in runs], mean, half, look)
        axes.plot(of_way["left"] * apart[method], of_way[score], ls="", zorder=3, **mark)
        axes.plot([], [], label=f"{method} (n = {n})", **mark)
    is_accuracy = score.startswith(("test_", "val_", "accuracy"))
    if is_accuracy and all(0 <= value <= 1 for value in table[score]):  # though intervals of few runs lead beyond
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 1.02))
    axes.set(xscale="log", xlabel="share of weights left, and compression ratio", ylabel=score.replace("_", " "))
    log_levels(axes.xaxis, shown)
    axes.minorticks_off()
    if is_accuracy:
        percent(axes.yaxis)
    axes.invert_xaxis()
    legend(figure)
    said_of = f"{score.replace('_', ' ').capitalize()} by share of weights left: {'; '.join(said)}."
    title = "How much accuracy is left as more weights are removed?"
    return finish(figure, title if is_accuracy else f"What does pruning change in {score.replace('_', ' ')}?", said_of)


def _with_left(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the share of weights left, each run once."""
    check_comparable(table)
    table = table if "sparsity" in table else table.rename(columns={"sparsity_weights": "sparsity"})
    if "seconds_in_all" in table:  # a dense run that stands in several tables is one run
        table = table.drop_duplicates([c for c in table if not c.startswith("seconds")])
    return table.assign(left=(1 - table["sparsity"]).round(6))


@checked
def frontier(found: Comparison) -> Figure:
    """A comparison as `by_method` draws it; diamonds are the published numbers for this data and model."""
    figure = by_method(found.runs.assign(sparsity=found.runs["level"]), found.score)
    (axes,) = figure.axes
    metric = "top-5" if found.score == "test_top5" else "top-1"
    printed = found.published()
    printed = printed[(printed["metric"] == metric) & (printed["counted"] == found.counted) & (printed["sparsity"] > 0)]
    if printed.empty:
        return figure
    axes.plot(1 - printed["sparsity"], printed["accuracy"], "D", mfc="none", color=BLACK, label="published")
    (low, high), told = axes.get_ylim(), np.asarray(printed["accuracy"], float)
    edge = 0.05 * (max(high, told.max()) - min(low, told.min()))  # a diamond is whole
    axes.set_ylim(min(low, told.min() - edge), max(high, min(told.max() + edge, 1.02)))
    for old in figure.legends:
        old.remove()
    legend(figure)
    rows = zip(printed["method"], printed["accuracy"], printed["sparsity"], strict=True)
    words = "; ".join(f"{method} {accuracy:.4f} at {1 - sparsity:.2%}" for method, accuracy, sparsity in rows)
    title = "How much accuracy is left as more weights are removed, here and in papers?"
    return finish(figure, title, f"{figure.alt} Published: {words}.")


@checked
def sensitivity(curves: pd.DataFrame, score: str = "accuracy") -> Figure:
    """What is left of the accuracy when one layer alone is cut: the table of `analysis.sensitivity`."""
    check_columns(curves, "layer", "sparsity", score)
    figure, (axes,) = panels(1, width=7.5, height=3.6)
    said, given = [], looks(short(str(layer)) for layer in curves["layer"].unique())
    for layer, curve in curves.groupby("layer", sort=False):
        colour, marker = given[short(str(layer))]
        axes.plot(curve["sparsity"], curve[score], marker=marker, ms=4, color=colour, label=short(str(layer)))
        said.append(f"{short(str(layer))} {curve[score].iloc[-1]:.3f} at {curve['sparsity'].iloc[-1]:.0%}")
    axes.set(xlabel="sparsity of this layer alone", ylabel=f"validation {score}")
    percent(axes.xaxis)
    if score == "accuracy":
        percent(axes.yaxis)
    legend(figure)
    words = f"Validation {score} when one layer alone is cut: {', '.join(said)}."
    return finish(figure, "Which layer can spare most when it alone is pruned?", words)


@checked
def classes(found: Impact, level: PartialFraction = 0.05) -> Figure:
    """How far each class changes beyond the whole, with its interval; in colour where the corrected test says so."""
    table = found.per_class(level).sort_values("change", ignore_index=True)
    figure, (axes,) = panels(1, width=7.0, height=0.3 * len(table) + 1.2)
    looked = {"harmed": (ORANGE, "v"), "spared": (BLUE, "^"), "": (GREY, "o")}
    for at, row in enumerate(table.to_dict("records")):
        ends, change = [100 * row["low"], 100 * row["high"]], 100 * row["change"]
        colour, marker = looked[row["verdict"]]
        axes.plot(ends, [at, at], color=colour, lw=2)
        axes.plot(change, at, marker, color=colour)
    axes.axvline(0, color=BLACK, lw=1)
    axes.set(xlabel="change of recall beyond that of accuracy (points)")
    row_labels(axes, [f"{name} ({count} images)" for name, count in zip(table["class"], table["images"], strict=True)])
    harmed = [name for name, verdict in zip(table["class"], table["verdict"], strict=True) if verdict == "harmed"]
    said = ", ".join(f"{name} {100 * c:+.1f}" for name, c in zip(table["class"], table["change"], strict=True))
    title = f"Pruning harms {len(harmed) or 'none'} of {len(table)} classes more than the whole"
    return finish(figure, title, f"Change by class in points: {said}. Harmed: {', '.join(harmed) or 'none'}.")


@checked
def exemplars(found: Impact, number: Count = 12) -> Figure:
    """The first pruning-identified exemplars as images, with the label and the votes of both populations."""
    if found.split is None:
        raise ConfigError("the images are not at hand; exemplars are drawn of a split that lies in memory.")
    if len(found.split.shape) != 3:
        raise ConfigError(f"these items have the shape {found.split.shape}; only images (C, H, W) can be drawn.")
    if not len(found.exemplars):
        raise ConfigError("there are no exemplars to draw: both populations vote alike on every image.")
    chosen = found.exemplars[:number]
    votes = {which: v.count(found.classes) for which, v in (("dense", found.dense), ("pruned", found.pruned))}
    columns = min(len(chosen), 6)
    rows = -(-len(chosen) // columns)
    figure, grid = images(rows, columns, (2.0 * columns + 0.2, 2.5 * rows))
    said = []
    for axes, i in zip(grid.flat, chosen, strict=False):
        image = found.split.x[i].float()
        image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-9)
        axes.imshow(image.movedim(0, -1).squeeze(-1).numpy(), cmap="gray_r")
        lines = [f"{which}: {_votes(counts[i], found.class_names)}" for which, counts in votes.items()]
        label = found.class_names[found.y[i]]
        axes.set_title("\n".join([f"label {label}", *lines]), fontsize=FONT, loc="left")
        said.append(f"image {i}, label {label}, {', '.join(lines)}")
    title = "On which images do dense and pruned networks disagree?"
    return finish(figure, title, f"{len(found.exemplars)} exemplars. {'; '.join(said)}.")


@checked
def calibration(found: Impact) -> Figure:
    """Accuracy by confidence of both populations, the diagonal where they agree, and how many answers there are."""
    errors = found.calibration()["ece"].to_dict()
    figure, (left, right) = panels(2)
    left.plot([0, 1], [0, 1], color=BLACK, ls="--", lw=1)
    curves = found.reliability().groupby("population", sort=False)
    for (which, curve), (colour, marker) in zip(curves, ((BLUE, "o"), (ORANGE, "^")), strict=False):
        mark: Any = {"marker": marker, "ms": 4, "color": colour}
        left.plot(curve["confidence"], curve["accuracy"], label=f"{which}, ECE {errors[which]:.3f}", **mark)
        right.plot(curve["confidence"], curve["count"], **mark)
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.03), ylim=(0, 1.03))
    right.set(xlabel="confidence", ylabel="number of answers", yscale="log", xlim=(0, 1.03))
    for axis in (left.xaxis, left.yaxis, right.xaxis):
        percent(axis)
    legend(figure, left)
    said = ", ".join(f"{which} {error:.3f}" for which, error in errors.items())
    title = "Are the networks as often right as they are confident?"
    return finish(figure, title, f"Accuracy by confidence. Expected calibration error: {said}.")


@checked
def truth(table: pd.DataFrame) -> Figure:
    """How many times smaller or faster than the first each network is, by what is counted: that of `analysis.truth`."""
    sizes = {"nonzero": "numbers not 0", "parameters": "parameters", "flops": "FLOPs", "bytes": "dense file"}
    sizes |= {"gzip_bytes": "after gzip", "bzip2_bytes": "after bzip2", "sparse_bytes": "sparse file"}
    times = {label: table[column].iloc[0] / table[column] for column, label in sizes.items() if column in table}
    batches = [column[7:] for column in table.columns if column.startswith("faster_") and column[7:].isdecimal()]
    times |= {f"time, batch of {batch}": table[f"faster_{batch}"] for batch in batches}
    names = [str(name) for name in table.index[1:]]
    if not names:
        raise ConfigError("there is nothing to compare with; give analysis.truth two networks or more.")
    figure, (axes,) = panels(1, width=7.5, height=0.3 * len(times) * len(names) + 1.0)
    for i, (name, look) in enumerate(looks(names).items()):
        at = np.arange(len(times)) + (i - (len(names) - 1) / 2) * 0.8 / len(names)
        values = [float(column[name]) for column in times.values()]
        axes.barh(at, [v - 1 for v in values], left=1, height=0.7 / len(names), color=look.colour, label=name)
        for y, value in zip(at, values, strict=True):
            axes.annotate(f" {value:.3g}×", (max(value, 1), y), va="center", fontsize=FONT)
    axes.axvline(1, color=BLACK, lw=1)
    axes.set(xscale="log", xlabel=f"times smaller or faster than {table.index[0]}")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}×")
    axes.xaxis.set_minor_formatter(NullFormatter())
    row_labels(axes, times)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    legend(figure)
    said = [f"{name}: " + ", ".join(f"{of} {float(by[name]):.3g}" for of, by in times.items()) for name in names]
    title = f"What is really smaller or faster than {table.index[0]}?"
    return finish(figure, title, f"Times smaller or faster than {table.index[0]}. {'; '.join(said)}.")


@checked
def milliseconds(table: pd.DataFrame) -> Figure:
    """Time of a forward pass with its interval, for each size of batch: the table of `analysis.truth`.

    >>> columns = {'ms_1': [2.0, 1.0], 'ms_low_1': [1.9, 0.9], 'ms_high_1': [2.1, 1.1]}
    >>> import pandas as pd
    >>> lab.plots.milliseconds(pd.DataFrame(columns, index=['dense', 'removed'])).alt
    'Milliseconds of a forward pass, batch of 1: dense 2, removed 1.'
    """
    batches = [int(column[3:]) for column in table.columns if column.startswith("ms_") and column[3:].isdecimal()]
    if not batches:
        raise ConfigError("this table has no times; make it with analysis.truth(models, data).")
    figure, row = panels(len(batches), width=3.6 * len(batches) + 0.5, height=0.4 * len(table) + 1.2)
    said = []
    for axes, batch in zip(row, batches, strict=True):
        middle, low, high = (table[f"{column}_{batch}"].to_numpy() for column in ("ms", "ms_low", "ms_high"))
        colours = [look.colour for look in looks(map(str, table.index)).values()]
        axes.barh(range(len(table)), middle, color=colours, xerr=[middle - low, high - middle], ecolor=GREY, capsize=3)
        axes.set(xlabel=f"milliseconds, batch of {batch}")
        row_labels(axes, map(str, table.index), axes is row[0])
        axes.grid(visible=False, axis="y")
        times = [f"{name} {ms:.3g}" for name, ms in zip(table.index, middle, strict=True)]
        said.append(f"batch of {batch}: {', '.join(times)}")
    return finish(figure, "How long does a forward pass take?", f"Milliseconds of a forward pass, {'; '.join(said)}.")


def _votes(counts: np.ndarray, names: Sequence[str]) -> str:
    """`3 ×4, 8` for four votes and one."""
    order = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    return ", ".join(f"{names[c]} ×{counts[c]}" if counts[c] > 1 else names[c] for c in order)

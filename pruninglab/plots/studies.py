"""Figures of studies: many runs, compared."""

from collections.abc import Sequence
from itertools import cycle, pairwise
from typing import Any

import numpy as np
import pandas as pd
import scipy
import seaborn as sns
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator, NullFormatter

from ..analysis.compare import Comparison
from ..analysis.impact import Impact
from ..errors import ConfigError
from ..recipes.trials import Trials
from ..results.record import Result
from ..train.run import Run
from .figure import COLOURS, Figure, _check_comparable, _figure, _results, _short, _with_alt


def comparison(results: pd.DataFrame, by: str = "settings") -> Figure:
    """Test accuracy of each row group: one dot a run, hollow where there is only one; a bar at the mean of several."""
    _check_comparable(results)
    groups = list(results.groupby(by, sort=False)["test_accuracy"])
    figure, (axes,) = _figure(1, height=0.45 * len(groups) + 1.2)
    for i, (_, values) in enumerate(groups):
        single = len(values) == 1
        axes.plot(values, [i] * len(values), "o", color=COLOURS[0], mfc="none" if single else COLOURS[0])
        if not single:
            axes.plot([values.mean()] * 2, [i - 0.25, i + 0.25], color="black")
    axes.set(xlabel="test accuracy", yticks=range(len(groups)), ylim=(len(groups) - 0.5, -0.5))
    axes.set_yticklabels([f"{name or 'Dense'} (n = {len(values)})" for name, values in groups], fontsize=8)
    return _with_alt(
        figure, "Test accuracy: " + ", ".join(f"{n} {v.mean():.3f} (n = {len(v)})" for n, v in groups) + "."
    )


def survival(run: Run | Result) -> Figure:
    """The share of weights left in each layer when an epoch was validated; an x where nothing is left.

    A last column is the end, where something was cut after the last validation.
    """
    (result,) = _results([run])
    if not result.history:
        raise ConfigError("this run has no epochs, so there is nothing to follow; plots.layers shows its end.")
    totals = {layer["layer"]: layer["total"] for layer in result.layers}
    end = {layer["layer"]: layer["kept"] for layer in result.layers}
    kept = [h["kept"] for h in result.history]
    kept += [end] if kept[-1] != end else []
    shares = np.array([[counts[name] / total for counts in kept] for name, total in totals.items()])
    figure, (axes,) = _figure(1, width=7.0, height=0.27 * len(totals) + 1.2)
    least = shares[shares > 0].min(initial=0.5)
    image = axes.imshow(
        np.where(shares > 0, shares, np.nan),
        norm=LogNorm(least, 1),
        cmap="viridis",
        aspect="auto",
        extent=(0.5, len(kept) + 0.5, len(totals) - 0.5, -0.5),
    )
    rows, columns = np.nonzero(shares == 0)
    axes.plot(columns + 1, rows, "x", color="black", ms=5)
    axes.set(xlabel="epoch", yticks=range(len(totals)))
    axes.set_yticklabels([_short(name) for name in totals], fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(False)
    bar = figure.colorbar(image, label="share of weights left", format=lambda share, _: f"{100 * share:g} %")
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    words = "; ".join(f"{_short(n)} {row[0]:.2%} to {row[-1]:.2%}" for n, row in zip(totals, shares, strict=True))
    return _with_alt(figure, f"Share of weights left by layer, at the first epoch and at the end: {words}.")


def by_method(trials: Trials | pd.DataFrame, score: str = "test_accuracy") -> Figure:
    """Accuracy against the share of weights left, a line for each method: its mean, a mark for each run, hollow if
    alone.

    `trials` is what a recipe returned, its table, or loaded records with a column `method`; tables of several seeds can
    be joined. Bars are 95 % intervals of the mean where several runs have one sparsity; the dense net is the dashed
    line. Methods at one sparsity are drawn a little apart.
    """
    table = _with_left(trials.table() if isinstance(trials, Trials) else trials)
    figure, (axes,) = _figure(1, width=7.5, height=3.6)
    shown = sorted({*table["left"]} - {1.0}, reverse=True)
    cut = [method for method, of in table.groupby("method", sort=False) if {*of["left"]} != {1.0}]
    near = min((above / below for above, below in pairwise(shown)), default=2.0)
    apart = {method: min(1.03, near ** (0.5 / len(cut))) ** ((len(cut) - 1) / 2 - i) for i, method in enumerate(cut)}
    said, styles = [], iter(zip(COLOURS * len(table), cycle("os^Dv"), strict=False))
    for method, of_way in table.groupby("method", sort=False):
        runs = {float(str(left)): of[score].to_numpy(float) for left, of in of_way.groupby("left")}
        mean, n = [float(scores.mean()) for scores in runs.values()], min(map(len, runs.values()))
        said.append(f"{method} " + ", ".join(f"{m:.3f} at {left:.1%}" for left, m in zip(runs, mean, strict=True)))
        if method not in apart:
            axes.axhline(mean[0], color="black", ls="--", lw=1, label=f"{method} (n = {n})")
            continue
        colour, mark = next(styles)
        half = [_half_interval(scores) for scores in runs.values()]
        face = colour if n > 1 else "white"
        look: dict[str, Any] = {"marker": mark, "ms": 5, "color": colour, "mfc": face}
        axes.errorbar([left * apart[method] for left in runs], mean, yerr=half, color=colour, capsize=3, lw=1.5)
        axes.plot(of_way["left"] * apart[method], of_way[score], ls="", zorder=3, **look)
        axes.plot([], [], label=f"{method} (n = {n})", **look)
    if all(0 <= value <= 1 for value in table[score]):  # though intervals of few runs lead beyond
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 1.02))
    axes.set(xscale="log", xlabel="share of weights left", ylabel=score.replace("_", " "))
    axes.set_xticks(shown, [f"{share:.3g}" for share in shown])
    axes.minorticks_off()
    axes.invert_xaxis()
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return _with_alt(figure, f"{score.replace('_', ' ').capitalize()} by share of weights left: {'; '.join(said)}.")


def _with_left(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the share of weights left, each run once."""
    _check_comparable(table)
    table = table if "sparsity" in table else table.rename(columns={"sparsity_weights": "sparsity"})
    if "seconds_in_all" in table:  # a dense run that stands in several tables is one run
        table = table.drop_duplicates([c for c in table if not c.startswith("seconds")])
    return table.assign(left=(1 - table["sparsity"]).round(6))


def frontier(found: Comparison) -> Figure:
    """A comparison as `by_method` draws it; diamonds are the published numbers for this data and model."""
    figure = by_method(found.runs.assign(sparsity=found.runs["level"]), found.score)
    (axes,) = figure.axes
    metric = "top-5" if found.score == "test_top5" else "top-1"
    printed = found.published()
    printed = printed[(printed["metric"] == metric) & (printed["counted"] == found.counted) & (printed["sparsity"] > 0)]
    if printed.empty:
        return figure
    axes.plot(1 - printed["sparsity"], printed["accuracy"], "D", mfc="none", color="black", label="published")
    for legend in figure.legends:
        legend.remove()
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    rows = zip(printed["method"], printed["accuracy"], printed["sparsity"], strict=True)
    words = "; ".join(f"{method} {accuracy:.4f} at {1 - sparsity:.2%}" for method, accuracy, sparsity in rows)
    return _with_alt(figure, f"{figure.alt} Published: {words}.")


def sensitivity(curves: pd.DataFrame, score: str = "accuracy") -> Figure:
    """What is left of the accuracy when one layer alone is cut: the table of `analysis.sensitivity`."""
    figure, (axes,) = _figure(1, width=7.5, height=3.6)
    said = []
    for colour, (layer, curve) in zip(cycle(COLOURS), curves.groupby("layer", sort=False), strict=False):
        axes.plot(curve["sparsity"], curve[score], marker="o", ms=3, color=colour, label=_short(str(layer)))
        said.append(f"{_short(str(layer))} {curve[score].iloc[-1]:.3f} at {curve['sparsity'].iloc[-1]:.0%}")
    axes.set(xlabel="sparsity of this layer alone", ylabel=f"validation {score}")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return _with_alt(figure, f"Validation {score} when one layer alone is cut: {', '.join(said)}.")


def classes(found: Impact, level: float = 0.05) -> Figure:
    """How far each class changes beyond the whole, with its interval; in colour where the corrected test says so."""
    table = found.per_class(level).sort_values("change", ignore_index=True)
    figure, (axes,) = _figure(1, width=7.0, height=0.3 * len(table) + 1.2)
    colours = {"harmed": COLOURS[3], "spared": COLOURS[2], "": "0.5"}
    for at, row in enumerate(table.to_dict("records")):
        ends, change = [100 * row["low"], 100 * row["high"]], 100 * row["change"]
        axes.plot(ends, [at, at], color=colours[row["verdict"]], lw=2)
        axes.plot(change, at, "o", color=colours[row["verdict"]])
    axes.axvline(0, color="black", lw=1)
    axes.set(xlabel="change of recall beyond that of accuracy, points", yticks=range(len(table)), ylim=(len(table), -1))
    axes.set_yticklabels([f"{name} ({count})" for name, count in zip(table["class"], table["images"], strict=True)])
    harmed = [name for name, verdict in zip(table["class"], table["verdict"], strict=True) if verdict == "harmed"]
    said = ", ".join(f"{name} {100 * c:+.1f}" for name, c in zip(table["class"], table["change"], strict=True))
    return _with_alt(figure, f"Change by class in points: {said}. Harmed: {', '.join(harmed) or 'none'}.")


def exemplars(found: Impact, number: int = 12) -> Figure:
    """The first pruning-identified exemplars as images, with the label and the votes of both populations."""
    if found.split is None:
        raise ConfigError("the images are not at hand; exemplars are drawn of a split that lies in memory.")
    if not len(found.exemplars):
        raise ConfigError("there are no exemplars to draw: both populations vote alike on every image.")
    chosen = found.exemplars[:number]
    votes = {which: v.count(found.classes) for which, v in (("dense", found.dense), ("pruned", found.pruned))}
    columns = min(len(chosen), 6)
    rows = -(-len(chosen) // columns)
    with sns.axes_style("white"):
        figure = Figure(figsize=(1.6 * columns + 0.2, 2.2 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    said = []
    for axes, i in zip(grid.flat, chosen, strict=False):
        image = found.split.x[i].float()
        image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-9)
        axes.imshow(image.movedim(0, -1).squeeze(-1).numpy(), cmap="gray_r")
        lines = [f"{which}: {_votes(counts[i], found.class_names)}" for which, counts in votes.items()]
        label = found.class_names[found.y[i]]
        axes.set_title("\n".join([f"label {label}", *lines]), fontsize=7, loc="left")
        said.append(f"image {i}, label {label}, {', '.join(lines)}")
    return _with_alt(figure, f"{len(found.exemplars)} exemplars. {'; '.join(said)}.")


def calibration(found: Impact) -> Figure:
    """Accuracy by confidence of both populations, the diagonal where they agree, and how many answers there are."""
    errors = found.calibration()["ece"].to_dict()
    figure, (left, right) = _figure(2)
    left.plot([0, 1], [0, 1], color="black", ls="--", lw=1)
    for colour, (which, curve) in zip(COLOURS, found.reliability().groupby("population", sort=False), strict=False):
        left.plot(
            curve["confidence"], curve["accuracy"], "o-", ms=3, color=colour, label=f"{which}, ECE {errors[which]:.3f}"
        )
        right.plot(curve["confidence"], curve["count"], "o-", ms=3, color=colour)
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.03), ylim=(0, 1.03))
    right.set(xlabel="confidence", ylabel="number of answers", yscale="log", xlim=(0, 1.03))
    left.legend(frameon=False, fontsize=8)
    said = ", ".join(f"{which} {error:.3f}" for which, error in errors.items())
    return _with_alt(figure, f"Accuracy by confidence. Expected calibration error: {said}.")


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
    figure, (axes,) = _figure(1, width=7.5, height=0.3 * len(times) * len(names) + 1.0)
    for i, name in enumerate(names):
        at = np.arange(len(times)) + (i - (len(names) - 1) / 2) * 0.8 / len(names)
        values = [float(column[name]) for column in times.values()]
        colour = COLOURS[i % len(COLOURS)]
        axes.barh(at, [v - 1 for v in values], left=1, height=0.7 / len(names), color=colour, label=name)
        for y, value in zip(at, values, strict=True):
            axes.annotate(f" {value:.3g}", (max(value, 1), y), va="center", fontsize=8)
    axes.axvline(1, color="black", lw=1)
    axes.set(xscale="log", xlabel=f"times smaller or faster than {table.index[0]}", yticks=range(len(times)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_yticklabels(list(times))
    axes.margins(x=0.12)
    axes.invert_yaxis()
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    said = [f"{name}: " + ", ".join(f"{of} {float(by[name]):.3g}" for of, by in times.items()) for name in names]
    return _with_alt(figure, f"Times smaller or faster than {table.index[0]}. {'; '.join(said)}.")


def milliseconds(table: pd.DataFrame) -> Figure:
    """Time of a forward pass with its interval, for each size of batch: the table of `analysis.truth`."""
    batches = [int(column[3:]) for column in table.columns if column.startswith("ms_") and column[3:].isdecimal()]
    if not batches:
        raise ConfigError("this table has no times; make it with analysis.truth(models, data).")
    figure, panels = _figure(len(batches), width=3.6 * len(batches) + 0.5, height=0.4 * len(table) + 1.2)
    said = []
    for axes, batch in zip(panels, batches, strict=True):
        middle, low, high = (table[f"{column}_{batch}"].to_numpy() for column in ("ms", "ms_low", "ms_high"))
        colours = [COLOURS[i % len(COLOURS)] for i in range(len(table))]
        axes.barh(range(len(table)), middle, color=colours, xerr=[middle - low, high - middle], ecolor="0.3")
        axes.set(xlabel=f"milliseconds, batch of {batch}", yticks=range(len(table)))
        axes.set_yticklabels(list(table.index) if axes is panels[0] else [])
        axes.invert_yaxis()
        times = [f"{name} {ms:.3g}" for name, ms in zip(table.index, middle, strict=True)]
        said.append(f"batch of {batch}: {', '.join(times)}")
    return _with_alt(figure, f"Milliseconds of a forward pass, {'; '.join(said)}.")


def _half_interval(scores: np.ndarray) -> float:
    """Half the 95 % interval of the mean; nothing for a single run."""
    n = len(scores)
    return float(scipy.stats.t.ppf(0.975, n - 1) * scores.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0


def _votes(counts: np.ndarray, names: Sequence[str]) -> str:
    """`3 ×4, 8` for four votes and one."""
    order = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    return ", ".join(f"{names[c]} ×{counts[c]}" if counts[c] > 1 else names[c] for c in order)

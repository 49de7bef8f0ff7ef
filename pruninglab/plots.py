"""Figures from runs and results. Each returns a `Figure` and never shows it; `figure.alt` says it in words."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, cycle, pairwise
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import figure as matplotlib_figure
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter
from scipy import stats
from torch import Tensor

from . import gates, papers, storage
from .compare import Comparison
from .errors import ConfigError
from .impact import Impact
from .masks import Masks, units
from .methods import L0, GatedPruning, RelevanceL2, Slimming, VariationalDropout, weightmom
from .methods.relevance import EDGES
from .recipes import Trials
from .results import Result
from .run import Run
from .schedules import Cubic, Schedule
from .second_order import Quadratic
from .structured import Shrunk


class Figure(matplotlib_figure.Figure):
    """A matplotlib figure that shows itself in any notebook, with its words for those who cannot see it.

    It needs neither pyplot nor a backend, so that nothing is drawn twice and a thread may draw too.
    """

    alt = ""

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        image = io.BytesIO()
        self.savefig(image, format="png", dpi=100)
        png = base64.b64encode(image.getvalue()).decode()
        return {"image/png": png, "text/plain": self.alt}, {"image/png": {"alt": self.alt}}


COLOURS = sns.color_palette("colorblind")
NOTHING = "there is nothing to draw; give at least one run or result."
_STYLE: dict[str, Any] = sns.axes_style("whitegrid") | {"axes.spines.top": False, "axes.spines.right": False}


def history(*runs: Run | Result, labels: Sequence[str] | None = None) -> Figure:
    """Validation accuracy and sparsity by epoch."""
    if not runs:
        raise ConfigError(NOTHING)
    names = _labels(runs, labels)
    figure, (left, right) = _figure(2)
    for run, name, colour in zip(runs, names, cycle(COLOURS), strict=False):
        epochs = [h["epoch"] for h in run.history]
        left.plot(epochs, _accuracies(run), marker="o", ms=3, color=colour, label=name)
        right.plot(epochs, [h["sparsity"] for h in run.history], marker="o", ms=3, color=colour, label=name)
    left.set(xlabel="epoch", ylabel="validation accuracy")
    right.set(xlabel="epoch", ylabel="sparsity of weights", ylim=(-0.03, 1.03))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(runs) > 1:
        figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    ends = "; ".join(f"{n}: accuracy {_accuracies(r)[-1]:.3f}" for n, r in zip(names, runs, strict=True) if r.history)
    return _with_alt(figure, f"Validation accuracy and sparsity by epoch. At the end {ends}.")


def layers(
    *runs: Run | Result | Masks, labels: Sequence[str] | None = None, reference: Mapping[str, float] | None = None
) -> Figure:
    """The share of weights that is left in each layer, on a logarithmic axis; an x where a layer has nothing left.

    `reference` are shares to compare with, say those of a paper: `{"conv1.weight": 0.3}`. They are drawn as diamonds.
    """
    if not runs:
        raise ConfigError("there is nothing to draw; give at least one run, result or masks.")
    tables = dict(zip(_labels(runs, labels), map(_kept, runs), strict=True))
    names = list(next(iter(tables.values())))
    if any(kept.keys() != set(names) for kept in tables.values()):
        raise ConfigError("these runs have different layers; draw each architecture in a figure of its own.")
    figure, (axes,) = _figure(1, width=7.5, height=0.35 * len(names) + 1.2)
    if strange := sorted((reference or {}).keys() - set(names)):
        raise ConfigError(f"reference names {', '.join(strange)}; these runs have {', '.join(names)}.")
    shown = [*tables.values(), reference or {}]
    least = min((share for kept in shown for share in kept.values() if share), default=0.1) / 3
    for i, (label, kept) in enumerate(tables.items()):
        shares = np.array([kept[name] for name in names])
        at = np.arange(len(names)) + (i - (len(tables) - 1) / 2) * 0.6 / len(tables)
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(np.where(shares > 0, shares, np.nan), at, "o", color=colour, label=label)
        axes.plot(np.full((shares == 0).sum(), least), at[shares == 0], "x", color=colour, clip_on=False)
    if reference:
        at = [names.index(name) for name in reference]
        axes.plot(list(reference.values()), at, "D", mfc="none", color="black", label="reference")
    axes.set(xscale="log", xlim=(least, 1.2), xlabel="share of weights left", yticks=range(len(names)))
    axes.set_yticklabels([_short(n) for n in names], fontsize=8)
    axes.invert_yaxis()
    if len(tables) > 1 or reference:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    if any(0 in kept.values() for kept in tables.values()):
        axes.annotate("x: nothing left", (0, 1.01), xycoords="axes fraction", fontsize=8)
    if reference:
        tables["reference"] = dict(reference)
    said = {label: ", ".join(f"{n} {s:.2%}" for n, s in kept.items()) for label, kept in tables.items()}
    words = "; ".join(f"{label}: {shares}" for label, shares in said.items())
    empty = {label: [_short(n) for n, share in kept.items() if not share] for label, kept in tables.items()}
    emptied = "".join(f" Nothing is left of {', '.join(e)} ({label})." for label, e in empty.items() if e)
    return _with_alt(figure, f"Share of weights left by layer. {words}.{emptied}")


def schedule(*schedules: Schedule) -> Figure:
    """Sparsity over the progress of training."""
    figure, (axes,) = _figure(1)
    progress = np.linspace(0, 1, 101)
    for one, colour in zip(schedules, COLOURS * len(schedules), strict=False):
        top = max(one.final.values()) if isinstance(one.final, Mapping) else one.final
        axes.plot(progress, [one.between(p, top) for p in progress], color=colour, label=str(one))
    axes.set(xlabel="progress", ylabel="sparsity", ylim=(0, 1.03))
    axes.legend(frameon=False, fontsize=8)
    return _with_alt(figure, "Sparsity over progress for " + ", ".join(map(str, schedules)) + ".")


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


def residuals(run: Run) -> Figure:
    """How far W and Z of an ADMM run are apart, and how far Z moved, by layer and step."""
    rows = [row for method in run.methods for row in getattr(method, "residuals", [])]
    if not rows:
        raise ConfigError("this run has no residuals; draw a run that was trained with lab.methods.ADMM.")
    table = pd.DataFrame(rows)
    figure, panels = _figure(2)
    for axes, which, said in zip(panels, ("primal", "dual"), ("distance of W to Z", "movement of Z"), strict=True):
        for colour, (layer, of_layer) in zip(cycle(COLOURS), table.groupby("layer", sort=False), strict=False):
            axes.plot(of_layer["step"], of_layer[which], marker="o", ms=3, color=colour, label=_short(str(layer)))
        axes.set(xlabel="step", ylabel=said, ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    ends = table.groupby("layer", sort=False)["primal"].agg(["first", "last"])
    words = "; ".join(f"{n} {first:.3g} to {last:.3g}" for n, first, last in ends.itertuples())
    return _with_alt(figure, f"Distance of W to Z by layer, at the first and the last update: {words}.")


def trajectories(run: Run, layer: str = "", only: int | None = None) -> Figure:
    """Magnitude and momentum of the weights that WeightMom followed in a layer (the largest, if none is named).

    `only` is the number of one of them. A line ends with an x where its weight is cut. The chosen weights are drawn in
    full, the random ones dotted.
    """
    method: Any = next((m for m in run.methods if getattr(m, "trajectories", None)), None)
    if method is None:
        raise ConfigError("this run followed no weights; train with lab.methods.WeightMom(..., watch=12).")
    layer = layer or max(method.watched, key=lambda name: run.masks[name].numel())
    if layer not in method.watched:
        raise ConfigError(f"layer={layer!r} was not followed; expected one of {', '.join(method.watched)}.")
    kept = run.masks[layer].cpu().flatten()[method.watched[layer].cpu()].tolist()
    magnitude, momentum, threshold = method.trajectories[layer].cpu().unbind(1)
    lasts = (magnitude > 0).sum(0).tolist()  # what is cut after an epoch is 0 from the next one on
    if only is not None and not 0 <= only < len(kept):
        raise ConfigError(
            f"only={only}, but {len(kept)} weights of {layer} were followed; expected 0 to {len(kept) - 1}."
        )
    chosen = len(kept) - len(kept) // 2
    figure, panels = _figure(2)
    for axes, values, said in zip(panels, (magnitude, momentum), ("|w|", "momentum of |w|"), strict=True):
        for i, (last, stays) in enumerate(zip(lasts, kept, strict=True)):
            if only not in (None, i):
                continue
            line = {"color": COLOURS[0] if stays else COLOURS[1], "ls": "-" if i < chosen else ":", "lw": 1.2}
            axes.plot(range(1, last + 1), values[:last, i], **line)
            if not stays and last:
                axes.plot(last, values[last - 1, i], "x", color=COLOURS[1], ms=5)
        if axes is panels[0]:  # the momentum is held to no threshold
            axes.plot(range(1, len(threshold) + 1), threshold[:, 0], color="black", lw=2)
        epochs = (0.5, len(threshold) + 0.5)
        axes.set(xlabel="epoch", ylabel=f"{said} in {_short(layer)}", ylim=(0, None), xlim=epochs)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    styles = {"kept": (COLOURS[0], "-"), "cut at x": (COLOURS[1], "-"), "threshold": ("black", "-")}
    styles |= {"chosen": ("grey", "-"), "random": ("grey", ":")}
    handles = [Line2D([], [], color=colour, ls=ls, label=label) for label, (colour, ls) in styles.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    if only is not None:
        fate = "stays" if kept[only] else f"is cut after epoch {lasts[only]}"
        return _with_alt(
            figure, f"Weight {only} of those followed in {_short(layer)}, over {len(magnitude)} epochs: it {fate}."
        )
    stay = (
        f"{sum(kept[:chosen])} of {len(kept[:chosen])} chosen and {sum(kept[chosen:])} of {len(kept[chosen:])} random"
    )
    cuts = sorted(last for last, stays in zip(lasts, kept, strict=True) if not stays)
    when = f"; the others are cut after epochs {cuts[0]} to {cuts[-1]}" if cuts else ""
    levels = threshold[~threshold[:, 0].isnan(), 0]
    span = f"The threshold goes from {float(levels[0]):.3g} to {float(levels[-1]):.3g}"
    return _with_alt(figure, f"Weights of {_short(layer)} over {len(magnitude)} epochs: {stay} stay{when}. {span}.")


def importance(source: Run | Masks, readings: Sequence[str] = ("text", "formula")) -> Figure:
    """WeightMom's importance ratio of each layer in several readings side by side, on logarithmic axes.

    Of a run by its own `basis`, `layer_index` and `depth_exponent`, at its present masks.
    """
    masks = source.masks if isinstance(source, Run) else source
    own = [m for m in getattr(source, "methods", ()) if isinstance(m, weightmom.WeightMom)]
    method = own[0] if own else weightmom.WeightMom(Cubic(0.9))
    ratios = {reading: replace(method, reading=reading).of_layers(masks) for reading in readings}
    sizes = list(ratios[readings[0]])
    figure, panels = _figure(len(ratios), width=4.0 * len(ratios), height=0.27 * len(sizes) + 1.2)
    for axes, (reading, of_layer), colour in zip(panels, ratios.items(), COLOURS, strict=False):
        axes.plot(list(of_layer.values()), range(len(of_layer)), "o", color=colour)
        grows = "kept" if reading in weightmom.KEPT_SHARES else "cut"
        axes.set(xscale="log", xlabel=f'"{reading}": the {grows} share grows with it', yticks=range(len(sizes)))
        axes.set_yticklabels(sizes if axes is panels[0] else [], fontsize=8)
        axes.set(ylim=(len(sizes) - 0.5, -0.5))
        axes.margins(x=0.1)
    said = "; ".join(f"{r}: {', '.join(f'{n} {x:.3g}' for n, x in of.items())}" for r, of in ratios.items())
    return _with_alt(figure, f"Importance ratio by layer. {said}.")


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


def agreement(*runs: Run | Masks, labels: Sequence[str] | None = None) -> Figure:
    """Jaccard index of the masks of each two runs by layer: kept in both of those kept in either.

    A bar beside each dot is what two random masks of these densities would agree in.
    """
    if len(runs) < 2:
        raise ConfigError(f"{len(runs)} masks cannot agree or differ; give at least two runs or masks.")
    named = dict(zip(_labels(runs, labels), [r.masks if isinstance(r, Run) else r for r in runs], strict=True))
    names = list(next(iter(named.values())))
    if any(masks.keys() != set(names) for masks in named.values()):
        raise ConfigError("these runs have different layers; compare masks of one architecture.")
    pairs = list(combinations(named, 2))
    figure, (axes,) = _figure(1, width=7.5, height=(0.2 + 0.1 * len(pairs)) * len(names) + 1.2)
    said = {}
    for i, (a, b) in enumerate(pairs):
        found, chance = zip(*(_jaccard(named[a][name], named[b][name]) for name in names), strict=True)
        at = np.arange(len(names)) + (i - (len(pairs) - 1) / 2) * 0.7 / len(pairs)
        axes.plot(found, at, "o", ms=5, color=COLOURS[i % len(COLOURS)], label=f"{a} and {b}")
        axes.plot(chance, at, "|", ms=8, mew=2, color="grey", label="by chance" if i == len(pairs) - 1 else None)
        said[f"{a} and {b}"] = ", ".join(f"{_short(n)} {x:.2f}" for n, x in zip(names, found, strict=True))
    axes.set(xlim=(-0.02, 1.02), xlabel="kept in both, of those kept in either", yticks=range(len(names)))
    axes.set_yticklabels([_short(n) for n in names], fontsize=8)
    axes.set(ylim=(len(names) - 0.5, -0.5))
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return _with_alt(figure, "Agreement of masks by layer. " + "; ".join(f"{k}: {v}" for k, v in said.items()) + ".")


def weights(values: Tensor, kept: Tensor | None = None, name: str = "") -> Figure:
    """The distribution of weights, those kept and those cut, their numbers on a logarithmic scale."""
    flat = values.detach().cpu().flatten()
    stays = flat != 0 if kept is None else kept.cpu().flatten()
    edges = np.linspace(float(flat.min()), float(flat.max()), 81)
    figure, (axes,) = _figure(1, width=6.0)
    for chosen, colour, label in ((~stays, COLOURS[7], "cut"), (stays, COLOURS[0], "kept")):
        axes.hist(flat[chosen].numpy(), bins=edges.tolist(), color=colour, alpha=0.7, label=label)
    axes.set(yscale="log", xlabel=f"weight of {name}" if name else "weight", ylabel="number of weights")
    axes.legend(frameon=False, fontsize=8)
    cut = flat[~stays].abs()
    spread = f", the cut ones up to {float(cut.max()):.3g} in size" if len(cut) else ""
    return _with_alt(figure, f"Weights of {name or 'a layer'}: {int(stays.sum()):,} kept, {len(cut):,} cut{spread}.")


def bytes_by_layer(model: Any) -> Figure:
    """What the sparse file spends on values and on positions, by layer."""
    table = storage.layer_sizes(model).query("layer not in ('header', 'all')")
    figure, (axes,) = _figure(1, width=6.5, height=0.35 * len(table) + 1.2)
    at = np.arange(len(table))
    axes.barh(at, table["data_bytes"], color=COLOURS[0], label="values")
    axes.barh(at, table["index_bytes"], left=table["data_bytes"], color=COLOURS[1], label="positions")
    axes.set(xlabel="bytes", yticks=at)
    axes.set_yticklabels([_short(str(n)) for n in table["layer"]], fontsize=8)
    axes.invert_yaxis()
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    words = f"{table['data_bytes'].sum():,.0f} bytes of values and {table['index_bytes'].sum():,.0f} of positions"
    return _with_alt(figure, f"Bytes by layer: {words} in all.")


def filters(model: Any, layer: str = "conv1", masks: Masks | None = None) -> Figure:
    """The first 24 filters of a convolution, or a linear layer as one matrix; what is cut is left blank."""
    weight = model.get_submodule(layer).weight.detach().cpu()
    kept = masks[f"{layer}.weight"].cpu() if masks and f"{layer}.weight" in masks else weight != 0
    top = float(weight.abs().max()) or 1.0
    shown = weight.masked_fill(~kept, float("nan"))
    images = [f.mean(0) if f.shape[0] > 1 else f[0] for f in shown[:24]] if weight.ndim == 4 else [shown]
    columns = min(len(images), 12)
    rows = -(-len(images) // columns)
    with sns.axes_style("white"):
        figure = Figure(figsize=(8, 0.8 * rows) if weight.ndim == 4 else (8, 3), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image in zip(grid.flat, images, strict=False):
        axes.imshow(image.numpy(), cmap="RdBu_r", vmin=-top, vmax=top, aspect="equal" if weight.ndim == 4 else "auto")
    return _with_alt(figure, f"Weights of {layer}: {int(kept.sum()):,} of {kept.numel():,} left, the others blank.")


def matrices(sides: Mapping[str, tuple[Run, Masks]], layer: str) -> Figure:
    """The weights of one layer of several runs under masks, side by side, as matrices; what is cut is grey."""
    figure, panels = _figure(len(sides), height=3.2)
    said = []
    for axes, (name, (run, masks)) in zip(panels, sides.items(), strict=True):
        weight, kept = run.weights[layer].detach().cpu().flatten(1), masks[layer].cpu().flatten(1)
        top = float(weight.abs().max()) or 1.0
        shown = weight.masked_fill(~kept, float("nan"))
        axes.imshow(shown.numpy(), cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto", interpolation="none")
        axes.set(title=name, xlabel="inputs", ylabel=f"outputs of {_short(layer)}")
        axes.set_facecolor("0.88")
        axes.grid(visible=False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        said.append(f"{name} {int(kept.sum()):,} of {kept.numel():,}")
    return _with_alt(figure, f"Weights left of {_short(layer)}: {'; '.join(said)}.")


def ways(trials: Trials | pd.DataFrame, score: str = "test_accuracy") -> Figure:
    """Accuracy against the share of weights left, a line for each way: its mean, a mark for each run, hollow if alone.

    `trials` is what a recipe returned, its table, or loaded records with a column `way`; tables of several seeds can be
    joined. Bars are 95 % intervals of the mean where several runs have one sparsity; the dense net is the dashed line.
    Ways at one sparsity are drawn a little apart.
    """
    table = trials.table() if isinstance(trials, Trials) else trials
    _check_comparable(table)
    table = table if "sparsity" in table else table.rename(columns={"sparsity_weights": "sparsity"})
    if "seconds_in_all" in table:  # a dense run that stands in several tables is one run
        table = table.drop_duplicates([c for c in table if c != "seconds_in_all"])
    table = table.assign(left=(1 - table["sparsity"]).round(6))
    figure, (axes,) = _figure(1, width=7.5, height=3.6)
    shown = sorted({*table["left"]} - {1.0}, reverse=True)
    cut = [way for way, of in table.groupby("way", sort=False) if {*of["left"]} != {1.0}]
    near = min((above / below for above, below in pairwise(shown)), default=2.0)
    apart = {way: min(1.03, near ** (0.5 / len(cut))) ** ((len(cut) - 1) / 2 - i) for i, way in enumerate(cut)}
    said, styles = [], iter(zip(COLOURS * len(table), cycle("os^Dv"), strict=False))
    for way, of_way in table.groupby("way", sort=False):
        runs = {float(str(left)): of[score].to_numpy(float) for left, of in of_way.groupby("left")}
        mean, n = [float(scores.mean()) for scores in runs.values()], min(map(len, runs.values()))
        said.append(f"{way} " + ", ".join(f"{m:.3f} at {left:.1%}" for left, m in zip(runs, mean, strict=True)))
        if way not in apart:
            axes.axhline(mean[0], color="black", ls="--", lw=1, label=f"{way} (n = {n})")
            continue
        colour, mark = next(styles)
        half = [_half_interval(scores) for scores in runs.values()]
        face = colour if n > 1 else "white"
        look: dict[str, Any] = {"marker": mark, "ms": 5, "color": colour, "mfc": face}
        axes.errorbar([left * apart[way] for left in runs], mean, yerr=half, color=colour, capsize=3, lw=1.5)
        axes.plot(of_way["left"] * apart[way], of_way[score], ls="", zorder=3, **look)
        axes.plot([], [], label=f"{way} (n = {n})", **look)
    if all(0 <= value <= 1 for value in table[score]):  # though intervals of few runs lead beyond
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 1.02))
    axes.set(xscale="log", xlabel="share of weights left", ylabel=score.replace("_", " "))
    axes.set_xticks(shown, [f"{share:.3g}" for share in shown])
    axes.minorticks_off()
    axes.invert_xaxis()
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return _with_alt(figure, f"{score.replace('_', ' ').capitalize()} by share of weights left: {'; '.join(said)}.")


def frontier(found: Comparison) -> Figure:
    """A comparison as `ways` draws it; diamonds are what papers print for this data and model, without n or spread."""
    figure = ways(found.runs.assign(sparsity=found.runs["level"]), found.score)
    (axes,) = figure.axes
    metric = "top-5" if found.score == "test_top5" else "top-1"
    printed = papers.published(*found.task)
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
    """What is left of the accuracy when one layer alone is cut: the table of `budgets.sensitivity`."""
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


def scales(run: Run, share: float | None = None) -> Figure:
    """How slimming sorts the channels: |γ| of all, the smallest first, one line an epoch; dashed where `share` goes."""
    method = next((m for m in run.methods if isinstance(m, Slimming)), None)
    if method is None or not method.scales:
        raise ConfigError("this run has no scales to show; train with methods.Slimming for an epoch or more.")
    figure, (axes,) = _figure(1)
    lines = [np.sort(np.concatenate(list(entry["scales"].values()))) for entry in method.scales]
    for i, line in enumerate(lines):
        colour = sns.light_palette(COLOURS[0], len(lines) + 2)[i + 2]
        axes.plot(np.arange(1, len(line) + 1) / len(line), line, color=colour, label=f"epoch {i + 1}")
    first, last = np.median(lines[0]), np.median(lines[-1])
    said = f"The median scale is {first:.3g} after the first epoch and {last:.3g} after the last"
    if share is not None:
        axes.axvline(share, color="black", ls="--", lw=1)
        said += f"; {share:.0%} are below {np.quantile(lines[-1], share):.3g}"
    axes.set(xlabel="share of the channels", ylabel="scale of the norm, |γ|", ylim=(0, None))
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return _with_alt(figure, said + ".")


def widths(shrunk: Shrunk) -> Figure:
    """Channels of each group of layers, before and after: what is still there in colour."""
    rows = [row for row in shrunk.report.to_dict("records") if row["removed"] or row["left"]]
    if not rows:
        raise ConfigError("no channel was removed or cut here, so that there is nothing to draw.")
    figure, (axes,) = _figure(1, width=6.5, height=0.28 * len(rows) + 1.2)
    at, left = np.arange(len(rows)), [row["channels"] - row["removed"] for row in rows]
    axes.barh(at, [row["channels"] for row in rows], color="0.85", label="removed")
    axes.barh(at, left, color=COLOURS[0], label="left")
    axes.set(xlabel="channels", yticks=at)
    axes.set_yticklabels([_first(row["layers"]) for row in rows], fontsize=8)
    axes.invert_yaxis()
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    said = [f"{_first(row['layers'])} {n} of {row['channels']}" for row, n in zip(rows, left, strict=True)]
    return _with_alt(figure, f"Channels left: {', '.join(said)}.")


def truth(table: pd.DataFrame) -> Figure:
    """How many times smaller or faster than the first each network is, by what is counted: that of `measure.truth`."""
    sizes = {"nonzero": "numbers not 0", "parameters": "parameters", "flops": "FLOPs", "bytes": "dense file"}
    sizes |= {"gzip_bytes": "after gzip", "bzip2_bytes": "after bzip2", "sparse_bytes": "sparse file"}
    times = {label: table[column].iloc[0] / table[column] for column, label in sizes.items() if column in table}
    batches = [column[7:] for column in table.columns if column.startswith("faster_") and column[7:].isdecimal()]
    times |= {f"time, batch of {batch}": table[f"faster_{batch}"] for batch in batches}
    names = [str(name) for name in table.index[1:]]
    if not names:
        raise ConfigError("there is nothing to compare with; give measure.truth two networks or more.")
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
    """Time of a forward pass with its interval, for each size of batch: the table of `measure.truth`."""
    batches = [int(column[3:]) for column in table.columns if column.startswith("ms_") and column[3:].isdecimal()]
    if not batches:
        raise ConfigError("this table has no times; make it with measure.truth(models, data).")
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


def _first(layers: str) -> str:
    """The first of several layers, and how many more there are."""
    first, *others = layers.split(", ")
    return f"{first} + {len(others)}" if others else first


def _half_interval(scores: np.ndarray) -> float:
    """Half the 95 % interval of the mean; nothing for a single run."""
    n = len(scores)
    return float(stats.t.ppf(0.975, n - 1) * scores.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0


def _votes(counts: np.ndarray, names: Sequence[str]) -> str:
    """`3 ×4, 8` for four votes and one."""
    order = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    return ", ".join(f"{names[c]} ×{counts[c]}" if counts[c] > 1 else names[c] for c in order)


def relevance(run: Run) -> Figure:
    """What a relevance-weighted run felt: |g| of the kept weights by layer, and how far that took C from 1.

    Left the last epoch's distribution; right, by epoch, C of each layer's largest |g|, and dashed of the median.
    """
    method = next((m for m in run.methods if isinstance(m, RelevanceL2) and m.felt), None)
    if method is None:
        raise ConfigError("this run has no relevances; draw one that was trained with RelevanceL2 for an epoch.")
    figure, (left, right) = _figure(2)
    edges = np.array([EDGES[0] / 2, *EDGES, EDGES[-1] * 2])
    words, filled = [], np.zeros(len(EDGES) + 1, dtype=int)
    for colour, name in zip(cycle(COLOURS), dict.fromkeys(row["layer"] for row in method.felt), strict=False):
        rows = [row for row in method.felt if row["layer"] == name]
        counts = np.array(rows[-1]["counts"])
        filled += counts
        left.stairs(counts / counts.sum(), edges, color=colour, label=_short(name))
        epochs = [row["step"] / run.steps_per_epoch for row in rows]
        for which, style in (("largest", "-"), ("median", "--")):
            c = method.relevance(torch.tensor([row[which] for row in rows])).tolist()
            right.plot(epochs, c, style, marker="o", ms=3, color=colour)
            words += [f"{_short(name)} {c[-1]:.4g}"] if which == "largest" else []
    seen = np.flatnonzero(filled[1:]) + 1  # the first bin also has all zeros
    left.set(xscale="log", xlim=(edges[seen[0]], edges[seen[-1] + 1]) if len(seen) else None)
    left.set(xlabel="|g| of the kept weights, last epoch", ylabel="share of the layer")
    right.set(xlabel="epoch", ylabel="C")
    right.set_title("of the largest |g|; dashed: of the median", fontsize=9)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return _with_alt(figure, f"Gradients by layer, and C. C of the largest |g| at the end: {', '.join(words)}.")


def gate(run: Run) -> Figure:
    """Each decision of a gate: accuracy against the bound, cut (o) or not (x); sparsity; λ, where it changes."""
    method = next((m for m in run.methods if isinstance(m, GatedPruning) and m.evaluations), None)
    if method is None:
        raise ConfigError("this run has no evaluations of a gate; draw one that was trained with GatedPruning.")
    table = pd.DataFrame(method.evaluations)
    pulls = [m for m in run.methods if isinstance(m, RelevanceL2)]
    figure, panels = _figure(2 + bool(pulls), width=11.0 if pulls else 0.0)
    for accepted, marker, colour, label in ((True, "o", COLOURS[0], "cut"), (False, "x", COLOURS[3], "not cut")):
        some = table[table["accepted"] == accepted]
        panels[0].plot(some["step"], some["accuracy"], marker, ms=4, color=colour, label=label)
    panels[0].axhline(method.bound, color="black", ls="--", lw=1, label="bound")
    panels[0].set(ylabel="validation accuracy")
    total = units(run.masks, method.unit)[1]
    sparsities = [*(1 - table["kept"] / total), 1 - table["kept"].iloc[-1] / total]
    panels[1].step([*table["step"], run.step], sparsities, where="post", color=COLOURS[0])
    panels[1].set(ylabel=f"sparsity by {method.unit}", ylim=(-0.03, 1.03))
    if pulls:
        steps = np.linspace(run.first_step, run.step, 1000)
        restarts = np.array([run.first_step, *(cut.step for cut in run.cuts)])
        since = steps - restarts[np.searchsorted(restarts, steps, side="right") - 1]
        strengths = [pulls[0].strength_after(s / run.steps_per_epoch) for s in since]
        panels[2].plot(steps, strengths, color=COLOURS[0], lw=1)
        panels[2].set(ylabel="λ", ylim=(0, None))
    for axes in panels:
        axes.set(xlabel="step", xlim=(run.first_step - 0.03 * run.step, 1.03 * run.step))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    words = f"{method.accepted} of {len(table)} evaluations were above {method.bound:.4g}"
    return _with_alt(figure, f"The gate: {words}; sparsity {1 - table['kept'].iloc[-1] / total:.4f} at the end.")


def learned_gates(run: Run, layer: str = "") -> Figure:
    """What the gates of L0 or the noise of variational dropout learned, epoch by epoch.

    Left how log α is distributed, in all layers or in one, and the line beyond which a gate is closed; in the middle
    the share of gates that are open in each layer; right the strength of the penalty, steered if to a sparsity.
    """
    method = next((m for m in run.methods if isinstance(m, L0 | VariationalDropout) and m.seen), None)
    if method is None:
        raise ConfigError("this run learned no gates; draw one that was trained with VariationalDropout or L0.")
    table = pd.DataFrame(method.seen)
    if layer and layer not in set(table["layer"]):
        raise ConfigError(f"layer={layer!r} has no gates here; expected one of {', '.join(table['layer'].unique())}.")
    epochs = np.unique(table["step"]) / run.steps_per_epoch
    chosen = table[table["layer"] == layer] if layer else table
    counts = np.array([np.sum(of["counts"].tolist(), axis=0) for _, of in chosen.groupby("step")]).T
    figure, panels = _figure(3, width=12.0)
    edges = np.concatenate(([2 * epochs[0] - epochs[1] if len(epochs) > 1 else epochs[0] - 1], epochs))
    image = panels[0].pcolormesh(edges, gates.EDGES, np.where(counts, counts, np.nan), norm=LogNorm(), cmap="viridis")
    figure.colorbar(image, ax=panels[0], label="gates")
    limit, closed = (method.threshold, "above") if isinstance(method, VariationalDropout) else (-np.log(11), "below")
    panels[0].axhline(limit, color=COLOURS[3], ls="--", lw=1.5)
    panels[0].set(ylabel=f"log α of {_short(layer) if layer else 'all layers'}")
    panels[0].set_title(f"{closed} the line a gate is closed", fontsize=9)
    panels[0].grid(visible=False)
    said = []
    for colour, (name, of) in zip(cycle(COLOURS), table.groupby("layer", sort=False), strict=False):
        shares = (of["open"] / of["total"]).to_numpy()
        panels[1].plot(
            epochs, np.where(shares > 0, shares, np.nan), marker="o", ms=3, color=colour, label=_short(str(name))
        )
        said.append(f"{_short(str(name))} {shares[0]:.1%} to {shares[-1]:.1%}")
    panels[1].set(yscale="log", ylabel="share of gates that are open")
    panels[2].plot(epochs, table.groupby("step")["strength"].first(), marker="o", ms=3, color=COLOURS[0])
    panels[2].set(ylabel="strength of the penalty", ylim=(0, None))
    for axes in panels:
        axes.set(xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return _with_alt(figure, f"Open gates by layer, at the first and the last epoch: {'; '.join(said)}.")


def regrowth(run: Run) -> Figure:
    """What was dropped and what grew in each layer and epoch, as shares of its kept weights; what is left of the start.

    What was dropped and grew again in one epoch counts in both.
    """
    rows = [row for method in run.methods for row in getattr(method, "changes", [])]
    if not rows:
        raise ConfigError("this run moved no weights; draw one that was trained with RigL, SET or SparseMomentum.")
    table = pd.DataFrame(rows).assign(epoch=lambda t: t["step"] // run.steps_per_epoch + 1)
    how: dict[str, Any] = {"index": "layer", "columns": "epoch", "sort": False}
    sums = table.pivot_table(**how, values=["dropped", "grown"], aggfunc="sum")
    kept = table.pivot_table(**how, values="kept", aggfunc="last").clip(lower=1)
    shares = {which: sums[which] / kept for which in ("dropped", "grown")}
    names, epochs = list(kept.index), list(kept.columns)
    figure, panels = _figure(3, width=12.0, height=0.2 * len(names) + 2.0)
    most = max(float(share.max(axis=None)) for share in shares.values()) or 1.0
    extent = (epochs[0] - 0.5, epochs[-1] + 0.5, len(names) - 0.5, -0.5)
    look: dict[str, Any] = {"vmin": 0, "vmax": most, "cmap": "viridis", "aspect": "auto", "extent": extent}
    images = [axes.imshow(share, **look) for axes, share in zip(panels, shares.values(), strict=False)]
    for axes, which in zip(panels, shares, strict=False):
        axes.set(title=which, xlabel="epoch", yticks=range(len(names)))
        axes.set_yticklabels([_short(str(name)) for name in names] if which == "dropped" else [], fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(False)
    figure.colorbar(images[1], ax=panels[1], label="share of kept weights", format=lambda x, _: f"{100 * x:g} %")
    total: Any = table.groupby("step")[["original", "kept"]].sum()
    left = total["original"] / total["kept"].clip(lower=1)
    panels[2].step([run.first_step, *left.index, run.step], [1, *left, left.iloc[-1]], where="post", color=COLOURS[0])
    panels[2].set(xlabel="step", ylabel="share of kept weights", ylim=(0, 1.03), title="kept since the start")
    moved = f"{table['grown'].sum():,} weights grew in {table['step'].nunique()} updates"
    return _with_alt(figure, f"{moved}; of the kept ones {left.iloc[-1]:.0%} were there at the start.")


def two_weights(quadratic: Quadratic) -> Figure:
    """Two weights at the minimum of their quadratic, and where three ways to cut one of them lead."""
    if quadratic.weights.numel() != 2:
        raise ConfigError(f"this quadratic is of {quadratic.weights.numel()} weights; two can be drawn.")
    w, hessian, both = quadratic.weights, quadratic.hessian[0], torch.ones_like(quadratic.weights, dtype=torch.bool)
    ranks = {
        "magnitude": w.abs(),
        "damage (diagonal of H)": hessian.diagonal() * w.square(),
        "surgeon (all of H)": quadratic.costs(both),
    }
    kept = {name: both ^ torch.nn.functional.one_hot(rank.flatten().argmin(), 2).bool() for name, rank in ranks.items()}
    ends = {n: quadratic.minimum(k) if n.startswith("surgeon") else torch.where(k, w, 0) for n, k in kept.items()}
    losses = {name: quadratic.value(end) for name, end in ends.items()}
    figure, (axes,) = _figure(1, width=6.2, height=3.6)
    reach = 1.6 * max(float(torch.stack([w, *ends.values()]).abs().max()), 1e-9)
    line = torch.linspace(-reach / 3, reach, 121, dtype=w.dtype)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1) - w.flatten()
    heights = 0.5 * ((grid @ hessian) * grid).sum(-1)
    axes.contour(line, line, heights, levels=sorted({0.2 * max(losses.values()), *losses.values()}), colors="grey")
    axes.plot(*w.flatten().tolist(), "*", color="black", ms=11, label="minimum")
    for (name, end), colour, marker in zip(ends.items(), COLOURS, "so^", strict=False):
        points = torch.stack([w.flatten(), end.flatten()]).T
        axes.plot(*points.tolist(), "--", color=colour, lw=1)
        axes.plot(
            *points[:, 1].tolist(), marker, color=colour, ms=8, mfc="none", mew=2, label=f"{name}: +{losses[name]:.3g}"
        )
    axes.axhline(0, color="black", lw=0.8)
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlabel="first weight", ylabel="second weight", aspect="equal")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    words = "; ".join(f"{name} {loss:.3g}" for name, loss in losses.items())
    return _with_alt(figure, f"The loss around two weights, and what cutting one of them adds to it: {words}.")


def sizes(*runs: Run | Result, labels: Sequence[str] | None = None) -> Figure:
    """Bytes of the dense file, of that file after bzip2 (what papers quote), and of the sparse file."""
    results = _results(runs)
    names = _labels(runs, labels)
    kinds = {"bytes": "dense file", "bzip2_bytes": "dense file after bzip2", "sparse_bytes": "sparse file"}
    figure, (axes,) = _figure(1, width=7.5, height=0.6 * len(names) + 1.2)
    for i, (kind, label) in enumerate(kinds.items()):
        values = [result.size.get(kind, float("nan")) / 1000 for result in results]
        at = np.arange(len(names)) + (i - 1) * 0.27
        bars = axes.barh(at, values, height=0.25, color=COLOURS[i], label=label)
        axes.bar_label(bars, fmt="{:,.1f}", padding=3, fontsize=7)
    axes.set(xlabel="kilobytes", yticks=range(len(names)))
    axes.set_yticklabels(names, fontsize=8)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    said = [", ".join(f"{label} {r.size[kind]:,}" for kind, label in kinds.items() if kind in r.size) for r in results]
    words = "; ".join(f"{name}: {parts}" for name, parts in zip(names, said, strict=True))
    return _with_alt(figure, f"Bytes. {words}.")


def _short(layer: str) -> str:
    return layer.removesuffix(".weight")


def _figure(panels: int, width: float = 0.0, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    with sns.axes_style(_STYLE):
        figure = Figure(figsize=(width or 4.2 * panels + 1.0, height), layout="constrained")
        return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _with_alt(figure: Figure, alt: str) -> Figure:
    figure.alt = alt
    return figure


def _check_comparable(results: pd.DataFrame) -> None:
    if results.empty:
        raise ConfigError("there are no results to compare; is the folder right?")
    unlike = [c for c in ("data", "model", "chosen_on") if c in results and len(set(results[c])) > 1]
    if unlike:
        raise ConfigError(f"these results differ in {', '.join(unlike)}; choose those of one, or they do not compare.")


def _accuracies(run: Run | Result) -> list[float]:
    """By epoch; NaN where a record has none."""
    return [float("nan") if h["val_accuracy"] is None else h["val_accuracy"] for h in run.history]


def _jaccard(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Of two masks, and of two random ones of the same densities; NaN where neither keeps anything."""
    either, p, q = int((a | b).sum()), float(a.float().mean()), float(b.float().mean())
    if not either:
        return float("nan"), float("nan")
    return int((a & b).sum()) / either, p * q / (p + q - p * q)


def _results(runs: Sequence[Run | Result]) -> list[Result]:
    if not runs:
        raise ConfigError(NOTHING)
    return [run.result if isinstance(run, Run) else run for run in runs]


def _labels(runs: Sequence[Any], labels: Sequence[str] | None) -> list[str]:
    if labels is not None:
        if len(labels) != len(runs):
            raise ConfigError(f"{len(labels)} labels for {len(runs)} runs; give one for each.")
        if len(set(labels)) != len(labels):
            raise ConfigError(f"two runs have the same label: {', '.join(labels)}.")
        return list(labels)
    names = ["masks" if isinstance(r, Masks) else r.name for r in runs]
    return [f"{n} ({i + 1})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _kept(run: Run | Result | Masks) -> dict[str, float]:
    if isinstance(run, Masks):
        return {name: kept / run[name].numel() for name, kept in run.kept_by_layer.items()}
    return {x["layer"]: x["kept"] / x["total"] for x in _results([run])[0].layers}

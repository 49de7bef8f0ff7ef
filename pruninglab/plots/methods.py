"""Figures of what one method does: trajectories, penalties, gates, regrowth."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D

from ..errors import ConfigError
from ..masks.masks import Masks, units
from ..masks.schedules import Cubic
from ..methods.channels.slimming import Slimming
from ..methods.cuts.accuracy_gate import PruneWhileAccurate
from ..methods.cuts.interpretations import Interpretation
from ..methods.cuts.weightmom import MEANINGS, WeightMom
from ..methods.noise import steering
from ..methods.noise.l0 import L0
from ..methods.noise.variational import VariationalDropout
from ..methods.penalties.relevance import EDGES, RelevanceL2
from ..structured.shrink import Shrunk
from ..train.run import Run
from ..typed import Filled, Fraction, checked, one_of
from .figure import (
    Figure,
    colour_bar,
    finish,
    first_of,
    legend,
    log_percent,
    method_of,
    name_panel,
    panels,
    percent,
    row_labels,
    short,
    whole,
)
from .looks import BLACK, BLUE, GREY, ORANGE, PALE, looks


@checked
def trajectories(run: Run, layer: str = "", only: int | None = None) -> Figure:
    """Magnitude and momentum of the weights that WeightMom followed in a layer (the largest, if none is named).

    `only` is the number of one of them. A line ends with an x where its weight is cut. The chosen weights are drawn in
    full, the random ones dotted.
    """
    method = method_of(run, "trajectories", WeightMom, "lab.methods.WeightMom(..., watch=12)")
    layer = layer or max(method.watched, key=lambda name: run.masks[name].numel())
    one_of("layer", layer, method.watched)
    kept = run.masks[layer].cpu().flatten()[method.watched[layer].cpu()].tolist()
    magnitude, momentum, threshold = method.trajectories[layer].cpu().unbind(1)
    lasts = (magnitude > 0).sum(0).tolist()  # what is cut after an epoch is 0 from the next one on
    if only is not None and not 0 <= only < len(kept):
        raise ConfigError(
            f"only={only}, but {len(kept)} weights of {layer} were followed; expected 0 to {len(kept) - 1}."
        )
    chosen = len(kept) - len(kept) // 2
    figure, row = panels(2)
    for axes, values, said in zip(row, (magnitude, momentum), ("|w|", "momentum of |w|"), strict=True):
        for i, (last, stays) in enumerate(zip(lasts, kept, strict=True)):
            if only not in (None, i):
                continue
            line = {"color": BLUE if stays else ORANGE, "ls": "-" if i < chosen else ":", "lw": 1.2}
            axes.plot(range(1, last + 1), values[:last, i], **line)
            if not stays and last:
                axes.plot(last, values[last - 1, i], "x", color=ORANGE, ms=6, mew=1.5)
        if axes is row[0]:  # the momentum is held to no threshold
            axes.plot(range(1, len(threshold) + 1), threshold[:, 0], color="black", lw=2)
        epochs = (0.5, len(threshold) + 0.5)
        axes.set(xlabel="epoch", ylabel=f"{said} in {short(layer)}", ylim=(0, None), xlim=epochs)
        whole(axes.xaxis)
    styles = {"kept": (BLUE, "-"), "pruned at ×": (ORANGE, "-"), "threshold": (BLACK, "-")}
    styles |= {"chosen": (GREY, "-"), "random": (GREY, ":")}
    handles = [Line2D([], [], color=colour, ls=ls, label=label) for label, (colour, ls) in styles.items()]
    legend(figure, handles=handles)
    title = "When does a weight fall below the threshold for good?"
    if only is not None:
        fate = "stays" if kept[only] else f"is cut after epoch {lasts[only]}"
        return finish(
            figure,
            title,
            f"Weight {only} of those followed in {short(layer)}, over {len(magnitude)} epochs: it {fate}.",
        )
    levels = threshold[~threshold[:, 0].isnan(), 0]
    span = f"The threshold goes from {float(levels[0]):.3g} to {float(levels[-1]):.3g}"
    words = _fates(kept, lasts)
    return finish(figure, title, f"Weights of {short(layer)} over {len(magnitude)} epochs: {words}. {span}.")


def _fates(kept: Sequence[bool], lasts: Sequence[int]) -> str:
    """How many of the followed weights stay, the first half chosen and the rest random, and when the others are cut."""
    chosen = len(kept) - len(kept) // 2
    stay = (
        f"{sum(kept[:chosen])} of {len(kept[:chosen])} chosen and {sum(kept[chosen:])} of {len(kept[chosen:])} random"
    )
    cuts = sorted(last for last, stays in zip(lasts, kept, strict=True) if not stays)
    when = f"; the others are cut after epochs {cuts[0]} to {cuts[-1]}" if cuts else ""
    return f"{stay} stay{when}"


@checked
def importance(
    source: Run | Masks, interpretations: Annotated[Sequence[Interpretation], Filled()] = ("text", "formula")
) -> Figure:
    """WeightMom's importance ratio of each layer in several interpretations side by side, on logarithmic axes.

    Of a run by its own `basis`, `layer_index` and `depth_exponent`, at its present masks.
    """
    masks = source.masks if isinstance(source, Run) else source
    own = [m for m in getattr(source, "methods", ()) if isinstance(m, WeightMom)]
    method = own[0] if own else WeightMom(Cubic(0.9))
    order = source.flops.layers(source.weights) if isinstance(source, Run) else ()
    ratios = {name: replace(method, interpretation=name).of_layers(masks, order) for name in interpretations}
    sizes = list(ratios[interpretations[0]])
    figure, row = panels(len(ratios), width=4.0 * len(ratios), height=0.27 * len(sizes) + 1.2)
    for axes, (name, of_layer) in zip(row, ratios.items(), strict=True):
        colour, marker = looks([f"WeightMom, {name}"]).popitem()[1]
        axes.plot(list(of_layer.values()), range(len(of_layer)), marker, color=colour)
        grows = MEANINGS[name].grows
        axes.set(xscale="log", xlabel=f'"{name}": the {grows} share grows with it')
        row_labels(axes, sizes, axes is row[0])
        axes.margins(x=0.1)
    said = "; ".join(f"{r}: {', '.join(f'{n} {x:.3g}' for n, x in of.items())}" for r, of in ratios.items())
    return finish(figure, "What importance ratio does each layer get?", f"Importance ratio by layer. {said}.")


@checked
def scales(run: Run, share: Fraction | None = None) -> Figure:
    """How slimming sorts the channels: |γ| of all, the smallest first, one line an epoch; dashed where `share` goes."""
    method = method_of(run, "scales", Slimming, "lab.methods.Slimming for an epoch or more")
    figure, (axes,) = panels(1)
    lines = [np.sort(np.concatenate(list(entry["scales"].values()))) for entry in method.scales]
    for i, line in enumerate(lines):
        shade = sns.light_palette(BLUE, len(lines) + 2)[i + 2]
        axes.plot(np.arange(1, len(line) + 1) / len(line), line, color=shade, label=f"epoch {i + 1}")
    first, last = np.median(lines[0]), np.median(lines[-1])
    said = f"The median scale is {first:.3g} after the first epoch and {last:.3g} after the last"
    if share is not None:
        axes.axvline(share, color=BLACK, ls="--", lw=1)
        said += f"; {share:.0%} are below {np.quantile(lines[-1], share):.3g}"
    axes.set(xlabel="share of the channels, smallest scale first", ylabel="scale of the norm, |γ|", ylim=(0, None))
    percent(axes.xaxis)
    legend(figure)
    return finish(figure, "Does the penalty separate channels to keep from channels to remove?", said + ".")


@checked
def widths(shrunk: Shrunk) -> Figure:
    """Channels of each group of layers, before and after: what is still there in colour."""
    rows = [row for row in shrunk.report.to_dict("records") if row["removed"] or row["left"]]
    if not rows:
        raise ConfigError("no channel was removed or cut here, so that there is nothing to draw.")
    figure, (axes,) = panels(1, width=6.5, height=0.28 * len(rows) + 1.2)
    at, left = np.arange(len(rows)), [row["channels"] - row["removed"] for row in rows]
    axes.barh(at, [row["channels"] for row in rows], color=PALE, label="removed")
    axes.barh(at, left, color=BLUE, label="left")
    axes.set(xlabel="channels")
    row_labels(axes, [first_of(row["layers"]) for row in rows])
    axes.grid(visible=False, axis="y")
    legend(figure)
    said = [f"{first_of(row['layers'])} {n} of {row['channels']}" for row, n in zip(rows, left, strict=True)]
    return finish(figure, "How many channels does each group of layers keep?", f"Channels left: {', '.join(said)}.")


@checked
def relevance(run: Run) -> Figure:
    """What a relevance-weighted run felt: |g| of the kept weights by layer, and how far that took C from 1.

    Left the last epoch's distribution; right, by epoch, C of each layer's largest |g|, and dashed of the median.
    """
    method = method_of(run, "felt", RelevanceL2, "lab.methods.RelevanceL2 for an epoch or more")
    figure, (left, right) = panels(2)
    edges = np.array([EDGES[0] / 2, *EDGES, EDGES[-1] * 2])
    words, filled = [], np.zeros(len(EDGES) + 1, dtype=int)
    names = list(dict.fromkeys(row["layer"] for row in method.felt))
    for name, (colour, marker) in zip(names, looks(map(short, names)).values(), strict=True):
        rows = [row for row in method.felt if row["layer"] == name]
        counts = np.array(rows[-1]["counts"])
        filled += counts
        left.stairs(counts / counts.sum(), edges, color=colour, label=short(name))
        epochs = [row["step"] / run.steps_per_epoch for row in rows]
        for which, style in (("largest", "-"), ("median", "--")):
            c = method.relevance(torch.tensor([row[which] for row in rows])).tolist()
            right.plot(epochs, c, style, marker=marker, ms=4, color=colour, label=short(name) if style == "-" else None)
            words += [f"{short(name)} {c[-1]:.4g}"] if which == "largest" else []
    seen = np.flatnonzero(filled[1:]) + 1  # the first bin also has all zeros
    left.set(xscale="log", xlim=(edges[seen[0]], edges[seen[-1] + 1]) if len(seen) else None)
    left.set(xlabel="|g| of the kept weights, last epoch", ylabel="share of the layer")
    percent(left.yaxis)
    right.set(xlabel="epoch", ylabel="C at the largest (dashed: median) |g|")
    whole(right.xaxis)
    legend(figure, right)
    title = "How strongly does the loss feel the weights, and how much does that spare them?"
    return finish(figure, title, f"Gradients by layer, and C. C of the largest |g| at the end: {', '.join(words)}.")


@checked
def gate(run: Run) -> Figure:
    """Each decision of a gate: accuracy against the bound, cut (o) or not (x); sparsity; λ, where it changes."""
    method = method_of(run, "evaluations", PruneWhileAccurate, "lab.methods.PruneWhileAccurate")
    table = pd.DataFrame(method.evaluations)
    pulls = [m for m in run.methods if isinstance(m, RelevanceL2)]
    figure, row = panels(2 + bool(pulls), width=11.0 if pulls else 0.0)
    for accepted, marker, colour, label in ((True, "o", BLUE, "pruned"), (False, "x", ORANGE, "not pruned")):
        some = table[table["accepted"] == accepted]
        row[0].plot(some["step"], some["accuracy"], marker, ms=5, color=colour, label=label)
    row[0].axhline(method.bound, color=BLACK, ls="--", lw=1, label="bound")
    row[0].set(ylabel="validation accuracy")
    percent(row[0].yaxis)
    total = units(run.masks, method.unit)[1]
    sparsities = [*(1 - table["kept"] / total), 1 - table["kept"].iloc[-1] / total]
    row[1].step([*table["step"], run.step], sparsities, where="post", color=BLUE)
    row[1].set(ylabel=f"sparsity by {method.unit}", ylim=(-0.03, 1.03))
    percent(row[1].yaxis)
    if pulls:
        steps = np.linspace(run.first_step, run.step, 1000)
        restarts = np.array([run.first_step, *(cut.step for cut in run.cuts)])
        since = steps - restarts[np.searchsorted(restarts, steps, side="right") - 1]
        strengths = [pulls[0].strength_after(s / run.steps_per_epoch) for s in since]
        row[2].plot(steps, strengths, color=BLUE, lw=1)
        row[2].set(ylabel="strength of the penalty, λ", ylim=(0, None))
    for axes in row:
        axes.set(xlabel="step", xlim=(run.first_step - 0.03 * run.step, 1.03 * run.step))
    legend(figure, row[0])
    words = f"{method.accepted} of {len(table)} evaluations were above {method.bound:.4g}"
    title = "The gate prunes only while validation accuracy stays above the bound"
    return finish(figure, title, f"The gate: {words}; sparsity {1 - table['kept'].iloc[-1] / total:.4f} at the end.")


@checked
def learned_gates(run: Run, layer: str = "") -> Figure:
    """What the gates of L0 or the noise of variational dropout learned, epoch by epoch.

    Left: the distribution of log α, in all layers or in one, and the line beyond which a gate is closed. Middle: the
    share of gates that are open in each layer. Right: the strength of the penalty, steered if a sparsity was asked for.
    """
    method = method_of(run, "seen", L0 | VariationalDropout, "lab.methods.VariationalDropout or L0")
    table = pd.DataFrame(method.seen)
    if layer:
        one_of("layer", layer, list(table["layer"].unique()))
    epochs = np.unique(table["step"]) / run.steps_per_epoch
    chosen = table[table["layer"] == layer] if layer else table
    counts = np.array([np.sum(of["counts"].tolist(), axis=0) for _, of in chosen.groupby("step")]).T
    figure, row = panels(3, width=12.0)
    edges = np.concatenate(([2 * epochs[0] - epochs[1] if len(epochs) > 1 else epochs[0] - 1], epochs))
    image = row[0].pcolormesh(edges, steering.EDGES, np.where(counts, counts, np.nan), norm=LogNorm(), cmap="viridis")
    colour_bar(figure, image, row[0], "gates")
    limit, closed = (method.threshold, "above") if isinstance(method, VariationalDropout) else (-np.log(11), "below")
    row[0].axhline(limit, color=ORANGE, ls="--", lw=2)
    where = short(layer) if layer else "all layers"
    row[0].set(ylabel=f"log α of {where}; closed {closed} the line")
    row[0].grid(visible=False)
    said = []
    given = looks(short(str(name)) for name in table["layer"].unique())
    for name, of in table.groupby("layer", sort=False):
        shares = (of["open"] / of["total"]).to_numpy()
        colour, marker = given[short(str(name))]
        line: Any = {"marker": marker, "ms": 4, "color": colour, "label": short(str(name))}
        row[1].plot(epochs, np.where(shares > 0, shares, np.nan), **line)
        said.append(f"{short(str(name))} {shares[0]:.1%} to {shares[-1]:.1%}")
    row[1].set(yscale="log", ylabel="share of gates that are open")
    log_percent(row[1].yaxis, *row[1].get_ylim())
    row[2].plot(epochs, table.groupby("step")["strength"].first(), marker="o", ms=4, color=BLUE)
    row[2].set(ylabel="strength of the penalty", ylim=(0, None))
    for axes in row:
        axes.set(xlabel="epoch")
        whole(axes.xaxis)
    legend(figure, row[1])
    return finish(
        figure,
        "Which gates close, in which layers, and at what price?",
        f"Open gates by layer, at the first and the last epoch: {'; '.join(said)}.",
    )


@checked
def regrowth(run: Run) -> Figure:
    """What was dropped and what grew in each layer and epoch, as shares of its kept weights; what is left of the start.

    What was dropped and grew again in one epoch counts in both.

    >>> rigl = lab.fit(model, data, lab.methods.RigL(0.9, every_steps=2), epochs=2)
    >>> 'weights grew in' in lab.plots.regrowth(rigl).alt
    True
    """
    rows = [row for method in run.methods for row in getattr(getattr(method, "turnover", None), "changes", [])]
    if not rows:
        raise ConfigError("this run moved no weights; draw one that was trained with RigL, SET or SparseMomentum.")
    table = pd.DataFrame(rows).assign(epoch=lambda t: t["step"] // run.steps_per_epoch + 1)
    how: dict[str, Any] = {"index": "layer", "columns": "epoch", "sort": False}
    sums = table.pivot_table(**how, values=["dropped", "grown"], aggfunc="sum")
    kept = table.pivot_table(**how, values="kept", aggfunc="last").clip(lower=1)
    shares = {which: sums[which] / kept for which in ("dropped", "grown")}
    names, epochs = list(kept.index), list(kept.columns)
    figure, row = panels(3, width=12.0, height=0.2 * len(names) + 2.0)
    most = max(float(share.max(axis=None)) for share in shares.values()) or 1.0
    extent = (epochs[0] - 0.5, epochs[-1] + 0.5, len(names) - 0.5, -0.5)
    look: dict[str, Any] = {"vmin": 0, "vmax": most, "cmap": "viridis", "aspect": "auto", "extent": extent}
    shown = [axes.imshow(share, **look) for axes, share in zip(row, shares.values(), strict=False)]
    for axes, which in zip(row, shares, strict=False):
        name_panel(axes, f"{which} in the epoch")
        axes.set(xlabel="epoch")
        row_labels(axes, [short(str(name)) for name in names], which == "dropped")
        whole(axes.xaxis)
        axes.grid(False)
    colour_bar(figure, shown[1], row[1], "share of kept weights", shares=True)
    total: Any = table.groupby("step")[["original", "kept"]].sum()
    left = total["original"] / total["kept"].clip(lower=1)
    row[2].step([run.first_step, *left.index, run.step], [1, *left, left.iloc[-1]], where="post", color=BLUE)
    name_panel(row[2], "kept since the start")
    row[2].set(xlabel="step", ylabel="share of kept weights", ylim=(0, 1.03))
    percent(row[2].yaxis)
    moved = f"{table['grown'].sum():,} weights grew in {table['step'].nunique()} updates"
    title = f"Connections move: {left.iloc[-1]:.0%} of the kept ones were there at the start"
    return finish(figure, title, f"{moved}; of the kept ones {left.iloc[-1]:.0%} were there at the start.")

"""Figures of one run or of several runs: accuracy, layers, weights, masks."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from ..criteria.curvature import Quadratic
from ..errors import ConfigError
from ..masks.masks import Masks
from ..masks.schedules import Schedule
from ..results.record import Result
from ..storage import sparse
from ..storage.files import Source
from ..train.run import Run
from ..typed import Filled, checked
from .figure import (
    FONT,
    NOTHING,
    Figure,
    accuracies,
    finish,
    images,
    kept_of,
    labels_of,
    layer_of,
    legend,
    log_percent,
    name_panel,
    panels,
    percent,
    row_labels,
    short,
    whole,
)
from .looks import BLACK, BLUE, GREY, NAVY, ORANGE, PALE, looks


@checked
def history(*runs: Run | Result, labels: Sequence[str] | None = None) -> Figure:
    """Validation accuracy and sparsity by epoch.

    >>> lab.plots.history(dense, run, labels=['dense', 'gradual']).alt[:40]
    'Validation accuracy and sparsity by epoc'
    """
    if not runs:
        raise ConfigError(NOTHING)
    names = labels_of(runs, labels)
    figure, (left, right) = panels(2)
    for run, (name, (colour, marker)) in zip(runs, looks(names).items(), strict=True):
        epochs = [h["epoch"] for h in run.history]
        line: Any = {"color": colour, "marker": marker, "ms": 4, "label": name}
        left.plot(epochs, accuracies(run), **line)
        right.plot(epochs, [h["sparsity"] for h in run.history], **line)
    left.set(xlabel="epoch", ylabel="validation accuracy")
    right.set(xlabel="epoch", ylabel="sparsity of weights", ylim=(-0.03, 1.03))
    for axes in (left, right):
        whole(axes.xaxis)
        percent(axes.yaxis)
    if len(runs) > 1:
        legend(figure, left)
    ends = "; ".join(f"{n}: accuracy {accuracies(r)[-1]:.3f}" for n, r in zip(names, runs, strict=True) if r.history)
    title = "How does accuracy change while weights are removed?"
    return finish(figure, title, f"Validation accuracy and sparsity by epoch. At the end {ends}.")


@checked
def layers(
    *runs: Run | Result | Masks, labels: Sequence[str] | None = None, reference: Mapping[str, float] | None = None
) -> Figure:
    """The share of weights that is left in each layer, on a logarithmic axis; an x where a layer has nothing left.

    `reference` are shares to compare with, say those of a paper: `{"conv1.weight": 0.3}`. They are drawn as diamonds.

    >>> lab.plots.layers(run).alt[:32]
    'Share of weights left by layer. '
    """
    if not runs:
        raise ConfigError("there is nothing to draw; give at least one run, result or masks.")
    tables = dict(zip(labels_of(runs, labels), map(kept_of, runs), strict=True))
    names = list(next(iter(tables.values())))
    if any(kept.keys() != set(names) for kept in tables.values()):
        raise ConfigError("these runs have different layers; draw each architecture in a figure of its own.")
    figure, (axes,) = panels(1, width=7.5, height=0.35 * len(names) + 1.2)
    if strange := sorted((reference or {}).keys() - set(names)):
        raise ConfigError(f"reference names {', '.join(strange)}; these runs have {', '.join(names)}.")
    shown = [*tables.values(), reference or {}]
    least = min((share for kept in shown for share in kept.values() if share), default=0.1) / 3
    for i, (label, (colour, marker)) in enumerate(looks(tables).items()):
        shares = np.array([tables[label][name] for name in names])
        at = np.arange(len(names)) + (i - (len(tables) - 1) / 2) * 0.6 / len(tables)
        axes.plot(np.where(shares > 0, shares, np.nan), at, marker, color=colour, label=label)
        for row in at[shares == 0]:
            axes.plot(least, row, "x", color=colour, mew=2, clip_on=False)
    if reference:
        at = [names.index(name) for name in reference]
        axes.plot(list(reference.values()), at, "D", mfc="none", color=BLACK, label="reference")
    axes.set(xscale="log", xlim=(least, 1.2), xlabel="share of weights left")
    row_labels(axes, map(short, names))
    log_percent(axes.xaxis, least, 1.2)
    if len(tables) > 1 or reference:
        legend(figure)
    empty = any(0 in kept.values() for kept in tables.values())
    title = "Which layers keep their weights?" + (" A cross marks a layer with nothing left" if empty else "")
    return finish(figure, title, _layers_in_words(tables | ({"reference": dict(reference)} if reference else {})))


def _layers_in_words(tables: Mapping[str, Mapping[str, float]]) -> str:
    said = {label: ", ".join(f"{n} {s:.2%}" for n, s in kept.items()) for label, kept in tables.items()}
    words = "; ".join(f"{label}: {shares}" for label, shares in said.items())
    empty = {label: [short(n) for n, share in kept.items() if not share] for label, kept in tables.items()}
    emptied = "".join(f" Nothing is left of {', '.join(e)} ({label})." for label, e in empty.items() if e)
    return f"Share of weights left by layer. {words}.{emptied}"


@checked
def schedule(*schedules: Schedule) -> Figure:
    """Sparsity over the progress of training.

    >>> lab.plots.schedule(lab.Linear(0.9), lab.Cubic(0.9)).alt[:28]
    'Sparsity over progress for L'
    """
    figure, (axes,) = panels(1)
    progress = np.linspace(0, 1, 101)
    names = [type(one).__name__ for one in schedules]
    names = [str(one) if names.count(name) > 1 else name for one, name in zip(schedules, names, strict=True)]
    for one, (name, look) in zip(schedules, looks(names).items(), strict=True):
        top = max(one.final.values()) if isinstance(one.final, Mapping) else one.final
        sparsities = [one.between(p, top) for p in progress]
        axes.plot(progress, sparsities, color=look.colour, marker=look.marker, markevery=20, label=name)
    axes.set(xlabel="share of the training steps", ylabel="sparsity", ylim=(0, 1.03))
    percent(axes.xaxis)
    percent(axes.yaxis)
    legend(figure)
    said = "Sparsity over progress for " + ", ".join(map(str, schedules)) + "."
    return finish(figure, "When does each schedule remove weights?", said)


@checked
def residuals(run: Run) -> Figure:
    """How far W and Z of an ADMM run are apart, and how far Z moved, by layer and step.

    >>> admm = lab.fit(model, data, lab.methods.ADMM(0.9), epochs=2)
    >>> lab.plots.residuals(admm).alt[:16]
    'Distance of W to'
    """
    rows = [row for method in run.methods for row in getattr(method, "residuals", [])]
    if not rows:
        raise ConfigError("this run has no residuals; draw a run that was trained with lab.methods.ADMM.")
    table = pd.DataFrame(rows)
    figure, both = panels(2)
    given = looks(short(str(layer)) for layer in table["layer"].unique())
    said = ("distance of W to Z (Frobenius norm)", "movement of Z (Frobenius norm)")
    for axes, which, label in zip(both, ("primal", "dual"), said, strict=True):
        for layer, of_layer in table.groupby("layer", sort=False):
            colour, marker = given[short(str(layer))]
            axes.plot(of_layer["step"], of_layer[which], marker=marker, ms=4, color=colour, label=short(str(layer)))
        axes.set(xlabel="step", ylabel=label, ylim=(0, None))
    legend(figure, both[0])
    ends = table.groupby("layer", sort=False)["primal"].agg(["first", "last"])
    words = "; ".join(f"{n} {first:.3g} to {last:.3g}" for n, first, last in ends.itertuples())
    title = "Do the weights W and their sparse copy Z come together?"
    return finish(figure, title, f"Distance of W to Z by layer, at the first and the last update: {words}.")


@checked
def agreement(*runs: Run | Masks, labels: Sequence[str] | None = None) -> Figure:
    """Jaccard index of the masks of each two runs by layer: kept in both of those kept in either.

    A bar beside each dot is what two random masks of these densities would agree in.

    >>> lab.plots.agreement(dense, run).alt[:28]
    'Agreement of masks by layer.'
    """
    if len(runs) < 2:
        raise ConfigError(f"{len(runs)} masks cannot agree or differ; give at least two runs or masks.")
    named = dict(zip(labels_of(runs, labels), [r.masks if isinstance(r, Run) else r for r in runs], strict=True))
    names = list(next(iter(named.values())))
    if any(masks.keys() != set(names) for masks in named.values()):
        raise ConfigError("these runs have different layers; compare masks of one architecture.")
    pairs = list(combinations(named, 2))
    figure, (axes,) = panels(1, width=7.5, height=(0.2 + 0.1 * len(pairs)) * len(names) + 1.2)
    said = {}
    given = looks(f"{a} and {b}" for a, b in pairs)
    for i, (a, b) in enumerate(pairs):
        found, chance = zip(*(_jaccard(named[a][name], named[b][name]) for name in names), strict=True)
        at = np.arange(len(names)) + (i - (len(pairs) - 1) / 2) * 0.7 / len(pairs)
        colour, marker = given[f"{a} and {b}"]
        axes.plot(found, at, marker, color=colour, label=f"{a} and {b}")
        axes.plot(chance, at, "|", ms=8, mew=2, color=GREY, label="by chance" if i == len(pairs) - 1 else None)
        said[f"{a} and {b}"] = ", ".join(f"{short(n)} {x:.2f}" for n, x in zip(names, found, strict=True))
    axes.set(xlim=(-0.02, 1.02), xlabel="kept in both, of those kept in either (Jaccard index)")
    row_labels(axes, map(short, names))
    percent(axes.xaxis)
    legend(figure)
    words = "; ".join(f"{k}: {v}" for k, v in said.items())
    return finish(figure, "Do the methods keep the same weights?", f"Agreement of masks by layer. {words}.")


@checked
def weights(values: Tensor, kept: Tensor | None = None, name: str = "") -> Figure:
    """The distribution of weights, those kept and those cut, their numbers on a logarithmic scale.

    >>> lab.plots.weights(run.weights['fc1.weight']).alt[:10]
    'Weights of'
    """
    flat = values.detach().cpu().flatten()
    stays = flat != 0 if kept is None else kept.cpu().flatten()
    edges = np.linspace(float(flat.min()), float(flat.max()), 81)
    figure, (axes,) = panels(1, width=6.0)
    for chosen, colour, label in ((~stays, GREY, "pruned"), (stays, BLUE, "kept")):
        axes.hist(flat[chosen].numpy(), bins=edges.tolist(), color=colour, alpha=0.7, label=label)
    axes.set(yscale="log", xlabel=f"weight of {name}" if name else "weight", ylabel="number of weights")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    legend(figure)
    cut = flat[~stays].abs()
    spread = f", the cut ones up to {float(cut.max()):.3g} in size" if len(cut) else ""
    title = "How are the weights distributed, and which of them are pruned?"
    return finish(
        figure, title, f"Weights of {name or 'a layer'}: {int(stays.sum()):,} kept, {len(cut):,} cut{spread}."
    )


@checked
def bytes_by_layer(model: Source) -> Figure:
    """What the sparse file spends on values and on positions, by layer.

    >>> lab.plots.bytes_by_layer(run.model).alt[:14]
    'Bytes by layer'
    """
    table = sparse.layer_sizes(model).query("layer not in ('header', 'all')")
    figure, (axes,) = panels(1, width=6.5, height=0.35 * len(table) + 1.2)
    at = np.arange(len(table))
    axes.barh(at, table["data_bytes"] / 1000, color=BLUE, label="values")
    axes.barh(
        at, table["index_bytes"] / 1000, left=table["data_bytes"] / 1000, color=ORANGE, hatch="//", label="positions"
    )
    axes.set(xlabel="kilobytes in the sparse file")
    row_labels(axes, [short(str(n)) for n in table["layer"]])
    axes.grid(visible=False, axis="y")
    legend(figure)
    words = f"{table['data_bytes'].sum():,.0f} bytes of values and {table['index_bytes'].sum():,.0f} of positions"
    title = "What does the sparse file spend on values, and what on their positions?"
    return finish(figure, title, f"Bytes by layer: {words} in all.")


@checked
def filters(model: nn.Module, layer: str = "conv1", masks: Masks | None = None) -> Figure:
    """The first 24 filters of a convolution, or a linear layer as one matrix; what is cut is left blank.

    >>> lab.plots.filters(run.model, 'fc1').alt[:14]
    'Weights of fc1'
    """
    weight = layer_of(dict(model.named_parameters()), f"{layer}.weight").detach().cpu()
    kept = masks[f"{layer}.weight"].cpu() if masks and f"{layer}.weight" in masks else weight != 0
    top = float(weight.abs().max()) or 1.0
    shown = weight.masked_fill(~kept, float("nan"))
    pictures = [f.mean(0) if f.shape[0] > 1 else f[0] for f in shown[:24]] if weight.ndim == 4 else [shown]
    columns = min(len(pictures), 12)
    rows = -(-len(pictures) // columns)
    figure, grid = images(rows, columns, (8, 0.8 * rows) if weight.ndim == 4 else (8, 3))
    for axes, image in zip(grid.flat, pictures, strict=False):
        axes.imshow(image.numpy(), cmap="RdBu_r", vmin=-top, vmax=top, aspect="equal" if weight.ndim == 4 else "auto")
    title = f"What is left of {layer}? Red is positive, blue negative, blank pruned"
    return finish(figure, title, f"Weights of {layer}: {int(kept.sum()):,} of {kept.numel():,} left, the others blank.")


@checked
def matrices(sides: Annotated[Mapping[str, tuple[Run, Masks]], Filled()], layer: str) -> Figure:
    """The weights of one layer of several runs under masks, side by side, as matrices; what is cut is grey."""
    figure, row = panels(len(sides), height=3.2)
    said = []
    for axes, (name, (run, masks)) in zip(row, sides.items(), strict=True):
        weight, kept = layer_of(run.weights, layer).detach().cpu().flatten(1), layer_of(masks, layer).cpu().flatten(1)
        top = float(weight.abs().max()) or 1.0
        shown = weight.masked_fill(~kept, float("nan"))
        axes.imshow(shown.numpy(), cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto", interpolation="none")
        name_panel(axes, name)
        axes.set(xlabel="inputs", ylabel=f"outputs of {short(layer)}")
        axes.set_facecolor(PALE)
        axes.grid(visible=False)
        for axis in (axes.xaxis, axes.yaxis):
            whole(axis)
        said.append(f"{name} {int(kept.sum()):,} of {kept.numel():,}")
    title = f"Which weights of {short(layer)} are left? Grey is pruned"
    return finish(figure, title, f"Weights left of {short(layer)}: {'; '.join(said)}.")


@checked
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
    figure, (axes,) = panels(1, width=6.2, height=3.6)
    reach = 1.6 * max(float(torch.stack([w, *ends.values()]).abs().max()), 1e-9)
    line = torch.linspace(-reach / 3, reach, 121, dtype=w.dtype)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1) - w.flatten()
    heights = 0.5 * ((grid @ hessian) * grid).sum(-1)
    axes.contour(line, line, heights, levels=sorted({0.2 * max(losses.values()), *losses.values()}), colors="grey")
    axes.plot(*w.flatten().tolist(), "*", color="black", ms=11, label="minimum")
    for (name, end), look in zip(ends.items(), looks(name.partition(" ")[0] for name in ends).values(), strict=True):
        points = torch.stack([w.flatten(), end.flatten()]).T
        axes.plot(*points.tolist(), "--", color=look.colour, lw=1)
        mark: Any = {"marker": look.marker, "color": look.colour, "ms": 8, "mfc": "none", "mew": 2, "ls": ""}
        axes.plot(*points[:, 1:].tolist(), label=f"{name}: +{losses[name]:.3g}", **mark)
    axes.axhline(0, color="black", lw=0.8)
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlabel="first weight", ylabel="second weight", aspect="equal")
    legend(figure)
    words = "; ".join(f"{name} {loss:.3g}" for name, loss in losses.items())
    title = "What does it cost to remove one of two weights?"
    return finish(figure, title, f"The loss around two weights, and what cutting one of them adds to it: {words}.")


@checked
def sizes(*runs: Run | Result, labels: Sequence[str] | None = None) -> Figure:
    """Bytes of the dense file, of that file after bzip2 (what papers quote), and of the sparse file.

    >>> lab.plots.sizes(dense, run, labels=['dense', 'pruned']).alt[:12]
    'Bytes. dense'
    """
    counted = [sparse.sizes(run.model, compressed=True) if isinstance(run, Run) else run.size for run in runs]
    names = labels_of(runs, labels)
    kinds = {"bytes": "dense file", "bzip2_bytes": "dense file after bzip2", "sparse_bytes": "sparse file"}
    figure, (axes,) = panels(1, width=7.5, height=0.6 * len(names) + 1.2)
    for i, ((kind, label), colour) in enumerate(zip(kinds.items(), (GREY, NAVY, BLUE), strict=True)):
        values = [size.get(kind, float("nan")) / 1000 for size in counted]
        at = np.arange(len(names)) + (i - 1) * 0.27
        bars = axes.barh(at, values, height=0.25, color=colour, label=label)
        axes.bar_label(bars, fmt="{:,.1f}", padding=3, color=BLACK, fontsize=FONT)
    axes.set(xlabel="kilobytes")
    row_labels(axes, names)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    legend(figure)
    said = [", ".join(f"{label} {size[kind]:,}" for kind, label in kinds.items() if kind in size) for size in counted]
    words = "; ".join(f"{name}: {parts}" for name, parts in zip(names, said, strict=True))
    return finish(figure, "How many kilobytes does each network take?", f"Bytes. {words}.")


def _jaccard(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Of two masks, and of two random ones of the same densities; NaN where neither keeps anything."""
    either, p, q = int((a | b).sum()), float(a.float().mean()), float(b.float().mean())
    if not either:
        return float("nan"), float("nan")
    return int((a & b).sum()) / either, p * q / (p + q - p * q)

"""Figures of one run or of several runs: accuracy, layers, weights, masks."""

from collections.abc import Mapping, Sequence
from itertools import combinations, cycle
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..criteria.curvature import Quadratic
from ..errors import ConfigError
from ..masks.masks import Masks
from ..masks.schedules import Schedule
from ..results.record import Result
from ..storage import sparse
from ..train.run import Run
from .figure import COLOURS, NOTHING, Figure, _accuracies, _figure, _kept, _labels, _short, _with_alt


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
    return _with_alt(figure, _layers_in_words(tables | ({"reference": dict(reference)} if reference else {})))


def _layers_in_words(tables: Mapping[str, Mapping[str, float]]) -> str:
    said = {label: ", ".join(f"{n} {s:.2%}" for n, s in kept.items()) for label, kept in tables.items()}
    words = "; ".join(f"{label}: {shares}" for label, shares in said.items())
    empty = {label: [_short(n) for n, share in kept.items() if not share] for label, kept in tables.items()}
    emptied = "".join(f" Nothing is left of {', '.join(e)} ({label})." for label, e in empty.items() if e)
    return f"Share of weights left by layer. {words}.{emptied}"


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
    table = sparse.layer_sizes(model).query("layer not in ('header', 'all')")
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
    counted = [sparse.sizes(run.model, compressed=True) if isinstance(run, Run) else run.size for run in runs]
    names = _labels(runs, labels)
    kinds = {"bytes": "dense file", "bzip2_bytes": "dense file after bzip2", "sparse_bytes": "sparse file"}
    figure, (axes,) = _figure(1, width=7.5, height=0.6 * len(names) + 1.2)
    for i, (kind, label) in enumerate(kinds.items()):
        values = [size.get(kind, float("nan")) / 1000 for size in counted]
        at = np.arange(len(names)) + (i - 1) * 0.27
        bars = axes.barh(at, values, height=0.25, color=COLOURS[i], label=label)
        axes.bar_label(bars, fmt="{:,.1f}", padding=3, fontsize=7)
    axes.set(xlabel="kilobytes", yticks=range(len(names)))
    axes.set_yticklabels(names, fontsize=8)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    said = [", ".join(f"{label} {size[kind]:,}" for kind, label in kinds.items() if kind in size) for size in counted]
    words = "; ".join(f"{name}: {parts}" for name, parts in zip(names, said, strict=True))
    return _with_alt(figure, f"Bytes. {words}.")


def _jaccard(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Of two masks, and of two random ones of the same densities; NaN where neither keeps anything."""
    either, p, q = int((a | b).sum()), float(a.float().mean()), float(b.float().mean())
    if not either:
        return float("nan"), float("nan")
    return int((a & b).sum()) / either, p * q / (p + q - p * q)

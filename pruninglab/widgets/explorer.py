"""`MaskExplorer`: the kept weights of two runs side by side."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as ipw
import torch
import traitlets
from torch import Tensor

from ..criteria import registry
from ..errors import ConfigError
from ..masks.choose import keep_top
from ..masks.masks import Masks, parted
from ..plots import figure, methods, runs
from ..plots.figure import Figure
from ..train.run import Run
from ..typed import checked, one_of
from .front import Front, module
from .panel import NARROW, Panel, _short, flat, ranks_of

AS_PRUNED = "as pruned"
DENSITIES = [
    *(round(digits * 10**power, 6) for power in (-3, -2, -1) for digits in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)),
    0.9,
]
MOST = 2**20
"""Weights of a layer that are sent to the browser; of a larger one every second row, every third and so on."""


class MaskExplorer(Panel):
    """The weights of one layer twice, side by side: what was cut is grey.

    Each side is a run as it was pruned, or what a criterion would keep of its weights at a density. Zoom with the
    wheel, move by dragging, and point at a weight to read its value on both sides. The path of the nearest weight that
    WeightMom followed is drawn below. `choose` sets from code what the controls set.
    """

    @checked
    def __init__(self, *runs: Run, labels: Sequence[str] | None = None, layer: str | None = None):
        names = figure.labels_of(runs, labels)
        layers = [name for name in runs[0].weights if all(name in run.weights for run in runs)] if runs else []
        if not layers:
            raise ConfigError("there is nothing to explore; give runs that have a layer in common.")
        chosen = one_of("layer", layer or layers[0], layers)
        self.runs = dict(zip(names, runs, strict=True))
        self._scores: dict[tuple[str, str], dict[str, Tensor]] = {}
        self._ranks: dict[tuple[str, str], dict[str, Tensor]] = {}
        self._layer: Any = ipw.Dropdown(options=[(_short(n), n) for n in layers], value=chosen, description="layer")
        self._sides = [self._side(names[0]), self._side(names[-1])]
        self._at = [DENSITIES.index(0.1)] * 2
        self._front = Map(densities=DENSITIES)
        self._front.hear(density=self._moved)
        self._layer.observe(lambda _: self._show(), "value")
        sides = ipw.HBox([side["box"] for side in self._sides])
        self.box = ipw.VBox([self._layer, sides, self._front])
        self._show()

    def choose(self, side: int, run: str | None = None, by: str | None = None, density: float | None = None) -> None:
        """What side 0 or 1 shows: a run by its label, and "as pruned" or a criterion at a density."""
        with self._lock:
            if density is not None:
                near = min(DENSITIES, key=lambda one: abs(math.log(one / density)))
                self._at[side] = DENSITIES.index(near)
            for name, value in (("run", run), ("by", by)):
                if value is not None:
                    self._sides[side][name].value = value
            self._show()

    def masks(self, side: int) -> Masks:
        """What is kept on a side, 0 or 1. A criterion chooses among what the run has kept."""
        with self._lock:
            name, by = (self._sides[side][control].value for control in ("run", "by"))
            run = self.runs[name]
            if by == AS_PRUNED:
                return run.masks
            density = DENSITIES[self._at[side]]
            return keep_top(self._scored(name, by), 1 - density, masks=run.masks, clamp=True)

    def figure(self) -> Figure:
        sides = {}
        with self._lock:
            for number, side in enumerate(self._sides):
                sides[f"{side['run'].value}, {self._said(number)}"] = (self.runs[side["run"].value], self.masks(number))
            return runs.matrices(sides, self._layer.value)

    def trajectory(self, number: int) -> Figure:
        """That of a watched weight of this layer, by its number."""
        run = self._watching()
        if run is None:
            raise ConfigError("no weight of this layer was watched; train with WeightMom(…, watch=24).")
        return methods.trajectories(run, self._layer.value, number)

    def __repr__(self) -> str:
        kept = [
            f"{side['run'].value}, {self._said(i)}: {self.masks(i).kept:,} kept" for i, side in enumerate(self._sides)
        ]
        return f"MaskExplorer: {_short(self._layer.value)}; {'; '.join(kept)}"

    def _said(self, side: int) -> str:
        by = self._sides[side]["by"].value
        return by if by == AS_PRUNED else f"{by} at {DENSITIES[self._at[side]]:.2%}"

    def _side(self, name: str) -> dict[str, Any]:
        run = ipw.Dropdown(options=list(self.runs), value=name, layout=NARROW)
        by = ipw.Dropdown(options=[AS_PRUNED, *registry.BY_NAME], value=AS_PRUNED, layout=NARROW)
        for control in (run, by):
            control.observe(lambda _: self._show(), "value")
        box = ipw.HBox([run, by], layout=ipw.Layout(width="50%", flex_flow="row wrap"))
        return {"run": run, "by": by, "box": box}

    def _moved(self, message: Mapping[str, Any]) -> None:
        """The browser has drawn it; the kernel only remembers."""
        with self._lock:
            self._at[message["side"]] = message["at"]
            self._front.sides = [self._about(0), self._about(1)]

    def _show(self) -> None:
        with self._lock:
            for number in (0, 1):
                setattr(self._front, f"content{number}", self._content(number))
            self._front.sides = [self._about(0), self._about(1)]

    def _scored(self, name: str, by: str) -> dict[str, Tensor]:
        if (name, by) not in self._scores:
            self._scores[name, by] = self.runs[name].score(by)
        return self._scores[name, by]

    def _ranked(self, side: int) -> dict[str, Tensor]:
        """The place of each weight among all of its run; what is pruned already comes last."""
        name, by = (self._sides[side][control].value for control in ("run", "by"))
        if (name, by) not in self._ranks:
            masks = self.runs[name].masks
            scores = {n: s.detach().float() for n, s in self._scored(name, by).items()}
            together = torch.cat([s.masked_fill(~masks[n], -math.inf).flatten() for n, s in scores.items()])
            self._ranks[name, by] = {n: ranks.cpu() for n, ranks in parted(ranks_of(together), scores).items()}
        return self._ranks[name, by]

    def _content(self, side: int) -> bytes:
        """Values and ranks of the layer, as the browser reads them; nothing where the criterion fails."""
        try:
            run, layer = self.runs[self._sides[side]["run"].value], self._layer.value
            weight = run.weights[layer].detach().cpu().float()
            pruned = self._sides[side]["by"].value == AS_PRUNED
            ranks = (~run.masks[layer].cpu()).int() if pruned else self._ranked(side)[layer]
            self._sides[side]["problem"] = ""
        except Exception as error:  # a criterion of one's own may raise anything; a panel has nobody else to tell
            self._sides[side]["problem"] = str(error)
            return b""
        return thinned(weight).numpy().tobytes() + thinned(ranks).to(torch.int32).numpy().tobytes()

    def _about(self, side: int) -> dict[str, Any]:
        """All that the browser says of a side. `keep` is the rank from which on weights are pruned."""
        own, layer = self._sides[side], self._layer.value
        run = self.runs[own["run"].value]
        weight, pruned = run.weights[layer], own["by"].value == AS_PRUNED
        shape = list(flat(weight).shape)
        about = {
            "name": f"{own['run'].value}, {own['by'].value}",
            "layer": layer,
            "words": own["problem"],
            "shape": shape,
            "stride": strides(shape),
            "rows": len(range(0, shape[0], strides(shape)[0])),
            "cols": len(range(0, shape[1], strides(shape)[1])),
            "top": float(weight.detach().abs().max()) or 1.0,
            "total": run.masks.total,
            "density": run.masks.density,
            "left": weight.numel(),
            "at": self._at[side],
            "keep": 1 if pruned or own["problem"] else None,
            "kept_here": [int(run.masks[layer].sum())],
            "watched": self._watched(run),
        }
        if own["problem"] or pruned:
            return about
        keeps = [min(run.masks.total - round(run.masks.total * (1 - density)), run.masks.kept) for density in DENSITIES]
        ordered = self._ranked(side)[layer].flatten().sort().values
        return about | {"keeps": keeps, "kept_here": torch.searchsorted(ordered, torch.tensor(keeps)).tolist()}

    def _watched(self, run: Run) -> list[dict[str, Any]]:
        """The weights of this layer that WeightMom followed: where they are, and their paths."""
        layer = self._layer.value
        method: Any = next((m for m in run.methods if getattr(m, "watched", {}).get(layer) is not None), None)
        if method is None:
            return []
        places, columns = method.watched[layer].tolist(), flat(run.weights[layer]).shape[1]
        magnitude, momentum, threshold = method.trajectories[layer].cpu().unbind(1)
        kept = run.masks[layer].cpu().flatten()[method.watched[layer].cpu()].tolist()
        limit = [value if value == value else None for value in threshold[:, 0].tolist()]
        return [
            {
                "row": place // columns,
                "col": place % columns,
                "kept": kept[i],
                "magnitude": magnitude[:, i].tolist(),
                "momentum": [value if value == value else None for value in momentum[:, i].tolist()],
                "threshold": limit,
            }
            for i, place in enumerate(places)
        ]

    def _watching(self) -> Run | None:
        """The first of the chosen runs whose WeightMom watched this layer."""
        chosen = (self.runs[side["run"].value] for side in self._sides)
        return next((run for run in chosen if self._watched(run)), None)


class Map(Front):
    """Two matrices, drawn and zoomed in the browser."""

    _esm = module("explorer.js")
    densities = traitlets.List().tag(sync=True)
    sides = traitlets.List().tag(sync=True)
    content0 = traitlets.Bytes().tag(sync=True)
    content1 = traitlets.Bytes().tag(sync=True)


def strides(shape: Sequence[int]) -> list[int]:
    step = math.ceil(math.sqrt(max(math.prod(shape) / MOST, 1)))
    return [min(step, shape[0]), min(step, shape[1])]


def thinned(values: Tensor) -> Tensor:
    matrix = flat(values)
    rows, cols = strides(matrix.shape)
    return matrix[::rows, ::cols].contiguous()

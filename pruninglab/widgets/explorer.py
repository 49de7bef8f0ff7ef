"""`MaskExplorer`: the kept weights of two runs side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as ipw
import numpy as np
from torch import Tensor

from ..criteria import registry
from ..errors import ConfigError
from ..masks.choose import keep_top
from ..masks.masks import Masks
from ..plots import figure, methods, runs
from ..plots.figure import Figure
from ..train.run import Run
from .panel import NARROW, Panel, _mosaic, _png, _problem, _short, fill, picture, share_slider


class MaskExplorer(Panel):
    """The weights of one layer twice, side by side: what was cut is grey.

    Each side is a run as it was pruned, or what a criterion would keep of its weights at a density. Under the pictures
    stand the weights that WeightMom watched in this layer, if it did: a click shows the trajectory of one.
    """

    def __init__(self, *runs: Run, labels: Sequence[str] | None = None, layer: str | None = None):
        names = figure._labels(runs, labels)
        layers = [name for name in runs[0].weights if all(name in run.weights for run in runs)] if runs else []
        if not layers:
            raise ConfigError("there is nothing to explore; give runs that have a layer in common.")
        if layer is not None and layer not in layers:
            raise ConfigError(f"there is no layer {layer!r} in these runs; expected one of {', '.join(layers)}.")
        self.runs = dict(zip(names, runs, strict=True))
        self._scores: dict[tuple[str, str], dict[str, Tensor]] = {}
        self._layer: Any = ipw.Dropdown(
            options=[(_short(n), n) for n in layers], value=layer or layers[0], layout=NARROW
        )
        self._sides = [self._side(names[0]), self._side(names[-1])]
        self._weights, self._path = ipw.HBox(layout=ipw.Layout(flex_flow="row wrap")), picture()
        self._offered: tuple[Run | None, str] = None, ""  # whose weights have a button, and of which layer
        self._layer.observe(lambda _: self._show(), "value")
        self.box = ipw.VBox([self._layer, ipw.HBox([side["box"] for side in self._sides]), self._weights, self._path])
        self._show()

    def masks(self, side: int) -> Masks:
        """What is kept on a side, 0 or 1. A criterion chooses among what the run has kept."""
        with self._lock:
            chosen = self._sides[side]
            name, by = chosen["run"].value, chosen["by"].value
            run = self.runs[name]
            if by == AS_PRUNED:
                return run.masks
            if (name, by) not in self._scores:
                self._scores[name, by] = run.score(by)
            return keep_top(self._scores[name, by], 1 - chosen["density"].value, masks=run.masks, clamp=True)

    def figure(self) -> Figure:
        sides = {}
        with self._lock:
            for number, side in enumerate(self._sides):
                chosen = self.masks(number)
                sides[f"{side['run'].value}, {self._said(side)}"] = (self.runs[side["run"].value], chosen)
            return runs.matrices(sides, self._layer.value)

    def trajectory(self, number: int) -> Figure:
        """That of a watched weight of this layer, by its number."""
        run = self._watching()
        if run is None:
            raise ConfigError("no weight of this layer was watched; train with WeightMom(…, watch=24).")
        return methods.trajectories(run, self._layer.value, number)

    def __repr__(self) -> str:
        kept = [f"{s['run'].value}, {self._said(s)}: {self.masks(i).kept:,} kept" for i, s in enumerate(self._sides)]
        return f"MaskExplorer: {_short(self._layer.value)}; {'; '.join(kept)}"

    def _said(self, side: Mapping[str, Any]) -> str:
        by = side["by"].value
        return by if by == AS_PRUNED else f"{by} at {side['density'].value:.2%}"

    def _side(self, name: str) -> dict[str, Any]:
        run = ipw.Dropdown(options=list(self.runs), value=name, layout=NARROW)
        by = ipw.Dropdown(options=[AS_PRUNED, *registry.BY_NAME], value=AS_PRUNED, layout=NARROW)
        density = share_slider("density", DENSITIES)
        density.value = 0.1
        image, words = picture(), ipw.HTML()
        for control in (run, by, density):
            control.observe(lambda _: self._show(), "value")
        box = ipw.VBox([ipw.HBox([run, by]), density, words, image], layout=ipw.Layout(width="50%"))
        return {"run": run, "by": by, "density": density, "picture": image, "words": words, "box": box}

    def _show(self) -> None:
        with self._lock:
            self._draw()

    def _draw(self) -> None:
        layer = self._layer.value
        for number, side in enumerate(self._sides):
            side["density"].disabled = side["by"].value == AS_PRUNED
            try:
                masks = self.masks(number)
            except Exception as error:  # a criterion of one's own may raise anything; a panel has nobody else to tell
                side["words"].value = _problem(error)
                fill(side["picture"], b"")
                continue
            kept, total = int(masks[layer].sum()), masks[layer].numel()
            side["words"].value = f"{kept:,} of {total:,} weights of this layer, {masks.density:.2%} of all"
            weight = self.runs[side["run"].value].weights[layer].detach()
            fill(side["picture"], _mosaic({layer: (weight * masks[layer]).cpu()}, height=240))
        self._offer()

    def _offer(self) -> None:
        """A button for each weight that was watched in this layer; the old ones stay while they are the right ones."""
        run, layer = self._watching(), self._layer.value
        if run is self._offered[0] and layer == self._offered[1]:
            return
        self._offered, old = (run, layer), self._weights.children
        places = run.methods[0].watched[layer].tolist() if run else []
        shape = run.weights[layer].shape if run else ()
        buttons = []
        for number, place in enumerate(places):
            at = ", ".join(str(int(i)) for i in np.unravel_index(place, shape))
            button = ipw.Button(description=at, tooltip=f"trajectory of weight {at}", layout=NARROW)
            button.on_click(lambda _, number=number: self._follow(number))
            buttons.append(button)
        self._weights.children = buttons
        for button in old:
            button.close()
        fill(self._path, b"")

    def _watching(self) -> Run | None:
        """The first of the chosen runs whose WeightMom watched this layer."""
        for side in self._sides:
            run = self.runs[side["run"].value]
            if run.methods and getattr(run.methods[0], "watched", {}).get(self._layer.value) is not None:
                return run
        return None

    def _follow(self, number: int) -> None:
        with self._lock:
            fill(self._path, _png(self.trajectory(number)))


AS_PRUNED = "as pruned"
DENSITIES = [
    *(round(digits * 10**power, 6) for power in (-3, -2, -1) for digits in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)),
    0.9,
]

"""`PruneByHand`: a slider for each layer."""

import copy
import math
from typing import Any

import ipywidgets as ipw
import torch
from torch import Tensor

from .. import _html
from ..analysis import allocation
from ..errors import ConfigError
from ..layers.hooks import evaluating
from ..masks.masks import Masks
from ..plots import runs
from ..plots.figure import Figure
from ..train.evaluate import evaluate
from ..train.run import Run
from .panel import NARROW, WIDE, Panel, _mosaic, _problem, _short, fill, picture, share_slider

STEP = 0.05
"""Of a slider, in powers of ten."""


class PruneByHand(Panel):
    """A slider for each layer and one for all; what comes of it is measured on the same images at once.

    The largest weights stay, as many as the sliders say. Beside the accuracy stands that of global magnitude with as
    many weights: can you beat it? `masks` is what the sliders say, for `lab.fit(run, data, masks=hand.masks)`; the run
    is left as it is. Nothing is retrained here, and the images are of the validation split.
    """

    def __init__(self, run: Run, images: int = 300):
        if images < 1:
            raise ConfigError(f"images={images}: at least one is needed to measure accuracy.")
        self.run, self._model = run, copy.deepcopy(run.model)
        scores = {name: weight.detach().abs().masked_fill(~run.masks[name], -1) for name, weight in run.weights.items()}
        self._ranks = {name: _ranks(score.flatten()).view_as(score) for name, score in scores.items()}
        together = _ranks(torch.cat([score.flatten() for score in scores.values()]))
        self._together = dict(zip(scores, together.split([s.numel() for s in scores.values()]), strict=True))
        self._weights = {name: weight.detach().clone() for name, weight in run.weights.items()}
        self._own = {name: self._model.get_parameter(name) for name in run.weights}
        chosen = torch.arange(min(images, len(run.data.val)))
        self._images = [next(iter(run.data.val.batches([chosen])))]
        self.kept = run.masks.kept_by_layer
        self._before = self._accuracy(self.masks)
        self._suggested: tuple[str, int] | None = None
        self._build()
        self._show()

    @property
    def masks(self) -> Masks:
        """The largest weights of each layer, as many as its slider says."""
        kept = self.kept  # one state, also while a slider moves
        return Masks({name: ranks < kept[name] for name, ranks in self._ranks.items()})

    @property
    def accuracy(self) -> float:
        return self._accuracy(self.masks)

    @property
    def rival(self) -> float:
        """The accuracy with as many weights, the largest of all layers together."""
        return self._accuracy(self._globally(sum(self.kept.values())))

    def keep(self, share: float, layer: str | None = None) -> None:
        """Move a layer's slider, or that of all layers, to a share of weights left."""
        if layer is not None and layer not in self.kept:
            raise ConfigError(f"there is no layer {layer!r}; expected one of {', '.join(self.kept)}.")
        with self._lock:
            self._choose(layer, share)

    def suggest(self, share: float = 0.3) -> tuple[str, int]:
        """The layer that can lose `share` of its weights at the least cost by weight, and how many it then keeps."""
        with self._lock:
            before, costs = self.accuracy, {}
            for name, kept in self.kept.items():
                fewer = kept - max(int(kept * share), 1)
                if fewer > 0:
                    masks = Masks({**self.masks, name: self._ranks[name] < fewer})
                    costs[name] = ((before - self._accuracy(masks)) / (kept - fewer), fewer - kept, fewer)
        if not costs:
            raise ConfigError("every layer has a single weight left; nothing more can be suggested.")
        name = min(costs, key=lambda layer: costs[layer][:2])
        return name, costs[name][2]

    def figure(self) -> Figure:
        with self._lock:
            ours, theirs = self.masks, self._globally(sum(self.kept.values()))
            figure = runs.layers(ours, theirs, labels=["by hand", "global magnitude"])
            figure.alt += f" {self._words()}"
        return figure

    def __repr__(self) -> str:
        return f"PruneByHand: {self._words()}"

    def _build(self) -> None:
        smallest = min(1e-3, *(1 / ranks.numel() for ranks in self._ranks.values()))
        lowest = math.ceil(-math.log10(smallest) / STEP)
        self._shares = [10 ** (-STEP * steps) for steps in range(lowest, -1, -1)]

        def slider(label: str) -> Any:  # the words beside it say the exact share
            return share_slider(
                label, self._shares, readout=False, style={"description_width": "8em"}, layout=ipw.Layout(flex="1 1 0")
            )

        self._sliders: dict[str | None, Any] = {None: slider("all layers")}
        self._sliders |= {name: slider(_short(name)) for name in self.kept}
        self._exact = {name: ipw.HTML(layout=ipw.Layout(width="5em")) for name in self._sliders}
        self._at: dict[str | None, int] = {}
        self._text, self._hint, self._picture = ipw.HTML(), ipw.HTML(), picture(width="100%")
        ask, take = (ipw.Button(description=text, layout=NARROW) for text in ("Which layer next?", "Take it"))
        for name, one in self._sliders.items():
            one.observe(lambda change, name=name: self._moved(name, change["new"]), "index")
        ask.on_click(lambda _: self._ask())
        take.on_click(lambda _: self._take())
        rows = [ipw.HBox([one, self._exact[name]]) for name, one in self._sliders.items()]
        left = ipw.VBox(rows, layout=ipw.Layout(width="45%"))
        right = ipw.VBox([self._text, ipw.HBox([ask, take, self._hint])], layout=ipw.Layout(width="55%"))
        names = "".join(f'<div style="flex:1">{_html.cell(_short(name))}</div>' for name in self.kept)
        caption = ipw.HTML(f'<div style="display:flex">{names}</div>', layout=WIDE)
        self.box = ipw.VBox([ipw.HBox([left, right]), caption, self._picture])

    def _moved(self, name: str | None, at: int) -> None:
        """A slider has a new position. Where the panel itself has put it, that is no move."""
        with self._lock:
            if at != self._at[name]:
                self._choose(name, self._shares[at])

    def _choose(self, name: str | None, share: float) -> None:
        if name is None:
            masks = self.run.masks
            self.kept = self._globally(min(max(round(share * masks.total), 1), masks.kept)).kept_by_layer
        else:
            most = int(self.run.masks[name].sum())
            self.kept = {**self.kept, name: min(max(round(share * self._ranks[name].numel()), 1), most)}
        self._show()

    def _place(self) -> None:
        """Put every slider on the step nearest to what is kept. The counts are the truth; sliders only show them."""
        shares: dict[str | None, float] = {None: sum(self.kept.values()) / self.run.masks.total}
        shares |= {name: kept / self._ranks[name].numel() for name, kept in self.kept.items()}
        lowest = self._shares[0]
        last = len(self._shares) - 1
        self._at = {name: last + round(math.log10(max(share, lowest)) / STEP) for name, share in shares.items()}
        for name, share in shares.items():
            self._sliders[name].index = self._at[name]
            self._exact[name].value = f"{share:.2%}"

    def _ask(self) -> None:
        with self._lock:
            self._hint.value = "trying each layer…"
            try:
                name, fewer = self._suggested = self.suggest()
            except ConfigError as error:
                self._hint.value = _problem(error)
                return
            self._hint.value = f"{_html.cell(_short(name))} could go from {self.kept[name]:,} to {fewer:,} weights"

    def _take(self) -> None:
        with self._lock:
            if self._suggested:
                name, fewer = self._suggested
                self.kept = {**self.kept, name: fewer}
                self._show()

    def _show(self) -> None:
        self._suggested, self._hint.value = None, ""  # a suggestion holds for the counts it was made from
        self._place()
        masks = self.masks
        ours, rival = self._accuracy(masks), self._globally(sum(self.kept.values()))
        theirs = ours if rival.kept_by_layer == self.kept else self._accuracy(rival)  # as after "all layers"
        rows = [
            ("accuracy, all weights", f"{self._before:.2%}"),
            ("accuracy, by hand", f"{ours:.2%}"),
            ("global magnitude, as many weights", f"{theirs:.2%}"),
            ("weights left", f"{masks.kept:,} of {masks.total:,} ({masks.density:.2%})"),
            ("sparse file", f"{allocation.file_bytes(self.run, masks):,} bytes"),
            ("FLOPs on them", f"{self.run.flops.sparse(masks):,.0f}"),
        ]
        verdict = "ahead of" if ours > theirs else "behind" if ours < theirs else "level with"
        title = f"{verdict} global magnitude, on {len(self._images[0][1])} validation images"
        self._text.value = f"<b>{title}</b>" + _html.table(("", ""), rows)
        fill(self._picture, _mosaic({name: (w * masks[name]).cpu() for name, w in self._weights.items()}))

    def _words(self) -> str:
        with self._lock:
            return (
                f"{sum(self.kept.values()):,} of {self.run.masks.total:,} weights; accuracy {self.accuracy:.2%} by "
                f"hand, {self.rival:.2%} by global magnitude, {self._before:.2%} with all weights."
            )

    def _globally(self, keep: int) -> Masks:
        return Masks({name: (self._together[name] < keep).view_as(ranks) for name, ranks in self._ranks.items()})

    def _accuracy(self, masks: Masks) -> float:
        with self._lock, torch.no_grad():  # the model is one, and holds the masks of whoever measured last
            for name, weight in self._own.items():
                torch.mul(self._weights[name], masks[name], out=weight)
            options = self.run.options
            with evaluating(self._model), torch.inference_mode():
                return evaluate(self._model, self._images, options.loss, options.metric, self.run.device)["accuracy"]


def _ranks(scores: Tensor) -> Tensor:
    """The place of each from the highest, ties by position."""
    order = scores.argsort(descending=True, stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))

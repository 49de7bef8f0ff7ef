"""`PruneByHand`: a slider for each layer."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import ipywidgets as ipw
import torch
import traitlets
from torch import Tensor

from ..analysis import allocation
from ..errors import ConfigError
from ..layers.hooks import evaluating
from ..masks.masks import Masks
from ..plots import runs
from ..plots.figure import Figure
from ..train.evaluate import evaluate
from ..train.run import Run
from ..typed import Count, checked, one_of
from .front import Front, module
from .panel import Panel, _short, flat, ranks_of

STEP = 0.05
"""Of a slider, in powers of ten."""


class PruneByHand(Panel):
    """A slider for each layer and one for all; what comes of it is measured on the same images at once.

    The browser draws a drag by itself, from ranks that it was sent once. Accuracies follow as the kernel measures them.

    The largest weights stay, as many as the sliders say. Beside the accuracy stands that of global magnitude with as
    many weights: can you beat it? `masks` is what the sliders say, for `lab.fit(run, data, masks=hand.masks)`; the run
    is left as it is. Nothing is retrained here, and the images are of the validation split.
    """

    @checked
    def __init__(self, run: Run, images: Count = 300):
        self.run, self._model = run, copy.deepcopy(run.model)
        scores = {name: weight.detach().abs().masked_fill(~run.masks[name], -1) for name, weight in run.weights.items()}
        self._ranks = {name: ranks_of(score.flatten()).view_as(score) for name, score in scores.items()}
        together = ranks_of(torch.cat([score.flatten() for score in scores.values()]))
        self._together = dict(zip(scores, together.split([s.numel() for s in scores.values()]), strict=True))
        self._weights = {name: weight.detach().clone() for name, weight in run.weights.items()}
        self._own = {name: self._model.get_parameter(name) for name in run.weights}
        chosen = torch.arange(min(images, len(run.data.val)))
        self._images = [next(iter(run.data.val.batches([chosen])))]
        self.kept = run.masks.kept_by_layer
        self._before = self._accuracy(self.masks)
        self._suggested: tuple[str, int] | None = None
        self._turn = 0  # the newest move of the browser that is in `kept`
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
        if layer is not None:
            one_of("layer", layer, self.kept)
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
        self._front = Hand(
            shares=self._shares,
            layers=[self._layer(name) for name in self._ranks],
            together=self._together_at([self._amount(share) for share in self._shares]),
            ranks=b"".join(_thinned(ranks).to(torch.int32).numpy().tobytes() for ranks in self._ranks.values()),
            shades=b"".join(_thinned(_shades(weight)).numpy().tobytes() for weight in self._weights.values()),
        )
        self._front.hear(move=self._moved, ask=lambda _: self._ask(), take=lambda _: self._take())
        self.box = ipw.VBox([self._front])

    def _layer(self, name: str) -> dict[str, Any]:
        rows, cols = _thinned(self._ranks[name]).shape
        counts = [self._count(name, share) for share in self._shares]
        return {"name": name, "total": self._ranks[name].numel(), "rows": rows, "cols": cols, "counts": counts}

    def _count(self, name: str, share: float) -> int:
        """How many weights of a layer a share is. What has been pruned stays so."""
        return min(max(round(share * self._ranks[name].numel()), 1), int(self.run.masks[name].sum()))

    def _amount(self, share: float) -> int:
        masks = self.run.masks
        return min(max(round(share * masks.total), 1), masks.kept)

    def _together_at(self, amounts: list[int]) -> list[list[int]]:
        """What global magnitude keeps in each layer, for each of these amounts."""
        wanted = torch.tensor(amounts)
        ranks = [ranks.cpu().sort().values for ranks in self._together.values()]
        return torch.stack([torch.searchsorted(sorted_ranks, wanted) for sorted_ranks in ranks], 1).tolist()

    def _moved(self, message: Mapping[str, Any]) -> None:
        """The browser tells which sliders were moved, and where to. One answer, however many they are."""
        with self._lock:
            self._turn = message["turn"]
            for number, at in message["moves"]:
                self._set([None, *self.kept][number], self._shares[at])
            self._show()

    def _choose(self, name: str | None, share: float) -> None:
        self._set(name, share)
        self._show()

    def _set(self, name: str | None, share: float) -> None:
        if name is None:
            self.kept = self._globally(self._amount(share)).kept_by_layer
        else:
            self.kept = {**self.kept, name: self._count(name, share)}

    def _places(self) -> list[int]:
        """The step of each slider nearest to what is kept. The counts are the truth; sliders only show them."""
        shares = [sum(self.kept.values()) / self.run.masks.total]
        shares += [kept / self._ranks[name].numel() for name, kept in self.kept.items()]
        last = len(self._shares) - 1
        return [last + round(math.log10(max(share, self._shares[0])) / STEP) for share in shares]

    def _ask(self) -> None:
        with self._lock:
            try:
                name, fewer = self._suggested = self.suggest()
                hint = f"{_short(name)} could go from {self.kept[name]:,} to {fewer:,} weights"
            except ConfigError as error:
                hint = str(error)
            self._front.shown = {**self._front.shown, "hint": hint, "can_take": self._suggested is not None}

    def _take(self) -> None:
        with self._lock:
            if self._suggested:
                name, fewer = self._suggested
                self.kept = {**self.kept, name: fewer}
                self._show()

    def _show(self) -> None:
        self._suggested = None  # a suggestion holds for the counts it was made from
        masks = self.masks
        ours, rival = self._accuracy(masks), self._globally(sum(self.kept.values()))
        theirs = ours if rival.kept_by_layer == self.kept else self._accuracy(rival)  # as after "all layers"
        rows = [
            ("accuracy, all weights", f"{self._before:.2%}"),
            ("accuracy, by hand", f"{ours:.2%}"),
            ("global magnitude, as many weights", f"{theirs:.2%}"),
            ("sparse file", f"{allocation.file_bytes(self.run, masks):,} bytes"),
            ("FLOPs on them", f"{self.run.flops.sparse(masks):,.0f}"),
        ]
        verdict = "ahead of" if ours > theirs else "behind" if ours < theirs else "level with"
        images = len(self._images[0][1])
        self._front.shown = {
            "turn": self._turn,
            "kept": list(self.kept.values()),
            "at": self._places(),
            "title": f"{verdict} global magnitude, on {images} validation images",
            "images": images,
            "rows": rows,
            "hint": "",
            "can_take": False,
        }

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


class Hand(Front):
    """The sliders and the matrices, in the browser. `shown` is the one state; only the kernel writes it."""

    _esm = module("hand.js")
    shares = traitlets.List().tag(sync=True)
    layers = traitlets.List().tag(sync=True)
    together = traitlets.List().tag(sync=True)
    ranks = traitlets.Bytes().tag(sync=True)
    shades = traitlets.Bytes().tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)


def _thinned(values: Tensor) -> Tensor:
    """A matrix of at most 120 x 160; of more rows or columns, every second, every third and so on."""
    matrix = flat(values)
    rows, cols = (math.ceil(size / most) for size, most in zip(matrix.shape, (120, 160), strict=True))
    return matrix[::rows, ::cols].cpu().contiguous()


def _shades(weight: Tensor) -> Tensor:
    """128 is 0; the largest weight of the layer is at one of both ends."""
    return (weight * (127 / (float(weight.abs().max()) or 1.0))).add(128).to(torch.uint8)

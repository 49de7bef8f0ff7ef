"""Panels for JupyterLab: explicit ipywidgets that draw into `Image` and `HTML`, never `interact` or `Output`.

Each has a `figure()` of what it shows, which stays readable in a saved or printed notebook.
"""

import copy
import dataclasses
import inspect
import io
import threading
import time
from ast import literal_eval
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as ipw
import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import _html, budgets, criteria, measure, methods, models, plots, structured
from .data import available, load
from .errors import ConfigError, DataError, RunError
from .masks import Masks, keep_top
from .method import Method
from .models import build
from .results import percent, sparse_flops
from .run import Run, evaluate, evaluating
from .schedules import Cubic
from .train import fit

WIDE = ipw.Layout(width="100%")
NARROW = ipw.Layout(width="auto")


class Panel:
    """What shows itself as widgets where there are any, and as its own figure and words elsewhere."""

    box: ipw.Widget

    def figure(self) -> plots.Figure:
        raise NotImplementedError

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = self.figure()._repr_mimebundle_()
        shown: Any = self.box._repr_mimebundle_()
        return {**shown, **data}, metadata


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
        self._busy = False
        self._build()
        self._show()

    @property
    def masks(self) -> Masks:
        """The largest weights of each layer, as many as its slider says."""
        return Masks({name: ranks < self.kept[name] for name, ranks in self._ranks.items()})

    @property
    def accuracy(self) -> float:
        return self._accuracy(self.masks)

    @property
    def rival(self) -> float:
        """The accuracy with as many weights, the largest of all layers together."""
        return self._accuracy(self._globally(sum(self.kept.values())))

    def keep(self, share: float, layer: str | None = None) -> None:
        """Move a layer's slider, or that of all layers, to a share of weights left."""
        if layer is not None and layer not in self._sliders:
            raise ConfigError(f"there is no layer {layer!r}; expected one of {', '.join(self._sliders)}.")
        (self._all if layer is None else self._sliders[layer]).value = share

    def suggest(self, share: float = 0.3) -> tuple[str, int]:
        """The layer that can lose `share` of its weights at the least cost by weight, and how many it then keeps."""
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

    def figure(self) -> plots.Figure:
        ours, theirs = self.masks, self._globally(sum(self.kept.values()))
        figure = plots.layers(ours, theirs, labels=["by hand", "global magnitude"])
        figure.alt += f" {self._words()}"
        return figure

    def __repr__(self) -> str:
        return f"PruneByHand: {self._words()}"

    def _build(self) -> None:
        least = min(-3.0, *(-np.log10(ranks.numel()) for ranks in self._ranks.values()))

        def slider(label: str, share: float) -> ipw.FloatLogSlider:
            style = {"description_width": "8em"}
            return ipw.FloatLogSlider(
                share, min=least, max=0, step=0.05, description=label, readout_format=".2%", style=style, layout=WIDE
            )

        self._all = slider("all layers", self._share())
        self._sliders = {n: slider(_short(n), k / self._ranks[n].numel()) for n, k in self.kept.items()}
        self._text, self._hint, self._picture = ipw.HTML(), ipw.HTML(), ipw.Image(format="png", layout=WIDE)
        ask, take = (ipw.Button(description=text, layout=NARROW) for text in ("Which layer next?", "Take it"))
        self._all.observe(self._move_all, "value")
        for name, one in self._sliders.items():
            one.observe(lambda change, name=name: self._move(name, change["new"]), "value")
        ask.on_click(lambda _: self._ask())
        take.on_click(lambda _: self._take())
        left = ipw.VBox([self._all, *self._sliders.values()], layout=ipw.Layout(width="45%"))
        right = ipw.VBox([self._text, ipw.HBox([ask, take, self._hint])], layout=ipw.Layout(width="55%"))
        names = "".join(f'<div style="flex:1">{_html.cell(_short(name))}</div>' for name in self._sliders)
        caption = ipw.HTML(f'<div style="display:flex">{names}</div>', layout=WIDE)
        self.box = ipw.VBox([ipw.HBox([left, right]), caption, self._picture])

    def _move(self, name: str, share: float) -> None:
        if not self._busy:
            most = int(self.run.masks[name].sum())
            self.kept[name] = min(max(round(share * self._ranks[name].numel()), 1), most)
            self._set(self._all, self._share())
            self._show()

    def _move_all(self, change: dict[str, Any]) -> None:
        if not self._busy:
            total = self.run.masks.total
            keep = min(max(round(change["new"] * total), 1), self.run.masks.kept)
            self.kept = self._globally(keep).kept_by_layer
            for name, slider in self._sliders.items():
                self._set(slider, max(self.kept[name], 1) / self._ranks[name].numel())
            self._show()

    def _set(self, slider: ipw.FloatLogSlider, value: float) -> None:
        self._busy = True
        try:
            slider.value = value
        finally:
            self._busy = False

    def _ask(self) -> None:
        self._hint.value = "trying each layer…"
        name, fewer = self._suggested = self.suggest()
        self._hint.value = f"{_html.cell(_short(name))} could go from {self.kept[name]:,} to {fewer:,} weights"

    def _take(self) -> None:
        if self._suggested:
            name, fewer = self._suggested
            self.kept[name], self._suggested, self._hint.value = min(fewer, self.kept[name]), None, ""
            self._set(self._sliders[name], self.kept[name] / self._ranks[name].numel())
            self._set(self._all, self._share())
            self._show()

    def _show(self) -> None:
        masks = self.masks
        ours, rival = self._accuracy(masks), self._globally(sum(self.kept.values()))
        theirs = ours if rival.kept_by_layer == self.kept else self._accuracy(rival)  # as after "all layers"
        rows = [
            ("accuracy, all weights", f"{self._before:.2%}"),
            ("accuracy, by hand", f"{ours:.2%}"),
            ("global magnitude, as many weights", f"{theirs:.2%}"),
            ("weights left", f"{masks.kept:,} of {masks.total:,} ({masks.density:.2%})"),
            ("sparse file", f"{budgets.file_bytes(self.run, masks):,} bytes"),
            ("FLOPs on them", f"{sparse_flops(self.run.model, self.run.flops, masks):,.0f}"),
        ]
        verdict = "ahead of" if ours > theirs else "behind" if ours < theirs else "level with"
        title = f"{verdict} global magnitude, on {len(self._images[0][1])} validation images"
        self._text.value = f"<b>{title}</b>" + _html.table(("", ""), rows)
        self._picture.value = _mosaic({name: (w * masks[name]).cpu() for name, w in self._weights.items()})

    def _words(self) -> str:
        kept = sum(self.kept.values())
        return (
            f"{kept:,} of {self.run.masks.total:,} weights; accuracy {self.accuracy:.2%} by hand, {self.rival:.2%} by "
            f"global magnitude, {self._before:.2%} with all weights."
        )

    def _share(self) -> float:
        return sum(self.kept.values()) / self.run.masks.total

    def _globally(self, keep: int) -> Masks:
        return Masks({name: (self._together[name] < keep).view_as(ranks) for name, ranks in self._ranks.items()})

    def _accuracy(self, masks: Masks) -> float:
        with torch.no_grad():
            for name, weight in self._own.items():
                torch.mul(self._weights[name], masks[name], out=weight)
        options = self.run.options
        with evaluating(self._model), torch.inference_mode():
            return evaluate(self._model, self._images, options.loss, options.metric, self.run.device)["accuracy"]


class MaskExplorer(Panel):
    """The weights of one layer twice, side by side: what was cut is grey.

    Each side is a run as it was pruned, or what a criterion would keep of its weights at a density. Under the pictures
    stand the weights that WeightMom watched in this layer, if it did: a click shows the trajectory of one.
    """

    def __init__(self, *runs: Run, labels: Sequence[str] | None = None, layer: str | None = None):
        names = plots._labels(runs, labels)
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
        self._weights, self._path = ipw.HBox(layout=ipw.Layout(flex_flow="row wrap")), ipw.Image(format="png")
        self._layer.observe(lambda _: self._show(), "value")
        self.box = ipw.VBox([self._layer, ipw.HBox([side["box"] for side in self._sides]), self._weights, self._path])
        self._show()

    def masks(self, side: int) -> Masks:
        """What is kept on a side, 0 or 1."""
        chosen = self._sides[side]
        name, by = chosen["run"].value, chosen["by"].value
        run = self.runs[name]
        if by == AS_PRUNED:
            return run.masks
        if (name, by) not in self._scores:
            self._scores[name, by] = run.score(by)
        return keep_top(self._scores[name, by], 1 - chosen["density"].value)

    def figure(self) -> plots.Figure:
        sides = {}
        for number, side in enumerate(self._sides):
            chosen = self.masks(number)
            sides[f"{side['run'].value}, {self._said(side)}"] = (self.runs[side["run"].value], chosen)
        return plots.matrices(sides, self._layer.value)

    def trajectory(self, number: int) -> plots.Figure:
        """That of a watched weight of this layer, by its number."""
        run = self._watching()
        if run is None:
            raise ConfigError("no weight of this layer was watched; train with WeightMom(…, watch=24).")
        return plots.trajectories(run, self._layer.value, number)

    def __repr__(self) -> str:
        kept = [f"{s['run'].value}, {self._said(s)}: {self.masks(i).kept:,} kept" for i, s in enumerate(self._sides)]
        return f"MaskExplorer: {_short(self._layer.value)}; {'; '.join(kept)}"

    def _said(self, side: Mapping[str, Any]) -> str:
        by = side["by"].value
        return by if by == AS_PRUNED else f"{by} at {side['density'].value:.2%}"

    def _side(self, name: str) -> dict[str, Any]:
        run = ipw.Dropdown(options=list(self.runs), value=name, layout=NARROW)
        by = ipw.Dropdown(options=[AS_PRUNED, *criteria.BY_NAME], value=AS_PRUNED, layout=NARROW)
        density = ipw.FloatLogSlider(0.1, min=-3, max=-0.01, step=0.05, description="density", readout_format=".2%")
        picture, words = ipw.Image(format="png"), ipw.HTML()
        for control in (run, by, density):
            control.observe(lambda _: self._show(), "value")
        box = ipw.VBox([ipw.HBox([run, by]), density, words, picture], layout=ipw.Layout(width="50%"))
        return {"run": run, "by": by, "density": density, "picture": picture, "words": words, "box": box}

    def _show(self) -> None:
        layer = self._layer.value
        for number, side in enumerate(self._sides):
            side["density"].disabled = side["by"].value == AS_PRUNED
            try:
                masks = self.masks(number)
            except ConfigError as error:
                side["words"].value = _problem(error)
                continue
            kept, total = int(masks[layer].sum()), masks[layer].numel()
            side["words"].value = f"{kept:,} of {total:,} weights of this layer, {masks.density:.2%} of all"
            weight = self.runs[side["run"].value].weights[layer].detach()
            side["picture"].value = _mosaic({layer: (weight * masks[layer]).cpu()}, height=240)
        run = self._watching()
        places = run.methods[0].watched[layer].tolist() if run else []  # pyright: ignore[reportAttributeAccessIssue]
        shape = run.weights[layer].shape if run else ()
        buttons = []
        for number, place in enumerate(places):
            at = ", ".join(str(int(i)) for i in np.unravel_index(place, shape))
            button = ipw.Button(description=at, tooltip=f"trajectory of weight {at}", layout=NARROW)
            button.on_click(lambda _, number=number: self._follow(number))
            buttons.append(button)
        self._weights.children, self._path.value = buttons, b""

    def _watching(self) -> Run | None:
        """The first of the chosen runs whose WeightMom watched this layer."""
        for side in self._sides:
            run = self.runs[side["run"].value]
            if run.methods and getattr(run.methods[0], "watched", {}).get(self._layer.value) is not None:
                return run
        return None

    def _follow(self, number: int) -> None:
        self._path.value = _png(self.trajectory(number))


class TruthMeter(Panel):
    """Why is it not smaller, or not faster? A pruned run beside the dense one, and with its dead channels taken out.

    `table` is that of `measure.truth`: parameters, FLOPs, bytes of each kind of file, and milliseconds of all three,
    taken in turns. `shrunk` is what `structured.shrink` made, or None where it refused.
    """

    def __init__(self, dense: Run, pruned: Run, batches: Sequence[int] = (1, 64), rounds: int = 21):
        self.dense, self.pruned, self.batches, self.rounds = dense, pruned, tuple(batches), rounds
        self._models: dict[str, Any] = {"dense": dense, "with zeros": pruned}
        self.shrunk: structured.Shrunk | None = None
        self._why = ""
        try:
            self.shrunk = structured.shrink(pruned)
            self._models["dead channels removed"] = self.shrunk.model
        except (ConfigError, RunError) as error:
            self._why = str(error)
        self._text, self._picture = ipw.HTML(), ipw.Image(format="png")
        again = ipw.Button(description="Measure again", layout=NARROW)
        again.on_click(lambda _: self.measure())
        self.box = ipw.VBox([again, self._text, self._picture])
        self.measure()

    def measure(self) -> None:
        """All of them again, in turns."""
        self.table = measure.truth(self._models, self.pruned.data, self.batches, self.rounds)
        self._text.value = "".join(f"<p>{_html.cell(line)}</p>" for line in self.words())
        self._picture.value = _png(self.figure())

    def words(self) -> list[str]:
        """What was asked for, what was reached, and what it is worth."""
        most, dense, zeros = max(self.batches), self.table.loc["dense"], self.table.loc["with zeros"]
        target, flops = self.pruned.target, self.pruned.result.flops
        asked = f"Asked for: {target['kept']:,} of {target['total']:,} {target['unit']}s. " if target else ""
        said = [
            f"{asked}Reached: {self.pruned.masks.kept:,} of {self.pruned.masks.total:,} weights.",
            f"The dense file has {dense['bytes']:,.0f} bytes before and {zeros['bytes']:,.0f} after: a zero takes as "
            f"much room as any other number. Compressed by bzip2 it has {zeros['bzip2_bytes']:,.0f}, and the sparse "
            f"file, which leaves zeros out, {zeros['sparse_bytes']:,.0f}.",
            f"On paper it takes {flops['dense'] / max(flops['sparse'], 1):.1f} times fewer operations. Measured, a "
            f"batch of {most} takes {zeros[f'ms_{most}']:.3g} ms and took {dense[f'ms_{most}']:.3g}: dense kernels "
            "multiply zeros too.",
        ]
        if self.shrunk is None:
            return [*said, f"No channel could be removed: {self._why}"]
        removed = self.table.loc["dead channels removed"]
        gone = f"{self.shrunk.removed:,} channels are dead and can go without a change of the answers"
        left = f"leaves {removed['parameters']:,.0f} of {zeros['parameters']:,.0f} parameters"
        return [
            *said,
            f"{gone}. That {left}, and is {removed[f'faster_{most}']:.3g} times as fast as the dense net. To gain "
            'more, cut whole channels: unit="channel", or structured.prune.',
        ]

    def figure(self) -> plots.Figure:
        return plots.truth(self.table)

    def __repr__(self) -> str:
        return "TruthMeter: " + " ".join(self.words())


class LivePanel(Panel):
    """Choose data, model and method, start, pause, go on, stop; training runs in a thread, the kernel stays free.

    What it leaves is `run`, an ordinary `Run`, stopped or not; `start()`, `pause()`, `resume()`, `stop()` and `wait()`
    do from code what the buttons do.
    """

    def __init__(
        self,
        data: str = "digits",
        model: str = "lenet5",
        method: str = "Gradual",
        *,
        epochs: int = 5,
        seed: int = 0,
        **settings: Any,
    ):
        self.run: Run | None = None
        self.settings = settings
        self._thread: threading.Thread | None = None
        self._go, self._stop = threading.Event(), threading.Event()
        sets = [name for name, _, here in available() if here and name != "sorting"]
        self._data = _choice("data", sets, data)
        self._model = _choice("model", list(models.MODELS), model)
        self._method = _choice("method", [name for name in methods.__all__ if name not in BESIDE_OTHERS], method)
        self._epochs = ipw.BoundedIntText(epochs, min=1, max=10_000, description="epochs", layout=NARROW)
        self._seed = ipw.BoundedIntText(seed, min=0, max=2**31 - 1, description="seed", layout=NARROW)
        self._fields, self._text = ipw.VBox(), ipw.HTML("not started")
        self._bar = ipw.FloatProgress(0, min=0, max=1, layout=WIDE)
        self._picture, self._table = ipw.Image(format="png"), ipw.HTML()
        self._buttons = {name: ipw.Button(description=name, layout=NARROW) for name in ("Start", "Pause", "Stop")}
        for name, do in (("Start", self.start), ("Pause", self._pause_or_resume), ("Stop", self.stop)):
            self._buttons[name].on_click(lambda _, do=do: do())
        self._method.observe(lambda _: self._offer(), "value")
        self._offer()
        self._enable(running=False)
        chosen = ipw.VBox([self._data, self._model, self._method, self._fields, self._epochs, self._seed])
        seen = ipw.VBox([ipw.HBox(list(self._buttons.values())), self._bar, self._text, self._picture, self._table])
        self.box = ipw.HBox([chosen, seen])

    def start(self) -> None:
        """Train from the beginning with what is chosen; what is wrong with it is said in the panel."""
        if self._thread and self._thread.is_alive():
            return
        self.run = None
        self._stop.clear()
        self._go.set()
        self._began = self._drawn = time.perf_counter()
        self._told, self._cost = 0.0, EXPECTED
        self._enable(running=True)
        self._text.value, self._table.value, self._picture.value = "preparing…", "", b""
        self._thread = threading.Thread(target=self._train, name="pruninglab training", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Stand still after this step."""
        self._go.clear()
        self._buttons["Pause"].description = "Resume"

    def resume(self) -> None:
        self._buttons["Pause"].description, self._text.value = "Pause", "going on…"
        self._go.set()

    def stop(self) -> None:
        """End after this step with what was reached."""
        self._stop.set()
        self.resume()

    def wait(self, seconds: float | None = None) -> Run | None:
        """Until the training is over; the run, or None if it is not over after so many seconds or went wrong."""
        if self._thread:
            self._thread.join(seconds)
        return self.run

    def figure(self) -> plots.Figure:
        if self.run is None:
            raise ConfigError("nothing has been trained yet; press Start, or start() and wait().")
        return plots.history(self.run)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.run:
            return super()._repr_mimebundle_()
        shown: Any = self.box._repr_mimebundle_()
        return {**shown, "text/plain": repr(self)}, {}

    def __repr__(self) -> str:
        state = repr(self.run) if self.run else "not started"
        return f"LivePanel({self._data.value}, {self._model.value}, {self._method.value}): {state}"

    def chosen(self) -> Method:
        """The method as its fields say."""
        kind = getattr(methods, self._method.value)
        return kind(**{name: read() for name, read in self._read.items()})

    def _train(self) -> None:
        try:
            data = load(self._data.value, seed=self._seed.value)
            model = build(self._model.value, data, seed=self._seed.value)
            options = {"epochs": self._epochs.value, "seed": self._seed.value, **self.settings}
            run = fit(model, data, self.chosen(), progress=self._watch, **options)
            self.run = run
            self._text.value = f"{_html.cell(run.status)}{': ' + _html.cell(run.reason) if run.reason else ''}"
            self._draw(run)
            self._table.value = run._repr_html_()
        except (ConfigError, DataError, RunError) as error:
            self._text.value = _problem(error)
        finally:
            self._enable(running=False)

    def _watch(self, run: Run) -> None:
        """After each step, in the thread that trains: a few times a second words, and curves for 2 % of the time."""
        now = time.perf_counter()
        if now - self._told > 0.25:
            self._told = now
            left = (now - self._began) * (run.steps - run.step) / run.step
            val = f", val {percent({'accuracy': run.history[-1]['val_accuracy']})}" if run.history else ""
            words = f"epoch {run.epoch + 1} of {run.epochs}, step {run.step:,} of {run.steps:,}{val}"
            self._text.value = f"{words}, sparsity {run.sparsity:.2%}, {left:,.0f} s left"
            self._bar.value = run.progress
        if len(run.history) > 1 and now - self._drawn > 50 * self._cost:
            self._draw(run)
            self._drawn = time.perf_counter()
            self._cost = self._drawn - now
        if not self._go.is_set():
            self._text.value = f"paused at step {run.step:,} of {run.steps:,}"
            paused = time.perf_counter()
            self._go.wait()
            self._began += time.perf_counter() - paused
        if self._stop.is_set():
            run.interrupt()

    def _draw(self, run: Run) -> None:
        self._bar.value = run.progress
        self._picture.value = _png(plots.history(run))

    def _pause_or_resume(self) -> None:
        (self.pause if self._go.is_set() else self.resume)()

    def _enable(self, running: bool) -> None:
        for control in (self._data, self._model, self._method, self._epochs, self._seed, self._buttons["Start"]):
            control.disabled = running
        self._buttons["Pause"].disabled = self._buttons["Stop"].disabled = not running

    def _offer(self) -> None:
        """The fields of the chosen method, each with its default."""
        kind = getattr(methods, self._method.value)
        types = inspect.get_annotations(kind, eval_str=False)
        self._read: dict[str, Callable[[], Any]] = {}
        rows = []
        for field in dataclasses.fields(kind):
            if field.init:
                control, self._read[field.name] = _control(field, str(types.get(field.name, field.type)))
                rows.append(control)
        self._fields.children = rows


AS_PRUNED = "as pruned"
EXPECTED = 0.13
"""Seconds that drawing the curves may take, before it was done once: a short training ends without them."""
BESIDE_OTHERS = ("Quantize", "SharedWeights")
"""Methods that say nothing by themselves: they snap what others have pruned."""


def _control(field: "dataclasses.Field[Any]", kind: str) -> tuple[ipw.Widget, Callable[[], Any]]:
    """A control for a field of a method, and how to read it."""
    label = {"description": field.name.replace("_", " "), "style": {"description_width": "8em"}}
    missing = field.default is dataclasses.MISSING
    if missing and ("Schedule" in kind or "Sparsity" in kind or field.name == "sparsity"):
        slider = ipw.FloatSlider(0.9, min=0, max=0.995, step=0.005, readout_format=".1%", **label)
        if "Schedule" in kind and "Sparsity" not in kind:
            slider.description = "sparsity"
            return slider, lambda: Cubic(slider.value)
        return slider, lambda: slider.value
    default = None if missing or field.default_factory is not dataclasses.MISSING else field.default
    if isinstance(default, bool):
        box = ipw.Checkbox(default, **label)
        return box, lambda: box.value
    text = ipw.Text(str(default), continuous_update=False, **label)
    return text, lambda: default if text.value == str(default) else _literal(text.value, field.name)


def _literal(text: str, name: str) -> Any:
    """A number, None, a list or dict as Python writes it; anything else is a name."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        if text.isidentifier():
            return text
        raise ConfigError(f"{name}={text!r} is neither a number nor a name.") from None


def _choice(label: str, options: Sequence[str], value: str) -> Any:
    if value not in options:
        raise ConfigError(f"{label}={value!r} is not among {', '.join(options)}.")
    return ipw.Dropdown(options=options, value=value, description=label)


def _problem(error: Exception) -> str:
    return f'<span style="color:#c33">{_html.cell(error)}</span>'


def _short(layer: str) -> str:
    return layer.removesuffix(".weight")


def _ranks(scores: Tensor) -> Tensor:
    """The place of each from the highest, ties by position."""
    order = scores.argsort(descending=True, stable=True)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def _png(figure: plots.Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return image.getvalue()


# What is exactly 0 has the first colour for its own; no other shade may round down to it.
PALETTE = (matplotlib.colormaps["RdBu_r"](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
PALETTE[0] = 225


def _mosaic(weights: Mapping[str, Tensor], width: int = 900, height: int = 120) -> bytes:
    """Each weight as a matrix, side by side, its own largest value in full colour; what is 0 is grey."""
    each = max(width // len(weights) - 8, 16)
    canvas = Image.new("RGB", ((each + 8) * len(weights), height), "white")
    for i, weight in enumerate(weights.values()):
        matrix = weight.flatten(1)
        top = float(matrix.abs().max()) or 1.0
        shades = (matrix * (126.9 / top)).add_(128).mul_(matrix != 0).to(torch.uint8)
        pixels = Image.fromarray(shades.numpy())
        pixels.putpalette(PALETTE.tobytes())
        canvas.paste(pixels.convert("RGB").resize((each, height), Image.Resampling.BOX), (i * (each + 8), 0))
    content = io.BytesIO()
    canvas.save(content, format="png", compress_level=1)
    return content.getvalue()

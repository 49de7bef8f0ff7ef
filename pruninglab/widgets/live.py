"""`LivePanel`: choose, start, pause and stop a training."""

import dataclasses
import threading
import time
from ast import literal_eval
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

import ipywidgets as ipw

from .. import _html, methods, models, typed
from ..data.loading import available, load
from ..errors import ConfigError, DataError, RunError
from ..masks.schedules import Cubic, Schedule
from ..models import build
from ..plots import runs
from ..plots.figure import Figure
from ..results.record import percent
from ..train.fit import fit
from ..train.method import Method
from ..train.run import Run
from .panel import BUTTON, NARROW, WIDE, Panel, _png, _problem, fill, picture


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
        self._state = "ready"
        self._go = threading.Event()  # cleared, the training stands still
        sets = [name for name, _, here in available() if here and name != "sorting"]
        self._data = _choice("data", sets, data)
        self._model = _choice("model", list(models.MODELS), model)
        self._method = _choice("method", [name for name in methods.__all__ if name not in BESIDE_OTHERS], method)
        self._epochs = ipw.BoundedIntText(epochs, min=1, max=10_000, description="epochs", layout=NARROW)
        self._seed = ipw.BoundedIntText(seed, min=0, max=2**31 - 1, description="seed", layout=NARROW)
        self._fields, self._text = ipw.VBox(), ipw.HTML("not started")
        self._bar = ipw.FloatProgress(0, min=0, max=1, layout=WIDE)
        self._picture, self._table = picture(), ipw.HTML()
        self._buttons = {name: ipw.Button(description=name, layout=BUTTON) for name in ("Start", "Pause", "Stop")}
        for name, do in (("Start", self.start), ("Pause", self._pause_or_resume), ("Stop", self.stop)):
            self._buttons[name].on_click(lambda _, do=do: do())
        self._method.observe(lambda _: self._offer(), "value")
        self._offer()
        self._become("ready", "not started")
        controls = [self._data, self._model, self._method, self._fields, self._epochs, self._seed]
        results = [ipw.HBox(list(self._buttons.values())), self._bar, self._text, self._picture, self._table]
        # the controls keep their width whatever the curves need
        chosen = ipw.VBox(controls, layout=ipw.Layout(flex="0 0 24em"))
        seen = ipw.VBox(results, layout=ipw.Layout(flex="1 1 auto", min_width="0"))
        self.box = ipw.HBox([chosen, seen])

    def start(self) -> None:
        """Train from the beginning with what is chosen; what is wrong with it is said in the panel."""
        with self._lock:
            if self._state != "ready":
                return
            self.run = None
            self._go.set()
            self._began = self._drawn = time.perf_counter()
            self._told, self._cost = 0.0, EXPECTED
            self._become("running", "preparing…")
            self._bar.value, self._bar.bar_style, self._table.value = 0.0, "", ""
            fill(self._picture, b"")
            self._thread = threading.Thread(target=self._train, name="pruninglab training", daemon=True)
            self._thread.start()

    def pause(self) -> None:
        """Stand still after this step."""
        with self._lock:
            if self._state == "running":
                self._go.clear()
                self._become("paused", "pausing after this step…")

    def resume(self) -> None:
        """Go on."""
        with self._lock:
            if self._state == "paused":
                self._become("running", "going on…")
                self._go.set()

    def stop(self) -> None:
        """End after this step with what was reached. What a method prepares before the first step is not cut short."""
        with self._lock:
            if self._state in ("running", "paused"):
                self._become("stopping", "stopping after this step…")
                self._go.set()

    def wait(self, seconds: float | None = None) -> Run | None:
        """Until the training is over; the run, or None if it is not over after so many seconds or went wrong."""
        if self._thread:
            self._thread.join(seconds)
        return self.run

    def figure(self) -> Figure:
        if self.run is None:
            raise ConfigError("nothing has been trained yet; press Start, or start() and wait().")
        return runs.history(self.run)

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

    def _become(self, state: str, words: str) -> None:
        """Change the state: the buttons that it leaves, and its words. Who writes words later asks for the state."""
        with self._lock:
            self._state, self._text.value = state, words
            for control in (self._data, self._model, self._method, self._epochs, self._seed, self._buttons["Start"]):
                control.disabled = state != "ready"
            for name in ("Pause", "Stop"):
                self._buttons[name].disabled = state in ("ready", "stopping")
            self._buttons["Pause"].description = "Resume" if state == "paused" else "Pause"

    def _say(self, state: str, words: str) -> None:
        """Words of the training, unless a button was pressed meanwhile."""
        with self._lock:
            if self._state == state:
                self._text.value = words

    def _train(self) -> None:
        """The whole training, in its thread. However it ends, the panel is ready again and says why."""
        words = "stopped before the training began"
        try:
            data = load(self._data.value, seed=self._seed.value)
            model = build(self._model.value, data, seed=self._seed.value)
            options = {"epochs": self._epochs.value, "seed": self._seed.value, **self.settings}
            if self._state != "stopping":
                run = fit(model, data, self.chosen(), progress=self._watch, **options)
                words = f"{_html.cell(run.status)}{': ' + _html.cell(run.reason) if run.reason else ''}"
                self._bar.bar_style = "success" if run.status == "done" else "warning"
                self._draw(run)
                self._table.value, self.run = run._repr_html_(), run
        except (ConfigError, DataError, RunError) as error:
            words = _problem(error)
        except Exception as error:  # a panel has nobody else to tell
            words = _problem(error, f"{type(error).__name__}: ")
        finally:
            self._become("ready", words)

    def _watch(self, run: Run) -> None:
        """After each step, in the thread that trains: a few times a second words, and curves for 2 % of the time."""
        now = time.perf_counter()
        if now - self._told > 0.25:
            self._told = now
            left = (now - self._began) * (run.steps - run.step) / run.step
            val = f", val {percent({'accuracy': run.history[-1]['val_accuracy']})}" if run.history else ""
            words = f"epoch {run.epoch + 1} of {run.epochs}, step {run.step:,} of {run.steps:,}{val}"
            self._say("running", f"{words}, sparsity {run.sparsity:.2%}, {left:,.0f} s left")
            self._bar.value = run.progress
        if len(run.history) > 1 and now - self._drawn > 50 * self._cost:
            self._draw(run)
            self._drawn = time.perf_counter()
            self._cost = self._drawn - now
        if not self._go.is_set():
            self._say("paused", f"paused at step {run.step:,} of {run.steps:,}")
            paused = time.perf_counter()
            self._go.wait()
            self._began += time.perf_counter() - paused
        if self._state == "stopping":
            run.interrupt()

    def _draw(self, run: Run) -> None:
        self._bar.value = run.progress
        fill(self._picture, _png(runs.history(run)))

    def _pause_or_resume(self) -> None:
        with self._lock:
            (self.pause if self._state == "running" else self.resume)()

    def _offer(self) -> None:
        """The fields of the chosen method, each with its default, as their types say."""
        kind = getattr(methods, self._method.value)
        self._read: dict[str, Callable[[], Any]] = {}
        rows = []
        for field in dataclasses.fields(kind):
            if field.init:
                control, self._read[field.name] = _control(field, typed.hints(kind)[field.name])
                rows.append(control)
        self._fields.children = rows


EXPECTED = 0.13
"""Seconds that drawing the curves may take, before it was done once: a short training ends without them."""
BESIDE_OTHERS = ("Quantize", "SharedWeights")
"""Methods that say nothing by themselves: they snap what others have pruned."""


def _control(field: "dataclasses.Field[Any]", hint: Any) -> tuple[ipw.Widget, Callable[[], Any]]:
    """A control for a field of a method, and how to read it. Its type says which: nothing is told twice."""
    label = {"description": field.name.replace("_", " "), "style": {"description_width": "8em"}}
    parts = typed.parts(hint)
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        slider = ipw.FloatSlider(0.9, min=0, max=0.995, step=0.005, readout_format=".1%", **label)
        if len(parts) == 1 and Schedule in typed.kinds(hint):
            slider.description = "sparsity"
            return slider, lambda: Cubic(slider.value)
        if float in typed.kinds(hint):
            return slider, lambda: slider.value
    default = None if field.default is dataclasses.MISSING else field.default
    if words := _words(hint):
        box: Any = ipw.Dropdown(options=[(str(word), word) for word in words], value=default, **label)
    elif isinstance(default, bool):
        box = ipw.Checkbox(default, **label)
    elif (span := typed.bounds(hint)) and len(parts) == 1 and isinstance(default, int | float):
        box = _number(default, span, label)
    else:
        text = ipw.Text(str(default), continuous_update=False, **label)
        return text, lambda: default if text.value == str(default) else _literal(text.value, field.name)
    return box, lambda: box.value


def _words(hint: Any) -> tuple[Any, ...]:
    """What a dropdown offers; none where other values are possible too."""
    words = typed.choices(hint)
    return (*words, *([None] if NoneType in typed.kinds(hint) else [])) if typed.only_words(hint) else ()


def _number(default: float, span: typed.Range, label: dict[str, Any]) -> Any:
    """A slider where both ends are near, else a field for a number that keeps its bounds."""
    if isinstance(default, int):
        return ipw.BoundedIntText(default, min=int(span.low), max=int(min(span.high, 2**31 - 1)), **label)
    if span.high - span.low <= 1:
        return ipw.FloatSlider(default, min=span.low, max=span.high, step=0.001, readout_format=".3f", **label)
    return ipw.BoundedFloatText(default, min=span.low, max=min(span.high, 1e9), step=None, **label)


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

"""`LivePanel`: choose, start, pause, step and stop a training, and watch it."""

import threading
from typing import Annotated, Any

import ipywidgets as ipw

from .. import methods
from ..data.loading import available as data_sets
from ..errors import ConfigError
from ..models.building import MODELS
from ..plots import runs
from ..plots.figure import Figure
from ..train.method import Method
from ..train.run import Run
from ..typed import Range, checked
from .chart import Chart
from .choice import Choice
from .forms import LABEL, Form, choice
from .job import Job
from .panel import WIDE
from .steered import Steered, side_by_side

BESIDE_OTHERS = ("Quantize", "Recalibrate", "SharedWeights")
"""Methods that say nothing by themselves: they act on what others have pruned."""
OFFERED = [name for name in methods.__all__ if name not in BESIDE_OTHERS]


class Chooser:
    """Controls for data, network, method with its fields, epochs and seed. `choice` is what they say."""

    def __init__(self, data: str, model: str, method: str, epochs: int, seed: int):
        sets = [name for name, _, here in data_sets() if here and name != "sorting"]
        self.data, self.model = choice("data", sets, data), choice("model", list(MODELS), model)
        self.method = choice("method", OFFERED, method)
        self.epochs = ipw.BoundedIntText(epochs, min=1, max=10_000, description="epochs", **LABEL)
        self.seed = ipw.BoundedIntText(seed, min=0, max=2**31 - 1, description="seed", **LABEL)
        self._forms: dict[str, Form] = {}
        self._place = ipw.VBox(layout=WIDE)
        self.method.observe(lambda _: self._offer(), "value")
        self._offer()
        self.box = ipw.VBox([self.data, self.model, self.method, self._place, self.epochs, self.seed], layout=WIDE)

    @property
    def form(self) -> Form:
        """The fields of the chosen method. What was set stays when another method is looked at meanwhile."""
        name = self.method.value
        return self._forms.setdefault(name, Form(getattr(methods, name)))

    def choice(self, **options: Any) -> Choice:
        names = self.data.value, self.model.value, self.method.value
        return Choice(*names, self.form.settings(), self.epochs.value, self.seed.value, options)

    def disable(self, disabled: bool) -> None:
        for control in (self.data, self.model, self.method, self.epochs, self.seed):
            control.disabled = disabled

    def _offer(self) -> None:
        self._place.children = [self.form.box]


class LivePanel(Steered):
    """Choose data, model and method, start, pause, step, stop; training runs in a thread, the kernel stays free.

    What it leaves is `run`, an ordinary `Run`, stopped or not; `start()`, `pause()`, `step()`, `resume()`, `stop()` and
    `wait()` do from code what the buttons do. `code()` is the cell that makes the same run.
    """

    @checked
    def __init__(
        self,
        data: str = "digits",
        model: str = "lenet5",
        method: str = "Gradual",
        *,
        epochs: Annotated[int, Range(1, 10_000)] = 5,
        seed: Annotated[int, Range(0, 2**31 - 1)] = 0,
        **settings: Any,
    ):
        self.run: Run | None = None
        self.settings = settings
        self._job: Job | None = None
        self._thread: threading.Thread | None = None
        self._chooser = Chooser(data, model, method, epochs, seed)
        self._text, self._table, self.chart = ipw.HTML(), ipw.HTML(), Chart()
        self._bar = ipw.FloatProgress(0, min=0, max=1, layout=WIDE)
        buttons = self._row("Start", self.start)
        self._tell()
        self.box = side_by_side([self._chooser.box], [buttons, self._bar, self._text, self.chart, self._table], "24em")

    def start(self) -> None:
        """Train from the beginning with what is chosen; what is wrong with it is said in the panel."""
        with self._lock:
            if self._running:
                return
            self.run, self._table.value = None, ""
            self.chart.begin([], 1)
            try:
                chosen = self.choice()
            except ConfigError as error:  # a field that cannot be read
                self._job = Job(Choice(), self._lock)
                self._job.state, self._job.words, self._job.problem = "over", str(error), True
                self._tell()
                return
            self._job = job = Job(chosen, self._lock, self._tell)
            job.chart = self.chart
            job.prepare()
            self._thread = threading.Thread(target=job.train, name="pruninglab training", daemon=True)
            self._thread.start()

    def wait(self, seconds: float | None = None) -> Run | None:
        """Until the training is over; the run, or None if it is not over after so many seconds or went wrong."""
        if self._thread:
            self._thread.join(seconds)
        return self.run

    def choice(self) -> Choice:
        """What the controls say, as a `Choice`."""
        return self._chooser.choice(**self.settings)

    def chosen(self) -> Method:
        """The method as its fields say."""
        return self.choice().made()

    def code(self) -> str:
        """A cell that makes the same run."""
        return self.choice().code()

    def figure(self) -> Figure:
        if self.run is None:
            raise ConfigError("nothing has been trained yet; press Start, or start() and wait().")
        return runs.history(self.run)

    def __repr__(self) -> str:
        state = repr(self.run) if self.run else "not started"
        chosen = self._chooser
        return f"LivePanel({chosen.data.value}, {chosen.model.value}, {chosen.method.value}): {state}"

    @property
    def _running(self) -> Job | None:
        return self._job if self._job and self._job.state != "over" else None

    def _tell(self) -> None:
        """Show the state of the training: its words, its bar, and the buttons that it leaves."""
        with self._lock:
            job, over = self._job, not self._running
            self._text.value = job.html() if job else "not started"
            self._bar.value = job.share if job else 0.0
            self._bar.bar_style = "" if not job or not over else "success" if job.share == 1 else "warning"
            self._chooser.disable(not over)
            self._buttons["Start"].disabled = not over
            self._enable()
            if job and job.run and self.run is None:
                self._table.value, self.run = job.run._repr_html_(), job.run

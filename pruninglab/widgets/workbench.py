"""`Workbench`: choose, run, compare and copy as code, in one panel."""

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import ipywidgets as ipw
import traitlets

from ..analysis.compare import Comparison, compare
from ..errors import ConfigError, DataError, RunError
from ..plots import runs as run_figures
from ..plots import studies
from ..plots.figure import Figure
from ..results import tables
from ..results.record import Result, percent
from ..train.options import Options, Session
from ..train.run import Run
from ..typed import Range, checked, one_of
from . import study
from .chart import Chart
from .choice import Choice
from .explorer import MaskExplorer
from .forms import LABEL, Form
from .front import Front, module
from .job import Job
from .live import Chooser
from .panel import NARROW, WIDE, _problem, framed
from .steered import WRAPS, Steered, side_by_side
from .truth import TruthMeter

HEAD = ["run", "method", "data", "network", "seed", "epochs", "status", "validation", "test", "sparsity"]
TRAINING = (
    *("optimizer", "lr", "lr_schedule", "batch_size", "momentum", "weight_decay", "precision", "patience", "keep"),
    "collapse",
)
"""The options of `fit` that have a control."""
VIEWS = ("curves", "layers", "frontier", "verdict", "record", "masks", "truth meter", "code", "sweep")


class Workbench(Steered):
    """Choose data, network, method, budget and seeds; *Run* trains in the background, one run after the other.

    All runs stand in one table: those of this session, and with `folder` the records that lie there; each run is then
    written there too. Pick two or more and look at their curves, their layers, the frontier, or what `compare` says in
    words; open the masks and the truth meter of a run. *code* is the cell that makes exactly this run; *sweep* writes a
    notebook with parameters and gives the command for a grid. Every button is a method: `submit`, `pause`, `resume`,
    `step`, `stop`, `cancel`, `wait`, `pick`, `show`.

        bench = lab.Workbench(epochs=3)
        bench                                    # in a cell of its own
        job = bench.submit(); bench.wait()       # what the button Run does
        print(bench.code(job.name))
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
        folder: str | Path | None = None,
    ):
        self.folder = Path(folder) if folder else None
        self.jobs: list[Job] = []
        self.picked: list[str] = []
        self._past: dict[str, Result] = {}
        self._thread: threading.Thread | None = None
        self._chooser, self._options = Chooser(data, model, method, epochs, seed), Form(Options, Session, only=TRAINING)
        self._seeds = ipw.BoundedIntText(1, min=1, max=100, description="seeds", **LABEL)
        self.chart, self._table, self._code = Chart(), Table(head=HEAD), Code()
        self._said, self._now, self._seen = ipw.HTML(), ipw.HTML("nothing is running"), ipw.VBox(layout=WIDE)
        self._page = ipw.HTML(layout=WIDE)
        self._view = ipw.Dropdown(options=VIEWS, value="curves", description="look at", layout=NARROW)
        self._build()
        self._table.hear(pick=self._picks, cancel=lambda message: self.cancel(message["id"]))
        self.refresh()
        self._tell()

    # what the buttons do

    def submit(self, choice: Choice | None = None) -> Job:
        """Put a training into the queue: what the form says, or a `Choice`. What is wrong with it is refused here."""
        chosen = choice or self.choice()
        chosen.made()
        with self._lock:
            number = len(self.jobs) + 1
            name = f"{number} {chosen.method} {chosen.data} {chosen.model} seed {chosen.seed}"
            record = self._free(name.replace(" ", "-")) if self.folder else None
            self.jobs.append(job := Job(chosen, self._lock, self._tell, record))
            job.name = str(number)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="pruninglab queue", daemon=True)
                self._thread.start()
            self._tell()
        return job

    def run(self) -> list[Job]:
        """A training for each of the seeds."""
        first = self.choice()
        return [self.submit(dataclasses.replace(first, seed=first.seed + i)) for i in range(self._seeds.value)]

    def cancel(self, name: str) -> None:
        """Take a training out of the queue, or stop it if it runs."""
        self._job(name).stop()

    def wait(self, seconds: float | None = None) -> dict[str, Run]:
        """Until the queue is empty, or so many seconds have passed; the runs of this session."""
        if thread := self._thread:
            thread.join(seconds)
        return self.runs

    @property
    def runs(self) -> dict[str, Run]:
        """What the trainings of this session have left, by the names in the first column of the table."""
        return {job.name: job.run for job in self.jobs if job.run}

    def choice(self) -> Choice:
        """What the form says."""
        return self._chooser.choice(**self._options.settings())

    def pick(self, *names: str) -> None:
        """Pick runs by the names in the first column of the table."""
        for name in names:
            self._result(name)
        with self._lock:
            turn: Any = self._table.picked["turn"]
            self._table.picked = {"turn": turn + 1, "ids": list(names)}
            self.picked = list(names)
            self._look()

    def show(self, view: str) -> None:
        """Look at the picked runs: one of the views in the dropdown."""
        self._view.value = one_of("view", view, VIEWS)
        self._look()

    def compare(self) -> Comparison:
        """The picked runs, compared as `lab.compare` does."""
        return compare(list(self._chosen().values()))

    def code(self, name: str) -> str:
        """The cell that makes exactly this run of the session."""
        return self._job(name).choice.code()

    def to_sweep(self, name: str, path: str | Path = "study.ipynb") -> str:
        """Write a notebook with parameters that makes this run, and return the command for a grid of them."""
        return study.write(self._job(name).choice, Path(path))

    def refresh(self) -> None:
        """Read the folder again."""
        if self.folder is None:
            return
        own = {str(Path(job.record).resolve()) for job in self.jobs if job.record}
        frame = tables.load(self.folder.resolve())
        found = list(frame["path"]) if "path" in frame else []
        paths = [path for path in found if str(Path(path).resolve()) not in own]
        self._past = {str(Path(path).relative_to(self.folder.resolve())): Result.read(path) for path in paths}
        self._table.past = [_row(name, result) for name, result in self._past.items()]

    def figure(self) -> Figure:
        """The curves of the picked runs, or of all."""
        chosen = self._chosen() if self.picked else self.runs
        return run_figures.history(*chosen.values(), labels=self._labels(chosen))

    def __repr__(self) -> str:
        lines = [f"  {job.name}  {job.choice.method}, seed {job.choice.seed}: {job.words}" for job in self.jobs]
        return "\n".join([f"Workbench: {len(self.jobs)} runs of this session, {len(self._past)} of its folder", *lines])

    # how

    def _build(self) -> None:
        buttons = self._row("Run", self._press, self._said)
        self._buttons["Run"].button_style = "primary"
        self._view.observe(lambda _: self._look(), "value")
        again = ipw.Button(description="Read folder again", layout=NARROW)
        again.on_click(lambda _: self.refresh())
        more = ipw.Accordion([self._options.box], titles=("training options",), selected_index=None, layout=WIDE)
        looking = ipw.HBox([self._view, *([again] if self.folder else [])], layout=WRAPS)
        seen = [buttons, self._now, self.chart, self._table, looking, self._seen]
        self.box = side_by_side([self._chooser.box, self._seeds, more], seen, "30em")

    def _press(self) -> None:
        """Run, with what is wrong said within the form."""
        try:
            jobs = self.run()
            self._said.value = f"{len(jobs)} {'runs' if len(jobs) > 1 else 'run'} in the queue"
        except (ConfigError, DataError) as error:
            self._said.value = _problem(error)

    def _work(self) -> None:
        """The thread of the queue: one training after the other, until none waits."""
        while True:
            with self._lock:
                job = next((job for job in self.jobs if job.state == "waiting"), None)
                if job is None:
                    self._thread = None
                    return
                job.chart = self.chart
                self.chart.begin([], 1)
                job.prepare()
            job.train()

    @property
    def _running(self) -> Job | None:
        return next((job for job in self.jobs if job.state not in ("waiting", "over")), None)

    def _tell(self) -> None:
        """Show the state of the queue."""
        with self._lock:
            self._table.rows = [_job_row(job) for job in self.jobs]
            waiting = sum(job.state == "waiting" for job in self.jobs)
            queue = f"; {waiting} more in the queue" if waiting else ""
            ended = next((job for job in reversed(self.jobs) if job.state == "over"), None)
            shown = self._running or ended
            self._now.value = f"run {shown.name}: {shown.html()}{queue}" if shown else "nothing is running"
            self._enable()

    def _picks(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            known = [*(job.name for job in self.jobs), *self._past]
            self.picked = [name for name in message["ids"] if name in known]
            self._table.picked = {"turn": message["turn"], "ids": self.picked}
            self._look()

    def _look(self) -> None:
        """Show the view of the picked runs, or say why it cannot be. Words and figures share one place in the page."""
        with self._lock:
            try:
                seen = self._viewed(str(self._view.value)) if self.picked else "pick a run"
            except (ConfigError, DataError, RunError) as error:
                seen = _problem(error)
            if isinstance(seen, str):
                self._page.value, seen = seen, self._page
            if self._seen.children != (seen,):
                self._seen.children = (seen,)

    def _viewed(self, view: str) -> ipw.Widget | str:
        if view in ("code", "sweep"):
            texts = [self.code(name) if view == "code" else self.to_sweep(name) for name in self.picked]
            self._code.text = "\n\n".join(texts)
            return self._code
        if view == "masks":
            return MaskExplorer(*self._with_weights().values(), labels=self._labels(self._with_weights())).box
        if view == "truth meter":
            return self._meter().box
        return self._drawn(view)

    def _drawn(self, view: str) -> str:
        chosen = self._chosen()
        if view == "verdict":
            return self.compare()._repr_html_()
        if view == "record":
            return "".join(run._repr_html_() for run in chosen.values())
        if view == "frontier":
            return framed(studies.frontier(self.compare()))
        draw = run_figures.history if view == "curves" else run_figures.layers
        return framed(draw(*chosen.values(), labels=self._labels(chosen)))

    def _meter(self) -> TruthMeter:
        chosen = sorted(self._with_weights().values(), key=lambda run: run.sparsity)
        if len(chosen) != 2:
            raise ConfigError("the truth meter needs two runs: pick a dense one and a pruned one of the same network.")
        return TruthMeter(chosen[0], chosen[1])

    def _labels(self, chosen: Mapping[str, Run | Result]) -> list[str]:
        return [f"{name} {run.name}" for name, run in chosen.items()]

    def _chosen(self) -> dict[str, Run | Result]:
        if not self.picked:
            raise ConfigError("no run is picked; pick one in the table, or by its name: bench.pick('1').")
        return {name: self._result(name) for name in self.picked}

    def _with_weights(self) -> dict[str, Run]:
        """The picked runs, where all of them are of this session: a record holds no weights."""
        chosen = self._chosen()
        if records := [name for name, run in chosen.items() if not isinstance(run, Run)]:
            raise ConfigError(f"{', '.join(records)}: a record holds no weights; run it again in this session.")
        return {name: run for name, run in chosen.items() if isinstance(run, Run)}

    def _result(self, name: str) -> Run | Result:
        if name in self._past:
            return self._past[name]
        job = self._job(name)
        if job.run is None:
            raise ConfigError(f"run {name} has left nothing to look at: {job.words}.")
        return job.run

    def _job(self, name: str) -> Job:
        if job := next((job for job in self.jobs if job.name == name), None):
            return job
        known = ", ".join(job.name for job in self.jobs) or "none yet"
        raise ConfigError(f"there is no run {name!r} of this session; expected one of {known}.")

    def _free(self, name: str) -> str:
        """A file in the folder that is not there yet."""
        assert self.folder is not None
        taken = {path.name for path in self.folder.glob("*.json")}
        names = [name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))]
        return str(self.folder / next(f"{name}.json" for name in names if f"{name}.json" not in taken))


class Table(Front):
    """The rows, which the kernel writes, and which of them are picked."""

    _esm = module("table.js")
    head = traitlets.List().tag(sync=True)
    rows = traitlets.List().tag(sync=True)
    past = traitlets.List().tag(sync=True)
    picked = traitlets.Dict(default_value={"turn": 0, "ids": []}).tag(sync=True)


class Code(Front):
    """A text with a button that copies it."""

    _esm = module("code.js")
    text = traitlets.Unicode().tag(sync=True)


def _job_row(job: Job) -> dict[str, Any]:
    chosen, over = job.choice, job.state == "over"
    first = [job.name, chosen.method, chosen.data, chosen.model, str(chosen.seed), str(chosen.epochs)]
    status = job.run.status if over and job.run else "refused" if over and job.problem else job.state
    shown = {"words": job.words, "share": job.share, "waits": job.state == "waiting"}
    if job.run:
        return {"id": job.name, "cells": [*first, status, *_reached(job.run.result)], "over": True, **shown}
    status = "cancelled" if over and not job.problem else status
    left = f", {job.left:,.0f} s left" if job.state == "running" and job.left is not None else ""
    return {"id": job.name, "cells": [*first, status + left, "", "", ""], "over": over, **shown}


def _row(name: str, result: Result) -> dict[str, Any]:
    config = result.config
    cells = [name, result.name, config["data"]["name"], config["model"]["name"], str(config["seed"])]
    cells += [str(config.get("epochs", "")), result.status, *_reached(result)]
    return {"id": name, "cells": cells, "over": True, "waits": False, "share": 1.0, "words": result.reason or ""}


def _reached(result: Result) -> Sequence[str]:
    return percent(result.accuracy["val"]), percent(result.accuracy["test"]), f"{result.sparsity['weights']:.2%}"

"""`Job`: one training in a thread, which can be paused, taken step by step, and stopped."""

import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import torch

from .. import _html
from ..errors import ConfigError, DataError, RunError
from ..results.record import percent
from ..train.losses import loss_arguments
from ..train.run import Run
from .chart import Chart
from .choice import Choice

State = Literal["waiting", "running", "paused", "stopping", "over"]
EVERY = 0.25
"""Seconds between two looks at a training, at least."""
SHARE = 0.02
"""Of the time of the thread that trains, at most for looks: where they are dear, they are fewer."""


class Job:
    """What was chosen, how far it is, in words, and the run that it leaves.

    All changes of state are made under `lock`, which is that of the panel. `tell` is called after each of them.
    """

    def __init__(
        self, choice: Choice, lock: Any = None, tell: Callable[[], None] | None = None, record: str | None = None
    ):
        self.choice, self.record = choice, record
        self.name = ""
        self.state: State = "waiting"
        self.words = "waiting"
        self.problem = False
        self.share = 0.0  # of the training that is done
        self.left: float | None = None  # seconds
        self.run: Run | None = None
        self.chart: Chart | None = None
        self._lock, self._tell = lock or threading.RLock(), tell or (lambda: None)
        self._go = threading.Event()  # cleared, the training stands still
        self._go.set()
        self._once = False
        self._looked, self._epochs, self._began = 0.0, 0, time.perf_counter()
        self._due = 0.0  # time of the thread that has paid for the look before

    def prepare(self) -> None:
        """Leave the queue: from here on it can be paused and stopped."""
        with self._lock:
            if self.state == "waiting":
                self._began = time.perf_counter()
                self._become("running", "preparing…")

    def pause(self) -> None:
        """Stand still after this step."""
        with self._lock:
            if self.state == "running":
                self._go.clear()
                self._become("paused", "pausing after this step…")

    def resume(self) -> None:
        with self._lock:
            if self.state == "paused":
                self._become("running", "going on…")
                self._go.set()

    def step(self) -> None:
        """One step more of a paused training."""
        with self._lock:
            if self.state == "paused":
                self._once = True
                self._go.set()

    def stop(self) -> None:
        """End after this step with what was reached. What waits is not begun."""
        with self._lock:
            if self.state == "waiting":
                self._become("over", "cancelled")
            elif self.state in ("running", "paused"):
                self._become("stopping", "stopping after this step…")
                self._go.set()

    def train(self) -> None:
        """The whole training, in the thread that calls. However it ends, the job is over and says why."""
        self.prepare()
        if self.state == "over":  # cancelled while it waited
            return
        words, problem = "stopped before the training began", False
        try:
            if self.state != "stopping":
                run = self.choice.train(self.watch, self.record)
                words = f"{run.status}{': ' + run.reason if run.reason else ''}"
                self._points(run)
                self.run, self.share, problem = run, 1.0 if run.status == "done" else run.progress, False
        except (ConfigError, DataError, RunError) as error:
            words, problem = str(error), True
        except Exception as error:  # a panel has nobody else to tell
            words, problem = f"{type(error).__name__}: {error}", True
        finally:
            self.problem = problem
            self._become("over", words)

    def watch(self, run: Run) -> None:
        """After each step, in the thread that trains: a few times a second words and points."""
        now = time.perf_counter()
        if self._once or (now - self._looked > EVERY and time.thread_time() >= self._due):
            self._looked = now
            self._look(run, now)
        if self._once:
            with self._lock:
                self._once = False
                if self.state == "paused":
                    self._go.clear()
        if not self._go.is_set():
            self._look(run, now)
            self._say("paused", f"paused at step {run.step:,} of {run.steps:,}")
            paused = time.perf_counter()
            self._go.wait()
            self._began += time.perf_counter() - paused
        if self.state == "stopping":
            run.interrupt()

    def _look(self, run: Run, now: float) -> None:
        began = time.thread_time()
        self._show(run, now)
        ended = time.thread_time()
        self._due = ended + (ended - began) / SHARE

    def _show(self, run: Run, now: float) -> None:
        self._points(run)
        self.share = run.progress
        self.left = (now - self._began) * (run.steps - run.step) / max(run.step, 1)
        val = f", val {percent({'accuracy': run.history[-1]['val_accuracy']})}" if run.history else ""
        words = f"epoch {min(run.epoch + 1, run.epochs)} of {run.epochs}, step {run.step:,} of {run.steps:,}{val}"
        self._say("running", f"{words}, sparsity {run.sparsity:.2%}, {self.left:,.0f} s left")

    def _points(self, run: Run) -> None:
        """What is new since the last look: the epochs that are over, and one batch of now."""
        if self.chart is None:
            return
        if not self.chart.rows:
            self.chart.begin(list(run.masks), run.epochs)
        rows = [_epoch(run, row) for row in run.history[self._epochs :]]
        self._epochs = len(run.history)
        if hasattr(run, "logits") and not rows:
            rows = [_now(run)]
        if rows:
            self.chart.add(*rows)

    def _say(self, state: State, words: str) -> None:
        """Words of the training, unless a button was pressed meanwhile."""
        with self._lock:
            if self.state == state:
                self.words = words
                self._tell()

    def _become(self, state: State, words: str) -> None:
        with self._lock:
            self.state, self.words = state, words
            self._tell()

    def __repr__(self) -> str:
        return f"Job({self.choice.method} on {self.choice.data}/{self.choice.model}, {self.state}: {self.words})"

    def html(self) -> str:
        return f'<span style="color:#c33">{_html.cell(self.words)}</span>' if self.problem else _html.cell(self.words)


def _epoch(run: Run, row: dict[str, Any]) -> dict[str, Any]:
    """The row of an epoch as a point; a browser reads no NaN."""
    totals = {name: mask.numel() for name, mask in run.masks.items()}
    kept = [row["kept"].get(name, 0) / total for name, total in totals.items()]
    numbers = {"loss": row["loss"], "accuracy": row["val_accuracy"], "sparsity": row["sparsity"]}
    finite = {name: value for name, value in numbers.items() if value is not None and value == value}
    return {"at": row["step"] / run.steps_per_epoch, "kept": kept, **finite}


@torch.no_grad()
def _now(run: Run) -> dict[str, Any]:
    loss = run.options.loss
    value = float(loss(*loss_arguments(loss, run.logits.detach(), run.y, run.x)))
    kept = [count / run.masks[name].numel() for name, count in run.masks.kept_by_layer.items()]
    row = {"at": run.step / run.steps_per_epoch, "sparsity": run.sparsity, "kept": kept}
    return row | ({"batch": value} if abs(value) < 1e30 else {})

"""Where the numbers of a run go while it trains. An observer is a method that only looks: no record knows of it."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from ..errors import ConfigError
from ..storage.files import check_writable, write_atomic
from .checkpoints import keep
from .method import Method
from .ranks import is_first
from .run import Run


def numbers(run: Run) -> dict[str, float]:
    """The single numbers of the last epoch: loss, validation, learning rate, sparsity."""
    last = run.history[-1] if run.history else {}
    return {name: value for name, value in last.items() if isinstance(value, int | float)}


@dataclass
class CSVLog(Method):
    """One line an epoch in a CSV file: `fit(model, data, method, CSVLog("run.csv"), epochs=5)`.

    A run that resumes from a checkpoint writes the epochs before it again, so that the file is whole.
    """

    path: str | Path
    observes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.path = check_writable(self.path, "path")

    def on_epoch(self, run: Run) -> None:
        if not is_first():
            return
        rows = [{k: v for k, v in entry.items() if isinstance(v, int | float)} for entry in run.history]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
        path = Path(self.path)
        keep(run, path, lambda: write_atomic(path, text.getvalue().encode()))


@dataclass
class TensorBoard(Method):
    """Each epoch's numbers to a folder that TensorBoard reads. It needs the package tensorboard."""

    folder: str | Path
    observes: ClassVar[bool] = True

    def on_epoch(self, run: Run) -> None:
        if not is_first():
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError("TensorBoard needs the package tensorboard; install it, or take CSVLog.") from None

        def write() -> None:
            with SummaryWriter(str(self.folder), filename_suffix=f".{run.epoch}") as writer:
                for name, value in numbers(run).items():
                    writer.add_scalar(name, value, run.step)

        keep(run, Path(self.folder), write)


@dataclass
class Tracker(Method):
    """Each epoch's numbers to a tracker with a function of (numbers, step), called as `log`.

    `Tracker(mlflow.log_metrics)` and `Tracker(wandb.log)` send them to a run that you have begun there.
    """

    log: Annotated[Callable[..., Any], "of (numbers, step=…)"]
    observes: ClassVar[bool] = True

    def on_epoch(self, run: Run) -> None:
        if is_first():
            self.log(numbers(run), step=run.step)

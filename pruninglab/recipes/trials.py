"""`Trials`: methods to the same sparsity side by side, with what each of them cost."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from .. import _html
from ..results.record import percent
from ..train.run import Run


@dataclass(frozen=True)
class Trial:
    """One method, and the runs that had to come before it: a ticket costs all rounds that found it."""

    method: str
    run: Run
    before: tuple[Run, ...] = ()

    def row(self) -> dict[str, Any]:
        result, together = self.run.result, [r.result for r in (*self.before, self.run)]
        steady = all(cut["step"] <= self.run.first_step for cut in result.cuts)
        gflops = sum(r.flops["training"] for r in together) / 1e9
        own = result.flops["training"] / 1e9
        return {
            "method": self.method,
            "status": result.status,
            "sparsity": result.sparsity["weights"],
            "nonzero": result.size["nonzero"],
            "val_accuracy": result.accuracy["val"]["accuracy"],
            "test_accuracy": result.accuracy["test"]["accuracy"],
            "steps": self.run.step,
            "steps_in_all": sum(r.steps["own"] for r in together),
            "gflops_kept": own * result.flops["sparse"] / result.flops["dense"] if steady else float("nan"),
            "gflops_in_all": gflops,
            "seconds_in_all": sum(r.times["seconds"] for r in together),
            "start": self.run.origin["weights"],
            "from_step": self.run.first_step,
        }


@dataclass
class Trials:
    """What was tried. Showing it is the table of accuracies and costs."""

    made: list[Trial] = field(default_factory=list)

    def add(self, method: str, run: Run, *before: Run) -> Run:
        """Enter a run, and those that it could not have been made without."""
        self.made.append(Trial(method, run, before))
        return run

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.made)

    def __getitem__(self, method: str) -> Run:
        """The last run of this method."""
        return next(trial.run for trial in reversed(self.made) if trial.method == method)

    def table(self) -> pd.DataFrame:
        """One row for each run, costs with all that had to come before it.

        FLOPs are those of a dense computation, forward and backward; `gflops_kept` are the run's own on weights that
        are kept, missing where the mask changed on the way.
        """
        return pd.DataFrame([trial.row() for trial in self.made])

    def __repr__(self) -> str:
        return self.table().to_string(index=False, float_format="{:.4g}".format)

    def _repr_html_(self) -> str:
        head = (
            "method",
            "status",
            "sparsity",
            "val",
            "test",
            "steps",
            "steps in all",
            "training GFLOPs in all",
            "seconds in all",
        )
        rows = []
        for row in (trial.row() for trial in self.made):
            scores = [percent({"accuracy": row[f"{split}_accuracy"]}) for split in ("val", "test")]
            counts = [f"{row[name]:,.0f}" for name in ("steps", "steps_in_all", "gflops_in_all", "seconds_in_all")]
            rows.append((row["method"], row["status"], f"{row['sparsity']:.2%}", *scores, *counts))
        return _html.table(head, rows)

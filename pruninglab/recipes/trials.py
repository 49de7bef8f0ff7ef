"""`Trials`: what a recipe trained, by name, with what each training cost."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from .. import _html
from ..results.record import percent
from ..train.run import Run
from ..typed import one_of


@dataclass(frozen=True)
class Trial:
    """One training of a recipe. `columns` are its own columns in the table, `record` is the file of its record."""

    method: str
    run: Run
    columns: dict[str, Any] = field(default_factory=dict)
    record: Path | None = None

    def row(self) -> dict[str, Any]:
        result = self.run.result
        steps, flops, times = result.steps, result.flops, result.times
        steady = all(cut["step"] <= self.run.first_step for cut in result.cuts)
        kept = flops["training"] * flops["sparse"] / flops["dense"] if steady else float("nan")
        return {
            "method": self.method,
            **self.columns,
            "status": result.status,
            "sparsity": result.sparsity["weights"],
            "nonzero": result.size["nonzero"],
            "val_accuracy": self.run.val,
            "test_accuracy": self.run.test,
            "steps": steps["own"],
            "steps_in_all": steps["before"] + steps["own"],
            "gflops": flops["training"] / 1e9,
            "gflops_kept": kept / 1e9,
            "gflops_in_all": (flops["before"] + flops["training"]) / 1e9,
            "seconds": times["seconds"],
            "seconds_in_all": times["seconds_before"] + times["seconds"],
            "start": self.run.origin["weights"],
            "from_step": self.run.first_step,
        }


@dataclass(repr=False)
class Trials:
    """All that a recipe trained, in order. Showing it is the table of accuracies and costs.

    `trials["ticket"]` is the last run of that name, or the chosen one if the recipe chose. `trials.last` is the last of
    all. A loop gives each trial with its `method` and its `run`.
    """

    made: list[Trial] = field(default_factory=list)

    def add(self, method: str, run: Run, record: Path | None = None, **columns: Any) -> Run:
        """Enter a run, with columns of its own. Returns it."""
        self.made.append(Trial(method, run, columns, record))
        return run

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.made)

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, method: str) -> Run:
        one_of("trial", method, self.methods)
        found = [trial for trial in self.made if trial.method == method]
        return ([trial for trial in found if trial.columns.get("chosen")] or found)[-1].run

    @property
    def methods(self) -> list[str]:
        """The names, each once."""
        return list(dict.fromkeys(trial.method for trial in self.made))

    @property
    def runs(self) -> list[Run]:
        return [trial.run for trial in self.made]

    @property
    def last(self) -> Run:
        return self.made[-1].run

    @property
    def chosen(self) -> list[Run]:
        """The runs that the recipe chose by their validation accuracy, where it did."""
        return [trial.run for trial in self.made if trial.columns.get("chosen")]

    def table(self) -> pd.DataFrame:
        """One row for each run. Columns `…_in_all` count all trainings that it needed, the search of its masks too.

        FLOPs are those of a dense computation, forward and backward. `gflops_kept` are the run's own on kept weights;
        they are missing if the mask changed on the way.
        """
        return pd.DataFrame([trial.row() for trial in self.made])

    def costs(self, by: str = "method") -> pd.DataFrame:
        """Steps, GFLOPs and seconds of all trainings together, for each value of a column of the table."""
        table: Any = self.table()
        return table.groupby(one_of("by", by, list(table)), sort=False)[["steps", "gflops", "seconds"]].sum()

    def __repr__(self) -> str:
        return self.table().to_string(index=False, float_format="{:.4g}".format)

    def _repr_html_(self) -> str:
        own = list(dict.fromkeys(name for trial in self.made for name in trial.columns))
        costs = ("steps", "steps_in_all", "gflops_in_all", "seconds_in_all")
        heads = ("steps", "steps in all", "training GFLOPs in all", "seconds in all")
        rows = []
        for row in (trial.row() for trial in self.made):
            scores = [percent({"accuracy": row[f"{split}_accuracy"]}) for split in ("val", "test")]
            counts = [f"{row[name]:,.0f}" for name in costs]
            said = [_shown(row.get(name, "")) for name in own]
            rows.append((row["method"], *said, row["status"], f"{row['sparsity']:.2%}", *scores, *counts))
        return _html.table(("method", *own, "status", "sparsity", "val", "test", *heads), rows)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

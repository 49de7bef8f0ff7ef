"""The history of `make bench`: a line of JSON for each run, what became slower since, and a figure."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pruninglab.plots.figure import Figure, finish, panels, row_labels
from pruninglab.plots.looks import GREY
from pruninglab.results.environment import environment

HISTORY = Path(__file__).parents[2] / "notebooks/results/benchmarks/history.jsonl"
TOLERATED = 1.1
"""So many times what the commit before took is no slow-down yet."""
Entry = dict[str, Any]
_measured: dict[str, float] = {}


def measured(name: str, cost: float) -> None:
    """Note what something costs in this run, mostly as a ratio to something else: the lower, the better."""
    _measured[name] = round(cost, 4)
    print(f"\n[{name}: {cost:.3f}]", end="")


def entry() -> Entry:
    """All that was measured in this process, and where."""
    torch.set_num_threads(os.cpu_count() or 1)  # as each benchmark begins
    machine = {k: v for k, v in environment("cpu").items() if k not in ("command", "not_deterministic")}
    load = [round(one, 2) for one in os.getloadavg()]
    return {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **machine, "load": load, "costs": _measured}


def read(path: Path = HISTORY) -> list[Entry]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(new: Entry, path: Path = HISTORY) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(new) + "\n")


def machine(one: Entry) -> tuple[Any, ...]:
    return one["cpu"], one["instructions"], one["threads"]


def slower(history: Sequence[Entry]) -> list[str]:
    """A line for each cost that grew by more than a tenth from one commit to the next one on the same machine."""
    before: dict[tuple[Any, ...], tuple[float, str]] = {}
    lines = []
    for one in history:
        for name, cost in one["costs"].items():
            known, commit = before.get((machine(one), name), (cost, one["commit"]))
            if commit != one["commit"] and cost > TOLERATED * known:
                times = f"{cost / known:.2f} times slower"
                lines.append(
                    f"{name}: {times} at {one['commit']} than at {commit} ({known:g} to {cost:g}, {one['cpu']})"
                )
            before[machine(one), name] = cost, one["commit"]
    return lines


def drawn(history: Sequence[Entry]) -> Figure:
    """The costs of the last run's machine, run by run: a row for each, the last run filled."""
    runs = [one for one in history if machine(one) == machine(history[-1])]
    names = sorted({name for one in runs for name in one["costs"]})
    figure, (axes,) = panels(1, width=8.5, height=0.24 * len(names) + 1.0)
    for row, name in enumerate(names):
        costs = [one["costs"][name] for one in runs if name in one["costs"]]
        axes.plot(costs, [row] * len(costs), "o-", color=GREY, mfc="none")
        axes.plot(costs[-1:], [row], "o", color="0.13")
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set(xscale="log", xlabel="cost (filled: the last run)")
    row_labels(axes, names)
    grown = slower(history)
    title = "What does each part cost, run by run?" + (f" {len(grown)} became slower" if grown else "")
    last = ", ".join(f"{name} {cost:g}" for name, cost in runs[-1]["costs"].items())
    return finish(figure, title, f"Costs in {len(runs)} runs on {runs[-1]['cpu']}. The last run: {last}.")

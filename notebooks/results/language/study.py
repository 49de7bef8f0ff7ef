"""A small language model pruned by ten methods: the question of the survey's Figure 3, on text that needs no download.

    OMP_NUM_THREADS=1 python notebooks/results/language/study.py 0 1 2

One process for each seed, two at a time. It first says what is left to do and how many hours that takes here;
`--estimate` says no more than that. Every method begins with the dense network of its seed and trains as many steps as
the dense control. `cut` holds what five of them give without fine-tuning. Each run leaves one record beside this file.
What has one is left out; what was broken off goes on from runs/language, by the same command.

`--budget quick` takes a third of the epochs, into runs/language-quick. `--budget small` trains a tiny network on little
text in about a minute, into runs/language-small.
"""

import argparse
import json
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pruninglab as lab
from pruninglab import methods
from pruninglab.criteria import Movement
from pruninglab.train import compression

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
COMMON: dict[str, Any] = {
    "batch_size": 32,
    "lr": 3e-3,
    "metric": compression,
    "skip": ("embeddings", "output"),
    "precision": "fp32",
    "progress": False,
}
ALONE = ("random mask", "global magnitude", "layer magnitude", "Wanda", "SparseGPT")
"""Those that have a result without fine-tuning."""
COSTS = {"movement": 1.1, "variational dropout": 2.2, "L0": 1.1}
"""What a step of a method takes in steps of the dense network, measured in turns, where it is more."""
TRIED = 20
"""Steps by which the cost is estimated, after one that is not counted."""


@dataclass(frozen=True)
class Budget:
    """What is trained, and where it goes."""

    epochs: int
    runs: Path
    """Has the checkpoints to go on from."""
    records: Path
    text: dict[str, Any] = field(default_factory=lambda: {"train": 10_000, "test": 1_000, "size": 64})
    net: dict[str, Any] = field(default_factory=lambda: {"width": 64, "layers": 3, "heads": 4})
    sparsities: tuple[float, ...] = SPARSITIES

    def within(self, folder: Path) -> "Budget":
        return replace(self, runs=folder, records=folder / "records")


TINY: dict[str, Any] = {
    "text": {"train": 400, "test": 60, "size": 32},
    "net": {"width": 16, "layers": 1, "heads": 2},
}
BUDGETS = {
    "full": Budget(6, Path("runs/language"), Path(__file__).parent),
    "quick": Budget(2, Path("runs/language-quick"), Path("runs/language-quick/records")),
    "small": Budget(1, Path("runs/language-small"), Path("runs/language-small/records"), **TINY),
}


def trained(sparsity: float) -> dict[str, lab.Method]:
    """Each of them trains for as many steps as the dense control."""
    return {
        "random mask": methods.OneShot(sparsity, "random", scope="layer"),
        "global magnitude": methods.OneShot(sparsity),
        "layer magnitude": methods.OneShot(sparsity, scope="layer"),
        "gradual": methods.Gradual(lab.Cubic(sparsity)),
        "movement": methods.Gradual(lab.Cubic(sparsity), Movement(batches=2)),
        "variational dropout": methods.VariationalDropout(sparsity, end=0.75),
        "L0": methods.L0(sparsity, end=0.75),
        "Wanda": methods.Wanda(sparsity),
        "SparseGPT": methods.SparseGPT(sparsity),
    }


@dataclass(frozen=True)
class Cell:
    """One run: `sparsity` is what is asked for, `made` what prunes."""

    group: str
    method: str
    sparsity: float = 0.0
    made: lab.Method | None = None

    @property
    def name(self) -> str:
        return "/".join(filter(None, (self.group, self.method, str(self.sparsity or ""))))

    @property
    def cost(self) -> float:
        """In trainings of the dense network."""
        return 0.0 if self.group == "cut" else COSTS.get(self.method, 1.0)


def cells(budget: Budget) -> Iterator[Cell]:
    """All runs of a seed, in the order in which they are done."""
    yield from (Cell(group, "dense") for group in ("start", "trained", "cut"))
    for sparsity in budget.sparsities:
        for method, made in trained(sparsity).items():
            yield Cell("trained", method, sparsity, made)
            if method in ALONE:
                yield Cell("cut", method, sparsity, made)
        yield Cell("trained", "scratch", sparsity)


def record_of(budget: Budget, cell: Cell, seed: int) -> Path:
    return budget.records / f"{cell.name}-seed-{seed}.json"


def missing(budget: Budget, cell: Cell, seed: int) -> bool:
    """Whether it has not been run to its end."""
    path = record_of(budget, cell, seed)
    return not path.exists() or json.loads(path.read_text(encoding="utf-8"))["status"] == "interrupted"


def run_seed(seed: int, budget: Budget) -> str:
    """All runs of one seed, begun or gone on with."""
    torch.set_num_threads(1)
    if not any(missing(budget, cell, seed) for cell in cells(budget)):
        return f"seed {seed}: done"
    data = lab.load("code", seed=seed, **budget.text)
    dense: Any = lab.build("gpt", data, seed=seed, **budget.net)
    for cell in cells(budget):
        if cell.group != "start" and not missing(budget, cell, seed):
            continue
        start: Any = dense
        options: dict[str, Any] = {"epochs": 0 if cell.group == "cut" else budget.epochs, "seed": seed, **COMMON}
        if cell.method == "scratch":
            start = lab.build("gpt", data, seed=seed + 1000, **budget.net)
            options |= {"masks": lab.prune(dense, cell.sparsity, skip=COMMON["skip"])[1], "found_by": [dense]}
        options["tags"] = {"group": cell.group, "method": cell.method, "asked": cell.sparsity}
        options["record"] = record_of(budget, cell, seed)
        options["checkpoint"] = budget.runs / f"{cell.name}-{seed}.st"
        run = lab.fit(start, data, *filter(None, [cell.made]), **options)
        if run.status == "interrupted":
            return f"seed {seed}: stopped in {cell.name}; the same command goes on"
        dense = run if cell.group == "start" else dense  # at once, where it was done
        bits = lab.train.bits(run.result.accuracy["test"]["loss"])
        print(f"{cell.name} seed {seed}: {bits:.3f} bits a byte, {run.status}", flush=True)
    return f"seed {seed}: done"


def cost(budget: Budget, seeds: Sequence[int], jobs: int) -> str:
    """What is left to do, and how long it takes on quiet cores, by a few steps of the dense network."""
    left = {seed: [cell for cell in cells(budget) if missing(budget, cell, seed)] for seed in seeds}
    seconds, steps = measured(budget)
    busy = [0.0] * jobs
    for each_seed in left.values():
        busy[busy.index(min(busy))] += sum(cell.cost for cell in each_seed) * steps * seconds / 3600
    records, every = sum(map(len, left.values())), len(seeds) * len(list(cells(budget)))
    trainings = sum(cell.cost > 0 for each_seed in left.values() for cell in each_seed)
    return (
        f"{records} of {every} records are left, {trainings} of them trainings of {steps:,} steps. "
        f"A dense step takes {seconds * 1000:.0f} ms of a core here: about {max(busy):.1f} hours with {jobs} at a time."
    )


def measured(budget: Budget) -> tuple[float, int]:
    """Seconds of a step of the dense network on one core, whatever else the machine does; and steps of a training."""
    torch.set_num_threads(1)
    moments: list[float] = []

    def note(run: lab.Run) -> None:
        moments.append(time.process_time())
        if len(moments) > min(TRIED, run.steps - 1):
            run.interrupt()

    data = lab.load("code", seed=0, **budget.text)
    model = lab.build("gpt", data, seed=0, **budget.net)
    options: dict[str, Any] = {**COMMON, "progress": note}
    run = lab.fit(model, data, epochs=budget.epochs, **options)
    return (moments[-1] - moments[0]) / (len(moments) - 1), run.steps


def stop_all(*_: Any) -> None:
    """SIGTERM: each process ends its step and writes a checkpoint."""
    for child in multiprocessing.active_children():
        child.terminate()
    raise SystemExit(143)


def main(words: Sequence[str] | None = None, budgets: dict[str, Budget] = BUDGETS) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--budget", choices=tuple(budgets), default="full")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time, each with one thread")
    parser.add_argument("--estimate", action="store_true", help="say what it costs, and end")
    given = parser.parse_args(words)
    budget, jobs = budgets[given.budget], min(given.jobs, len(given.seeds))
    print(cost(budget, given.seeds, jobs), flush=True)
    if given.estimate:
        return
    if jobs == 1:
        print(*map(partial(run_seed, budget=budget), given.seeds), sep="\n")
        return
    signal.signal(signal.SIGTERM, stop_all)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        print(*pool.map(partial(run_seed, budget=budget), given.seeds), sep="\n")


if __name__ == "__main__":
    main()

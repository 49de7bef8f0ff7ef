"""A small language model pruned by ten methods: the question of the survey's Figure 3, on text that needs no download.

    OMP_NUM_THREADS=1 python notebooks/results/language/study.py 0 1 2

One process for each seed, two at a time: 234 records, of which 156 are trainings, in some four hours of two cores.
Every method begins with the dense network of its seed and trains as many steps as the dense control. `cut` holds what
five of them give without fine-tuning. Each run leaves one record beside this file. What has one is left out; what was
broken off goes on from runs/language. `--small` trains a tiny network on little text in about a minute, into
runs/language-small.
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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
SIZES: dict[bool, dict[str, Any]] = {
    False: {"data": {"train": 10_000, "test": 1_000, "size": 64}, "net": {"width": 64, "layers": 3, "heads": 4}},
    True: {"data": {"train": 400, "test": 60, "size": 32}, "net": {"width": 16, "layers": 1, "heads": 2}},
}
EPOCHS = {False: 6, True: 1}


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


ALONE = ("random mask", "global magnitude", "layer magnitude", "Wanda", "SparseGPT")
"""Those that have a result without fine-tuning."""


class Study:
    """All runs of one seed."""

    def __init__(self, seed: int, small: bool, folder: Path):
        self.seed, self.small, self.folder = seed, small, folder
        self.data = lab.load("code", seed=seed, **SIZES[small]["data"])

    def net(self, seed: int) -> torch.nn.Module:
        return lab.build("gpt", self.data, seed=seed, **SIZES[self.small]["net"])

    def fit(self, start: Any, name: str, *made: lab.Method, epochs: int | None = None, **options: Any) -> lab.Run:
        """One run with its record, begun or gone on with."""
        group, method, *_ = name.split("/")
        files: dict[str, Any] = {"record": self.folder / f"{name}-seed-{self.seed}.json"}
        files["checkpoint"] = Path("runs/language-small" if self.small else "runs/language", f"{name}-{self.seed}.st")
        options |= {"tags": {"group": group, "method": method}, "seed": self.seed}
        run = lab.fit(
            start,
            self.data,
            *made,
            epochs=EPOCHS[self.small] if epochs is None else epochs,
            **COMMON,
            **options,
            **files,
        )
        print(
            f"{name} seed {self.seed}: {lab.train.bits(run.result.accuracy['test']['loss']):.3f} bits a byte",
            flush=True,
        )
        return run

    def missing(self, name: str) -> bool:
        return not (self.folder / f"{name}-seed-{self.seed}.json").exists()

    def go(self) -> None:
        dense = self.fit(self.net(self.seed), "start/dense")  # at once, where it is done
        for name, made, options in self.plan(dense):
            if self.missing(name):
                self.fit(options.pop("start", dense), name, *made, **options)

    def plan(self, dense: lab.Run) -> Iterator[tuple[str, list[lab.Method], dict[str, Any]]]:
        """Name, methods and options of each run, in the order in which they are done."""
        yield "trained/dense", [], {}
        yield "cut/dense", [], {"epochs": 0}
        for sparsity in SPARSITIES:
            for method, made in trained(sparsity).items():
                yield f"trained/{method}/{sparsity}", [made], {}
                if method in ALONE:
                    yield f"cut/{method}/{sparsity}", [made], {"epochs": 0}
            masks = lab.prune(dense, sparsity, skip=COMMON["skip"])[1]
            fresh = {"start": self.net(self.seed + 1000), "masks": masks, "found_by": [dense]}
            yield f"trained/scratch/{sparsity}", [], fresh


def run_seed(seed: int, small: bool, folder: Path) -> None:
    torch.set_num_threads(1)
    Study(seed, small, folder).go()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--small", action="store_true", help="a tiny network, to see that it runs")
    given = parser.parse_args()
    folder = Path("runs/language-small/records") if given.small else Path(__file__).parent
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        list(pool.map(partial(run_seed, small=given.small, folder=folder), given.seeds))

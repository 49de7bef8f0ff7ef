"""Regrowth beside a random mask that stays, with 5 % of resnet20's weights on textures from the first step to the last.

    OMP_NUM_THREADS=1 python notebooks/results/regrowth/study.py 0 1 2

All ways of a seed begin with the same weights and the same mask, whose layers are as dense as Erdős-Rényi-Kernel says.
Each training leaves one record beside this file; what has one is left out, what was broken off goes on from runs/.
"""

import sys
from pathlib import Path
from typing import Any

import pruninglab as lab
from pruninglab.methods import SET, OneShot, RigL, SparseMomentum
from pruninglab.schedules import CosineRate

HERE, RUNS = Path(__file__).parent, Path("runs/regrowth")
TRAINED: dict[str, Any] = {"epochs": 15, "lr": 5e-3, "rate": CosineRate(warmup=0.1), "precision": "bf16"}


def main(seed: int) -> None:
    data = lab.load("textures", seed=seed)
    model = lab.build("resnet20", data, seed=seed)
    ways: dict[str, lab.Method] = {
        "random": OneShot(0.95, "random", scope="erk"),
        "RigL": RigL(0.95),
        "momentum": SparseMomentum(0.95, scope="erk"),
        "SET": SET(0.95),
    }
    for way, method in ways.items():
        record = HERE / f"textures/{way}-seed-{seed}.json"
        if not record.exists():
            files: dict[str, Any] = {"record": record, "checkpoint": RUNS / f"{way}-seed-{seed}.safetensors"}
            run = lab.fit(model, data, method, seed=seed, progress=False, **TRAINED, **files)
            print(way, seed, run.result.accuracy["val"], run.result.times["seconds"], flush=True)


if __name__ == "__main__":
    for seed in sys.argv[1:]:
        main(int(seed))

"""Regrowth beside a random mask that stays, with 5 % of resnet20's weights on textures from the first step to the last.

    OMP_NUM_THREADS=1 python notebooks/results/regrowth/study.py sgd 0 1 2
    OMP_NUM_THREADS=1 python notebooks/results/regrowth/study.py adam 0 1 2

All ways of a seed begin with the same weights and the same mask, whose layers are as dense as Erdős-Rényi-Kernel says.
Each training leaves one record beside this file; what has one is left out, what was broken off goes on from runs/.
"""

import sys
from pathlib import Path
from typing import Any

import pruninglab as lab
from pruninglab.methods import SET, OneShot, RigL, SparseMomentum
from pruninglab.train import CosineLR

HERE, RUNS = Path(__file__).parent, Path("runs/regrowth")
COMMON: dict[str, Any] = {"lr_schedule": CosineLR(warmup=0.1), "precision": "bf16", "progress": False}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"epochs": 45, "optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4},
    "adam": {"epochs": 15, "optimizer": "adam", "lr": 5e-3},
}
WAYS: dict[str, lab.Method] = {
    "random": OneShot(0.95, "random", scope="erk"),
    "RigL": RigL(0.95),
    "momentum": SparseMomentum(0.95, scope="erk"),
    "SET": SET(0.95),
    "RigL-often": RigL(0.95, every_steps=10),
}


def main(optimizer: str, method: str, seed: int) -> None:
    name = f"{optimizer}/{method}-seed-{seed}"
    files: dict[str, Any] = {"record": HERE / f"{name}.json", "checkpoint": RUNS / f"{name}.safetensors"}
    files["tags"] = {"group": optimizer, "method": method}
    if not files["record"].exists():
        data = lab.load("textures", seed=seed)
        model = lab.build("resnet20", data, seed=seed)
        run = lab.fit(model, data, WAYS[method], seed=seed, **COMMON, **OPTIMIZERS[optimizer], **files)
        print(name, run.result.accuracy["val"], run.result.times["seconds"], flush=True)


if __name__ == "__main__":
    for method in WAYS:
        for seed in sys.argv[2:]:
            main(sys.argv[1], method, int(seed))

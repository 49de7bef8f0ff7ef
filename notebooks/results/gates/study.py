"""Sparse variational dropout on LeNet-5 and MNIST with images held out, to 99 % zeros.

    PRUNINGLAB_DATA=… OMP_NUM_THREADS=1 python notebooks/results/gates/study.py 0 1 2

4 dense epochs, 30 with noise whose strength is steered to the sparsity, 10 under the mask. Each phase leaves one record
beside this file, and what was broken off goes on from runs/.
"""

import sys
from pathlib import Path
from typing import Any

import pruninglab as lab

HERE, RUNS = Path(__file__).parent, Path("runs/gates")


def main(seed: int) -> None:
    def phase(name: str, start: Any, epochs: int, *methods: lab.Method) -> lab.Run:
        files: dict[str, Any] = {"record": HERE / f"MNIST/seed-{seed}/{name}.json"}
        files |= {"checkpoint": RUNS / f"seed-{seed}/{name}.safetensors", "tags": {"stage": name}}
        run = lab.fit(start, data, *methods, epochs=epochs, seed=seed, precision="bf16", progress=False, **files)
        print(seed, name, run.sparsity, run.result.accuracy["val"], run.result.times["seconds"], flush=True)
        return run

    data = lab.load("MNIST", seed=seed, val=1 / 12)
    dense = phase("dense", lab.build("lenet5", data, seed=seed), 4)
    phase("retrained", phase("variational dropout", dense, 30, lab.methods.VariationalDropout(0.99)), 10)


if __name__ == "__main__":
    for seed in sys.argv[1:]:
        main(int(seed))

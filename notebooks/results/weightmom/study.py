"""WeightMom beside gradual magnitude, SNIP, N2NSkip and a random mask, at 10, 5 and 2 % of resnet20's weights.

    OMP_NUM_THREADS=1 python notebooks/results/weightmom/study.py textures 0 1 2 --size 16

All ways of a seed have the same data, the same steps and, but for N2NSkip's own net, the same initial weights. N2NSkip
keeps as many weights as the others, of its own convolutions too, and has batch norms beside them that are not counted.
Gradual magnitude cuts 50 times, WeightMom after epochs; "no memory" is WeightMom that sees the last epoch alone: it and
"no ratio" differ in the memory and nothing else. Each training leaves one record beside this file; what has one
is left out, and what was broken off goes on from runs/.
"""

import argparse
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pruninglab as lab
from pruninglab import methods
from pruninglab.train import CosineLR

HERE, RUNS = Path(__file__).parent, Path("runs/weightmom")
LOADED: dict[str, dict[str, Any]] = {
    "textures": {},
    "CIFAR10": {"train": 8000, "augment": "crop+flip"},
    "CIFAR100": {"train": 8000, "augment": "crop+flip"},
}
BATCH = {"textures": 25, "CIFAR10": 50, "CIFAR100": 50}  # for some 2,000 steps or more in 15 epochs
TRAINED: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "lr_schedule": CosineLR(warmup=0.2), "progress": False}


def ways(density: float) -> dict[str, lab.Method]:
    if density == 1:
        return {"dense": methods.Dense()}
    sparsity = round(1 - density, 4)
    curve = lab.Cubic(sparsity)
    span: dict[str, Any] = {"begin": 0.2, "end": 0.75}
    memory: dict[str, Any] = {"window": 5, "min_epochs_below": 3, **span}
    return {
        "random": methods.OneShot(sparsity, "random"),
        "SNIP": methods.OneShot(sparsity, "snip"),
        "N2NSkip": methods.N2NSkip(sparsity, "snip"),
        "gradual": methods.Gradual(curve, **span),
        "WeightMom": methods.WeightMom(curve, **memory),
        "WeightMom, no ratio": methods.WeightMom(curve, interpretation="off", **memory),
        "WeightMom, no memory": methods.WeightMom(curve, interpretation="off", window=1, min_epochs_below=1, **span),
    }


WAYS = [*ways(1), *ways(0.5)]


def main(cell: tuple[int, float, str], name: str, epochs: int, size: int | None, precision: str) -> str:
    seed, density, method = cell
    group = f"{name}-{size}" if size else name
    at = Path(group, f"{density:g}", f"{method.replace(', ', '-').replace(' ', '-')}-{seed}.json")
    record, working = HERE / at, RUNS / at
    if record.exists():
        found = lab.Result.read(record).config["epochs"]
        return f"{at}: is there" + ("" if found == epochs else f", of {found} epochs; move it away to have {epochs}")
    try:
        data = lab.load(name, seed=seed, size=size, **LOADED[name])
        other: dict[str, Any] = {"base": "resnet20"} if method == "N2NSkip" else {}
        model = lab.build("n2nskip" if other else "resnet20", data, seed=seed, **other)
        trained: dict[str, Any] = {**TRAINED, "batch_size": BATCH[name], "epochs": epochs, "precision": precision}
        tags = {"group": group, "density": density, "method": method}
        files: dict[str, Any] = {"record": working, "checkpoint": working.with_suffix(".safetensors"), "tags": tags}
        run = lab.fit(model, data, ways(density)[method], seed=seed, **trained, **files)
    except (lab.ConfigError, lab.DataError, lab.RunError) as error:  # the others go on
        return f"{at}: {error}"
    if run.status == "interrupted":
        return f"{at}: interrupted; the same command goes on"
    record.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(working, record)
    return f"{at}: {run.result.accuracy['val']}"


if __name__ == "__main__":
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("name", choices=LOADED, metavar="data", help=f"one of {', '.join(LOADED)}")
    read.add_argument("seeds", type=int, nargs="+")
    read.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.05, 0.02])
    read.add_argument(
        "--ways", nargs="+", choices=WAYS, default=WAYS, metavar="method", help=f"of {', '.join(map(repr, WAYS))}"
    )
    read.add_argument("--epochs", type=int, default=15)
    read.add_argument("--size", type=int, help="side of the images, if not as they are")
    read.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    read.add_argument("--jobs", type=int, default=2, help="trainings at a time, of OMP_NUM_THREADS threads each")
    asked = vars(read.parse_args())
    seeds, densities, jobs, wanted = (asked.pop(what) for what in ("seeds", "densities", "jobs", "ways"))
    known = [(density, method) for density in (1.0, *densities) for method in ways(density) if method in wanted]
    cells = [(seed, density, method) for seed in seeds for density, method in known]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for said in pool.map(partial(main, **asked), cells):
            print(said, flush=True)

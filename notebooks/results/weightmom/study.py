"""WeightMom beside gradual magnitude, SNIP, N2NSkip and a random mask, at 10, 5 and 2 % of resnet20's weights.

    OMP_NUM_THREADS=1 python notebooks/results/weightmom/study.py textures 0 1 2

All ways of a seed have the same data, the same steps and, but for N2NSkip's own net, the same initial weights. Each
training leaves one record beside this file; what has one is left out, and what was broken off goes on from runs/.
"""

import argparse
from pathlib import Path
from typing import Any

import pruninglab as lab
from pruninglab import methods
from pruninglab.schedules import CosineRate

HERE, RUNS = Path(__file__).parent, Path("runs/weightmom")
LOADED: dict[str, dict[str, Any]] = {
    "textures": {},
    "CIFAR10": {"train": 8000, "augment": "crop+flip"},
    "CIFAR100": {"train": 8000, "augment": "crop+flip"},
}
TRAINED: dict[str, Any] = {"lr": 5e-3, "rate": CosineRate(warmup=0.1), "precision": "bf16", "progress": False}


def ways(density: float) -> dict[str, lab.Method]:
    sparsity = round(1 - density, 4)
    curve = lab.Cubic(sparsity)
    span: dict[str, Any] = {"start": 0.2, "end": 0.75}
    memory: dict[str, Any] = {"window": 5, "min_epochs_below": 3, **span}
    return {
        "random": methods.OneShot(sparsity, "random"),
        "SNIP": methods.OneShot(sparsity, "snip"),
        "N2NSkip": methods.N2NSkip(sparsity, "snip"),
        "gradual": methods.Gradual(curve, **span),
        "WeightMom": methods.WeightMom(curve, **memory),
        "WeightMom, no ratio": methods.WeightMom(curve, reading="off", **memory),
    }


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("data", choices=LOADED)
    read.add_argument("seeds", type=int, nargs="+")
    read.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.05, 0.02])
    read.add_argument("--epochs", type=int, default=15)
    asked = read.parse_args()
    for seed in asked.seeds:
        data = lab.load(asked.data, seed=seed, **LOADED[asked.data])
        plain = lab.build("resnet20", data, seed=seed)
        skipping = lab.build("n2nskip", data, seed=seed, base="resnet20")
        cells: dict[tuple[float, str], lab.Method] = {(1.0, "dense"): methods.Dense()}
        cells |= {(density, way): method for density in asked.densities for way, method in ways(density).items()}
        for (density, way), method in cells.items():
            name = Path(asked.data, f"{density:g}", f"{way.replace(', ', '-').replace(' ', '-')}-{seed}")
            record = HERE / f"{name}.json"
            if not record.exists():
                files: dict[str, Any] = {"record": record, "checkpoint": RUNS / f"{name}.safetensors"}
                model = skipping if way == "N2NSkip" else plain
                lab.fit(model, data, method, epochs=asked.epochs, seed=seed, **TRAINED, **files)
                print(name, lab.results.Result.read(record).accuracy["test"], flush=True)


if __name__ == "__main__":
    main()

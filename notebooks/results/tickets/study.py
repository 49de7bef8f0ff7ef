"""Figures 2 and 6 of the survey on textures of 16 pixels with resnet20: is it the mask or the draw, and who wins?

    OMP_NUM_THREADS=1 python notebooks/results/tickets/study.py 0 1 2

At a low and at a high learning rate, in three rounds down to 4 % of the weights: the ticket and, with the same epochs,
its masks on new weights (which is Scratch-E), a random mask with as many weights in each layer, a cut all at once. At
the high rate also gradual pruning, the ticket's masks on new weights for twice the epochs (Scratch-B), and fine-tuning
of what is left after the cut at once. Each training leaves one record beside this file; what has been trained is not
trained again, and what was broken off goes on from runs/.
"""

import argparse
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pruninglab as lab
from pruninglab.recipes.stages import stage
from pruninglab.recipes.tickets import CONTROLS, redrawn
from pruninglab.train import CosineLR

HERE, RUNS = Path(__file__).parent, Path("runs/tickets")
LOW, HIGH = RATES = (0.01, 0.1)
SPARSITY, ROUNDS, EPOCHS, TUNE = 0.96, 3, 9, 5
SGD: dict[str, Any] = {"optimizer": "sgd", "batch_size": 25, "lr_schedule": CosineLR(warmup=0.2)}
TRAINED: dict[str, Any] = {**SGD, "precision": "fp32", "progress": False}


def main(cell: tuple[float, int], size: int, epochs: int) -> str:
    rate, seed = cell
    folder = Path(f"seed-{seed}", f"lr-{rate}")
    data = lab.load("textures", seed=seed, size=size)
    model = lab.build("resnet20", data, seed=seed)
    controls = [*CONTROLS, "gradual"] if rate == HIGH else CONTROLS
    rounds: dict[str, Any] = {"rounds": ROUNDS, "controls": controls, "compare": "each", "folder": RUNS / folder}
    trained: dict[str, Any] = {**TRAINED, "seed": seed}
    made = lab.recipes.tickets(model, data, SPARSITY, epochs=epochs, lr=rate, **rounds, **trained)
    tickets, cuts = ([trial.run for trial in made if trial.method == method] for method in ("ticket", "one-shot"))
    for number, (ticket, cut) in enumerate(zip(tickets, cuts, strict=False) if rate == HIGH else (), 1):
        for method, start, found, length, lr in (
            ("Scratch-B", redrawn(model, seed), ticket, 2 * epochs, rate),
            ("fine-tuned", made["dense"], cut, TUNE, rate / 10),
        ):
            if made.last.status != "interrupted":
                files = stage(RUNS / folder, f"round-{number:02d}-{method}")
                how: dict[str, Any] = {"masks": found.masks, "found_by": [found], "epochs": length, "lr": lr}
                made.add(method, lab.fit(start, data, **how, **files, **trained), round=number)
    if made.last.status == "interrupted":
        return f"{folder}: interrupted; the same command goes on"
    (HERE / folder).mkdir(parents=True, exist_ok=True)
    for record in (RUNS / folder).glob("*.json"):
        shutil.copy(record, HERE / folder)
    return f"{folder}: {len(made)} trainings, dense {made['dense'].val}"


if __name__ == "__main__":
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("seeds", type=int, nargs="+")
    read.add_argument("--rates", type=float, choices=RATES, nargs="+", default=[HIGH, LOW])
    read.add_argument("--size", type=int, default=16, help="side of the images")
    read.add_argument("--epochs", type=int, default=EPOCHS)
    read.add_argument("--jobs", type=int, default=2, help="trainings at a time, of OMP_NUM_THREADS threads each")
    asked = read.parse_args()
    cells = [(rate, seed) for rate in asked.rates for seed in asked.seeds]
    with ProcessPoolExecutor(asked.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for said in pool.map(partial(main, size=asked.size, epochs=asked.epochs), cells):
            print(said, flush=True)

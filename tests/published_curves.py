"""The curves of the survey's Figures 3 and 4 from the authors' own CSV files, as rows of `papers.json`.

    python tests/published_curves.py google-research/state_of_sparsity/results

The files are in the public repository google-research/google-research. Each row of a file is a setting, with one score
and sparsity, or with one of each for several thresholds. `test_papers.py` compares the rows with the tables where
PRUNINGLAB_CURVES names that folder. Its name keeps this file from being collected as a test.
"""

import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

Point = tuple[float, float]
TECHNIQUES = {
    "magnitude_pruning": "Magnitude pruning",
    "random_pruning": "Random pruning",
    "variational_dropout": "Variational dropout",
    "l0_regularization": "L0 regularization",
}
LEVELS = {"transformer": (50, 60, 70, 80, 90, 95, 98), "rn50": (50, 70, 80, 90, 95, 98)}


def points(lines: Iterable[str]) -> Iterator[Point]:
    """Sparsity in percent and score of every setting; BLEU as it is, accuracies of single settings in percent."""
    for row in csv.DictReader(lines):
        named = {name.lower().replace("_", " "): value for name, value in row.items()}
        for name, value in named.items():
            if "sparsity" in name:
                _, _, threshold = name.partition(":")
                score, scale = next(
                    (number, 1 if "bleu" in other else 100)
                    for other, number in named.items()
                    if ("bleu" in other or "accuracy" in other) and other.partition(":")[2] == threshold
                )
                yield float(value) * 100, float(score) * scale


def best(found: Iterable[Point], least: float) -> Point | None:
    """The best score of those that are at least as sparse, to a hundredth of a percent; of equal ones the sparsest."""
    able = [one for one in found if round(one[0], 2) >= least]
    return max(able, key=lambda one: one[::-1], default=None)


def rows(folder: Path, network: str) -> Iterator[str]:
    """The lines of a table's body, without its head and baseline."""
    for ending, name in TECHNIQUES.items():
        file = folder / f"sparse_{network}" / "technique_comparison" / f"{network}_{ending}.csv"
        found = list(points(file.read_text().splitlines()))
        for level in LEVELS[network]:
            if one := best(found, level):
                yield f"{name} | {one[1]:.2f} | {level} | {one[0]:.2f}"


if __name__ == "__main__":
    for network in LEVELS:
        print(network, *rows(Path(sys.argv[1]), network), sep="\n")

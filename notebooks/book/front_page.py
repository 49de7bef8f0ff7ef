"""`python notebooks/book/front_page.py` prints what has been reached, as the README has it; a test compares the two."""

from pathlib import Path

import numpy as np
import pandas as pd
import scipy

import pruninglab as lab

RESULTS = Path(__file__).resolve().parents[1] / "results"
SEEN = {
    "ADMM, progressive": ("admm", "method == 'progressive' and stage == 'end'"),
    "relevance, then rewound": ("relevance", "method == 'given masks' and group == 'MNIST-sparser'"),
    "variational dropout": ("gates", "stage == 'retrained'"),
}
COMMANDS = {"admm": "05_admm", "relevance": "04_relevance", "gates": "10_gates"}


def reached() -> str:
    """Studies of LeNet-5 on MNIST as rows of Markdown: mean, 95 % interval, n, and the notebook that makes them."""
    rows = ["| method | weights left | compression | test accuracy | n | made by |", "|---|---|---|---|---|---|"]
    for name, (folder, query) in SEEN.items():
        table = lab.results.load(RESULTS / folder).query(query)
        for sparsity, of in table.groupby(table["sparsity_weights"].round(4)):
            rows.append(_row(name, float(str(sparsity)), of, folder))
    return "\n".join(rows)


def _row(name: str, sparsity: float, of: pd.DataFrame, folder: str) -> str:
    scores, n = 100 * of["test_accuracy"].to_numpy(), len(of)
    half = scipy.stats.t.ppf(0.975, n - 1) * scores.std(ddof=1) / np.sqrt(n)
    made = f"[{COMMANDS[folder]}](notebooks/{COMMANDS[folder]}.ipynb)"
    left, times = f"{100 * (1 - sparsity):.2g} %", f"{1 / (1 - sparsity):.3g}×"
    return f"| {name} | {left} | {times} | {scores.mean():.2f} ± {half:.2f} % | {n} | {made} |"


if __name__ == "__main__":
    print(reached())

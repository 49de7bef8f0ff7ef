"""What the README shows, from real runs. `python notebooks/book/front_page.py` draws the moving picture anew.

It prints the table of what has been reached, computed from the records in notebooks/results; a test compares the two.
"""

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
from matplotlib.ticker import MaxNLocator
from PIL import Image

import pruninglab as lab
from pruninglab.plots import figure as figures
from pruninglab.plots.looks import BLUE, ORANGE, PALE

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
SEEN = {
    "ADMM, progressive": ("admm", "method == 'progressive' and stage == 'end'"),
    "relevance, then rewound": ("relevance", "method == 'given masks' and group == 'MNIST-sparser'"),
    "variational dropout": ("gates", "stage == 'retrained'"),
}
COMMANDS = {"admm": "05_admm", "relevance": "04_relevance", "gates": "10_gates"}


@dataclass
class Film(lab.Method):
    """Keep what one layer looks like after every epoch."""

    frames: list[np.ndarray] = field(init=False, default_factory=list)

    def on_epoch(self, run: lab.Run) -> None:
        weight = run.weights["conv1.weight"].detach().cpu()
        self.frames.append(weight.masked_fill(~run.masks["conv1.weight"].cpu(), float("nan")).squeeze(1).numpy())


def film(epochs: int = 16) -> list[Image.Image]:
    """A frame an epoch: the filters of the first layer, accuracy and sparsity so far, and what each layer keeps."""
    data = lab.load("digits", seed=0)
    dense = lab.fit(lab.build("lenet5", data, seed=0), data, epochs=8, seed=0, progress=False)
    method = lab.methods.Gradual(lab.Cubic(0.95), end=0.8)
    run = lab.fit(dense, data, method, Film(), epochs=epochs, seed=0, progress=False)
    return [_frame(run, run[Film].frames[i], i + 1) for i in range(epochs)]


def _frame(run: lab.Run, filters: np.ndarray, epoch: int) -> Image.Image:
    figure, (left, middle, right) = figures.panels(3, width=11.0, height=2.6)
    top, gap = float(np.nanmax(np.abs(filters))), np.full((5, 1), np.nan)
    rows = [np.hstack([np.hstack([f, gap]) for f in filters[i : i + 5]]) for i in range(0, 20, 5)]
    left.imshow(np.vstack([np.vstack([r, r[:1] * np.nan]) for r in rows]), cmap="RdBu_r", vmin=-top, vmax=top)
    left.set_axis_off()
    figures.name_panel(left, "filters of conv1, pruned weights blank")
    history = run.history[:epoch]
    for key, colour, marker, name in (("val_accuracy", BLUE, "o", "accuracy"), ("sparsity", ORANGE, "^", "sparsity")):
        middle.plot([h["epoch"] for h in history], [h[key] for h in history], marker=marker, color=colour, label=name)
    middle.set(xlim=(0.5, len(run.history) + 0.5), ylim=(-0.03, 1.03), xlabel="epoch")
    middle.xaxis.set_major_locator(MaxNLocator(integer=True))
    middle.legend(loc="lower right", frameon=False, fontsize=figures.FONT)
    shares = [kept / run.masks[name].numel() for name, kept in history[-1]["kept"].items()]
    right.barh(range(len(shares)), [1] * len(shares), color=PALE)
    right.barh(range(len(shares)), shares, color=BLUE)
    figures.row_labels(right, map(figures.short, run.masks))
    right.set(xlim=(0, 1), xlabel="share of weights left in each layer")
    figures.percent(middle.yaxis)
    figures.percent(right.xaxis)
    at = history[-1]
    title = f"Epoch {epoch}: {at['sparsity']:.0%} of LeNet-5 pruned, validation accuracy {at['val_accuracy']:.1%}"
    figures.finish(figure, title, "")
    figure.draw_without_rendering()
    return Image.open(BytesIO(figure.png(scale=1))).convert("RGB")


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
    frames = film()
    frames = [frame.quantize(96, dither=Image.Dither.NONE) for frame in frames]
    shown = [220] * (len(frames) - 1) + [2500]
    frames[0].save(HERE / "front.gif", save_all=True, append_images=frames[1:], duration=shown, loop=0, optimize=True)
    print(reached())

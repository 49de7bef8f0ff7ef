"""Drawings of ideas: small examples that the package's own functions compute, not sketches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor

from ..masks.masks import Masks
from ..methods.noise.l0 import p_open
from ..methods.projection.admm import nearest, summed
from ..methods.regrowth.rigl import update
from ..storage.codec import encode_bitmap, encode_csr, encode_gap, from_bits
from .figure import FONT, Figure, finish, images, legend, name_panel, panels, percent
from .looks import BLACK, BLUE, GREY, ORANGE, PALE, PINK, VIOLET


def encodings() -> Figure:
    """A pruned matrix, and three ways to write down where its weights are.

    >>> lab.plots.concepts.encodings().alt[:30]
    'A matrix of 4 times 8 weights,'
    """
    weights = torch.randn(4, 8, generator=torch.Generator().manual_seed(3)).numpy()
    mask = np.abs(weights) >= np.sort(np.abs(weights).ravel())[-8]
    short_gaps = encode_gap(mask, 3)
    codes = [str(code) for code in from_bits(short_gaps, 3, len(short_gaps) // 3)]
    bits = {"a bit for each weight": len(encode_bitmap(mask)), "gaps": len(short_gaps)}
    bits |= {"rows and columns": len(encode_csr(mask, 2))}
    figure, grid = images(1, 2, (10.0, 2.9))
    left, right = grid[0]
    for (row, column), weight in np.ndenumerate(weights):
        kept = mask[row, column]
        _cell(left, column, -row, f"{weight:.1f}" if kept else "0", BLUE if kept else PALE)
    _frame(left, (-0.1, 8.1), (-3.1, 1.9))
    _write(left, 0, 1.35, f"8 of {mask.size} weights are kept", ha="left")
    _strip(right, 2.2, f"bitmap: {bits['a bit for each weight']} bits", [str(int(kept)) for kept in mask.flat], 0.5)
    _strip(right, 0.0, f"zeros before each weight, 3 bits each (7: more to come): {bits['gaps']} bits", codes)
    counts, columns = [str(n) for n in mask.sum(1)], [str(column) for column in np.nonzero(mask)[1]]
    _strip(right, -2.2, f"CSR: weights in each row, then their columns: {bits['rows and columns']} bits", counts)
    _strip(right, -2.2, "", columns, start=len(counts) + 0.5)
    _frame(right, (-0.2, 16.2), (-2.4, 4.1))
    said = ", ".join(f"{name} {count} bits" for name, count in bits.items())
    title = "Zeros are cheap only if their places are: one pruned matrix and three encodings"
    return finish(figure, title, f"A matrix of 4 times 8 weights, of which 8 are kept. Its positions take: {said}.")


def pipeline() -> Figure:
    """What pruning a network takes, and what has to stand beside it.

    >>> lab.plots.concepts.pipeline().alt[:28]
    'Train, score, prune, fine-tu'
    """
    figure, grid = images(1, 1, (10.0, 2.5))
    axes = grid[0, 0]
    steps = ["train", "score\nthe weights", "prune\nthe lowest", "fine-tune", "measure", "encode\nor shrink"]
    for i, step in enumerate(steps):
        _box(axes, 2.6 * i, 0, step, ORANGE if step.startswith("prune") else BLUE)
        if i:
            _arrow(axes, (2.6 * i - 1.7, 0), (2.6 * i - 0.9, 0))
    _arrow(axes, (7.8, 0.5), (2.6, 0.5), bend=0.2)
    _write(axes, 5.2, 1.45, "again, until it is sparse enough")
    for at, control in ((5.2, "dense network,\nsame steps"), (7.8, "random mask,\nsame sparsity")):
        _box(axes, at, -1.7, control, GREY)
    _write(axes, 2.6, -1.7, "controls beside it")
    _arrow(axes, (8.7, -1.7), (10.4, -0.5), bend=0.3)
    _frame(axes, (-1.0, 14.0), (-2.2, 1.7))
    said = "Train, score, prune, fine-tune, and repeat; then measure beside two controls, and encode or shrink."
    return finish(figure, "How is a network pruned, and what makes the result fair?", said)


def coupled_channels() -> Figure:
    """A residual block: what is added has to have the same channels, so they are removed together.

    >>> lab.plots.concepts.coupled_channels().alt[:20]
    'A residual block add'
    """
    figure, grid = images(1, 1, (9.6, 2.9))
    axes = grid[0, 0]
    removed = {"x": {2}, "conv1": {1, 3}, "conv2": {2}, "sum": {2}}
    for at, (name, gone) in zip((0, 3, 6, 9), removed.items(), strict=True):
        for channel in range(5):
            colour = ORANGE if channel in gone and name != "conv1" else VIOLET if channel in gone else BLUE
            hatch = "//" if channel in gone else None
            look: dict[str, Any] = {"facecolor": "white" if hatch else colour, "edgecolor": colour, "hatch": hatch}
            axes.add_patch(Rectangle((at - 0.35, 1 - 0.5 * channel), 0.7, 0.4, **look))
        _write(axes, at, -1.55, {"x": "input", "sum": "output"}.get(name, name))
    for start, end, said in ((0.5, 2.5, "conv1"), (3.5, 5.5, "conv2"), (6.5, 8.5, "+")):
        _arrow(axes, (start, 0.2), (end, 0.2))
        _write(axes, (start + end) / 2, 0.55, said if said == "+" else f"weights of\n{said}")
    _arrow(axes, (0, 1.5), (9, 1.5), bend=-0.13)
    _write(axes, 4.5, 3.0, "the skip adds channel 3 to channel 3", "#A84A00")
    _write(axes, 3, -2.15, "free to choose", VIOLET)
    _write(axes, 6, -2.15, "goes with the input", "#A84A00")
    _frame(axes, (-0.7, 9.7), (-2.4, 3.2))
    said = "A residual block adds its input to the output of conv2, so a channel is removed from both or from neither; "
    title = "A skip connection couples channels: input, conv2 and output lose the same ones"
    return finish(figure, title, said + "the channels of conv1 in between are free.")


def three_variables(rounds: int = 5, rho: float = 0.6) -> Figure:
    """ADMM on two weights of which one may stay: where W, Z and U go, round by round.

    >>> lab.plots.concepts.three_variables().alt[:22]
    'ADMM on two weights in'
    """
    minimum, curved = torch.tensor([1.0, 0.7]), torch.tensor([[1.0, 0.5], [0.5, 1.2]])
    w = minimum.clone()
    z, u = nearest({"w": w}, {}, 0.5)["w"], torch.zeros(2)
    path: list[tuple[Tensor, Tensor, Tensor]] = [(w, z, u)]
    for _ in range(rounds):
        w = torch.linalg.solve(curved + rho * torch.eye(2), curved @ minimum + rho * (z - u))  # the least of f + ρ/2·…
        z = nearest({"w": w}, {"w": u}, 0.5)["w"]
        u = summed(u, w, z)
        path.append((w, z, u))
    figure, (axes,) = panels(1, width=6.6, height=3.4)
    line = torch.linspace(-0.3, 1.6, 80)
    at = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1) - minimum
    axes.contour(line, line, 0.5 * ((at @ curved) * at).sum(-1), levels=[0.02, 0.08, 0.18, 0.32], colors=PALE)
    axes.plot(*minimum.tolist(), "*", color=BLACK, ms=11, ls="", label="minimum of the loss")
    axes.plot(*torch.stack([w for w, _, _ in path]).T.tolist(), "o-", color=BLUE, label="W, the weights")
    axes.plot(*torch.stack([z for _, z, _ in path]).T.tolist(), "D", color=ORANGE, label="Z, their sparse copy")
    pull = {"arrowstyle": "->", "color": VIOLET, "lw": 1.5}
    for w, _, u in path[1:]:
        axes.annotate("", tuple((w - 0.25 * u).tolist()), tuple(w.tolist()), arrowprops=pull)
    axes.plot([], [], color=VIOLET, label="pull of U, the sum of W - Z")
    axes.set(xlabel="first weight", ylabel="second weight", xlim=(-0.1, 1.6), ylim=(-0.35, 1.05))
    legend(figure)
    gap = [float((w - z).norm()) for w, z, _ in (path[0], path[-1])]
    said = f"ADMM on two weights in {rounds} rounds: the distance of W and Z falls from {gap[0]:.2f} to {gap[1]:.2f}."
    return finish(figure, "Z is sparse, and U pulls the weights W towards it a little more in every round", said)


def gate() -> Figure:
    """What the gate of L0 does to a weight: how often it is closed, half open and open, as log α is learned.

    >>> lab.plots.concepts.gate().alt[:17]
    'Of a gate drawn w'
    """
    log_alpha = torch.linspace(-6, 6, 121)
    closed, full = 1 - p_open(log_alpha), p_open(log_alpha, above=1.0)
    figure, (axes,) = panels(1, width=7.2, height=2.6)
    parts = [closed, 1 - closed - full, full]
    names = ["closed: the weight counts as 0", "between: it is scaled", "open: it counts as it is"]
    axes.stackplot(log_alpha, *parts, colors=[ORANGE, PALE, BLUE], labels=names)
    axes.set(xlabel="log α, which training learns for each gate", ylabel="share of draws", ylim=(0, 1), xlim=(-6, 6))
    percent(axes.yaxis)
    legend(figure)
    half = float(log_alpha[(closed < 0.5).nonzero()[0, 0]])
    said = f"Of a gate drawn with log α below {half:.1f}, most draws are exactly 0; with a high one most are exactly 1."
    return finish(figure, "A gate multiplies its weight, and is often exactly 0", said)


def moving_mask() -> Figure:
    """One update of RigL on a small layer: what is dropped, what grows, and the mask after it.

    >>> lab.plots.concepts.moving_mask().alt[:24]
    'A layer of 6 times 8 wei'
    """
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(48).index_fill(0, torch.randperm(48, generator=generator)[:16], 1).bool().view(6, 8)
    weights = {"layer": torch.randn(6, 8, generator=generator) * mask}
    felt = {"layer": torch.randn(6, 8, generator=generator).abs() * ~mask}
    after = update(weights, felt, Masks(layer=mask), 0.3)["layer"]
    dropped, grown = mask & ~after, after & ~mask
    figure, grid = images(1, 4, (10.0, 2.3))
    marks = ((mask, None, None), (mask, dropped, "×"), (mask & after, grown, "+"), (after, None, None))
    titles = ("the mask before", "drop the smallest |w|", "grow where |∂L/∂w| is largest", "the mask after")
    for axes, (kept, marked, sign), title in zip(grid[0], marks, titles, strict=True):
        for (row, column), one in np.ndenumerate(kept.numpy()):
            special = marked is not None and bool(marked[row, column])
            colour = (ORANGE if sign == "×" else PINK) if special else BLUE if one else PALE
            _cell(axes, column, -row, str(sign) if special else "", colour)
        _frame(axes, (-0.1, 8.1), (-5.1, 1.1))
        name_panel(axes, title)
    moved = int(dropped.sum())
    said = f"A layer of 6 times 8 weights keeps {int(mask.sum())}: {moved} are dropped, {int(grown.sum())} others grow."
    return finish(figure, "The mask moves, and the number of weights stays: one update of RigL", said)


def _write(axes: Axes, x: float, y: float, text: str, colour: str = BLACK, ha: str = "center") -> None:
    axes.text(x, y, text, fontsize=FONT, color=colour, ha=ha, va="center")


def _cell(axes: Axes, x: float, y: float, text: str, colour: str, wide: float = 1.0) -> None:
    axes.add_patch(Rectangle((x + 0.04, y + 0.04), wide - 0.08, 0.92, facecolor=colour, edgecolor="none"))
    ink = BLACK if colour == PALE else "white"
    _write(axes, x + wide / 2, y + 0.48, text, ink)


def _strip(axes: Axes, y: float, name: str, cells: Sequence[str], wide: float = 1.0, start: float = 0.0) -> None:
    """A row of numbers with a name above it."""
    _write(axes, 0, y + 1.4, name, ha="left")
    for i, text in enumerate(cells):
        _cell(axes, start + i * wide, y, text, BLUE if text != "0" or wide == 1.0 else PALE, wide)


def _box(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    look: dict[str, Any] = {"boxstyle": "round,pad=0.05,rounding_size=0.12", "facecolor": colour, "edgecolor": "none"}
    axes.add_patch(FancyBboxPatch((x - 0.82, y - 0.42), 1.64, 0.84, **look))
    _write(axes, x, y, text, "white")


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> None:
    look = {"arrowstyle": "->", "color": BLACK, "connectionstyle": f"arc3,rad={bend}", "shrinkA": 4, "shrinkB": 4}
    axes.annotate("", end, start, arrowprops=look)


def _frame(axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    axes.set(xlim=x, ylim=y, aspect="equal")

"""What all figures share: the style, the title, axes in percent, and the picture with its words."""

import base64
import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import combinations
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import figure as matplotlib_figure
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter
from PIL import Image
from torch import Tensor

from ..errors import ConfigError
from ..masks.masks import Masks
from ..results.record import Result
from ..train.run import Run
from ..typed import one_of
from .looks import Look

FONT = 9
"""The one size of letters; titles are a point larger."""
STYLE: dict[Any, Any] = sns.axes_style("whitegrid") | {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.55",
    "grid.color": "0.9",
    "text.color": "0.13",
    "axes.labelcolor": "0.13",
    "xtick.color": "0.13",
    "ytick.color": "0.13",
    "font.size": FONT,
    "axes.labelsize": FONT,
    "axes.titlesize": FONT,
    "axes.titlelocation": "left",
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "legend.fontsize": FONT,
    "legend.frameon": False,
    "figure.titlesize": FONT + 1,
    "lines.markersize": 5,
    "font.sans-serif": ["DejaVu Sans"],
}
"""Dark letters on a white card, which stays legible where the page around it is dark."""
LEAST = 0.65
"""Of its size, a figure is shown in at least so much: letters can be read, and a narrow page scrolls to the rest."""
NOTHING = "there is nothing to draw; give at least one run or result."


class Figure(matplotlib_figure.Figure):
    """A matplotlib figure that shows itself in any notebook, with its words for those who cannot see it.

    It needs neither pyplot nor a backend, so that nothing is drawn twice and a thread may draw too. A notebook gets an
    `<img>` with alternative text: that reaches a screen reader, and stays where a notebook is not trusted.
    """

    alt = ""

    def png(self, scale: int = 2) -> bytes:
        """The picture in few colours, which makes the file a third as large, for screens of double density."""
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", dpi=100 * scale)
        drawn.seek(0)
        Image.open(drawn).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
        return small.getvalue()

    def html(self) -> str:
        """The picture as an `<img>`, with its words."""
        png = base64.b64encode(self.png()).decode()
        width = round(100 * self.get_figwidth())
        style = f"max-width:100%;min-width:{round(LEAST * width)}px"
        return f'<img src="data:image/png;base64,{png}" width="{width}" style="{style}" alt="{escape(self.alt)}">'

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        touch = touching(self)  # before the picture, which then finds everything in its place
        return {"text/html": self.html(), "text/plain": self.alt}, {"text/html": {"touching": touch}}


def touching(figure: matplotlib_figure.Figure) -> list[str]:
    """Which texts of a figure lie upon each other or leave the picture; empty where all can be read."""
    for _ in range(2):  # axes of equal aspect find their place in the second draw
        figure.draw_without_rendering()
    undrawn = {label for axes in figure.axes for label in _undrawn(axes)}
    texts = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_visible() and t.get_text().strip()]
    boxes = [(t.get_text().replace("\n", " "), t.get_window_extent().padded(-0.5)) for t in texts if t not in undrawn]
    edge = figure.bbox.padded(1.0)
    outside = [text for text, box in boxes if not (edge.contains(*box.min) and edge.contains(*box.max))]
    title = figure.get_suptitle().replace("\n", " ")
    legends = [("the legend", one.get_window_extent()) for one in figure.legends]
    pairs = [*combinations(boxes, 2), *(((t, box), one) for t, box in boxes if t == title for one in legends)]
    return [f"{a} | {b}" for (a, one), (b, other) in pairs if one.overlaps(other)] + outside


def _undrawn(axes: Axes) -> Iterator[Text]:
    """Labels that exist and are not drawn: those of ticks beyond the limits, and all of axes that are off."""
    for axis in (axes.xaxis, axes.yaxis):
        place = axis.get_transform().transform  # on a logarithmic axis all of small numbers lie near each other
        low, high = sorted(place(axis.get_view_interval()))
        reach = 1e-6 * (high - low)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not axes.axison or not low - reach <= place(tick.get_loc()) <= high + reach:
                yield from (tick.label1, tick.label2)
        if not axes.axison:
            yield axis.label


def first_of(layers: str) -> str:
    """The first of several layers, and how many more there are."""
    first, *others = layers.split(", ")
    return f"{first} + {len(others)}" if others else first


def short(layer: str) -> str:
    return layer.removesuffix(".weight")


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.07)


def panels(number: int, width: float = 0.0, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """An empty figure of several panels in a row, in inches without its title."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width or 4.2 * number + 1.0, height + 0.35), layout=_layout())
        return figure, list(figure.subplots(1, number, squeeze=False)[0])


def images(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A grid of panels without axes, for pictures."""
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(size[0], size[1] + 0.35), layout=_layout())
        grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, grid


def finish(figure: Figure, title: str, alt: str) -> Figure:
    """The figure with its title, which is a finding or a question, and its words."""
    beside = max((len(text.get_text()) for one in figure.legends for text in one.get_texts()), default=-9)
    lines = textwrap.wrap(title, int(12 * figure.get_figwidth() - 0.85 * beside) - 8)
    figure.set_figheight(figure.get_figheight() + 0.16 * (len(lines) - 1))
    size = {"fontsize": FONT + 1, "fontweight": "bold", "color": "0.13"}
    figure.suptitle("\n".join(lines), x=0.01, ha="left", **size)
    figure.alt = alt
    return figure


def legend(figure: Figure, axes: Axes | None = None, handles: Sequence[Any] | None = None) -> None:
    """The legend to the right of the lines: of one panel, of what is given, or of all."""
    given: dict[str, Any] = {"loc": "outside right upper", "frameon": False, "fontsize": FONT, "labelcolor": "0.13"}
    if handles is None and axes is not None:
        handles = axes.get_legend_handles_labels()[0]
    figure.legend(**given, **({} if handles is None else {"handles": handles}))


def row_labels(axes: Axes, names: Iterable[str], shown: bool = True) -> None:
    """Names beside the rows of a panel, the first at the top."""
    names = list(names)
    axes.set(yticks=range(len(names)), ylim=(len(names) - 0.5, -0.5))
    axes.set_yticklabels(names if shown else [])


def name_panel(axes: Axes, name: str) -> None:
    axes.set_title(name, fontsize=FONT, loc="left", color="0.13")


def percent(axis: Axis) -> None:
    """Shares as people say them: `2 %`."""
    axis.set_major_formatter(lambda share, _: in_percent(share))


def whole(axis: Axis) -> None:
    """Ticks at whole numbers alone, such as epochs; also where there is only one."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def log_percent(axis: Axis, low: float, high: float) -> None:
    """A logarithmic axis of shares: `1 %`, `2 %`, `5 %` over a few decades, powers of ten alone over many."""
    subs = (1.0, 2.0, 3.0, 5.0, 7.0) if high <= 10 * low else (1.0, 2.0, 5.0) if high <= 200 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(lambda share, _: in_percent(share))
    axis.set_minor_formatter(NullFormatter())


def log_levels(axis: Axis, shares: Iterable[float], least: float = 0.09) -> None:
    """Ticks at the shares that were drawn, each with its compression ratio: `2 %` above `50×`.

    Of two that are nearer than `least` of the axis, the second has no tick, so that their labels do not touch.
    """
    at = sorted(shares)
    span = np.log(at[-1] / at[0]) * 1.1 if len(at) > 1 else 1.0
    kept = at[:1]
    for share in at[1:]:
        kept += [share] if np.log(share / kept[-1]) > least * span else []
    axis.set_major_locator(FixedLocator(kept))
    axis.set_major_formatter(lambda share, _: f"{100 * share:.2g} %\n{1 / share:.3g}×")
    axis.set_minor_formatter(NullFormatter())


def colour_bar(figure: Figure, image: Any, axes: Axes, label: str, shares: bool = False) -> None:
    """The scale of colours beside a panel, in percent where they are shares."""
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(label, fontsize=FONT)
    if shares:
        percent(bar.ax.yaxis)
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.tick_params(labelsize=FONT)


def in_percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def interval(axes: Axes, at: Sequence[float], means: Sequence[float], halves: Sequence[float], look: Look) -> None:
    """A line through means with their 95 % intervals."""
    axes.errorbar(at, means, yerr=halves, color=look.colour, capsize=3, lw=1.5, elinewidth=1.2)


def face(look: Look, n: int) -> str:
    """The inside of a marker: hollow where a single run stands behind it."""
    return look.colour if n > 1 else "white"


def check_comparable(results: pd.DataFrame) -> None:
    if results.empty:
        raise ConfigError("there are no results to compare; is the folder right?")
    unlike = [c for c in ("data", "model", "chosen_on") if c in results and len(set(results[c])) > 1]
    if unlike:
        raise ConfigError(f"these results differ in {', '.join(unlike)}; choose those of one, or they do not compare.")


def layer_of(tensors: Mapping[str, Tensor], layer: str) -> Tensor:
    """A layer by name, or a ConfigError with the names that there are."""
    return tensors[one_of("layer", layer, tensors)]


def check_columns(table: pd.DataFrame, *columns: str) -> None:
    """Refuse a column that a table does not have, before anything is drawn."""
    if missing := [column for column in columns if column not in table]:
        raise ConfigError(f"there is no column {missing[0]!r}; the table has {', '.join(map(str, table))}.")


def accuracies(run: Run | Result) -> list[float]:
    """By epoch; NaN where a record has none."""
    return [float("nan") if h["val_accuracy"] is None else h["val_accuracy"] for h in run.history]


def results_of(runs: Sequence[Run | Result]) -> list[Result]:
    if not runs:
        raise ConfigError(NOTHING)
    return [run.result if isinstance(run, Run) else run for run in runs]


def labels_of(runs: Sequence[Any], labels: Sequence[str] | None) -> list[str]:
    if labels is not None:
        if len(labels) != len(runs):
            raise ConfigError(f"{len(labels)} labels for {len(runs)} runs; give one for each.")
        if len(set(labels)) != len(labels):
            raise ConfigError(f"two runs have the same label: {', '.join(labels)}.")
        return list(labels)
    names = ["masks" if isinstance(r, Masks) else r.name for r in runs]
    return [f"{n} ({i + 1})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def kept_of(run: Run | Result | Masks) -> dict[str, float]:
    if isinstance(run, Masks):
        return {name: kept / run[name].numel() for name, kept in run.kept_by_layer.items()}
    return {x["layer"]: x["kept"] / x["total"] for x in results_of([run])[0].layers}


def method_of(run: Run, has: str, kinds: Any, trained: str) -> Any:
    """The method of a run that has noted what a figure shows; a ConfigError says how to train one."""
    for method in run.methods:
        if isinstance(method, kinds) and getattr(method, has, None):
            return method
    raise ConfigError(f"this run has nothing to draw here; draw one that was trained with {trained}.")

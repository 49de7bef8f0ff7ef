"""Figures from runs and results. Each returns a `Figure` and never shows it; `figure.alt` says it in words."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import figure as matplotlib_figure
from matplotlib.axes import Axes

from ..errors import ConfigError
from ..masks.masks import Masks
from ..results.record import Result
from ..train.run import Run


class Figure(matplotlib_figure.Figure):
    """A matplotlib figure that shows itself in any notebook, with its words for those who cannot see it.

    It needs neither pyplot nor a backend, so that nothing is drawn twice and a thread may draw too.
    """

    alt = ""

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        image = io.BytesIO()
        self.savefig(image, format="png", dpi=100)
        png = base64.b64encode(image.getvalue()).decode()
        return {"image/png": png, "text/plain": self.alt}, {"image/png": {"alt": self.alt}}


COLOURS = sns.color_palette("colorblind")
NOTHING = "there is nothing to draw; give at least one run or result."
_STYLE: dict[str, Any] = sns.axes_style("whitegrid") | {"axes.spines.top": False, "axes.spines.right": False}


def _first(layers: str) -> str:
    """The first of several layers, and how many more there are."""
    first, *others = layers.split(", ")
    return f"{first} + {len(others)}" if others else first


def _short(layer: str) -> str:
    return layer.removesuffix(".weight")


def _figure(panels: int, width: float = 0.0, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    with sns.axes_style(_STYLE):
        figure = Figure(figsize=(width or 4.2 * panels + 1.0, height), layout="constrained")
        return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _with_alt(figure: Figure, alt: str) -> Figure:
    figure.alt = alt
    return figure


def _check_comparable(results: pd.DataFrame) -> None:
    if results.empty:
        raise ConfigError("there are no results to compare; is the folder right?")
    unlike = [c for c in ("data", "model", "chosen_on") if c in results and len(set(results[c])) > 1]
    if unlike:
        raise ConfigError(f"these results differ in {', '.join(unlike)}; choose those of one, or they do not compare.")


def _accuracies(run: Run | Result) -> list[float]:
    """By epoch; NaN where a record has none."""
    return [float("nan") if h["val_accuracy"] is None else h["val_accuracy"] for h in run.history]


def _results(runs: Sequence[Run | Result]) -> list[Result]:
    if not runs:
        raise ConfigError(NOTHING)
    return [run.result if isinstance(run, Run) else run for run in runs]


def _labels(runs: Sequence[Any], labels: Sequence[str] | None) -> list[str]:
    if labels is not None:
        if len(labels) != len(runs):
            raise ConfigError(f"{len(labels)} labels for {len(runs)} runs; give one for each.")
        if len(set(labels)) != len(labels):
            raise ConfigError(f"two runs have the same label: {', '.join(labels)}.")
        return list(labels)
    names = ["masks" if isinstance(r, Masks) else r.name for r in runs]
    return [f"{n} ({i + 1})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _kept(run: Run | Result | Masks) -> dict[str, float]:
    if isinstance(run, Masks):
        return {name: kept / run[name].numel() for name, kept in run.kept_by_layer.items()}
    return {x["layer"]: x["kept"] / x["total"] for x in _results([run])[0].layers}

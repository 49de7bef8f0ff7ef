"""Figures of runs, of methods and of studies. Each returns a `Figure`."""

from . import concepts
from .figure import Figure
from .methods import gate, importance, learned_gates, regrowth, relevance, scales, trajectories, widths
from .runs import (
    agreement,
    bytes_by_layer,
    filters,
    history,
    layers,
    matrices,
    residuals,
    schedule,
    sizes,
    two_weights,
    weights,
)
from .studies import (
    by_method,
    calibration,
    classes,
    comparison,
    exemplars,
    frontier,
    milliseconds,
    sensitivity,
    survival,
    truth,
)

__all__ = [
    "Figure",
    "agreement",
    "by_method",
    "bytes_by_layer",
    "calibration",
    "classes",
    "comparison",
    "concepts",
    "exemplars",
    "filters",
    "frontier",
    "gate",
    "history",
    "importance",
    "layers",
    "learned_gates",
    "matrices",
    "milliseconds",
    "regrowth",
    "relevance",
    "residuals",
    "scales",
    "schedule",
    "sensitivity",
    "sizes",
    "survival",
    "trajectories",
    "truth",
    "two_weights",
    "weights",
    "widths",
]


def __dir__() -> list[str]:
    return __all__

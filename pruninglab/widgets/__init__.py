"""Panels for JupyterLab: explicit ipywidgets that draw into `Image` and `HTML`, never `interact` or `Output`."""

from .by_hand import PruneByHand
from .explorer import MaskExplorer
from .live import LivePanel
from .panel import Panel
from .truth import TruthMeter

__all__ = [
    "LivePanel",
    "MaskExplorer",
    "Panel",
    "PruneByHand",
    "TruthMeter",
]


def __dir__() -> list[str]:
    return __all__

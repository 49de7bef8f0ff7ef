"""Panels for JupyterLab: forms of ipywidgets, and ES modules for what is dragged and watched.

Never `interact` or `Output`: both hang in headless runs.
"""

from .by_hand import PruneByHand
from .chart import Chart
from .choice import Choice
from .explorer import MaskExplorer
from .live import LivePanel
from .panel import Panel
from .truth import TruthMeter
from .workbench import Workbench

__all__ = [
    "Chart",
    "Choice",
    "LivePanel",
    "MaskExplorer",
    "Panel",
    "PruneByHand",
    "TruthMeter",
    "Workbench",
]


def __dir__() -> list[str]:
    return __all__

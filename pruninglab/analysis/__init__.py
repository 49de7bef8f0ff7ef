"""Questions to finished runs: which method is better, what pruning does to classes, what it costs."""

from .aggregate import Aggregate, aggregate
from .allocation import allocate, fitting, sensitivity, tolerated
from .compare import Comparison, compare
from .connectivity import Graph, channel_graph, distance, heat
from .cost import latency, truth
from .images import McNemar, mcnemar, nested_interval
from .impact import Impact, Votes, calibration_error, impact
from .papers import published
from .statistics import crossing, holm, interval, paired, smallest, welch

__all__ = [
    "Aggregate",
    "Comparison",
    "Graph",
    "Impact",
    "McNemar",
    "Votes",
    "aggregate",
    "allocate",
    "calibration_error",
    "channel_graph",
    "compare",
    "crossing",
    "distance",
    "fitting",
    "heat",
    "holm",
    "impact",
    "interval",
    "latency",
    "mcnemar",
    "nested_interval",
    "paired",
    "published",
    "sensitivity",
    "smallest",
    "tolerated",
    "truth",
    "welch",
]


def __dir__() -> list[str]:
    return __all__

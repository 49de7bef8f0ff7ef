"""Criteria score weights: the lowest scores are pruned. Each is a function or a frozen dataclass."""

from .before_training import SNIP, GraSP, SynFlow
from .channels import Activation, FilterTaylor, filter_l1, filter_l2, geometric_median, norm_scale
from .curvature import OBD, full
from .inputs import layer_by_layer
from .quadratic import LargeQuadratic, Quadratic, layerwise
from .registry import BY_NAME, Batches, Criterion, resolve
from .wanda import Wanda
from .weights import Gradient, Movement, NofM, Taylor, layer_magnitude, magnitude, random

__all__ = [
    "BY_NAME",
    "OBD",
    "SNIP",
    "Activation",
    "Batches",
    "Criterion",
    "FilterTaylor",
    "GraSP",
    "Gradient",
    "LargeQuadratic",
    "Movement",
    "NofM",
    "Quadratic",
    "SynFlow",
    "Taylor",
    "Wanda",
    "filter_l1",
    "filter_l2",
    "full",
    "geometric_median",
    "layer_by_layer",
    "layer_magnitude",
    "layerwise",
    "magnitude",
    "norm_scale",
    "random",
    "resolve",
]


def __dir__() -> list[str]:
    return __all__

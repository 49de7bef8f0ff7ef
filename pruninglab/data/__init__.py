"""Data sets by name, or from any `Dataset`: three splits, and a fingerprint that says which images are in which.

    data = load("digits", augment="shift")
    for x, y in data.val: ...                 # normalised float batches, in order

The test split is the same for every seed; validation images are held out of the training images by the seed.
"""

from .dataset import AnySplit, Data
from .loading import available, load
from .splits import AlternatingFlip, Crop, Cutout, Flip, Shift, Split
from .streams import StreamSplit
from .wrapping import wrap

__all__ = [
    "AlternatingFlip",
    "AnySplit",
    "Crop",
    "Cutout",
    "Data",
    "Flip",
    "Shift",
    "Split",
    "StreamSplit",
    "available",
    "load",
    "wrap",
]


def __dir__() -> list[str]:
    return __all__

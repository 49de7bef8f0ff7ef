"""What a network answered to each image of the test split, in a few hundred bytes of a record.

Of each image the record holds (predicted class - label) modulo the number of classes: 0 where the answer is right. So
whoever has no data still sees which images are right, and whoever has the labels sees the predicted classes.
"""

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError


@dataclass
class Answers:
    """Filled while a split is evaluated. It stays empty where a network does not name classes."""

    found: list[Tensor] = field(default_factory=list)
    classes: int = 0

    def add(self, logits: Tensor, y: Tensor) -> None:
        """(n, classes), (n,)."""
        if logits.ndim == 2 and y.ndim == 1 and not y.is_floating_point() and logits.shape[1] > 1:
            self.classes = logits.shape[1]
            self.found.append((logits.argmax(1) - y) % self.classes)

    def clear(self) -> None:
        self.found.clear()

    def entry(self) -> dict[str, Any] | None:
        """As a record holds it."""
        if not self.found:
            return None
        content = torch.cat(self.found).cpu().numpy().astype(_kind(self.classes)).tobytes()
        return {"classes": self.classes, "offsets": base64.b64encode(zlib.compress(content, 9)).decode()}


def _kind(classes: int) -> np.dtype:
    return np.dtype("<u1" if classes <= 1 << 8 else "<u4")


def unpack(entry: Mapping[str, Any], images: int) -> np.ndarray:
    """(images,) of offsets. An entry that cannot be one is a DataError."""
    try:
        classes = int(entry["classes"])
        kind = _kind(classes)
        bound = zlib.decompressobj()
        content = bound.decompress(base64.b64decode(entry["offsets"], validate=True), images * kind.itemsize + 1)
        found = np.frombuffer(content, kind).astype(np.int64)
        if len(found) != images or not (found < classes).all():
            raise ValueError(f"{len(found)} answers for {images} images of {classes} classes")
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise DataError(f"the answers in a record are damaged: {type(error).__name__} {error}.") from None
    return found

"""`Data`: a data set in three splits."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch

from .._html import table
from ..typed import Checked, Count, CountFromZero
from .splits import Split
from .streams import StreamSplit

AnySplit = Split | StreamSplit


@dataclass(frozen=True, eq=False, repr=False)
class Data(Checked):
    """A data set in three splits. Choices look at `val`; `test` is for the end."""

    name: str
    classes: CountFromZero
    class_names: tuple[str, ...]
    shape: tuple[Count, ...]
    train: AnySplit
    val: AnySplit
    test: AnySplit
    seed: CountFromZero = 0
    source: str = ""
    """Where the items come from, if their name does not say it."""
    notes: tuple[str, ...] = ()
    """What is odd about the items; the records of their runs say it."""

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two data sets that hold the same images in the same splits."""
        digest = hashlib.sha256()
        for _, split in self._parts():
            split.digest(digest)
        return digest.hexdigest()[:16]

    @cached_property
    def val_is_test(self) -> bool:
        """Whether choices are made on the very images that test accuracy is of: a paper's habit, never a default."""
        if len(self.val) != len(self.test):
            return False
        digests = [hashlib.sha256(), hashlib.sha256()]
        for split, digest in zip((self.val, self.test), digests, strict=True):
            split.digest(digest)
        return digests[0].digest() == digests[1].digest()

    def to(self, device: str | torch.device) -> Self:
        moved = replace(self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device))
        if "fingerprint" in vars(self):
            vars(moved)["fingerprint"] = self.fingerprint
        return moved

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {len(split):,}" for part, split in self._parts())
        return f"Data({self._title()}, {sizes})"

    def _repr_html_(self) -> str:
        return table(("split", "images"), [(part, f"{len(split):,}") for part, split in self._parts()], self._title())

    def _title(self) -> str:
        label = ", choices are made on test" if self.val_is_test else ""
        classes = f"{self.classes} classes" if self.classes else "no classes"
        return f"{self.name}: {classes}, {'x'.join(map(str, self.shape))}, seed {self.seed}{label}"

    def _parts(self) -> tuple[tuple[str, AnySplit], ...]:
        return ("train", self.train), ("val", self.val), ("test", self.test)

"""Learning-rate schedules: factors of the learning rate, by the fraction of training that is done."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..typed import Checked, Fraction, Strength

LRSchedule = Literal["cosine", "constant", "step"] | Callable[[float], float]


@dataclass(frozen=True)
class ConstantLR:
    def __call__(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class CosineLR(Checked):
    """A linear warm-up over the share `warmup`, then half a cosine down to `floor`.

    >>> lab.fit(model, data, epochs=1, lr_schedule=lab.CosineLR()).status
    'done'
    """

    warmup: Fraction = 0.0
    floor: Fraction = 0.0

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return (progress + 1e-3) / (self.warmup + 1e-3)
        rest = (progress - self.warmup) / max(1 - self.warmup, 1e-9)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))


@dataclass(frozen=True)
class StepLR(Checked):
    """Times `factor` at each of the points `at`, given as shares of the training.

    >>> lab.fit(model, data, epochs=1, lr_schedule=lab.StepLR()).status
    'done'
    """

    at: tuple[Fraction, ...] = (0.5, 0.75)
    factor: Strength = 0.1

    def __call__(self, progress: float) -> float:
        return self.factor ** sum(progress >= point for point in self.at)


BY_NAME: dict[str, Callable[[float], float]] = {"cosine": CosineLR(), "constant": ConstantLR(), "step": StepLR()}


def named(which: LRSchedule) -> Callable[[float], float]:
    """A schedule by name or as it is."""
    return which if callable(which) else BY_NAME[which]

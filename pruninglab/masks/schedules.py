"""Schedules: progress in [0, 1] -> sparsity.

All are frozen dataclasses: they print, compare and draw themselves, and go into a record as they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from .. import _html
from ..errors import ConfigError
from ..typed import BelowOne, Checked, PartialFraction, Positive
from .masks import Sparsity


@dataclass(frozen=True)
class Schedule(Checked, ABC):
    """From `initial` to `final` sparsity. `final` may be a dict of layer patterns; all of it moves along one curve."""

    final: Sparsity
    initial: BelowOne = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(f < self.initial for f in _values(self.final)):
            raise ConfigError(f"initial={float(self.initial):g} is above final={self.final}; a schedule only rises.")

    @abstractmethod
    def between(self, progress: float, final: float) -> float:
        """The sparsity at `progress` on the way from `initial` to `final`."""

    def __call__(self, progress: float) -> Sparsity:
        progress = min(max(progress, 0.0), 1.0)
        if progress == 1.0:  # exact, whatever the rounding of the curve
            return self.final
        if isinstance(self.final, Mapping):
            return {pattern: self.between(progress, final) for pattern, final in self.final.items()}
        return self.between(progress, self.final)

    def _repr_html_(self) -> str:
        top = max(_values(self.final), default=0.0)
        values = [self.between(i / 50, top) for i in range(50)] + [top]
        return f"<code>{_html.cell(self)}</code><br>" + _html.curve(values, 0, 1, f"sparsity up to {top:g}")


@dataclass(frozen=True)
class Constant(Schedule):
    """All at once.

    >>> [round(lab.Constant(0.9).between(p, 0.9), 2) for p in (0, 0.5, 1)]
    [0.9, 0.9, 0.9]
    """

    def between(self, progress: float, final: float) -> float:
        return final


@dataclass(frozen=True)
class Linear(Schedule):
    def between(self, progress: float, final: float) -> float:
        return self.initial + (final - self.initial) * progress


@dataclass(frozen=True)
class Cubic(Schedule):
    """Fast while there is much to cut, slow at the end (Zhu and Gupta 2017, equation 1).

    >>> [round(lab.Cubic(0.9).between(p, 0.9), 2) for p in (0, 0.5, 1)]
    [0.0, 0.79, 0.9]
    """

    def between(self, progress: float, final: float) -> float:
        return final + (self.initial - final) * (1 - progress) ** 3


@dataclass(frozen=True)
class Exponential(Schedule):
    """The same share of the survivors each time: density falls geometrically.

    >>> [round(lab.Exponential(0.9).between(p, 0.9), 2) for p in (0, 0.5, 1)]
    [0.0, 0.68, 0.9]
    """

    def between(self, progress: float, final: float) -> float:
        return 1 - (1 - self.initial) * ((1 - final) / (1 - self.initial)) ** progress


@dataclass(frozen=True)
class Narang(Schedule):
    """Two slopes, the second `steepening` times the first, with the knee at `ramp` (Narang 2017, section 3).

    The paper raises a threshold along the two slopes; here it is the sparsity, so that the target is exact.

    >>> [round(lab.Narang(0.9).between(p, 0.9), 2) for p in (0, 0.5, 1)]
    [0.0, 0.36, 0.9]
    """

    ramp: PartialFraction = 0.5
    steepening: Positive = 1.5

    def between(self, progress: float, final: float) -> float:
        rise = progress + (self.steepening - 1) * max(progress - self.ramp, 0.0)
        return self.initial + (final - self.initial) * rise / (1 + (self.steepening - 1) * (1 - self.ramp))


def _values(final: Sparsity) -> list[float]:
    return [float(f) for f in (final.values() if isinstance(final, Mapping) else [final])]

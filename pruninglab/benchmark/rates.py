"""The ADMM paper's Figure 3 on LeNet-5: four methods at rising rates.

The figure is of AlexNet on ImageNet, and its numbers stand nowhere. What can be measured here is its shape: how fast
each method loses accuracy. The rates are those of progressive pruning in notebook 05, the paper's own 167 among them.
"""

from collections.abc import Callable

from ..analysis.allocation import allocate
from ..methods.projection.pgd import PGD
from ..train.run import Run
from .rows import MNIST, Cell, Row, _admm, _controls, _dense, _han, _progressive

RATES = (40, 97.4, 167, 220, 333)
STEPS = (40 / 167, 97.4 / 167, 1)
"""The rates on the way to a rate, as shares of it: those of the row at 167 in Table 5."""


def _direct(rate: float) -> Callable[[Cell], Run]:
    """Each layer keeps what one cut of the dense net by magnitude leaves of it."""
    return lambda cell: _admm(allocate(cell.dense, rate))(cell)


def _projected(rate: float) -> Callable[[Cell], Run]:
    return lambda cell: cell.fit(PGD(allocate(cell.dense, rate)))


def _at(rate: float) -> dict[str, Row]:
    sparsity, name = 1 - 1 / rate, f"{rate:.0f}"
    return {
        f"progressive-{name}": Row("progressive ADMM", _progressive(*(rate * step for step in STEPS)), sparsity),
        f"direct-{name}": Row("direct ADMM", _direct(rate), sparsity),
        f"iterative-{name}": Row("iterative magnitude", _han(sparsity), sparsity),
        f"projected-{name}": Row("projected gradient", _projected(rate), sparsity),
    }


_CONTROLS = _controls(**{f"{rate:.0f}": 1 - 1 / rate for rate in RATES})
_ROWS = {"dense": Row("dense", _dense), **{k: v for rate in RATES for k, v in _at(rate).items()}, **_CONTROLS}
RISING: dict[str, Row] = {name: MNIST.get(name, row) for name, row in _ROWS.items()}
"""A row that Table 5 has too is the same row, and has one record for both."""

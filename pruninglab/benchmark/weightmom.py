"""WeightMom in each of its interpretations, beside gradual magnitude with as many validation trials.

The paper prints no number that could be reached: its two tables hold those of another paper. So each row stands beside
gradual magnitude. `TRIALS` settings are tried for each method, with one seed that no row has, at the lower of the two
densities. The highest validation accuracy decides, for both densities.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..analysis.connectivity import distance
from ..masks.schedules import Cubic
from ..methods.cuts.gradual import Gradual
from ..methods.cuts.weightmom import WeightMom
from ..train.run import Run
from .rows import Cell, Row, _dense, _once

SCHEDULES: tuple[Mapping[str, Any], ...] = tuple(
    {"rate": rate, "end": end} for rate in (1.0, 2.0) for end in (0.5, 0.75)
)
"""`rate` times the table's learning rate, and the share of the training after which nothing is cut."""
THRESHOLDS: tuple[Mapping[str, Any], ...] = tuple({"threshold": size} for size in (0.01, 0.02, 0.05, 0.1))
TRIALS = len(SCHEDULES)
SHORT: dict[str, Any] = {"begin": 0.2, "window": 5, "min_epochs_below": 3}
"""The paper's 15 epochs and 10 of them, in a third of the epochs."""
LONG: dict[str, Any] = {"begin": 0.4, "window": 15, "min_epochs_below": 10}
NO_MEMORY: dict[str, Any] = {"interpretation": "off", "window": 1, "min_epochs_below": 1}
WAYS: dict[str, dict[str, Any]] = {
    "text": {},
    "text, no floor": {"floor": 0.0},
    "formula_prune": {"interpretation": "formula_prune"},
    "literal": {"interpretation": "literal"},
    "no ratio": {"interpretation": "off"},
    "no memory": NO_MEMORY,
    "fixed threshold": {"threshold": 0.05},
}
"""What each changes of `WeightMom`, whose own interpretation is the paper's text with a floor."""


def connectivity(cell: Cell, run: Run) -> float:
    """How far heat spreads otherwise than in the dense net that all rows start from: 0 is as there."""
    return distance(run.model, cell.dense.model)


def _momentum(sparsity: float, *, untrained: bool = False, **fields: Any) -> Callable[[Cell], Run]:
    def make(cell: Cell) -> Run:
        own, lr = _chosen(cell)
        method = WeightMom(Cubic(sparsity), **{**SHORT, **fields, **own})
        return (cell.untrained if untrained else cell.fit)(method, lr=lr)

    return make


def _gradual(sparsity: float, *, untrained: bool = False, begin: float = 0.2) -> Callable[[Cell], Run]:
    def make(cell: Cell) -> Run:
        own, lr = _chosen(cell)
        return (cell.untrained if untrained else cell.fit)(Gradual(Cubic(sparsity), begin=begin, **own), lr=lr)

    return make


def _chosen(cell: Cell) -> tuple[dict[str, Any], float]:
    """The chosen fields of the method, and the learning rate."""
    own = dict(cell.setting)
    return own, own.pop("rate", 1.0) * cell.options["lr"]


def _at(sparsity: float) -> dict[str, Row]:
    gradual = "gradual magnitude"
    rows = {way: Row(f"WeightMom, {way}", _momentum(sparsity, **fields), sparsity) for way, fields in WAYS.items()}
    rows["fixed threshold"] = replace(rows["fixed threshold"], settings=THRESHOLDS)
    rows["gradual"] = Row(gradual, _gradual(sparsity), sparsity)
    rows["text, untrained"] = Row("WeightMom, text, untrained start", _momentum(sparsity, untrained=True), sparsity)
    rows["gradual, untrained"] = Row(f"{gradual}, untrained start", _gradual(sparsity, untrained=True), sparsity)
    rows["window 15"] = Row("WeightMom, window 15", _momentum(sparsity, **LONG), sparsity, length=2)
    rows["gradual, long"] = Row(gradual, _gradual(sparsity, begin=LONG["begin"]), sparsity, length=2)
    return {name: replace(row, settings=row.settings or SCHEDULES) for name, row in rows.items()}


def weightmom_rows(*sparsities: float) -> dict[str, Row]:
    """The rows at each sparsity, tuned at the highest; the dense net of both lengths, and a random mask."""
    rows = {"dense": Row("dense", _dense), "dense-long": Row("dense", _dense, length=2)}
    for sparsity in sorted(sparsities, reverse=True):
        for name, row in _at(sparsity).items():
            first = _named(name, max(sparsities))
            rows[_named(name, sparsity)] = row if sparsity == max(sparsities) else replace(row, tuned=first)
        rows[_named("random", sparsity)] = Row("random mask", _once(sparsity, "random"), sparsity)
    training = {1: "short", 2: "long"}
    return {name: replace(row, tags={"training": training[row.length]}) for name, row in rows.items()}


def _named(name: str, sparsity: float) -> str:
    return f"{name.replace(', ', '-').replace(' ', '-')}-{1 / (1 - sparsity):.0f}"

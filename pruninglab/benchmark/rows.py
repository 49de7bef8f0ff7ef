"""What is trained for each row of a table. All rows of one seed start from one dense net and take equal steps.

A row is a function of a `Cell` that returns its last run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ..data.dataset import Data
from ..masks.schedules import Cubic, Exponential
from ..methods.controls import Dense
from ..methods.cuts.accuracy_gate import PruneWhileAccurate
from ..methods.cuts.gradual import Gradual
from ..methods.cuts.oneshot import OneShot
from ..methods.cuts.surgeon import OptimalBrainSurgeon
from ..methods.noise.variational import VariationalDropout
from ..methods.penalties.lobster import LOBSTER
from ..methods.penalties.relevance import RelevanceL2
from ..methods.penalties.sensitivity import Sensitivity
from ..methods.penalties.soft_sharing import SoftSharing
from ..recipes.admm import admm
from ..recipes.deep_compression import deep_compression
from ..recipes.iterative import iterative
from ..recipes.progressive import progressive
from ..recipes.prune_while_accurate import prune_while_accurate
from ..recipes.quantize import quantize
from ..storage.levels import Bits
from ..train.fit import fit
from ..train.method import Method
from ..train.run import Run


@dataclass(frozen=True)
class Cell:
    """One seed of a table: the data, the dense net that all rows start from, and where its stages go."""

    data: Data
    dense: Run
    epochs: int
    """Of each row, after the dense start."""
    folder: Path
    options: Mapping[str, Any]
    model: nn.Module
    """The untrained network that the dense net was trained from."""
    setting: Mapping[str, Any] = field(default_factory=dict)
    """What the trials of the row chose."""

    def fit(self, *methods: Method, **changes: Any) -> Run:
        """All epochs in one training, from the dense net."""
        return self._fit(self.dense, self.epochs, methods, changes)

    def untrained(self, *methods: Method, **changes: Any) -> Run:
        """As many steps in all, in one training from the untrained network."""
        before = self.dense.spent // self.dense.steps_per_epoch
        return self._fit(self.model, before + self.epochs, methods, changes)

    def _fit(self, model: nn.Module | Run, epochs: int, methods: Sequence[Method], changes: Mapping[str, Any]) -> Run:
        given: dict[str, Any] = {"epochs": epochs, "checkpoint": self.folder / "run.safetensors"}
        return fit(model, self.data, *methods, **{**given, **self.options, **changes})


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    method: str
    make: Callable[[Cell], Run]
    sparsity: float = 0.0
    """Of the weights."""
    printed: tuple[tuple[str, int, str], ...] = ()
    """The paper, the table and the row that this one is measured against. Two rows of one name differ by their rate."""
    tags: Mapping[str, Any] = field(default_factory=dict)
    length: int = 1
    """How many times the table's epochs it takes."""
    settings: tuple[Mapping[str, Any], ...] = ()
    """What its trials try. The one with the highest validation accuracy is chosen."""
    tuned: str = ""
    """The row whose trials choose for this one; without it, its own."""


@dataclass(frozen=True)
class Table:
    """The rows of one network and data set by name, in the order of a run."""

    rows: dict[str, Row]
    data: str = ""
    """Its name; without one, the data set is a folder of images that is named by whoever runs the table."""
    model: str = "lenet5"
    checkpoint: str = ""
    """The file of dense weights to start from. Without one, each seed trains its own for `start` epochs."""
    start: int = 4
    epochs: int = 33
    """Of each row."""
    val: float | Literal["test"] = 1 / 12
    options: Mapping[str, Any] = field(default_factory=lambda: {"weight_decay": 5e-5})
    home: str = ""
    """The table whose folder its records lie in, since the two share rows; without it, its own."""
    augment: str = ""
    prepare: Callable[[nn.Module, Data], None] | None = None
    """What is done to the untrained network."""
    measures: Mapping[str, Callable[[Cell, Run], float]] = field(default_factory=dict)
    """Columns of its records besides accuracy and size."""

    @property
    def trials(self) -> dict[str, Row]:
        """The trials of all rows by name, each with its one setting."""
        return {
            f"{name}-trial-{number}": replace(row, settings=(setting,), tags={**row.tags, "trial": number})
            for name, row in self.rows.items()
            for number, setting in enumerate(row.settings if not row.tuned else (), 1)
        }


def _dense(cell: Cell) -> Run:
    return cell.fit(Dense())


def _once(sparsity: float, criterion: str) -> Callable[[Cell], Run]:
    return lambda cell: cell.fit(OneShot(sparsity, criterion))


def _gradual(sparsity: float) -> Callable[[Cell], Run]:
    return lambda cell: cell.fit(Gradual(Cubic(sparsity), end=0.5))


def _han(sparsity: float | Mapping[str, float], rounds: int = 3) -> Callable[[Cell], Run]:
    def make(cell: Cell) -> Run:
        each = {"epochs": 0, "rounds": rounds, "finetune": cell.epochs // rounds, "folder": cell.folder}
        return iterative(cell.dense, cell.data, Exponential(sparsity), **each, **cell.options).last

    return make


def _variational(sparsity: float) -> Callable[[Cell], Run]:
    return lambda cell: cell.fit(VariationalDropout(sparsity, end=0.75))


def _relevance(
    sparsity: float, bound: float, fraction: float = 0.04, every: int = 55, strength: float = 1e-3
) -> Callable[[Cell], Run]:
    def make(cell: Cell) -> Run:
        gate = PruneWhileAccurate(bound, target=sparsity, prune_fraction=fraction, every_steps=every, patience=None)
        tuned = cell.epochs * 10 // 33
        each: dict[str, Any] = {"epochs": cell.epochs - tuned, "finetune": tuned, "regularizer": RelevanceL2(strength)}
        options = {**cell.options, "biases": True, "weight_decay": 0.0}
        return prune_while_accurate(cell.dense, cell.data, gate, folder=cell.folder, **each, **options).last

    return make


def _admm(sparsity: float | Mapping[str, float]) -> Callable[[Cell], Run]:
    def make(cell: Cell) -> Run:
        finetune = cell.epochs * 12 // 33
        each: dict[str, Any] = {"epochs": cell.epochs - finetune, "finetune": finetune, "folder": cell.folder}
        return admm(cell.dense, cell.data, sparsity, **each, **cell.options).last

    return make


def _progressive(*compressions: float) -> Callable[[Cell], Run]:
    def make(cell: Cell) -> Run:
        length = cell.epochs // len(compressions)
        finetune = round(length * 4 / 11)
        each: dict[str, Any] = {"epochs": length - finetune, "finetune": finetune, "folder": cell.folder}
        return progressive(cell.dense, cell.data, compressions, select="chain", **each, **cell.options).chosen[-1]

    return make


def _surgeon(sparsity: float, rounds: int = 3) -> Callable[[Cell], Run]:
    def make(cell: Cell) -> Run:
        run = cell.dense
        for number in range(1, rounds + 1):
            method = OptimalBrainSurgeon(Exponential(sparsity)(number / rounds))
            files: dict[str, Any] = {"checkpoint": cell.folder / f"round-{number}.safetensors"}
            run = fit(run, cell.data, method, epochs=cell.epochs // rounds, **files, **cell.options)
        return run

    return make


def _in_parts(cell: Cell) -> tuple[Cell, dict[str, Any], int]:
    """A cell for the pruning, which has three rounds, then the files and options of the code, and its epochs."""
    pruning = cell.epochs * 2 // 9 * 3
    coding = {"folder": cell.folder / "coded", **cell.options}
    return replace(cell, epochs=pruning, folder=cell.folder / "pruned"), coding, cell.epochs - pruning


def _clustered(prune: Callable[[Cell], Run]) -> Callable[[Cell], Run]:
    def make(cell: Cell) -> Run:
        pruning, coding, epochs = _in_parts(cell)
        return deep_compression(prune(pruning), cell.data, epochs=epochs, **coding).last

    return make


def _quantized(prune: Callable[[Cell], Run], bits: Bits) -> Callable[[Cell], Run]:
    def make(cell: Cell) -> Run:
        pruning, coding, epochs = _in_parts(cell)
        each = {"epochs": epochs // 2, "finetune": epochs - epochs // 2}
        return quantize(prune(pruning), cell.data, bits, **each, **coding).last

    return make


def _pulled(sparsity: float, *pulls: Method) -> Callable[[Cell], Run]:
    """A penalty, and magnitude cuts that reach the printed sparsity: the paper's own threshold gives another one."""
    return lambda cell: cell.fit(*pulls, Gradual(Cubic(sparsity), end=0.75))


def _shared(cell: Cell) -> Run:
    tuned = cell.epochs // 3
    run = cell.fit(SoftSharing(), epochs=cell.epochs - tuned)
    return fit(run, cell.data, epochs=tuned, checkpoint=cell.folder / "tuned.safetensors", **cell.options)


HAN = {"conv1*": 0.34, "conv2*": 0.88, "fc1*": 0.92, "fc2*": 0.81}
"""What Han et al. print of each layer. They chose it by the sensitivity of the layers; it is 36,280 weights."""
DIRECT = {"conv1*": 0.8, "conv2*": 0.92, "fc1*": 0.991, "fc2*": 0.93}
"""What the authors' code prunes of each layer for 71.2 times."""


def _controls(**sparsities: float) -> dict[str, Row]:
    """A random mask and gradual magnitude with as many weights as a row."""
    rows = {}
    for name, sparsity in sparsities.items():
        rows[f"gradual-{name}"] = Row("gradual magnitude", _gradual(sparsity), sparsity)
    for name, sparsity in sparsities.items():
        rows[f"random-{name}"] = Row("random mask", _once(sparsity, "random"), sparsity)
    return rows


MNIST: dict[str, Row] = {
    "dense": Row("dense", _dense),
    "progressive-167": Row(
        "progressive ADMM", _progressive(40, 97.4, 167), 1 - 1 / 167, (("admm", 5, "Progressive Weight Pruning"),)
    ),
    "relevance": Row("relevance", _relevance(0.997, 0.987), 0.997, (("bonetta", 3, "Our method"),)),
    "iterative-12": Row(
        "iterative magnitude",
        _han(HAN),
        1 - 36_280 / 430_500,
        (("bonetta", 3, "Han et al., 2015 [1]"), ("admm", 5, "Network Pruning (Han et al., 2015)")),
    ),
    "direct-71": Row("direct ADMM", _admm(DIRECT), 1 - 1 / 71.2, (("admm", 5, "ADMM Pruning (Zhang et al., 2018b)"),)),
    "surgeon-111": Row(
        "layer-wise surgeon",
        _surgeon(1 - 1 / 111),
        1 - 1 / 111,
        (("admm", 5, "Optimal Brain Surgeon (Dong et al., 2017)"),),
    ),
    "sensitivity": Row(
        "sensitivity", _pulled(0.98, Sensitivity(1e-4)), 0.98, (("bonetta", 3, "Tart. et al., 2018 [3]"),)
    ),
    "lobster": Row("LOBSTER", _pulled(0.996, LOBSTER(1e-4)), 0.996, (("bonetta", 3, "Tart. et al., 2021 [4]"),)),
    **_controls(
        **{
            "12": 1 - 36_280 / 430_500,
            "50": 0.98,
            "71": 1 - 1 / 71.2,
            "111": 1 - 1 / 111,
            "167": 1 - 1 / 167,
            "250": 0.996,
            "333": 0.997,
        }
    ),
    "iterative-12-coded": Row(
        "Deep Compression",
        _clustered(_han(HAN)),
        1 - 36_280 / 430_500,
        (("admm", 6, "Iterative pruning (Han et al., 2016)"),),
    ),
    "progressive-167-coded": Row(
        "progressive ADMM, quantized",
        _quantized(_progressive(40, 97.4, 167), {"conv": 3, "dense": 2, "fc2*": 3}),
        1 - 1 / 167,
        (("admm", 6, "Our Method"),),
    ),
    "variational": Row("variational dropout", _variational(0.996), 0.996, (("bonetta", 3, "Sparse VD [12]"),)),
    "soft-sharing": Row(
        "soft weight-sharing",
        _shared,
        0.994,
        (("bonetta", 3, "Ullr. et al., 2017 [2]"), ("admm", 6, "Learning to share (Ullrich et al., 2017)")),
    ),
}

FASHION: dict[str, Row] = {
    "dense": Row("dense", _dense),
    "relevance": Row("relevance", _relevance(0.969, 0.897), 0.969, (("bonetta", 4, "Our method"),)),
    "iterative-14": Row("iterative magnitude", _han(0.93), 0.93, (("bonetta", 4, "Han et al., 2015 [1]"),)),
    "sensitivity": Row(
        "sensitivity", _pulled(0.915, Sensitivity(1e-4)), 0.915, (("bonetta", 4, "Tart. et al., 2018 [3]"),)
    ),
    "lobster": Row("LOBSTER", _pulled(0.957, LOBSTER(1e-4)), 0.957, (("bonetta", 4, "Tart. et al., 2021 [4]"),)),
    **_controls(**{"12": 0.915, "14": 0.93, "23": 0.957, "32": 0.969}),
}

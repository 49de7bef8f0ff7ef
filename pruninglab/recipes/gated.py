"""Prune under a regularizer while accuracy allows, then train without it: Bonetta and Cancelliere, 2022, section 2."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from ..data.dataset import Data
from ..data.loading import load
from ..errors import ConfigError
from ..methods.cuts.accuracy_gate import PruneWhileAccurate
from ..methods.penalties.lobster import LOBSTER
from ..methods.penalties.plain import L1, L2
from ..methods.penalties.relevance import RelevanceL2
from ..methods.penalties.sensitivity import Sensitivity
from ..models import build
from ..train.fit import fit
from ..train.lr_schedules import LRSchedule
from ..train.method import Method
from ..train.run import Run
from .stages import ended, refuse_own, stage

_ADAM = {
    "batch_size": 100,
    "optimizer": "adam",
    "lr": 1e-3,
    "pruning_lr_schedule": "constant",
    "lr_schedule": "constant",
}
PAPER: dict[str, dict[str, Any]] = {
    "MNIST": {
        "regularizer": RelevanceL2(1e-3),
        "pruning": PruneWhileAccurate(0.987, prune_fraction=0.04, every_steps=250, counting="epoch"),
        "dense": 0,
        "epochs": 120,
        "finetune": 5,
        **_ADAM,
    },
    "FashionMNIST": {
        "regularizer": RelevanceL2(1e-3),
        "pruning": PruneWhileAccurate(0.897, prune_fraction=0.04, every_steps=250, counting="epoch"),
        "dense": 24,
        "epochs": 81,
        "finetune": 50,
        **_ADAM,
    },
    "ImageNet": {
        "regularizer": RelevanceL2(1e-4),
        "pruning": PruneWhileAccurate(0.685, prune_fraction=0.01, every_steps=2500, counting="epoch"),
        "dense": 0,
        "epochs": 30,
        "finetune": 30,
        **_ADAM,
        "optimizer": "sgd",
        "lr": 1e-4,
    },
}
"""Table 2, what the text adds and, where it leaves something open, the authors' code, as arguments of `gated`."""
Regularizer = RelevanceL2 | L2 | L1 | LOBSTER | Sensitivity


def gated(
    model: nn.Module | Run,
    data: Data,
    regularizer: Method | Sequence[Method],
    pruning: PruneWhileAccurate,
    *,
    dense: int = 0,
    epochs: int,
    finetune: int,
    lr: float = 1e-3,
    finetune_lr: float | None = None,
    pruning_lr_schedule: str | LRSchedule = "constant",
    folder: str | Path | None = None,
    **options: Any,
) -> list[Run]:
    """Train `dense` epochs, then `epochs` with `regularizer` and `pruning`, then `finetune` without them, under the
    mask.

    Each phase ends at its best state by validation, that with the gate at the best among those at the final mask, and
    the next begins there. As the authors do, the learning rate stays at `lr` while the gate is there. `folder` holds a
    checkpoint and a record of each phase, and the same call goes on from them. Returns the runs of all phases; the
    accuracy of the one with the gate is that before the final phase. A target that it missed the final one misses too.
    """
    refuse_own("gated", options, "keep")
    together = [regularizer] if isinstance(regularizer, Method) else list(regularizer)
    phases: list[tuple[str, list[Method], dict[str, Any]]] = [
        ("dense", [], {"epochs": dense, "lr": lr}),
        ("gated", [*together, pruning], {"epochs": epochs, "lr": lr, "lr_schedule": pruning_lr_schedule}),
        ("fine-tuned", [], {"epochs": finetune, "lr": lr if finetune_lr is None else finetune_lr}),
    ]
    runs: list[Run] = []
    for name, methods, settings in phases if dense else phases[1:]:
        start = runs[-1] if runs else model
        files = stage(folder, name)
        chosen: dict[str, Any] = {**options, **settings, "keep": "best"}
        run = fit(start, data, *methods, **files, **chosen)
        if runs and runs[-1].status == "target_missed" and run.status == "done":
            run.inherit_miss(runs[-1])
            if folder:
                run.save(files["record"])
        runs.append(run)
        if ended(run):
            break
    return runs


def bonetta(
    task: str = "MNIST",
    protocol: str = "holdout",
    *,
    model: nn.Module | Run | None = None,
    data: Data | None = None,
    seed: int = 0,
    **changes: Any,
) -> list[Run]:
    """The paper's experiment by the name of its data, with every setting of its Table 2; `changes` go to `gated`.

    `protocol="paper"` trains on all 60,000 images of MNIST and lets the gate, the best state and the end look at the
    test images, as the authors' code does; the records say so. `"holdout"` holds 5,000 training images out for that,
    which for FashionMNIST is the paper's protocol too. ImageNet needs `data` and the trained `model`, the authors' one
    without dropout: `build("torchvision:vgg16", data, weights=PATH, dropout=0.0)`. Given `data` is taken as it is
    split. Biases are pruned too and count into the sparsity.

    Deviations: λ falls to 0 within an epoch of the last cut and evaluations are counted anew in each epoch, as in the
    authors' code; the paper has an exponential decay without a rate, `regularizer=RelevanceL2(1e-3, decay=
    "exponential")`, and says nothing of the counting. Images of FashionMNIST are normalised by their own mean and
    deviation, not by those of MNIST. Cutting ends 25 evaluations after the best since the last cut.
    """
    if task not in PAPER:
        raise ConfigError(f"task={task!r} is not in the paper; expected one of {', '.join(map(repr, PAPER))}.")
    if protocol not in ("paper", "holdout"):
        raise ConfigError(f"protocol={protocol!r}; expected 'paper' or 'holdout'.")
    if task == "ImageNet" and (data is None or model is None):
        raise ConfigError("for ImageNet give data=lab.load('folder:PATH') and model=, a trained VGG-16.")
    if data is None:
        data = load(task, seed=seed, val="test" if (task, protocol) == ("MNIST", "paper") else 1 / 12)
    if model is None:
        model = build("lenet5", data, seed=seed)
    return gated(model, data, seed=seed, **{**PAPER[task], "biases": True, **changes})


@dataclass
class Search:
    """What `search` returns: all runs, those of the chosen cell as `best`, and their table."""

    runs: list[list[Run]]
    cells: list[dict[str, Any]]

    @property
    def best(self) -> list[Run]:
        return next(runs for runs, cell in zip(self.runs, self.cells, strict=True) if cell["chosen"])

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.cells)

    def __repr__(self) -> str:
        return self.table().to_string(index=False, float_format="{:.4g}".format)

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False, border=0, float_format="{:.4g}".format)


def search(
    model: nn.Module | Run,
    data: Data,
    regularizer: Regularizer,
    pruning: PruneWhileAccurate,
    *,
    at_least: float,
    strengths: Sequence[float] = (),
    bounds: Sequence[float] = (),
    prune_fractions: Sequence[float] = (),
    folder: str | Path | None = None,
    **options: Any,
) -> Search:
    """`gated` with every combination of λ, bound and share; what is left out stays as `regularizer` and `gate` have it.

    Chosen is, by validation accuracy alone, the sparsest result that has `at_least` so much, or else the most accurate
    one. `folder` holds a folder for each combination.
    """
    bound = "below_dense" if pruning.lower_bound is None else "lower_bound"
    found = Search([], [])
    for values in product(
        strengths or [regularizer.strength],
        bounds or [getattr(pruning, bound)],
        prune_fractions or [pruning.prune_fraction],
    ):
        cell: dict[str, Any] = dict(zip(("strength", bound, "prune_fraction"), values, strict=True))
        at = folder and Path(folder, ",".join(f"{name}-{value:g}" for name, value in cell.items()))
        weighed = replace(regularizer, strength=cell["strength"])
        opened = replace(pruning, **{bound: cell[bound], "prune_fraction": cell["prune_fraction"]})
        runs = gated(model, data, weighed, opened, folder=at, **options)
        status = next((run.status for run in runs if run.status != "done"), "done")
        val = runs[-1].result.accuracy["val"]["accuracy"]
        found.runs.append(runs)
        found.cells.append({**cell, "val": val, "sparsity": runs[-1].sparsity, "status": status})
        if runs[-1].interrupted:
            break
    enough = [cell for cell in found.cells if cell["val"] >= at_least]
    first, second = ("sparsity", "val") if enough else ("val", "sparsity")
    chosen = max(enough or found.cells, key=lambda cell: (cell[first], cell[second]))
    for cell in found.cells:
        cell["chosen"] = cell is chosen
    return found

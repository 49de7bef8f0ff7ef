"""ADMM, hard cut, masked retraining: Zhang et al., "A systematic DNN weight pruning framework using ADMM", 2018."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..data import Data
from ..errors import ConfigError
from ..masks import Sparsity, prunable
from ..methods import ADMM
from ..methods.admm import Penalty
from ..run import Run
from ..schedules import Rate
from ..train import fit


def admm(
    model: nn.Module | Run,
    data: Data,
    sparsity: Sparsity,
    *,
    epochs: int,
    retrain: int | None = None,
    rho: Penalty | Mapping[str, Penalty] = 1.5e-3,
    updates: int = 10,
    scope: str = "layer",
    unit: str = "weight",
    lr: float = 1e-3,
    retrain_lr: float | None = None,
    admm_rate: str | Rate = "constant",
    folder: str | Path | None = None,
    **options: Any,
) -> list[Run]:
    """Train `epochs`, as many with ADMM, cut, and retrain under the mask (for `retrain` epochs, by default as many).

    A finished `Run` as `model` is the start, and is not trained again; what it has pruned stays pruned. As the authors
    do, the learning rate stays at `lr` while ADMM runs, and retraining begins anew at the same one. `folder` holds a
    checkpoint and a record of each stage, and the same call goes on from them. Returns all runs: the dense one, the
    one with ADMM and the cut (its accuracy is that before retraining), the retrained one.
    """
    retrain = epochs if retrain is None else retrain
    retrain_lr = lr if retrain_lr is None else retrain_lr
    runs = [dense_start(model, data, folder, epochs=epochs, lr=lr, **options)]
    if not ended(runs[-1], model):
        pull = ADMM(sparsity, rho, scope, unit, updates)
        pulling = {**options, "rate": admm_rate}
        runs.append(fit(runs[-1], data, pull, epochs=epochs, lr=lr, **stage(folder, "admm"), **pulling))
    if not ended(runs[-1]):
        runs.append(fit(runs[-1], data, epochs=retrain, lr=retrain_lr, **stage(folder, "retrained"), **options))
    return runs


def dense_start(model: nn.Module | Run, data: Data, folder: str | Path | None, **settings: Any) -> Run:
    """A finished run as it is; a model trained."""
    refuse_own("a recipe", settings)
    return model if isinstance(model, Run) else fit(model, data, **stage(folder, "dense"), **settings)


def refuse_own(recipe: str, options: Mapping[str, Any], *more: str) -> None:
    """Arguments of `fit` that recipes set by themselves."""
    if own := {"start", "masks", "checkpoint", "record", "inplace", *more} & options.keys():
        raise ConfigError(f"{recipe} sets {', '.join(sorted(own))} by itself; for files give folder=.")


def in_scope(model: nn.Module, options: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """The weights that `fit` with these options would prune."""
    return prunable(model, **{k: v for k, v in options.items() if k in ("skip", "biases", "norms")})


def stage(folder: str | Path | None, name: str) -> dict[str, Path]:
    """Where a stage leaves its checkpoint and its record."""
    return {"checkpoint": Path(folder, f"{name}.safetensors"), "record": Path(folder, f"{name}.json")} if folder else {}


def ended(run: Run, given: Any = None) -> bool:
    """Whether to go no further: it diverged, or was broken off, be it in its last step (unless it was given)."""
    return run.status in ("interrupted", "diverged") or (run.interrupted and run is not given)

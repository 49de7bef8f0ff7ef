"""Stages of a recipe: each writes its own checkpoint and record, so that a recipe goes on where it was stopped."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from ..data.dataset import Data
from ..errors import ConfigError
from ..identity import code_hash, describe, tensor_hash
from ..layers.names import prunable
from ..storage import files
from ..train.fit import fit
from ..train.run import Run


def dense_start(model: nn.Module, data: Data, *, folder: str | Path | None = None, **options: Any) -> Run:
    """`fit(model, data, **options)`, trained once for everyone who asks for the same.

    The same are: initial weights, images of each split, every option, and the versions of torch and of this package.
    Whoever comes first trains, with a checkpoint in `folder` after each epoch; the others wait, and go on from its end.
    One that was killed is gone on with by the next, to the same bits. Without `folder` it is PRUNINGLAB_STARTS, which a
    sweep sets for its cells; without that too, the network is trained here and nothing is written.
    """
    refuse_own("dense_start", options, "checkpoint")
    place = folder or os.environ.get("PRUNINGLAB_STARTS")
    if not place:
        return fit(model, data, **options)
    checkpoint = files.check_writable(Path(place) / f"{_key(model, data, options)}.safetensors", "folder")
    with FileLock(checkpoint.with_suffix(".lock")):  # the system takes it back from a process that dies
        return fit(model, data, checkpoint=checkpoint, **options)


def _key(model: nn.Module, data: Data, options: dict[str, Any]) -> str:
    """What the trained weights depend on, in one word."""
    train = data.train
    content = {
        "model": [tensor_hash(model.state_dict()), repr(model)],
        "data": [data.name, data.fingerprint, describe(train.augment), describe(train.mean), describe(train.std)],
        "options": {k: describe(v) for k, v in sorted(options.items()) if k not in ("progress", "every_steps")},
        "code": [code_hash(), torch.__version__, torch.cuda.is_available()],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def start_from(model: nn.Module | Run, data: Data, folder: str | Path | None, **settings: Any) -> Run:
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

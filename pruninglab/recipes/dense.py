"""One dense network for all runs that start from it, however many processes ask for it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from .. import storage
from ..data import Data
from ..results import code_hash, describe, tensor_hash
from ..run import Run
from ..train import fit
from .admm import refuse_own


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
    checkpoint = storage.check_writable(Path(place) / f"{_key(model, data, options)}.safetensors", "folder")
    with FileLock(checkpoint.with_suffix(".lock")):  # the system takes it back from a process that dies
        return fit(model, data, checkpoint=checkpoint, **options)


def _key(model: nn.Module, data: Data, options: dict[str, Any]) -> str:
    """What the trained weights depend on, in one word."""
    train = data.train
    content = {
        "model": [tensor_hash(model.state_dict()), repr(model)],
        "data": [data.name, data.fingerprint, describe(train.augment), describe(train.mean), describe(train.std)],
        "options": {k: describe(v) for k, v in sorted(options.items()) if k not in ("progress", "every")},
        "code": [code_hash(), torch.__version__, torch.cuda.is_available()],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

"""What a finished run writes into its record."""

import hashlib
from dataclasses import asdict
from typing import Any

from torch import nn

from ..data.dataset import Data
from ..errors import ConfigError
from ..identity import describe, tensor_hash
from ..layers.flops import sparse_flops
from ..layers.names import canonical, prunable
from ..results.environment import environment
from ..results.record import Result
from ..storage import sparse
from .method import Method, state_of
from .run import Run, optimizer_state
from .snapshot import Snapshot


def _result(run: Run, kept_state: str, val: dict[str, float], test: dict[str, float]) -> Result:
    size = sparse.sizes(run.model)
    kept = run.masks.kept_by_layer
    layers = [
        {"layer": name, "shape": list(mask.shape), "total": mask.numel(), "kept": kept[name]}
        for name, mask in run.masks.items()
    ]
    pruned = run.masks.total - run.masks.kept
    with_biases = prunable(run.model, biases=True).keys() | run.weights.keys()
    parameters = {canonical(name): p.numel() for name, p in run.model.named_parameters()}
    steps = run.step - run.first_step
    dense = sum(sum(ops.values()) for ops in run.flops.values())
    return Result(
        status=run.status,
        reason=run.reason,
        config=run.config,
        environment=environment(str(run.device)),
        origin=run.origin,
        tags=run.tags,
        steps={
            "own": steps,
            "before": run.origin["steps"],
            "planned": run.steps,
            "epochs": run.epoch,
            "samples": round(steps * len(run.data.train) / run.steps_per_epoch),
        },
        target=describe(run.target),
        accuracy={"metric": describe(run.options.metric), "val": val, "test": test, "state": kept_state},
        sparsity={
            "weights": run.sparsity,
            "weights_and_biases": pruned / max(sum(parameters[name] for name in with_biases), 1),
            "all": pruned / max(sum(parameters.values()), 1),
        },
        layers=layers,
        collapsed=run.masks.collapsed,
        flops={
            "dense": dense,
            "sparse": round(sparse_flops(run.model, run.flops, run.masks), 1),
            "training": 3 * dense * len(run.data.train) * steps / run.steps_per_epoch,
        },
        size=size,
        history=run.history,
        cuts=[asdict(cut) for cut in run.cuts],
        methods=[_visible_state(method) for method in run.methods],
        times={"seconds": round(run.seconds, 3)},
    )


def _visible_state(method: Method) -> dict[str, Any]:
    """The small things that a method counted, also in an object that it holds; tensors stay in the run."""
    state = state_of(method)
    inside = {k: v for value in state.values() if isinstance(value, dict) for k, v in value.items()}
    simple = {k: v for k, v in (inside | state).items() if v is None or isinstance(v, bool | int | float | str)}
    return {"type": type(method).__name__, **simple}


def _config(run: Run) -> dict[str, Any]:
    """What makes a run this run and no other; a checkpoint resumes only into an equal one."""
    data, built = run.data, getattr(run.model, "_pruninglab", {})
    form = hashlib.sha256(repr(run.model).encode()).hexdigest()[:16]
    return {
        "data": {
            "name": data.name,
            "seed": data.seed,
            "fingerprint": data.fingerprint,
            "train": len(data.train),
            "val": len(data.val),
            "test": len(data.test),
            "augment": describe(data.train.augment),
            "mean": describe(data.train.mean),
            "std": describe(data.train.std),
            **({"val_is_test": True} if data.val_is_test else {}),
        },
        "model": {"name": type(run.model).__name__, **built, "form": form},
        "methods": [describe(method) for method in run.methods],
        **{k: v for k, v in describe(run.options).items() if k != "type"},
        "origin": run.origin,
        "masks": run.masks.fingerprint if run.sparsity else None,
        "device": run.device.type,
    }


def _start(parent: Run | None, source: nn.Module, start: Snapshot | None, data: Data) -> dict[str, Any]:
    """Where a run begins: which weights, and how many steps went into them before."""
    of_source = _hash_of(source)
    if not parent:
        kind, spent = ("snapshot", start.spent) if start else ("model", 0)
        return {"kind": kind, "weights": of_source, "steps": spent, "dense": None}
    if parent.data.name == data.name and parent.data.fingerprint != data.fingerprint:
        raise ConfigError(
            f"the run was trained on another split or subset of {data.name}: its training images may be in this "
            f"validation split. Load the data with seed={parent.data.seed} and the same sizes; or pass run.model and "
            "masks=run.masks to go on all the same."
        )
    dense = parent.origin["dense"] or (of_source if parent.sparsity == 0 else None)
    return {"kind": "run", "weights": of_source, "steps": parent.spent, "dense": dense}


def _proof(run: Run) -> dict[str, Any]:
    """What else was rewound, as it is now and not as it was asked for: the optimizer's memory and the rate."""
    remembered = {f"{name}/{k}": v for name, state in optimizer_state(run).items() for k, v in state.items()}
    rate = run.options.lr * run.options.lr_factor(run.progress)
    return {"optimizer": tensor_hash(remembered) if remembered else None, "lr": rate}


def _hash_of(model: nn.Module) -> str:
    return tensor_hash(dict(model.named_parameters()) | dict(model.named_buffers()))

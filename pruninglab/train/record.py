"""What a finished run writes into its record."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from ..data.dataset import Data
from ..errors import ConfigError
from ..identity import describe, tensor_hash
from ..layers.names import canonical_parameters, is_bias, owner_of, prunable
from ..results.answers import Answers
from ..results.environment import environment
from ..results.protocol import training
from ..results.record import LITTLE, Result
from ..storage import sparse
from .method import Method, state_of
from .options import LATER, Session
from .ranks import current
from .run import Costs, Run, optimizer_state
from .snapshot import Snapshot

WIDER = "A name or a type of layer in include=, a shorter skip=, biases=True or norms=True"
"""The arguments of `fit` that widen the scope."""


def how_computed(run: Run) -> dict[str, Any]:
    """What changes the last bits of a run beside the machine, where it is so."""
    several = {"processes": ranks.count} if (ranks := current()) else {}
    return several | ({"compact": True} if run.compacts else {})


def _result(
    run: Run, kept_state: str, val: dict[str, float], test: dict[str, float], answers: Answers | None
) -> Result:
    size = sparse.sizes(run.model)
    kept = run.masks.kept_by_layer
    layers = [
        {"layer": name, "shape": list(mask.shape), "total": mask.numel(), "kept": kept[name]}
        for name, mask in run.masks.items()
    ]
    pruned = run.masks.total - run.masks.kept
    with_biases = prunable(run.model, biases=True).keys() | run.weights.keys()
    parameters = {name: p.numel() for name, p in canonical_parameters(run.model).items()}
    scope = in_scope(run.model, run.weights)
    before, cost = _total(run.before), run.cost
    return Result(
        status=run.status,
        reason=run.reason,
        config=run.config,
        environment=environment(str(run.device)) | how_computed(run),
        origin=run.origin,
        scope=scope,
        tags=run.tags,
        warnings=run.warnings + too_little(run, scope) + _not_counted(run),
        steps={
            "own": cost["steps"],
            "before": run.origin["steps"],
            "planned": run.steps,
            "epochs": run.epoch,
            "samples": round(cost["steps"] * len(run.data.train) / run.steps_per_epoch),
        },
        target=describe(run.target),
        accuracy={
            "metric": describe(run.options.metric),
            "val": val,
            "test": test,
            "state": kept_state,
            "weights": _hash_of(run.model),
            "answers": answers.entry() if answers else None,
        },
        sparsity={
            "weights": run.sparsity,
            "weights_and_biases": pruned / max(sum(parameters[name] for name in with_biases), 1),
            "all": pruned / max(sum(parameters.values()), 1),
        },
        layers=layers,
        collapsed=run.masks.collapsed,
        flops={
            "dense": run.flops.dense,
            "sparse": round(run.flops.sparse(run.masks), 1),
            "training": cost["flops"],
            "before": before["flops"],
        },
        size=size,
        history=run.history,
        cuts=[asdict(cut) for cut in run.cuts],
        methods=[_visible_state(method) for method in run.acting],
        times={"seconds": round(run.seconds, 3), "seconds_before": round(before["seconds"], 3)},
    )


def in_scope(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """How many of all parameters may be cut, and how many others each type of layer holds, the most first."""
    named = canonical_parameters(model)
    counted = {id(p) for p in weights.values()}
    others: Counter[str] = Counter()
    for name, parameter in named.items():
        if id(parameter) not in counted:
            others[_kind(owner_of(model, name), name, parameter)] += parameter.numel()
    return {
        "weights": sum(p.numel() for p in weights.values()),
        "parameters": sum(p.numel() for p in named.values()),
        "left_out": dict(others.most_common()),
    }


def _kind(owner: nn.Module, name: str, parameter: Tensor) -> str:
    kind = type(owner).__name__
    kind = f"{kind} (bias)" if is_bias(name) else kind
    return kind if parameter.requires_grad else f"{kind} (frozen)"


def too_little(run: Run, scope: Mapping[str, Any]) -> list[str]:
    """What a run has to say that prunes, but may prune almost nothing of its network."""
    weights, parameters = scope["weights"], scope["parameters"]
    if not (run.target or run.cuts or run.sparsity) or weights >= LITTLE * parameters:
        return []
    left_out = ", ".join(f"{kind} {number:,}" for kind, number in list(scope["left_out"].items())[:5])
    return [
        f"only {weights / parameters:.1%} of all parameters are in scope, {weights:,} of {parameters:,}. "
        f"Left out: {left_out}. {WIDER} brings more into scope."
    ]


def _not_counted(run: Run) -> list[str]:
    operations = ", ".join(run.flops.not_counted)
    return [f"the FLOPs are without those of {operations}, for which there is no formula."] if operations else []


def _total(costs: Costs) -> dict[str, Any]:
    return {what: sum(cost[what] for cost in costs.values()) for what in ("steps", "flops", "seconds")}


def _visible_state(method: Method) -> dict[str, Any]:
    """The small things that a method counted, also in an object that it holds; tensors stay in the run."""
    state = state_of(method)
    inside = {k: v for value in state.values() if isinstance(value, dict) for k, v in value.items()}
    simple = {k: v for k, v in (inside | state).items() if v is None or isinstance(v, bool | int | float | str)}
    return {"type": type(method).__name__, **simple}


def _config(run: Run) -> dict[str, Any]:
    """What makes a run this run and no other; a checkpoint resumes only into an equal one."""
    data, built = run.data, getattr(run.model, "made_of", {})
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
            **({"source": data.source} if data.source else {}),
            **({"holds": "ImageNet"} if is_imagenet(data.class_names) else {}),
        },
        "model": {"name": type(run.model).__name__, **built, "form": form, **_other_type(run)},
        "methods": [describe(method) for method in run.acting],
        **{k: v for k, v in describe(run.options).items() if k != "type" and (k, v) not in LATER.items()},
        "origin": {k: v for k, v in run.origin.items() if k != "earlier"},
        "masks": run.masks.fingerprint if run.sparsity else None,
        "device": run.device.type,
    }


def _other_type(run: Run) -> dict[str, str]:
    """The type of the weights, where it is not float32."""
    found = sorted({str(p.dtype).removeprefix("torch.") for p in run.model.parameters() if p.is_floating_point()})
    return {} if found in ([], ["float32"]) else {"dtype": " and ".join(found)}


def is_imagenet(class_names: Sequence[str]) -> bool:
    """A folder may have any name: those of ImageNet's thousand classes are numbers of WordNet."""
    return len(class_names) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in class_names)


def _start(
    parent: Run | None, source: nn.Module, session: Session, data: Data, loss: Any = None
) -> tuple[dict[str, Any], Costs]:
    """Where a run begins, and what had to be trained before it, the teacher of `loss` included.

    `steps` counts each training before it once. `search` is what of them is not in the weights: it found the masks, or
    taught. `earlier` are the protocols of the trainings that are in them.
    """
    carried = (parent.trainings if parent else {}) | _past(session.start)
    before = carried | getattr(loss, "trainings", {})
    for run in session.found_by:
        if not isinstance(run, Run):
            raise ConfigError(f"found_by holds a {type(run).__name__}; expected finished runs.")
        before |= run.trainings
    steps = _total(before)["steps"]
    more: dict[str, Any] = {"search": steps - _total(carried)["steps"]} if session.found_by or before != carried else {}
    if parent:
        passed = [*parent.origin.get("earlier", []), training(parent.config)]
        more["earlier"] = [past for i, past in enumerate(passed) if past not in passed[:i]]
    kind = "run" if parent else "snapshot" if session.start else "model"
    weights = _hash_of(source)
    dense = _dense_start(parent, weights, data) if parent else None
    return {"kind": kind, "weights": weights, "steps": steps, "dense": dense, **more}, before


def _past(start: Snapshot | None) -> Costs:
    """The trainings of a snapshot; one of an older file knows only their steps."""
    if not start or not start.spent:
        return {}
    return start.past or {"snapshot": {"steps": start.spent, "flops": 0.0, "seconds": 0.0}}


def _dense_start(parent: Run, weights: str, data: Data) -> str | None:
    """The hash of the dense network that all pruning so far began with."""
    if parent.data.name == data.name and parent.data.fingerprint != data.fingerprint:
        raise ConfigError(
            f"the run was trained on another split or subset of {data.name}: its training images may be in this "
            f"validation split. Load the data with seed={parent.data.seed} and the same sizes; or pass run.model and "
            "masks=run.masks to go on all the same."
        )
    return parent.origin["dense"] or (weights if parent.sparsity == 0 else None)


def _proof(run: Run) -> dict[str, Any]:
    """What else was rewound, as it is now and not as it was asked for: the optimizer's memory and the rate."""
    remembered = {f"{name}/{k}": v for name, state in optimizer_state(run).items() for k, v in state.items()}
    rate = run.options.lr * run.options.lr_factor(run.progress)
    return {"optimizer": tensor_hash(remembered) if remembered else None, "lr": rate}


def _hash_of(model: nn.Module) -> str:
    return tensor_hash(dict(model.named_parameters()) | dict(model.named_buffers()))

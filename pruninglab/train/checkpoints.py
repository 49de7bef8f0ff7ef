"""A run on disk: one file, written atomically, from which `fit` goes on to the bits of an undisturbed run."""

import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, DataError, RunError
from ..identity import code_hash, code_of
from ..masks.masks import Masks
from ..results.environment import environment
from ..storage import files, locks
from ..terminal import alert
from ..version import __version__
from .compact import Compact, follow
from .method import Method, state_of
from .ranks import is_first
from .record import how_computed
from .run import Cut, Run, load_optimizer, optimizer_state
from .snapshot import Snapshot


def save(run: Run, path: Path, loss_sum: float, seen: int, seconds: float) -> None:
    """All that the next step depends on, in one file. Random numbers follow from seed and step and need no place."""
    if not is_first():
        return
    state = {
        "config": run.config,
        "code": _code(run),
        "machine": _machine(run),
        "model": {**dict(run.model.named_parameters()), **dict(run.model.named_buffers())},
        "optimizer": optimizer_state(run),
        "compacted": _compacted(run),
        "masks": {name: mask for name, mask in run.masks.items() if not bool(mask.all())},
        "methods": [state_of(method) for method in run.acting],
        "observers": {place: state_of(method) for place, method in _observers(run).items()},
        "best": _packed(run.best, run.masks) if run.best else None,
        "history": run.history,
        "cuts": [asdict(cut) for cut in run.cuts],
        "progress": {"step": run.step, "epoch": run.epoch, "seconds": run.seconds + seconds},
        "epoch_so_far": {"loss_sum": loss_sum, "seen": seen},
        "warnings": run.warnings,
        "status": run.status if run.status == "stopped" else "running",
        "reason": run.reason if run.status == "stopped" else "",
    }
    keep(run, path, lambda: files.save_state(path, state, keep_previous=True))


def write_record(run: Run, path: str | Path) -> None:
    """Write the record of a run; where that cannot be, the run says so and is not lost."""
    if is_first():
        keep(run, Path(path), lambda: run.save(path))


def keep(run: Run, path: Path, write: Callable[[], object]) -> None:
    """Write a file of a run. Where that fails, the run goes on in memory and says so once; it tries again next time."""
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
            _say(run, f"the folder {path.parent} was removed while the run was training; it has been made again.")
        write()
    except (OSError, ConfigError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        _say(run, f"{path} could not be written ({why}); the run went on in memory and tried again each time.")


def _say(run: Run, text: str) -> None:
    """What nobody may miss: at once, and in the record."""
    if text in run.warnings:
        return
    run.warn(text)
    if hasattr(run, "result"):
        run.result.warnings.append(text)
    alert(text)


def _compacted(run: Run) -> dict[str, Any] | None:
    """What the network has been compacted by, where that has changed since: it is compacted between epochs only."""
    net = run.net
    if not isinstance(net, Compact) or net.masks is run.masks:
        return None
    return {"masks": dict(net.masks), "held": dict(net.held)}


def _packed(best: Snapshot, masks: Masks) -> dict[str, Any]:
    """A snapshot, without the masks where they are those of the run."""
    state = {f.name: getattr(best, f.name) for f in fields(Snapshot)}
    return state | {"masks": None} if best.masks.fingerprint == masks.fingerprint else state


def alone(path: Path | None) -> AbstractContextManager[None]:
    """One process at a time trains into a checkpoint."""
    return locks.alone(path, "Wait until that has ended, or give another checkpoint=.")


def _load(run: Run, path: Path) -> dict[Any, Any]:
    """The newest checkpoint; where that is damaged or gone, the one before it takes its place."""
    try:
        return files.load_state(path)
    except DataError as error:
        before = files.previous(path)
        if not before.exists() or (path.exists() and not isinstance(error, files.Damaged)):
            raise
        state, lost = files.load_state(before), "damaged" if path.exists() else "gone"
    with suppress(OSError):
        os.replace(before, path)
    _say(run, f"the checkpoint {path} was {lost}; the run went on from the one before it.")
    return state


def resume(run: Run, path: Path, other_code: bool = False) -> tuple[float, int]:
    """Set everything that `save` kept; returns the sum of losses and its samples in the epoch that was broken off."""
    if not path.exists() and not files.previous(path).exists():
        return 0.0, 0
    state = _load(run, path)
    if "epoch_so_far" not in state:
        raise DataError(f"{path} is a state file, but no checkpoint of a run; give another checkpoint=, or delete it.")
    try:
        if is_first():
            _compare(run, path, state, other_code)
        return _set(run, state)
    except (ConfigError, DataError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is a damaged checkpoint: {type(error).__name__} {error}. Delete it.") from None


def _compare(run: Run, path: Path, state: dict[Any, Any], other_code: bool) -> None:
    """Refuse a checkpoint of another run or of other code."""
    stored, asked = state["config"], run.config
    changed, different = _differences(state.get("code", {}), _code(run)), _differences(stored, asked)
    if other_code:
        for difference in (*changed, *different):
            _say(run, f"{path} was begun by other code: {difference}.")
        changed, different = [], _differences(_without_code(stored), _without_code(asked))
    if changed:
        raise RunError(
            f"{path} was written by other code: {'; '.join(changed)}. Give other_code=True to go on all the same, "
            "another checkpoint= to start anew, or delete the file."
        )
    if different:
        raise RunError(
            f"{path} belongs to another run: {'; '.join(different[:5])}. Give the same settings to resume it, "
            "other_code=True where only a function or a class was edited, another checkpoint= to start anew, or delete "
            "the file."
        )
    if moved := _differences(state["machine"], _machine(run)):
        run.warn(f"not the bits of an undisturbed run: {'; '.join(moved)}.")


def _set(run: Run, state: dict[Any, Any]) -> tuple[float, int]:
    progress, so_far = state["progress"], state["epoch_so_far"]
    numbers = [*progress.values(), *so_far.values(), *(entry["val_accuracy"] for entry in state["history"])]
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("a number is none")
    if not (0 <= progress["step"] <= run.steps and 0 <= progress["epoch"] <= run.epochs):
        raise ValueError(f"step {progress['step']} of {run.steps}")
    Snapshot(state["model"], {}, Masks()).load_into(run.model)
    watching = [(method, state["observers"].get(place, {})) for place, method in _observers(run).items()]
    run.optimizer.state.clear()
    load_optimizer(run, state["optimizer"])
    set_methods(run, state["masks"], [*zip(run.acting, state["methods"], strict=True), *watching])
    if isinstance(run.net, Compact) and (compacted := state.get("compacted")):
        run.net.follow(Masks(compacted["masks"]).to(run.device), compacted["held"])
    else:
        follow(run)
    run.best = Snapshot(**_unpacked(state["best"], run.masks)) if state["best"] else None
    run.history = state["history"]
    run.warnings = list(dict.fromkeys([*state["warnings"], *run.warnings]))
    run.cuts = [Cut(**cut) for cut in state["cuts"]]
    run.step, run.epoch, run.seconds = progress["step"], progress["epoch"], progress["seconds"]
    run.end(state["status"], state["reason"])
    return float(so_far["loss_sum"]), int(so_far["seen"])


def set_methods(run: Run, masks: Mapping[str, Tensor], kept: Iterable[tuple[Method, Mapping[str, Any]]]) -> None:
    """The masks of a run, and what its methods remember."""
    run._masks = Masks(masks).to(run.device).over(run.weights)
    run.find_weights()
    for method, state in kept:
        for name, value in state.items():
            setattr(method, name, _like(getattr(method, name, None), value, run.device))


def _unpacked(state: dict[str, Any], masks: Masks) -> dict[str, Any]:
    return state if state["masks"] is not None else state | {"masks": masks.clone()}


def _code(run: Run) -> dict[str, Any]:
    """All code that a result depends on, beside that of the user's methods and functions, which the settings hold."""
    return {
        "pruninglab": __version__,
        "its source": code_hash(),
        "torch": torch.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "the model's code": code_of(run.model),
    }


def _machine(run: Run) -> dict[str, Any]:
    """What changes the last bits of a result and nothing else."""
    known = environment("cpu")
    names = ("threads", "threads_between_operations", "instructions", "libraries")
    return {name: known[name] for name in names} | how_computed(run)


_OWN_CODE = re.compile(r"(?<=\w)(?<!\barray) [0-9a-f]{8}\b")
"""How a description marks what is the user's own: its name, and a hash."""


def _without_code(described: Any) -> Any:
    if isinstance(described, Mapping):
        return {k: _without_code(v) for k, v in described.items() if k != "code"}
    if isinstance(described, list | tuple):
        return [_without_code(value) for value in described]
    return _OWN_CODE.sub("", described) if isinstance(described, str) else described


def _observers(run: Run) -> dict[tuple[str, int], Method]:
    """The methods that only look, by class and place among those of it: any may come or go between two sessions."""
    found: dict[tuple[str, int], Method] = {}
    for method in run.methods:
        if method.observes:
            kind = type(method).__name__
            found[kind, sum(name == kind for name, _ in found)] = method
    return found


def _like(made: Any, stored: Any, device: torch.device) -> Any:
    """A method's stored state in the types that its `on_start` made."""
    if is_dataclass(made):
        for name, value in stored.items():
            setattr(made, name, _like(getattr(made, name), value, device))
        return made
    if isinstance(stored, Tensor):
        if not isinstance(made, Tensor) or (made.shape, made.dtype) != (stored.shape, stored.dtype):
            return stored.to(device)
        made.data.copy_(stored)  # in place: the optimizer, too, may hold it
        return made
    if isinstance(stored, Masks):
        return stored.to(device)
    if isinstance(stored, dict):
        known = made if isinstance(made, Mapping) else {}
        return {k: _like(known.get(k), v, device) for k, v in stored.items()}
    if isinstance(stored, list | tuple):
        known = made if isinstance(made, list | tuple) and len(made) == len(stored) else [None] * len(stored)
        filled = [_like(k, v, device) for k, v in zip(known, stored, strict=True)]
        return tuple(filled) if isinstance(stored, tuple) else filled
    return stored


def _differences(stored: Any, asked: Any, path: str = "") -> list[str]:
    """Each leaf in which two configurations differ, in words."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        keys = sorted(stored.keys() | asked.keys())
        if stored == asked and list(stored) != list(asked):  # of patterns, the last that matches counts
            return [f"{path} was in the order {', '.join(stored)} there and is {', '.join(asked)} now"]
        return [d for k in keys for d in _differences(stored.get(k), asked.get(k), f"{path}.{k}".strip("."))]
    if isinstance(stored, list) and isinstance(asked, list) and len(stored) == len(asked):
        return [
            d for i, (s, a) in enumerate(zip(stored, asked, strict=True)) for d in _differences(s, a, f"{path}[{i}]")
        ]
    return [] if stored == asked else [f"{path} was {stored!r} there and is {asked!r} now"]

"""The options of `fit`, written down once: their types, defaults and checks."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ConfigError
from ..identity import label
from ..layers.calls import Forward
from ..layers.names import Pattern, pattern_names
from ..masks.masks import Collapse
from ..results.record import check_tags
from ..storage.files import check_writable
from ..typed import BelowOne, Count, CountFromZero, Positive, Strength, check_settings
from .losses import negative_loss, returned_loss
from .lr_schedules import LRSchedule, named
from .metrics import accuracy
from .snapshot import Snapshot

Loss = Callable[..., Tensor]
Metric = Callable[..., Tensor]
Optimizer = Literal["adam", "adamw", "sgd"] | Callable[..., torch.optim.Optimizer]
LATER: dict[str, Any] = {"forward": None, "clip": None, "accumulate": 1}
"""Options that came later: a record holds them only where they are not as here, which is what was done before."""


@dataclass(frozen=True)
class Options:
    """What makes a training this one and no other: a record holds it, and a checkpoint compares it."""

    epochs: CountFromZero
    batch_size: Count = 100
    eval_batch_size: Count = 1000
    optimizer: Optimizer = "adam"
    lr: Strength = 1e-3
    momentum: BelowOne = 0.9
    weight_decay: Strength = 0.0
    lr_schedule: LRSchedule = "cosine"
    loss: Loss = F.cross_entropy
    metric: Metric = accuracy
    seed: CountFromZero = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    skip: Pattern | Sequence[Pattern] = ()
    include: Pattern | Sequence[Pattern] = ()
    biases: bool = False
    norms: bool = False
    patience: Count | None = None
    keep: Literal["last", "best"] = "last"
    forward: Forward | None = None
    clip: Positive | None = None
    accumulate: Count = 1

    def __post_init__(self) -> None:
        check_settings(self, "fit")

    def lr_factor(self, progress: float) -> float:
        """What the learning rate is multiplied by at this moment of the training."""
        return named(self.lr_schedule)(progress)

    def on(self, device: torch.device) -> "Options":
        """With everything resolved that depends on the device, or may be given by name."""
        precision = ("bf16" if device.type == "cuda" else "fp32") if self.precision == "auto" else self.precision
        scope = {"skip": pattern_names(self.skip), "include": pattern_names(self.include)}
        metric = negative_loss if self.loss is returned_loss and self.metric is accuracy else self.metric
        return replace(self, precision=precision, lr_schedule=named(self.lr_schedule), metric=metric, **scope)


@dataclass(frozen=True)
class Session:
    """Where a training begins, what it writes and where it runs: nothing that its result depends on by itself."""

    start: Snapshot | None = None
    masks: Mapping[str, Tensor] | None = None
    found_by: Sequence[Any] = ()
    checkpoint: str | Path | None = None
    every_steps: Count | None = None
    compact: bool = False
    other_code: bool = False
    record: str | Path | None = None
    tags: Mapping[str, str | float | bool | None] = field(default_factory=dict)
    device: str | torch.device = "auto"
    devices: Count = 1
    inplace: bool = False
    collapse: Collapse = "stop"
    progress: bool | Callable[[Any], None] = True

    def __post_init__(self) -> None:
        check_settings(self, "fit")
        check_tags(self.tags)
        for name in ("checkpoint", "record"):
            if path := getattr(self, name):
                object.__setattr__(self, name, check_writable(path, name))

    @property
    def place(self) -> torch.device:
        wanted = str(self.device)
        if wanted == "auto":
            wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if wanted.startswith("cpu:") and wanted != "cpu:0":
            raise ConfigError(f"device={wanted!r}: there is one CPU, whatever its cores. Expected 'cpu'.")
        try:
            torch.zeros(1, device=wanted)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"device={wanted!r} cannot be used here: {error}. Expected 'auto', 'cpu', 'cuda' or 'mps'."
            ) from None
        return torch.device(wanted)


class TrainingOptions(TypedDict, total=False):
    """The options of `fit` that a recipe passes on to each of its trainings."""

    batch_size: int
    eval_batch_size: int
    optimizer: Optimizer
    lr: float
    momentum: float
    weight_decay: float
    lr_schedule: LRSchedule
    loss: Loss
    metric: Metric
    seed: int
    precision: Literal["auto", "fp32", "bf16"]
    skip: Pattern | Sequence[Pattern]
    include: Pattern | Sequence[Pattern]
    biases: bool
    norms: bool
    patience: int | None
    keep: Literal["last", "best"]
    forward: Forward | None
    clip: float | None
    accumulate: int
    every_steps: int | None
    compact: bool
    other_code: bool
    tags: Mapping[str, str | float | bool | None]
    device: str | torch.device
    devices: int
    collapse: Collapse
    progress: bool | Callable[[Any], None]


class FitOptions(TrainingOptions, total=False):
    """All options of `fit` after model, data and methods. A recipe sets these ones itself."""

    epochs: Required[int]
    start: Snapshot | None
    masks: Mapping[str, Tensor] | None
    found_by: Sequence[Any]
    checkpoint: str | Path | None
    record: str | Path | None
    inplace: bool


_OURS, _HOW = ({f.name for f in fields(kind)} for kind in (Options, Session))


def refuse_unknown(given: Mapping[str, Any], caller: str = "fit", more: Sequence[str] = ()) -> None:
    """Refuse a misspelt option by name, before any training."""
    known = sorted({*FitOptions.__annotations__, *more})
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{caller} has no option {name!r}.{hint} Its options are {', '.join(known)}.")


def resolved(given: Mapping[str, Any]) -> tuple[Options, Session]:
    """The options that were given, checked, beside the defaults of the others."""
    refuse_unknown(given)
    if "epochs" not in given:
        raise ConfigError("fit needs epochs=…, the number of passes over the training images; 0 only measures.")
    session = Session(**{name: value for name, value in given.items() if name in _HOW})
    return Options(**{name: value for name, value in given.items() if name in _OURS}).on(session.place), session


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function that takes `FitOptions`, with every option and its default written out."""
    own = inspect.signature(function)
    defaults = {f.name: f.default for kind in (Options, Session) for f in fields(kind)} | {"tags": {}}
    shown = {name: _Named(label(value)) if callable(value) else value for name, value in defaults.items()}
    shown["epochs"] = inspect.Parameter.empty
    options = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in shown.items()]
    kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    return own.replace(parameters=[*kept, *options])


class _Named(str):
    """A default that shows itself by its name."""

    __repr__ = str.__str__

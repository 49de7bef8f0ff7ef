"""What all recipes share: how they are called, where they start, and files of each stage to go on from."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypedDict, TypeVar, Unpack

import torch
from filelock import FileLock
from torch import Tensor, nn

from ..data.dataset import Data
from ..errors import ConfigError
from ..identity import code_hash, describe, tensor_hash
from ..layers.calls import calling
from ..layers.flops import Flops, count
from ..layers.hooks import evaluating
from ..layers.names import NOTHING, prunable
from ..masks.masks import Masks
from ..randomness import own_randomness
from ..results.record import check_tags
from ..storage import files, locks
from ..storage.levels import Bits, by_layer
from ..train.checkpoints import write_record
from ..train.fit import fit
from ..train.method import Method
from ..train.options import FitOptions, Options, TrainingOptions, refuse_unknown, resolved
from ..train.run import Run
from ..typed import CountFromZero, check_arguments
from .trials import Trials

STARTS = "PRUNINGLAB_STARTS"
"""The environment variable with the folder in which a sweep's cells share their dense networks."""
Untrained = Annotated[nn.Module, "untrained, for example lab.build(…): this recipe trains it and goes back to it"]
SETS = FitOptions.__annotations__.keys() - TrainingOptions.__annotations__.keys() - {"epochs"}
P = ParamSpec("P")
Made = TypeVar("Made")


class Files(TypedDict, total=False):
    checkpoint: Path
    record: Path


def recipe(function: Callable[P, Made]) -> Callable[P, Made]:
    """A recipe: its call is checked, and its folder is its own while it runs."""
    form = inspect.signature(function)

    @wraps(function)
    def held(*args: P.args, **named: P.kwargs) -> Made:
        with _own(form.bind(*args, **named).arguments.get("folder")):
            return function(*args, **named)

    return checked(held)


@contextmanager
def _own(folder: str | Path | None) -> Generator[None]:
    """A folder for one process. One that is made here and stays empty, since the call was wrong, goes again."""
    if folder is None:
        yield
        return
    path = Path(folder).expanduser()
    is_new = not path.exists()
    files.check_writable(path / "record.json", "folder")
    try:
        with locks.alone(path, "Wait until that has ended, or give another folder=."):
            yield
    finally:
        with suppress(OSError):
            if is_new:
                path.rmdir()


def checked(function: Callable[P, Made]) -> Callable[P, Made]:
    """Refuse a call before anything is trained: a misspelt or missing argument by its name, a value by its type."""
    form = inspect.signature(function)
    own = [name for name, p in form.parameters.items() if p.kind is not p.VAR_KEYWORD]
    (rest,) = form.parameters.keys() - own

    @wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> Made:
        refuse_own(function.__name__, named)
        refuse_unknown(named, f"recipes.{function.__name__}", own)
        try:
            given = form.bind(*args, **named)
        except TypeError as error:
            raise ConfigError(f"recipes.{function.__name__}: {error}.") from None
        given.arguments |= check_arguments(function, {k: v for k, v in given.arguments.items() if k != rest})
        return function(*given.args, **given.kwargs)

    return call


def refuse_own(caller: str, options: Mapping[str, Any], *more: str) -> None:
    """Refuse the options of `fit` that a recipe sets."""
    if own := (SETS | {*more}) & options.keys():
        raise ConfigError(f"{caller} sets {', '.join(sorted(own))} by itself; for files give folder=.")


@checked
def dense_start(
    model: nn.Module | Run,
    data: Data,
    *,
    epochs: CountFromZero,
    folder: str | Path | None = None,
    name: str = "",
    **options: Unpack[TrainingOptions],
) -> Run:
    """`fit(model, data, epochs=…, **options)`, trained once for everyone who asks for the same. All recipes start here.

    The same are: the initial weights, the images, every option, the versions of torch and of this package. Whoever
    comes first trains and writes a checkpoint after each epoch. The others wait, and go on from its end. If the first
    one is killed, the next one goes on from its checkpoint, to the same bits. A finished `Run` is returned as it is.

    The checkpoint lies in `folder`, or without it in the folder that PRUNINGLAB_STARTS names, which a sweep sets for
    its cells. Without both, nothing is written. With a `name`, this is the first stage of a recipe: `folder` has its
    record, and its checkpoint where no sweep shares it.
    """
    if isinstance(model, Run):
        return model
    shared = os.environ.get(STARTS) if name or not folder else folder
    checkpoint: Path | None = stage(folder, name).get("checkpoint") if name else None
    if shared:
        key = _key(model, data, epochs, options)
        checkpoint = files.check_writable(Path(shared, f"{key}.safetensors"), "folder")
    with FileLock(checkpoint.with_suffix(".lock")) if shared and checkpoint else nullcontext():
        run = fit(model, data, epochs=epochs, checkpoint=checkpoint, **options)  # a process that dies drops its lock
    if name and folder:
        write_record(run, Path(folder, f"{name}.json"))
    return run


def _key(model: nn.Module, data: Data, epochs: int, options: TrainingOptions) -> str:
    """A hash of all that the trained weights depend on."""
    chosen, session = resolved({"epochs": epochs, **options})
    train = data.train
    content = {
        "model": [tensor_hash(model.state_dict()), repr(model), [m.training for m in model.modules()]],
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        "data": [data.name, data.fingerprint, describe(train.augment), describe(train.mean), describe(train.std)],
        "options": describe(chosen),
        "code": [code_hash(), torch.__version__, session.place.type],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def stage(folder: str | Path | None, name: str) -> Files:
    """Where a stage leaves its checkpoint and its record."""
    return {"checkpoint": Path(folder, f"{name}.safetensors"), "record": Path(folder, f"{name}.json")} if folder else {}


def ended(run: Run, given: Any = None) -> bool:
    """Whether a recipe stops here: the run broke off, unless it was interrupted and is the one that was `given`."""
    return run.status in ("interrupted", "diverged", "collapsed") or (run.interrupted and run is not given)


@dataclass
class Stages:
    """The trainings of a recipe, one after the other. When one has ended early, those after it are passed over.

    Each record has the tags `recipe`, `method` (the recipe, or what the user's tags say) and `stage` (the name of the
    trial), and its own columns. From these `lab.compare` knows what was only a stage on the way.
    """

    recipe: str
    data: Data
    folder: str | Path | None
    options: TrainingOptions
    finetune_lr: float | None = None
    made: Trials = field(default_factory=Trials)
    over: bool = False

    def dense(self, model: nn.Module | Run, epochs: int, name: str = "dense", **columns: Any) -> Run:
        """The first stage: a finished `Run` as it is, or a dense training."""
        options = self._tagged("dense", columns)
        run = dense_start(model, self.data, epochs=epochs, folder=self.folder, name=name, **options)
        self.over = ended(run, model)
        return self.made.add("dense", run, **columns)

    def train(self, name: str, model: nn.Module | Run, *methods: Method, file: str = "", **given: Any) -> Run:
        """One `fit`, with a checkpoint and a record. `given` are its own options, and the `round` of its row."""
        if not self.over:
            columns = {"round": given.pop("round")} if "round" in given else {}
            kept = stage(self.folder, file or name.lower())
            run = fit(model, self.data, *methods, **self._tagged(name, columns) | given | kept)
            self.made.add(name, run, kept.get("record"), **columns)
            self.over = ended(run)
        return self.made.last

    def finetune(
        self, run: nn.Module | Run, *methods: Method, name: str = "fine-tuned", slower: float = 1, **given: Any
    ) -> Run:
        """One more, at the learning rate of fine-tuning: by default the one of training, divided by `slower`."""
        lr = self.options.get("lr", Options.lr) / slower if self.finetune_lr is None else self.finetune_lr
        return self.train(name, run, *methods, lr=lr, **given)

    def _tagged(self, name: str, columns: Mapping[str, Any]) -> Any:
        """The options of `fit` for this stage; tags that the user gave are kept."""
        return {**self.options, "tags": {"stage": name, **columns, **tags_of(self.recipe, self.options)}}


def tags_of(recipe: str, options: TrainingOptions, **columns: Any) -> dict[str, Any]:
    """What says of a record which recipe made it; one that calls another passes its own on, with columns."""
    check_tags(given := options.get("tags", {}))
    return {"recipe": recipe, "method": recipe, **given, **columns}


def tag_choice(made: Trials) -> None:
    """Enter into the records which of its trials a recipe chose, now that this is known."""
    for trial in made:
        if "chosen" in trial.columns:
            trial.run.result.tags["chosen"] = trial.columns["chosen"]
            if trial.record:
                write_record(trial.run, trial.record)


def in_scope(model: nn.Module, options: TrainingOptions) -> dict[str, nn.Parameter]:
    """The weights that `fit` with these options would prune."""
    return prunable(model, **{k: v for k, v in options.items() if k in ("skip", "include", "biases", "norms")})  # pyright: ignore[reportArgumentType]


def layers_in_order(
    model: nn.Module | Run, data: Data, weights: Mapping[str, Tensor], options: TrainingOptions
) -> list[str]:
    """The layers of these weights as they run on an image, whatever the order in which they are defined."""
    if isinstance(model, Run):
        return model.flops.layers(weights)
    x, _ = next(iter(data.val.batches([torch.arange(1)])))
    forward, device = options.get("forward"), next(iter(weights.values())).device
    wrong = RuntimeError, TypeError, LookupError, AttributeError  # `fit` says in words what the network does not take
    called = calling(model, forward, forward is not None)
    with own_randomness(0), evaluating(model), called, torch.no_grad(), suppress(*wrong):
        return count(model, x.to(device)).layers(weights)
    return Flops().layers(weights)


def filled(bits: Bits, weights: Mapping[str, Tensor], masks: Masks) -> Bits:
    """The same bits, but no layer with more levels than weights: b bits name 2^b levels. One weight alone has none."""
    wanted, kept = by_layer(weights, bits), masks.kept_by_layer
    most = {name: kept[name].bit_length() - 1 if kept[name] else width for name, width in wanted.items()}
    possible = {name: min(width, most[name]) for name, width in wanted.items() if most[name]}
    return bits if possible == wanted else possible


def check_prunable(model: nn.Module, options: TrainingOptions) -> None:
    if not in_scope(model, options):
        raise ConfigError(NOTHING)

"""`Run`, the one argument that methods get: the state of one training, its weights, and the verbs on masks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from .. import _html
from ..errors import ConfigError, RunError
from ..layers.names import NOTHING, prunable
from ..masks.choose import Scope, keep_top
from ..masks.masks import Collapse, Masks, Sparsity, Unit, emptied, nothing_of, units
from ..masks.threshold import counted

AnyMethod = TypeVar("AnyMethod")
Costs = dict[str, dict[str, float]]
Criterion = str | Callable[..., dict[str, Tensor]]
Status = Literal["running", "done", "stopped", "interrupted", "diverged", "collapsed", "target_missed"]


@dataclass(frozen=True)
class Cut:
    """One change of the masks: when, how many weights were kept before and after, how many came back."""

    step: int
    before: int
    after: int
    revived: int = 0


@dataclass(eq=False, repr=False)
class Run(ABC):
    """One training: what methods see at each moment, and what is left to look at when it is over.

    `fit` makes a `Training`, which also scores, evaluates and remembers. So a method imports no more than it uses.

    >>> run = lab.fit(model, data, epochs=1)
    >>> run.status, 0 <= run.val <= 1
    ('done', True)
    """

    model: nn.Module
    data: Any
    """The three splits: a `Data`."""
    methods: list[Any]
    options: Any
    """What `fit` was asked for: `Options`."""
    device: torch.device
    tags: dict[str, Any]
    origin: dict[str, Any]
    before: Costs
    """What had to be trained before, each training once: those it goes on from, and those that found its masks."""
    net: Callable[..., Tensor] = field(init=False)
    """What is called in training and evaluation: `model`, or what a method puts around it for the time of the run."""
    optimizer: torch.optim.Optimizer = field(init=False)
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)
    logits: Tensor = field(init=False)
    randomness: Any = field(init=False)
    """What random numbers come from within methods: an `own_randomness`, set anew for each step."""
    result: Any = field(init=False)
    """The record, a `Result`, when the run is over."""
    best: Any = None
    """The state with the best validation score among those at the final mask: a `Snapshot`, or None."""
    step: int = 0
    first_step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    status: Status = "running"
    reason: str = ""
    collapse: Collapse = "stop"
    interrupted: bool = False
    interrupted_by: str = ""
    compacts: bool = False
    """Whether what pruning has made useless is left out of the computation."""
    target: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    flops: Any = None
    """Of one sample: a `Flops`, known before `on_start`."""
    history: list[dict[str, Any]] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What a reader of the record has to know."""

    def __post_init__(self) -> None:
        self.net = self.model
        self.epochs = self.options.epochs
        self.steps_per_epoch = self._steps_per_epoch()
        self.steps = self.epochs * self.steps_per_epoch
        self.eval_batch_size = self.options.eval_batch_size
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.param_groups: list[dict[str, Any]] = [{"params": trained}]
        self._masks = Masks()
        self.find_weights()

    def _steps_per_epoch(self) -> int:
        return len(self.batched(range(len(self.data.train))))

    @property
    def name(self) -> str:
        return " + ".join(type(m).__name__ for m in self.acting) or "Dense"

    @property
    def acting(self) -> list[Any]:
        """The methods without those that only observe: what makes this run another one."""
        return [method for method in self.methods if not method.observes]

    __iter__ = None
    """A run is no list of its methods."""

    def __getitem__(self, kind: type[AnyMethod]) -> AnyMethod:
        """The method of this class, with the state that it has: `run[ADMM].residuals`."""
        for method in self.methods:
            if isinstance(kind, type) and isinstance(method, kind):
                return method
        known = ", ".join(type(m).__name__ for m in self.methods) or "none"
        raise ConfigError(f"this run has no {getattr(kind, '__name__', kind)}; its methods are {known}.")

    @property
    def val(self) -> float:
        """Accuracy on the validation split, by the run's metric."""
        return self._measured.val

    @property
    def test(self) -> float:
        """Accuracy on the test split. Choices look at `val`."""
        return self._measured.test

    @property
    def _measured(self) -> Any:
        if not hasattr(self, "result"):
            raise RunError("a run is measured when it is over; run.evaluate('val') measures it now.")
        return self.result

    @property
    def progress(self) -> float:
        return self.step / self.steps if self.steps else 1.0

    @property
    def between_epochs(self) -> bool:
        return not self.step % self.steps_per_epoch

    @property
    def going(self) -> bool:
        """Whether nothing has ended this run before its time."""
        return self.status == "running" and not self.interrupted

    @property
    def spent(self) -> int:
        """All steps that went into the weights so far, those before this run included."""
        return self.origin.get("steps", 0) + self.step - self.first_step

    @property
    def cost(self) -> dict[str, float]:
        """Steps, FLOPs and seconds of this training alone. FLOPs are those of the dense computation."""
        steps = self.step - self.first_step
        # backward costs twice the forward pass
        flops = 3 * self.flops.dense * len(self.data.train) * steps / self.steps_per_epoch
        return {"steps": steps, "flops": flops, "seconds": self.seconds}

    @property
    @abstractmethod
    def key(self) -> str:
        """A hash of all settings: the same for whoever trains the same."""

    @property
    def trainings(self) -> Costs:
        """All that had to be trained for this run, itself included, by key."""
        return self.before | {self.key: self.cost}

    @property
    def masks(self) -> Masks:
        return self._masks

    @masks.setter
    def masks(self, masks: Mapping[str, Tensor]) -> None:
        """Cut at once. Never revives: what is pruned stays pruned whatever `masks` says; `grow` is the other verb."""
        self._change(self._masks & self._fitting(masks))

    @property
    def last_cut(self) -> Cut | None:
        return self.cuts[-1] if self.cuts else None

    @property
    def sparsity(self) -> float:
        return self._masks.sparsity

    @property
    def settled(self) -> bool:
        """Whether no method means to cut any more."""
        return all(method.settled for method in self.methods)

    def grow(self, masks: Mapping[str, Tensor]) -> int:
        """Bring weights back. They start at 0, and so does what the optimizer remembers of them. Returns how many."""
        return self.exchange(self._masks | self._fitting(masks))

    @torch.no_grad()
    def exchange(self, masks: Mapping[str, Tensor], values: Mapping[str, Tensor] | None = None) -> int:
        """Cut and grow at once, so that exactly `masks` is kept: one entry of `cuts`. Returns how many came back.

        With `values` the weights are set to them, and the optimizer's memory stays as it is: for weights that were
        trained on while they were out.
        """
        wanted = self._fitting(masks)
        new = wanted & ~self._masks
        if self.compacts and new.kept:
            raise ConfigError("compact=True leaves pruned weights out, so that none can come back. Leave it out.")
        states = self.optimizer.state if hasattr(self, "optimizer") else {}
        for name, grown in new.items():
            weight = self.weights[name]
            if not counted(grown):
                continue
            if values is not None:
                weight.copy_(values[name])
                continue
            for tensor in (weight, *states.get(weight, {}).values()):
                if isinstance(tensor, Tensor) and tensor.shape == grown.shape:
                    tensor.masked_fill_(grown, 0)
        revived = new.kept
        self._change(wanted, revived)
        return revived

    @abstractmethod
    def score(self, criterion: Criterion, masked: bool = True) -> dict[str, Tensor]:
        """Scores of the weights in scope, taken in eval mode on shuffled training batches of this run's own.

        The masked network is scored, at whatever moment; with `masked=False` the weights as they are now.
        """

    @abstractmethod
    def evaluate(self, split: str | Iterable[tuple[Tensor, Tensor]] = "val") -> dict[str, float]:
        """Loss, accuracy and (from 100 classes on) top-5, by samples; generators and modes stay as they are."""

    @abstractmethod
    def snapshot(self, score: float | None = None, optimizer: bool = True) -> Any:
        """A copy of all that a rewind needs, as it is now; without the memory of the optimizer if that is not asked."""

    def cut(self, criterion: Criterion, sparsity: Sparsity, scope: Scope = "global", unit: Unit = "weight") -> None:
        """Score, choose and cut. A sparsity below what is pruned already cuts nothing more."""
        scores = self.score(criterion)
        self.masks = keep_top(scores, sparsity, scope=scope, unit=unit, masks=self._masks, clamp=True)

    def aim(self, sparsity: Sparsity, scope: Scope = "global", unit: Unit = "weight") -> None:
        """Say in `on_start` what is to be reached: refused now where arithmetic rules it out, checked at the end.

        Of several methods' aims the sparsest counts.
        """
        if not self.weights:
            raise ConfigError(NOTHING)
        flat = {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in self._masks.items()}
        wanted = keep_top(flat, sparsity, scope=scope, unit=unit, masks=self._masks)
        kept, total = units(wanted, unit)
        if self.target is None or kept / total < self.target["kept"] / self.target["total"]:
            self.target = {"sparsity": sparsity, "scope": scope, "unit": unit, "kept": kept, "total": total}

    def warn(self, text: str) -> None:
        """Put into the record what its reader has to know."""
        if text not in self.warnings:
            self.warnings.append(text)

    def remember(self, score: float) -> None:
        """Keep this state as the best, if it scores higher than the best so far.

        What the optimizer remembers is kept only for a method that goes back to it.
        """
        if self.best is None or score > (self.best.score or 0.0):
            self.best = self.snapshot(score, any(method.goes_back for method in self.methods))

    def end(self, status: Status, reason: str) -> None:
        """The one place where a run gets its status; both go into the record."""
        self.status, self.reason = status, reason

    def stop(self, reason: str) -> None:
        """End after this step."""
        self.end("stopped", reason)

    def interrupt(self, by: str = "the user") -> None:
        """End after this step with what was reached, as Ctrl-C does; a checkpoint goes on from here."""
        self.interrupted, self.interrupted_by = True, by

    def over_ranks(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Gradients that a method took by itself, of the whole batch: over several processes their mean."""
        return gradients

    def batched(self, order: Any) -> list[Any]:
        """An epoch's order in batches; a last one of a single image joins the one before, for BatchNorm's sake."""
        size = self.options.batch_size
        ends = [*range(size, len(order), size), len(order)]
        if size > 1 and len(ends) > 1 and ends[-1] - ends[-2] == 1:
            del ends[-2]
        return [order[start:end] for start, end in pairwise([0, *ends])]

    def find_weights(self) -> None:
        """Canonical name -> tensor of each weight in scope; for whoever changes the model's parameters."""
        options = self.options
        scope = {"skip": options.skip, "include": options.include}
        self.weights = prunable(self.model, biases=options.biases, norms=options.norms, **scope)
        self._masks = self._masks or Masks.full(self.weights)
        self._prepare_masks()

    def apply_masks(self) -> None:
        """One foreach multiply; what is not kept becomes 0."""
        if self._factors:
            weights = [weight.data for weight in self._masked]
            torch._foreach_mul_(weights, self._factors)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def masked(self) -> Generator[None]:
        """What is pruned is 0 while somebody looks; between an optimizer's step and the masks it may not be."""
        moved = [(w, f, w.detach().clone()) for w, f in zip(self._masked, self._factors, strict=True) if _beyond(w, f)]
        for weight, factor, _ in moved:
            weight.data.mul_(factor)
        try:
            yield
        finally:
            for weight, _, dense in moved:
                weight.data.copy_(dense)

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def inherit_miss(self, before: "Run") -> None:
        """Training on under the same masks misses what the run before had missed."""
        self.end(before.status, before.reason)
        self.target = before.target
        self.result.status, self.result.reason, self.result.target = self.status, self.reason, before.result.target

    def save(self, path: str | Path) -> Path:
        """Write the record; of several processes the first one does."""
        return self.result.save(path)

    def __repr__(self) -> str:
        return repr(self.result) if hasattr(self, "result") else f"Run({self.status}, step {self.step} of {self.steps})"

    def _repr_html_(self) -> str:
        return self.result._repr_html_() if hasattr(self, "result") else f"<code>{_html.cell(repr(self))}</code>"

    def _fitting(self, masks: Mapping[str, Tensor]) -> Masks:
        """These masks, of this model and on its device."""
        Masks(masks).check(self.weights)
        return Masks(masks).to(self.device)

    def _change(self, masks: Masks, revived: int = 0) -> None:
        counts = masks.kept_by_layer
        before, after = self._masks.kept, sum(counts.values())
        if before == after and not revived:
            return
        self.cuts.append(Cut(self.step, before, after, revived))
        self._masks = masks
        self._prepare_masks()
        masks.apply_({name: weight.data for name, weight in self.weights.items()})
        self.best = None  # counts only among states at the final mask
        if self.collapse == "stop" and self.status in ("running", "stopped") and (layers := emptied(counts)):
            cut = f"the cut at step {self.step} to sparsity {1 - after / masks.total:.4f}"
            self.end("collapsed", f"{cut} left {nothing_of(layers)}")

    def _prepare_masks(self) -> None:
        """The masks that cut anything, as their weights are laid out and typed: the fast path of the multiply."""
        some = [name for name, mask in self._masks.items() if counted(mask) < mask.numel()]
        self._masked = [self.weights[name] for name in some]
        self._factors = [torch.empty_like(self.weights[n].detach()).copy_(self._masks[n]) for n in some]


def _beyond(weight: Tensor, factor: Tensor) -> bool:
    """Whether a pruned weight is not 0 now."""
    return bool((weight.detach() * (1 - factor)).any())


def optimizer_state(run: Run) -> dict[str, dict[str, Tensor]]:
    """What the optimizer remembers, by the names of `_optimized`."""
    return {
        name: {k: v.detach().clone() for k, v in run.optimizer.state[p].items() if isinstance(v, Tensor)}
        for name, p in _optimized(run).items()
        if p in run.optimizer.state
    }


def load_optimizer(run: Run, stored: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Set what the optimizer remembers; tensors of a weight's shape take its memory format.

    What is remembered of parameters that are not here, those of another method, is left out.
    """
    named = _optimized(run)
    for name, state in stored.items():
        weight = named.get(name)
        if weight is None or any(v.ndim and v.shape != weight.shape for v in state.values()):
            continue
        run.optimizer.state[weight] = {
            k: torch.empty_like(weight, dtype=v.dtype).copy_(v)
            if v.shape == weight.shape
            else v.to(weight.device, copy=True)
            for k, v in state.items()
        }


def _optimized(run: Run) -> dict[str, Tensor]:
    """Every parameter in the optimizer: the model's by name, a method's own by group and place."""
    names: dict[Tensor, str] = {p: name for name, p in run.model.named_parameters()}
    groups = run.optimizer.param_groups
    return {names.get(p, f"{i}/{j}"): p for i, group in enumerate(groups) for j, p in enumerate(group["params"])}

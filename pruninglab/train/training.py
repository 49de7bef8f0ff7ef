"""`Training`: a `Run` that scores, evaluates and remembers. `fit` makes it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..criteria.registry import Criterion
from ..data.dataset import Data
from ..errors import ConfigError, RunError
from ..identity import short_hash, tensor_hash
from ..layers.calls import Inputs, calling
from ..layers.drawing import draws_nothing
from ..layers.hooks import evaluating
from ..layers.names import canonical_parameters
from ..masks.masks import Masks, units
from ..randomness import own_randomness
from ..results.answers import Answers
from ..results.record import Result
from .evaluate import Batches, OutOfMemory, Shuffled, evaluate, memory_watched, scored
from .method import state_of
from .options import Options
from .ranks import Ranks, mean
from .run import Run, optimizer_state
from .snapshot import Snapshot


class Training(Run):
    data: Data
    options: Options
    best: Snapshot | None
    result: Result
    randomness: own_randomness
    answers: Answers | None
    """To the images of the test split, when that was evaluated last."""

    def __post_init__(self) -> None:
        self.ranks: Ranks | None = None
        self.asked_by, self._shares = "", False
        self.randomness = own_randomness(self.options.seed, self.device)
        self.answers = None
        self._known: tuple[dict[str, str], dict[str, float]] | None = None
        super().__post_init__()

    @cached_property
    def sample(self) -> tuple[Any, Tensor]:
        """Two images of the validation split, or one where there are no more."""
        return next(iter(self.data.val.batches([torch.arange(min(2, len(self.data.val)))])))

    def calling(self) -> AbstractContextManager[None]:
        """In this block the network takes what the data gives, and answers with one tensor of logits."""
        return calling(self.model, self.options.forward, self._is_foreign)

    @cached_property
    def _is_foreign(self) -> bool:
        """Whether this network is called with more than one tensor, or answers with more."""
        x = self.sample[0]
        if self.options.forward is not None or isinstance(x, Inputs):
            return True
        try:
            with self.randomness, evaluating(self.model), torch.no_grad():
                return not isinstance(self.model(x), Tensor)
        except Exception:  # it is said, with the reason, by the trial of one batch
            return False

    def sharing(self) -> AbstractContextManager[None]:
        """In this block, of several processes each computes its share of a batch, and has the logits of all of it."""
        return self.ranks.sharing(self.model, self.randomness) if self.ranks else nullcontext()

    def in_turn(self) -> AbstractContextManager[None]:
        """In this block the first process is alone; the others follow."""
        return self.ranks.in_turn() if self.ranks else nullcontext()

    def over_ranks(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        return mean(self.ranks, gradients) if self.ranks else gradients

    def gather_gradients(self) -> None:
        """The gradients of this step become those of the whole batch; and all processes hear if one is to stop."""
        if self.ranks is None:
            return
        trained = dict.fromkeys(p for group in self.optimizer.param_groups for p in group["params"])
        if self.ranks.average_([p.grad for p in trained if p.grad is not None], bool(self.asked_by)):
            super().interrupt(self.asked_by or "another process of it")

    def interrupt(self, by: str = "the user") -> None:
        if self.ranks is None:
            super().interrupt(by)
        self.asked_by = by  # several processes end after the same step

    def check_ranks(self, when: str) -> None:
        """Refuse to go on where the processes of this run are not equal to the bit."""
        if self.ranks is None:
            return
        model = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        held = {f"{method}": state_of(method) for method in self.acting}
        tensors = {f"{m}/{n}/{k}": v for m, state in held.items() for n, d in state.items() for k, v in _tensors(d)}
        parts = {"the network": tensor_hash(model), "the masks": self.masks.fingerprint, "the step": str(self.step)}
        self.ranks.same(parts | {"what the methods hold": tensor_hash(tensors) if tensors else ""}, when)

    def note_epoch(self, loss: float | None, val: Mapping[str, float]) -> None:
        """One line of the history."""
        self.history.append(
            {
                "epoch": self.epoch,
                "step": self.step,
                "loss": loss,
                **{f"val_{name}": value for name, value in val.items()},
                "lr": self.optimizer.param_groups[0]["lr"],
                "sparsity": self.sparsity,
                "kept": self.masks.kept_by_layer,
            }
        )

    def begin_with(self, masks: Mapping[str, Tensor] | None) -> None:
        """Cut to these masks before the first step; what they do not name stays whole."""
        if masks:
            check_masks(masks, self)
            Masks(masks).refuse_collapse(self.collapse, "the masks leave")
            self.masks = Masks(masks).over(self.weights)
            self.cuts.clear()

    def act_on_start(self) -> None:
        """Methods begin, with random numbers of their own; they may change the model's parameters."""
        with self.randomness:
            self.randomness.reseed("start", 0)
            for method in self.methods:
                method.on_start(self)
        self.find_weights()

    def act_on_epoch(self) -> None:
        """Methods act at the end of an epoch, with random numbers of its own."""
        with self.randomness, torch.no_grad():
            self.randomness.reseed("epoch", self.epoch)
            for method in self.methods:
                method.on_epoch(self)
            self.apply_masks()

    def act_on_end(self) -> tuple[dict[str, float], dict[str, float]]:
        """The last moment of methods, plain weights with exact zeros, and what they reach: validation and test."""
        with self.randomness, torch.no_grad():
            self.randomness.reseed("end", 0)
            for method in self.methods:
                method.on_end(self)
        self.find_weights()
        self.masks.apply_({name: weight.data for name, weight in self.weights.items()})
        self.net = self.model
        state, known = self._known or (None, {})
        val = known if state and state == self._state() else self.measured("val")
        test = self.measured("test")
        self.conclude()
        return val, test

    def conclude(self) -> None:
        """The status of a run that has come to its end by itself: done, or its target missed."""
        if self.status != "running":
            return
        if self.target and units(self.masks, self.target["unit"])[0] > self.target["kept"]:
            asked = f"sparsity {self.sparsity:.4f} was reached, {self.target['sparsity']} was asked for"
            self.end("target_missed", self.reason or asked)
        else:
            self.end("done", self.reason)

    @property
    def key(self) -> str:
        return short_hash(json.dumps(self.config, sort_keys=True))

    def score(self, criterion: str | Criterion, masked: bool = True) -> dict[str, Tensor]:
        batches = Shuffled(self.data.train, self.options.batch_size, self.options.seed, self.step)
        drawing = self.randomness.within("score", self.step)
        with self.masked() if masked else nullcontext(), self.calling(), drawing:
            scores = scored(self.model, criterion, batches, self.weights)
        return {name: score.to(self.device) for name, score in scores.items()}

    def evaluate(self, split: str | Batches = "val") -> dict[str, float]:
        if isinstance(split, str) and split not in ("train", "val", "test"):
            raise ConfigError(f"split={split!r} is unknown; expected 'train', 'val' or 'test', or batches of (x, y).")
        self.answers = Answers() if isinstance(split, str) and split == "test" else None
        if not isinstance(split, str):
            return self._evaluated(split)
        part, size = getattr(self.data, split), self.eval_batch_size
        with suppress(OutOfMemory):
            return self._evaluated(part.batches(size))
        self.eval_batch_size = max(1, size // 2)
        self.warn(
            f"evaluation ran out of memory with batches of {size} and took batches of {self.eval_batch_size}; "
            f"eval_batch_size={self.eval_batch_size} asks for them."
        )
        try:
            return self._evaluated(part.batches(self.eval_batch_size))
        except OutOfMemory as error:
            raise RunError(
                f"evaluation ran out of memory with batches of {self.eval_batch_size} too: {error}. "
                "Give fit a smaller eval_batch_size=."
            ) from None

    def measured(self, split: str) -> dict[str, float]:
        """`evaluate` at a moment at which all processes of the run do: each takes its share."""
        self._shares = True
        try:
            return self.evaluate(split)
        finally:
            self._shares = False

    def measured_by_epoch(self) -> dict[str, float]:
        """The validation scores of this epoch; those of the last one hold for the end if nothing changes until then."""
        val = self.measured("val")
        self._known = None
        if self.epoch == self.epochs and self.net is self.model and draws_nothing(self.model):
            self._known = self._state(), val
        return val

    def _state(self) -> dict[str, str]:
        """A hash of each tensor of the network, with -0 as +0."""
        named = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        return {name: tensor_hash({"": tensor.detach() + 0}) for name, tensor in named.items()}

    def _evaluated(self, batches: Batches) -> dict[str, float]:
        if self.answers is not None:
            self.answers.clear()
        looking = (self.masked(), self.calling(), evaluating(self.model), torch.inference_mode(), self.autocast())
        with ExitStack() as stack:
            for part in (*looking, memory_watched()):
                stack.enter_context(part)
            stack.enter_context(self.sharing() if self._shares else nullcontext())
            add = self.answers and self.answers.add
            return evaluate(self.net, batches, self.options.loss, self.options.metric, self.device, add)

    def snapshot(self, score: float | None = None, optimizer: bool = True) -> Snapshot:
        now = Snapshot.of(self.model, self._masks)
        remembered = optimizer_state(self) if optimizer and hasattr(self, "optimizer") else None
        return Snapshot(now.weights, now.buffers, now.masks, self.step, remembered, score, self.spent, self.trainings)


def _tensors(held: Any) -> Iterable[tuple[str, Tensor]]:
    """The tensors of a method's field, which is one, or a dict of them."""
    parts = held.items() if isinstance(held, Mapping) else [("", held)]
    return ((str(name), part) for name, part in parts if isinstance(part, Tensor))


def check_masks(given: Mapping[str, Tensor], run: Run) -> None:
    """Masks of what has been frozen since: it is in scope only if it is named."""
    parameters = canonical_parameters(run.model)
    if frozen := [n for n in given if n in parameters and not parameters[n].requires_grad and n not in run.weights]:
        raise ConfigError(
            f"these masks name {', '.join(frozen)}, which are frozen and so not in scope. Give include={frozen!r} to "
            "keep them under their masks, or masks= without them to leave them as they are."
        )

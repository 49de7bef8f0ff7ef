"""`attach`: the six moments of methods inside a training loop that is not ours."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.dataset import Data
from ..data.splits import Split
from ..errors import ConfigError, RunError
from ..layers.calls import calling, logits_of
from ..layers.flops import Flops
from ..layers.names import Pattern, check_plain
from ..masks.masks import Collapse, Masks
from ..typed import Count, CountFromZero, check_arguments
from . import checkpoints
from .checks import _try_one_batch
from .evaluate import Batches, scored
from .losses import loss_arguments
from .method import Method, fresh, state_of
from .metrics import accuracy
from .options import Options, Session, resolved
from .record import _config, _result, _start
from .run import Cut
from .training import Training

UNKNOWN = Split(torch.empty(0, 1), torch.empty(0, dtype=torch.long))


class Attached(Training):
    """A run whose batches come from a loop that is not ours. Without data= it knows the batch that went by last."""

    per_epoch: int
    last: tuple[Any, Any] | None = None

    def _steps_per_epoch(self) -> int:
        return self.per_epoch

    @property
    def knows_data(self) -> bool:
        return len(self.data.train) > 0

    def calling(self) -> AbstractContextManager[None]:
        return super().calling() if self.knows_data else calling(self.model)

    def score(self, criterion: Any, masked: bool = True) -> dict[str, Tensor]:
        if self.knows_data:
            return super().score(criterion, masked)
        with self.masked(), self.calling():
            return scored(self.model, criterion, [self.last] if self.last else None, self.weights)

    def _change(self, masks: Masks, revived: int = 0) -> None:
        masks.refuse_collapse(self.collapse, f"the cut at step {self.step} would leave")  # the loop is not ours to end
        super()._change(masks, revived)

    def evaluate(self, split: str | Batches = "val") -> dict[str, float]:
        return super().evaluate(split) if self.knows_data or not isinstance(split, str) else {}


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *methods: Method,
    steps: Count,
    steps_per_epoch: Count | None = None,
    data: Data | None = None,
    masks: Mapping[str, Tensor] | None = None,
    collapse: Collapse = "stop",
    loss: Callable[..., Tensor] = F.cross_entropy,
    metric: Callable[..., Tensor] = accuracy,
    batch_size: Count = 100,
    skip: Pattern | Sequence[Pattern] = (),
    include: Pattern | Sequence[Pattern] = (),
    biases: bool = False,
    norms: bool = False,
    seed: CountFromZero = 0,
    tags: Mapping[str, Any] | None = None,
) -> "Pruner":
    """Prune `model` with `methods` inside your own training loop, in place.

        pruner = lab.attach(model, optimizer, lab.methods.Gradual(lab.Cubic(0.9)), steps=1000)
        for x, y in batches:
            logits = model(x)
            loss = F.cross_entropy(logits, y) + pruner.loss(x, y, logits)
            loss.backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
        run = pruner.finish()

    `steps` are those of the optimizer in the whole training, `steps_per_epoch` those of an epoch (default: all).
    Schedules, clipping, accumulation and scalers are yours: a batch after which the optimizer did not step counts as
    none. `data` is for criteria that take gradients, and for the record: with it, each epoch and the end are evaluated.
    Without it a criterion sees the batch that `pruner.loss` saw last, and the record has no accuracy. `loss` and
    `metric` are for those evaluations, and for methods that ask for the loss. A cut that would leave nothing of a layer
    is refused before it is made, unless `collapse` is "allow". All else is as in `fit`.
    """
    given = {"loss": loss, "metric": metric, "batch_size": batch_size, "seed": seed}
    scope = {"skip": skip, "include": include, "biases": biases, "norms": norms}
    looped = {"steps": steps, "steps_per_epoch": steps_per_epoch, "data": data, "tags": tags}
    looped |= {"masks": masks, "collapse": collapse}
    check_arguments(attach, {"model": model, "optimizer": optimizer, **looped, **given, **scope})
    check_plain(model)
    per_epoch = min(steps_per_epoch or steps, steps)
    group = optimizer.param_groups[0]
    rates = {"lr": float(group["lr"]), "weight_decay": float(group.get("weight_decay", 0.0))}
    place = next(model.parameters()).device
    settings = {"epochs": -(-steps // per_epoch), "precision": "fp32", "device": place, "tags": tags or {}}
    options, session = resolved({**settings, **given, **scope, **rates, "optimizer": type(optimizer)})
    run = _begun(model, methods, data, options, session, per_epoch)
    run.steps, run.collapse = steps, collapse
    return Pruner(run, optimizer, masks)


def _begun(
    model: nn.Module, methods: Sequence[Method], data: Data | None, options: Options, session: Session, per_epoch: int
) -> Attached:
    known = data or Data("your own loop", 0, (), (), UNKNOWN, UNKNOWN, UNKNOWN)
    origin, before = _start(None, model, session, known, options.loss)
    own = sorted(map(fresh, methods), key=lambda method: method.observes)
    kind = type("Attached", (Attached,), {"per_epoch": per_epoch})
    return kind(model, known.to(session.place), own, options, session.place, dict(session.tags), origin, before)


class Pruner:
    """What a loop calls: `loss` before the backward pass, `step` after the optimizer, `finish` at the end."""

    def __init__(self, run: Attached, optimizer: torch.optim.Optimizer, masks: Mapping[str, Tensor] | None):
        self.run, self.optimizer = run, optimizer
        self.stepped, self.graded, self.seeded, self.called = False, False, False, False
        self.losses, self.seen = torch.zeros((), dtype=torch.float64), 0
        run.origin["loop"] = "attached"
        run.begin_with(masks)
        run.flops = Flops()
        if run.knows_data:
            with run.calling():
                run.flops = _try_one_batch(run)
        run.param_groups = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]
        run.act_on_start()
        run.optimizer = optimizer
        self._take_groups()
        run.config = _config(run)
        self.hooks = [
            optimizer.register_step_pre_hook(lambda *_: self.grad()),
            optimizer.register_step_post_hook(lambda *_: self._note_step()),
        ]

    @property
    def masks(self) -> Masks:
        return self.run.masks

    def __call__(self, x: Any) -> Tensor:
        """The network's logits as `fit` takes them: with what methods put around the network, and its randomness."""
        self.called = True
        with self.run.randomness, self.run.calling():
            self._seed()
            logits = self.run.net(x)
        return logits if isinstance(logits, Tensor) else logits_of(logits)

    def loss(self, x: Any = None, y: Any = None, logits: Any = None) -> Tensor | float:
        """What methods add to the loss of this batch: a term, or 0. The arguments are for methods that look at them."""
        run = self.run
        if run.net is not run.model and not self.called:
            raise RunError(f"{run.name} changes the forward pass; call logits = pruner(x) instead of model(x).")
        if logits is not None and not isinstance(logits, Tensor):
            logits = logits_of(logits)
        self.called = False
        for name, value in (("x", x), ("y", y), ("logits", logits)):
            if value is not None:
                setattr(run, name, value)
        run.last = (x, y) if x is not None and y is not None else run.last
        if x is not None and y is not None and logits is not None:
            with torch.no_grad():
                self.losses += run.options.loss(*loss_arguments(run.options.loss, logits, y, x)).double().cpu() * len(y)
            self.seen += len(y)
        with run.randomness:
            self._seed()
            extra = [term for method in run.methods if (term := self._term(method)) is not None]
        return sum(extra[1:], start=extra[0]) if extra else 0.0

    def grad(self) -> None:
        """Let methods change the gradients. The optimizer's step does it by itself; call it to clip afterwards."""
        if not self.graded:
            self.graded = True
            with self.run.randomness, torch.no_grad():
                for method in self.run.methods:
                    method.on_grad(self.run)

    def drive_by_hand(self) -> None:
        """For a loop whose optimizer computes the gradients within its step: it calls `add_gradients` in time."""
        if self.run.net is not self.run.model:
            raise ConfigError(f"{self.run.name} changes the forward pass, which a callback cannot; use lab.attach.")
        self.hooks[0].remove()

    def add_gradients(self) -> None:
        """What methods add to the loss adds its gradients to those that are there; then methods change all of them."""
        with torch.enable_grad():
            extra = self.loss()
            if isinstance(extra, Tensor):
                extra.backward()
        self.grad()

    def step(self) -> None:
        """After `optimizer.step()`: methods act, and what is pruned is 0 again. Counts only where that stepped."""
        run = self.run
        if not self.stepped:
            return
        self.stepped = self.graded = False
        with run.randomness, torch.no_grad():
            self._seed()
            self.seeded = False
            run.step += 1
            for method in run.methods:
                method.on_step(run)
            run.apply_masks()
        if run.between_epochs or run.step == run.steps:
            self._end_of_epoch()

    def finish(self) -> Attached:
        """The last moment of methods, exact zeros, evaluation and record. The model is plain again, the hooks gone."""
        run = self.run
        for hook in self.hooks:
            hook.remove()
        val, test = run.act_on_end()
        run.result = _result(run, "last", val, test, run.answers)
        return run

    def state_dict(self) -> dict[str, Any]:
        """All but the model and the optimizer, which your own checkpoint holds."""
        run = self.run
        return {
            "masks": dict(run.masks),
            "methods": [state_of(method) for method in run.methods],
            "history": run.history,
            "cuts": [vars(cut) for cut in run.cuts],
            "step": run.step,
            "epoch": run.epoch,
            "so_far": [float(self.losses), self.seen],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, after the model and the optimizer have been loaded."""
        run = self.run
        if len(state["methods"]) != len(run.methods):
            raise ConfigError(f"the state is of {len(state['methods'])} methods; this run has {run.name}.")
        checkpoints.set_methods(run, state["masks"], zip(run.methods, state["methods"], strict=True))
        run.history, run.cuts = list(state["history"]), [Cut(**cut) for cut in state["cuts"]]
        run.step, run.epoch = state["step"], state["epoch"]
        self.losses, self.seen = torch.tensor(state["so_far"][0], dtype=torch.float64), state["so_far"][1]

    def _seed(self) -> None:
        """The random numbers of this step, once: they follow from the seed and the step, as those of `fit` do."""
        if not self.seeded:
            self.seeded = True
            self.run.randomness.reseed("step", self.run.step)

    def _term(self, method: Method) -> Tensor | None:
        try:
            return method.on_loss(self.run)
        except AttributeError as error:
            if error.obj is not self.run:
                raise
            raise RunError(
                f"{type(method).__name__} looks at this batch; call pruner.loss(x, y, logits) with all three."
            ) from None

    def _note_step(self) -> None:
        self.stepped = True

    def _take_groups(self) -> None:
        """The optimizer trains what methods added, and no more what they took away."""
        wanted = [p for group in self.run.param_groups for p in group["params"]]
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        left = {id(p) for p in wanted}
        for group in self.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) in left]
        for group in self.run.param_groups:
            if new := [p for p in group["params"] if id(p) not in held]:
                self.optimizer.add_param_group({**group, "params": new})

    def _end_of_epoch(self) -> None:
        run = self.run
        run.epoch += 1
        val = run.evaluate("val")
        run.note_epoch(float(self.losses) / self.seen if self.seen else None, val)
        self.losses.zero_()
        self.seen = 0
        if run.settled and val:
            run.remember(val["accuracy"])
        run.act_on_epoch()

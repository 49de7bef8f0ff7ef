"""`fit`: the only training loop of the project; `prune`: a cut without it. What methods see is in `run.py`."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ..criteria.registry import Criterion
from ..data.dataset import Data
from ..errors import ConfigError
from ..layers.calls import calling, logits_of
from ..layers.drawing import draws_nothing
from ..layers.names import NOTHING, Pattern, check_plain, prunable
from ..layers.precision import exact_dtype
from ..masks.choose import Scope, keep_top
from ..masks.masks import Collapse, Masks, Sparsity, Unit
from ..randomness import generator, key, own_randomness
from ..results.record import percent
from ..terminal import Bar
from ..typed import CountFromZero, checked
from . import checkpoints, compact
from .checks import _not_finite, _try_one_batch, check_inputs, check_length, check_memory
from .evaluate import Shuffled, loss_arguments, scored
from .machine import channels_last, interruptible, make_optimizer, settings
from .method import Method, fresh
from .options import FitOptions, Options, Session, resolved, signature
from .ranks import called, current, is_first, join, together
from .record import _config, _hash_of, _proof, _result, _start
from .run import Run, load_optimizer
from .snapshot import Snapshot
from .training import Training


def fit(model: nn.Module | Run, data: Data, *methods: Method, **options: Unpack[FitOptions]) -> Training:
    """Train `model` on `data` with `methods`, and measure what comes out.

    What is passed in is left as it is unless `inplace`. `model` may be a finished `Run`: then training continues its
    model under its masks, and its steps count. `start` is a snapshot to continue from; `epochs` counts from step 0.

    **What is trained.** `loss(logits, y)` is a mean over the batch, and the history's loss is that mean without the
    extra terms of methods. `metric(logits, y)` is one value a sample, the higher the better. `skip`, `include`,
    `biases` and `norms` say which weights are in scope, as in `prunable`. `eval_batch_size` is halved once if memory is
    short.

    **When it ends.** `patience` ends the run after so many epochs without a better validation score. `keep="best"` ends
    it with the best state instead of the last. Ctrl-C ends it after the current step, with a checkpoint. SIGTERM and
    SIGUSR1 do the same, and then end the process with exit code 143. A cut that leaves nothing of a layer ends it as
    `collapsed`, unless `collapse` is "allow"; what it began is in the checkpoint as it was before that cut.

    **What it writes.** `record` is a file for the JSON record, and `tags` are columns of your own in it. `checkpoint`
    is a file written every `every_steps` steps (default: each epoch), with the one before it beside it. The run resumes
    from it when it is there. Code that has changed since is refused, unless `other_code`. `found_by` are runs that
    found the masks. Their cost counts as this run's too, as does that of the runs that it continues.

    **Where it runs.** `devices` trains on so many devices of this machine, each with its share of every batch. What is
    defined in a notebook needs `torchrun --nproc-per-node=N -m pruninglab run FILE` instead. All processes have equal
    masks. Against one process they differ by rounding, since gradients are summed in another order. Where two scores
    are nearly equal, a cut may therefore take the other weight. In float64 all masks are those of one process.

    **What it leaves out.** `compact` trains on without the channels and input columns that pruning has made useless.
    They are looked for between epochs. Masks and weights become the same as without, up to the rounding of sums in
    another order. Only the running statistics of channels that nothing reads stay where they were. A method that needs
    pruned weights is refused before training.

    **What it shows.** `progress` shows a bar. A function in its place is called with the run after every step; at the
    end of an epoch, after its evaluation. It may call `run.interrupt()`.

    >>> run = lab.fit(model, data, lab.methods.Gradual(lab.Cubic(0.9), scope="layer"), epochs=2)
    >>> run.status, len(run.history)
    ('done', 2)
    """
    join()
    chosen, session = resolved(options)
    check_inputs(model, data, chosen, session.inplace)
    own = sorted(map(fresh, methods), key=lambda method: method.observes)  # who only looks, looks last
    check_length(own, chosen.epochs)
    helped = together(session.devices, session.place, lambda: _call(model, data, own, options))
    with torch.inference_mode(False), torch.enable_grad(), helped:
        return _fitted(_begun(model, data, own, chosen, session), model, session)


fit.__signature__ = signature(fit)


def _call(model: nn.Module | Run, data: Data, methods: list[Method], options: Mapping[str, Any]) -> dict[str, Any]:
    """What another process needs to train along: all but what this one alone writes and shows."""
    source, masks = (model.model, model.masks) if isinstance(model, Run) else (model, None)
    mine = ("record", "tags", "found_by", "inplace", "devices", "device", "progress")
    along = {"masks": masks} | {k: v for k, v in options.items() if k not in mine}
    device = str(options.get("device", "auto")).partition(":")[0]
    return {"given": (source, data, *methods), "options": {**along, "device": device, "progress": False}}


def help_out(folder: str, number: int, count: int) -> None:
    """Train along with the process that has started this one."""
    call = called(folder, number, count)
    fit(*call["given"], **call["options"])


def _begun(model: nn.Module | Run, data: Data, methods: list[Method], options: Options, session: Session) -> Training:
    parent, source = (model, model.model) if isinstance(model, Run) else (None, model)
    place = session.place
    trained = (source if session.inplace else copy.deepcopy(source)).to(place)
    origin, before = _start(parent, source, session, data, options.loss)
    run = Training(trained, data.to(place), methods, options, place, dict(session.tags), origin, before)
    run.ranks, run.collapse, run.compacts = current(), session.collapse, session.compact
    for note in data.notes:
        run.warn(f"data: {note}")
    return run


def _fitted(run: Training, model: nn.Module | Run, session: Session) -> Training:
    path = Path(session.checkpoint) if session.checkpoint else None
    with (
        checkpoints.alone(path if is_first() else None),
        settings(run.device),
        channels_last(run.model, run.device),
        run.calling(),
    ):
        given = session.masks
        if given is None:
            given = session.start.masks if session.start else _left_by(model, run)
        _set_out(run, session.start, given)
        with run.in_turn():
            loss_sum, seen = checkpoints.resume(run, path, session.other_code) if path else (0.0, 0)
            if run.status != "collapsed":
                run.masks.refuse_collapse(run.collapse, f"in {path} there is")
        run.check_ranks("before the first step")
        with interruptible(run) as asked:
            _train(run, loss_sum, seen, path, session.every_steps or run.steps_per_epoch, session.progress)
        _finish(run)
    if session.record:
        checkpoints.write_record(run, session.record)
    asked.end()
    return run


def _left_by(model: nn.Module | Run, run: Training) -> Mapping[str, Tensor] | None:
    """The masks of a finished run; without those that prune nothing and are out of scope now."""
    if not isinstance(model, Run):
        return None
    return {name: mask for name, mask in model.masks.items() if name in run.weights or not bool(mask.all())}


def _set_out(run: Training, start: Snapshot | None, given: Mapping[str, Tensor] | None) -> None:
    """Everything up to the first step: weights, masks, one batch tried, methods, optimizer."""
    run.model.zero_grad(set_to_none=True)
    if not run.model.training:  # a model in training keeps the layers that its owner has set to eval
        run.model.train()
    if start:
        _go_on_from(run, start)
    run.find_weights()
    run.begin_with(given)
    run.flops = _try_one_batch(run)
    run.act_on_start()
    make_optimizer(run)
    if start:
        load_optimizer(run, start.optimizer or {})
        run.origin |= _proof(run)
    run.config = _config(run)
    if run.compacts:
        compact.begin(run)


@checked
def prune(
    model: nn.Module | Run,
    sparsity: Sparsity,
    criterion: str | Criterion = "magnitude",
    *,
    scope: Scope = "global",
    unit: Unit = "weight",
    data: Data | None = None,
    masks: Mapping[str, Tensor] | None = None,
    skip: Pattern | Sequence[Pattern] = (),
    include: Pattern | Sequence[Pattern] = (),
    biases: bool = False,
    norms: bool = False,
    seed: CountFromZero = 0,
    collapse: Collapse = "stop",
) -> tuple[nn.Module, Masks]:
    """A copy of `model` with the lowest scores set to 0, and the masks: `fit(pruned, data, masks=masks)` trains on.

    `data` is for criteria that take gradients. `masks` are those that already hold (a run's own by default). The rest
    is as in `keep_top`. A cut that leaves nothing of a layer is refused, unless `collapse` is "allow".

    >>> pruned, masks = lab.prune(model, 0.9, scope="layer")
    >>> print(f"{masks.density:.0%}")
    10%
    """
    if isinstance(model, Run):
        masks = model.masks if masks is None else masks
        model = model.model
    check_plain(model)
    with torch.inference_mode(False):
        model = copy.deepcopy(model)
        weights = prunable(model, biases=biases, norms=norms, skip=skip, include=include)
        if not weights:
            raise ConfigError(NOTHING)
        if masks is not None:
            masks = Masks(masks).over(weights)
            masks.check(weights)
            masks.apply_({name: weight.data for name, weight in weights.items()})
        with own_randomness(seed), calling(model, needed=data is not None):
            place = next(iter(weights.values())).device
            batches = Shuffled(data.train.to(place), 100, seed) if data else None
            scores = scored(model, criterion, batches, weights)
        chosen = keep_top(scores, sparsity, scope=scope, unit=unit, masks=masks)
        chosen.refuse_collapse(collapse, f"sparsity {sparsity} leaves")
        chosen.apply_({name: weight.data for name, weight in weights.items()})
    return model, chosen


def _train(
    run: Training,
    loss_sum: float,
    seen: int,
    checkpoint: Path | None,
    every: int,
    progress: bool | Callable[[Any], None],
) -> None:
    """The loop: epochs, steps, and what is saved and shown between them."""
    began, saved = time.perf_counter(), run.step
    losses = torch.tensor(loss_sum, dtype=exact_dtype(run.device)).to(run.device)
    # the optimizer stands still once the loss is no number, so that the layer can be found at the end of the epoch
    broken = torch.tensor(float(not math.isfinite(loss_sum))).to(run.device)

    def save() -> int:
        if checkpoint:
            checkpoints.save(run, checkpoint, float(losses), seen, time.perf_counter() - began)
        return run.step

    with Bar(run.steps, run.name, progress is True and is_first()) as bar:
        bar.update(run.step)
        last = False
        while run.epoch < run.epochs and run.going:
            for run.x, run.y in _batches(run):  # noqa: B020 (these are attributes of it)
                losses += _step(run, broken) * len(run.y)
                seen += len(run.y)
                bar.update()
                last = run.between_epochs or not run.going
                if callable(progress) and not last:
                    progress(run)
                if not run.going:
                    break
                if run.step - saved >= every and not run.between_epochs:
                    saved = save()
            if run.interrupted and run.status != "collapsed" and not run.between_epochs:
                save()
                run.end("interrupted", f"by {run.interrupted_by}")
            _end_of_epoch(run, float(losses) / seen, bar)
            if callable(progress) and last:
                progress(run)
            losses.zero_()
            seen = 0
            if _keeps(run, run.step - saved >= every):
                saved = save()
        if run.interrupted and run.status == "running" and run.epoch < run.epochs:
            run.end("interrupted", f"by {run.interrupted_by}")
        bar.last_line = _last_line(run)
    run.seconds += time.perf_counter() - began


def _keeps(run: Training, due: bool) -> bool:
    """Whether the end of this epoch goes into the checkpoint. What has diverged does not."""
    last = run.epoch == run.epochs or run.status == "stopped" or run.interrupted
    return (due or last) and run.status in ("running", "stopped")


def _logits(run: Training) -> Tensor:
    try:
        quiet = run.ranks is None and type(run.x) is Tensor and draws_nothing(run.net)
        with run.sharing(), run.randomness.aside() if quiet else nullcontext():
            logits = run.net(run.x)
        return logits if isinstance(logits, Tensor) else logits_of(logits)  # of Inception, while it trains
    except ValueError as error:
        if len(run.x) > 1:
            raise
        raise ConfigError(f"batch_size=1 is too small to train this network: {error}. Expected 2 or more.") from error


def _step(run: Training, broken: Tensor) -> Tensor:
    """One batch, in full: forward, backward, optimizer, masks, and the moments of the methods. Returns its loss."""
    factor = run.options.lr_factor(run.progress)
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    with run.randomness:
        run.randomness.reseed("step", run.step)
        loss = _backward(run) if run.options.accumulate == 1 else _backward_in_parts(run)
        run.gather_gradients()
        with torch.no_grad():
            for m in run.methods:
                m.on_grad(run)
            if run.options.clip:
                nn.utils.clip_grad_norm_(run.model.parameters(), run.options.clip)
            broken.logical_or_(~torch.isfinite(loss))
            run.optimizer.found_inf = broken  # pyright: ignore[reportAttributeAccessIssue]
            with torch._C.DisableTorchFunction():  # it draws nothing, and its many calls need no look
                run.optimizer.step()
                run.optimizer.zero_grad(set_to_none=True)
            run.step += 1
            for m in run.methods:
                m.on_step(run)
            run.apply_masks()
    return loss


def _backward(run: Training, share: float = 1.0) -> Tensor:
    """The loss of `run.x`, and this share of its gradients added to what is there."""
    loss_fn = run.options.loss
    with run.autocast():
        run.logits = _logits(run)
        loss = loss_fn(*loss_arguments(loss_fn, run.logits, run.y, run.x))
    extra = [term for m in run.methods if (term := m.on_loss(run)) is not None]
    total = sum(extra, start=loss)
    (total if share == 1.0 else total * share).backward()
    return loss.detach()


def _backward_in_parts(run: Training) -> Tensor:
    """The gradients of a batch that is too large for memory, as the mean over its parts."""
    x, y = run.x, run.y
    size = -(-len(y) // run.options.accumulate)
    losses = []
    for run.x, run.y in zip(x.split(size), y.split(size), strict=True):
        losses.append(_backward(run, len(run.y) / len(y)) * (len(run.y) / len(y)))
    run.x, run.y = x, y
    return torch.stack(losses).sum()


def _batches(run: Training) -> Iterator[tuple[Tensor, Tensor]]:
    """What is left of this epoch. Order and augmentation follow from seed, epoch and step alone."""
    seed, done = run.options.seed, run.step % run.steps_per_epoch
    order = torch.randperm(len(run.data.train), generator=generator(seed, "order", run.epoch))
    batches = run.batched(order)[done:]
    seeds = [key(seed, "augment", run.step + i) for i in range(len(batches))]
    return run.data.train.batches(batches, seeds, key(seed, "items", run.epoch), (seed, run.epoch))


def _end_of_epoch(run: Training, loss: float, bar: Bar) -> None:
    """Evaluate, note, keep the best, and let the methods act."""
    run.epoch += run.between_epochs
    val = run.measured_by_epoch()
    run.note_epoch(loss, val)
    bar.set_postfix_str(f"val {percent(val)}, sparsity {run.sparsity:.3f}", refresh=False)
    if culprit := _not_finite(run, loss, val["loss"]):
        run.end("diverged", f"epoch {run.epoch + (not run.between_epochs)}: {culprit}")
    if run.status != "running":
        return
    if run.settled:
        run.remember(val["accuracy"])
    run.act_on_epoch()
    compact.follow(run)
    run.check_ranks(f"at the end of epoch {run.epoch}")
    patience, best = run.options.patience, run.best
    if patience and best and run.settled and run.step - best.step >= patience * run.steps_per_epoch:
        run.stop(f"no better validation score in {patience} epochs")


def _finish(run: Training) -> None:
    """Plain weights, exact zeros, the test split once, the record."""
    kept = "best" if run.options.keep == "best" and run.best else "last"
    if kept == "best" and run.best:
        run.best.load_into(run.model)
    val, test = run.act_on_end()
    if run.best is None and run.status in ("done", "stopped"):
        run.remember(val["accuracy"])
    run.model.eval()
    run.result = _result(run, kept, val, test, run.answers)


def _go_on_from(run: Training, start: Snapshot) -> None:
    if start.step > run.steps:
        raise ConfigError(
            f"the snapshot is of step {start.step}, but epochs={run.epochs} is over after {run.steps} steps; epochs "
            "counts from step 0. To fine-tune instead, load it: snapshot.load_into(model), and masks=snapshot.masks."
        )
    check_memory(start, run.options.optimizer)
    start.load_into(run.model)
    run.step = run.first_step = start.step
    run.epoch = start.step // run.steps_per_epoch
    run.origin |= {"weights": _hash_of(run.model), "from_step": start.step}


def _last_line(run: Run) -> str:
    val = percent({"accuracy": run.history[-1]["val_accuracy"]}) if run.history else "unknown"
    epochs = "1 epoch" if run.epoch == 1 else f"{run.epoch} epochs"
    collapsed = ", collapsed" if run.status == "collapsed" else ""
    return f"{epochs}, {run.step:,} steps: val {val}, sparsity {run.sparsity:.4f}{collapsed}"

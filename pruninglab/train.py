"""`fit`: the only training loop of the project; `prune`: a cut without it. What methods see is in `run.py`."""

import copy
import hashlib
import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import checkpoints, criteria, storage
from .data import Data
from .errors import ConfigError, DataError
from .interrupts import is_ours, on_first_ctrl_c
from .masks import Masks, Sparsity, canonical, keep_top, prunable, units
from .method import Method, fresh, state_of
from .progress import Bar
from .results import Result, describe, environment, module_flops, percent, sparse_flops, tensor_hash
from .run import (
    Options,
    Run,
    Shuffled,
    Snapshot,
    accuracy,
    evaluating,
    load_optimizer,
    loss_arguments,
    optimizer_state,
    scored,
)
from .schedules import Rate
from .schedules import rate as resolve_rate
from .seeds import generator, key, own_randomness


def fit(
    model: nn.Module | Run,
    data: Data,
    *methods: Method,
    epochs: int,
    batch_size: int = 100,
    optimizer: str = "adam",
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    rate: str | Rate = "cosine",
    seed: int = 0,
    loss: Callable[..., Tensor] = F.cross_entropy,
    metric: Callable[[Tensor, Tensor], Tensor] = accuracy,
    skip: str | Sequence[str] = (),
    biases: bool = False,
    norms: bool = False,
    start: Snapshot | None = None,
    masks: Mapping[str, Tensor] | None = None,
    patience: int | None = None,
    keep: str = "last",
    checkpoint: str | Path | None = None,
    every: int | None = None,
    record: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    inplace: bool = False,
    progress: bool | Callable[[Run], None] = True,
) -> Run:
    """Train `model` on `data` with `methods`, and measure what comes out.

    `model` may be a finished `Run`: its model goes on under its masks, and its steps count into the budget. What is
    passed in is left as it is unless `inplace`. `start` is a snapshot to go on from; `epochs` counts from step 0.
    `loss(logits, y)` is a mean over the batch; `metric(logits, y)` is one value a sample, the higher the better. The
    history's loss is that mean, without the extra terms of methods.
    `skip`, `biases` and `norms` say which weights are in scope. `patience` ends after so many epochs without a better
    validation score; `keep="best"` ends with the best state instead of the last. `checkpoint` is a file written every
    `every` steps (default: each epoch) and resumed from when it is there; `record` is a file for the JSON record.
    `progress` shows a bar; a function in its place is called with the run after every step, and may `run.interrupt()`.
    """
    parent = model if isinstance(model, Run) else None
    source = model.model if isinstance(model, Run) else model
    place = _device(device)
    options = Options(
        epochs=_number("epochs", epochs, 0, whole=True),
        batch_size=_number("batch_size", batch_size, 1, whole=True),
        optimizer=_one_of("optimizer", optimizer, _OPTIMIZERS),
        lr=_number("lr", lr, 0),
        momentum=_number("momentum", momentum, 0),
        weight_decay=_number("weight_decay", weight_decay, 0),
        rate=resolve_rate(rate),
        loss=loss,
        metric=metric,
        seed=_number("seed", seed, 0, whole=True),
        precision=_precision(precision, place),
        skip=(skip,) if isinstance(skip, str) else tuple(skip),
        biases=biases,
        norms=norms,
        patience=patience if patience is None else _number("patience", patience, 1, whole=True),
        keep=_one_of("keep", keep, ("last", "best")),
    )
    every = every if every is None else _number("every", every, 1, whole=True)
    checkpoint = storage.check_writable(checkpoint, "checkpoint") if checkpoint else None
    record = storage.check_writable(record, "record") if record else None
    if not isinstance(data, Data):
        raise ConfigError(
            f"data is a {type(data).__name__}; expected lab.load(…), or lab.wrap(train, test) of your own."
        )
    if not isinstance(source, nn.Module):
        raise ConfigError(f"model is a {type(source).__name__}; expected a torch.nn.Module or a finished Run.")
    if not any(p.requires_grad for p in source.parameters()) and epochs:
        raise ConfigError(
            "this model has no parameter to train: all are frozen, or there are none. Use epochs=0 to measure."
        )
    fresh_methods = [fresh(method) for method in methods]
    trained = (source if inplace else copy.deepcopy(source)).to(place)
    run = Run(trained, data.to(place), fresh_methods, options, place)
    run.start = _start(parent, source, start, data)
    given = masks if masks is not None else start.masks if start else parent.masks if parent else None
    with torch.enable_grad(), _settings(place), _channels_last(trained, place):
        trained.zero_grad(set_to_none=True)
        if not trained.training:  # a model in training keeps the layers that its owner has set to eval
            trained.train()
        if start:
            _go_on_from(run, start)
        run.find_weights()
        if given:
            run.masks = given
            run.cuts.clear()
        run.flops = _try_one_batch(run)
        with run.randomness:
            run.randomness.reseed("start", 0)
            for method in run.methods:
                method.on_start(run)
        run.find_weights()
        _make_optimizer(run)
        if start and start.optimizer:
            load_optimizer(run, start.optimizer)
        if start:
            run.start |= _proof(run)
        run.config = _config(run)
        loss_sum, seen = checkpoints.resume(run, checkpoint) if checkpoint and checkpoint.exists() else (0.0, 0)
        with _interruptible(run):
            _train(run, loss_sum, seen, checkpoint, every or run.steps_per_epoch, progress)
        _finish(run)
    if record:
        run.save(record)
    return run


def prune(
    model: nn.Module | Run,
    sparsity: Sparsity,
    criterion: str | criteria.Criterion = "magnitude",
    *,
    scope: str = "global",
    unit: str = "weight",
    data: Data | None = None,
    within: Mapping[str, Tensor] | None = None,
    skip: str | Sequence[str] = (),
    biases: bool = False,
    norms: bool = False,
    seed: int = 0,
) -> tuple[nn.Module, Masks]:
    """A copy of `model` with the lowest scores set to 0, and the masks: `fit(pruned, data, masks=masks)` trains on.

    `data` is for criteria that take gradients; `within` are masks that hold already (a run's own by default); the rest
    is as in `keep_top`.
    """
    if isinstance(model, Run):
        within = model.masks if within is None else within
        model = model.model
    model = copy.deepcopy(model)
    weights = prunable(model, biases=biases, norms=norms, skip=skip)
    if not weights:
        raise ConfigError("this model has nothing to prune: no convolution or linear weight is in scope.")
    with own_randomness(seed):
        scores = scored(model, criterion, Shuffled(data.train, 100, seed) if data else None, weights)
    masks = keep_top(scores, sparsity, scope=scope, unit=unit, within=within)
    masks.apply_({name: weight.data for name, weight in weights.items()})
    return model, masks


def _train(
    run: Run,
    loss_sum: float,
    seen: int,
    checkpoint: Path | None,
    every: int,
    progress: bool | Callable[[Run], None],
) -> None:
    """The loop, in full."""
    began, saved = time.perf_counter(), run.step
    methods, randomness, loss_fn = run.methods, run.randomness, run.options.loss
    losses = torch.tensor(loss_sum, dtype=torch.float32 if run.device.type == "mps" else torch.float64).to(run.device)
    # the optimizer stands still once the loss is no number, so that the layer can be found at the end of the epoch
    broken = torch.tensor(float(not math.isfinite(loss_sum))).to(run.device)

    def save() -> int:
        if checkpoint:
            checkpoints.save(run, checkpoint, float(losses), seen, time.perf_counter() - began)
        return run.step

    with Bar(run.steps, run.name, progress is True) as bar:
        bar.update(run.step)
        while run.epoch < run.epochs and run.status == "running" and not run.interrupted:
            for run.x, run.y in _batches(run):  # noqa: B020 (these are attributes of it)
                _set_rate(run)
                with randomness:
                    randomness.reseed("step", run.step)
                    with run.autocast():
                        run.logits = run.net(run.x)
                        loss = loss_fn(*loss_arguments(loss_fn, run.logits, run.y, run.x))
                    extra = [term for m in methods if (term := m.on_loss(run)) is not None]
                    sum(extra, start=loss).backward()
                    with torch.no_grad():
                        for m in methods:
                            m.on_grad(run)
                        broken.logical_or_(~torch.isfinite(loss))
                        run.optimizer.found_inf = broken  # pyright: ignore[reportAttributeAccessIssue]
                        with torch._C.DisableTorchFunction():  # it draws nothing, and its many calls need no look
                            run.optimizer.step()
                            run.optimizer.zero_grad(set_to_none=True)
                        run.step += 1
                        for m in methods:
                            m.on_step(run)
                        run.apply_masks()
                losses += loss.detach() * len(run.y)
                seen += len(run.y)
                bar.update()
                if callable(progress):
                    progress(run)
                if run.status != "running" or run.interrupted:
                    break
                if run.step - saved >= every and run.step % run.steps_per_epoch:
                    saved = save()
            if run.interrupted and run.step % run.steps_per_epoch:
                save()
                run.status, run.reason = "interrupted", "by the user"
            _end_of_epoch(run, float(losses) / seen, bar)
            losses.zero_()
            seen = 0
            due = run.step - saved >= every or run.epoch == run.epochs or run.status == "stopped" or run.interrupted
            if due and run.status in ("running", "stopped"):
                saved = save()
        if run.interrupted and run.status == "running" and run.epoch < run.epochs:
            run.status, run.reason = "interrupted", "by the user"
        bar.last_line = _last_line(run)
    run.seconds += time.perf_counter() - began


def _batches(run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    """What is left of this epoch. Order and augmentation follow from seed, epoch and step alone."""
    seed, done = run.options.seed, run.step % run.steps_per_epoch
    order = torch.randperm(len(run.data.train), generator=generator(seed, "order", run.epoch))
    batches = run.batched(order)[done:]
    return run.data.train.batches(batches, [key(seed, "augment", run.step + i) for i in range(len(batches))])


def _set_rate(run: Run) -> None:
    factor = run.options.rate(run.progress)
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _end_of_epoch(run: Run, loss: float, bar: Bar) -> None:
    """Evaluate, note, keep the best, and let the methods act."""
    within = run.step % run.steps_per_epoch
    run.epoch += not within
    val = run.evaluate("val")
    run.history.append(
        {
            "epoch": run.epoch,
            "step": run.step,
            "loss": loss,
            **{f"val_{name}": value for name, value in val.items()},
            "lr": run.optimizer.param_groups[0]["lr"],
            "sparsity": run.sparsity,
            "kept": run.masks.kept_by_layer,
        }
    )
    bar.set_postfix_str(f"val {percent(val)}, sparsity {run.sparsity:.3f}", refresh=False)
    if culprit := _not_finite(run, loss, val["loss"]):
        run.status, run.reason = "diverged", f"epoch {run.epoch + bool(within)}: {culprit}"
    if run.status != "running":
        return
    if run.settled and (run.best is None or val["accuracy"] > (run.best.score or 0.0)):
        run.best = run.snapshot(val["accuracy"])
    with run.randomness, torch.no_grad():
        run.randomness.reseed("epoch", run.epoch)
        for method in run.methods:
            method.on_epoch(run)
        run.apply_masks()
    patience, best = run.options.patience, run.best
    if patience and best and run.settled and run.step - best.step >= patience * run.steps_per_epoch:
        run.stop(f"no better validation score in {patience} epochs")


def _not_finite(run: Run, *losses: float) -> str:
    """Names what is no number. The optimizer has stood still since, so that the first of them can still be found."""
    broken = [name for name, p in run.model.named_parameters() if not bool(torch.isfinite(p).all())]
    if broken:
        return f"NaN or Inf in {', '.join(broken[:3])}; lower lr={run.options.lr:g} or check the loss"
    if all(map(math.isfinite, losses)):
        return ""
    found: list[str] = []

    def look(module: nn.Module, inputs: Any, output: Any, name: str) -> None:
        if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
            found.append(name)

    leaves = [(name, m) for name, m in run.model.named_modules() if not list(m.children())]
    handles = [m.register_forward_hook(lambda m, i, o, name=name: look(m, i, o, name)) for name, m in leaves]
    with evaluating(run.model), torch.inference_mode(), run.autocast():
        run.model(run.x)
    for handle in handles:
        handle.remove()
    where = f"first in the output of {found[0]}" if found else "from the loss or an extra term itself"
    return f"the loss is NaN or Inf, {where}; lower lr={run.options.lr:g} or check the inputs"


def _finish(run: Run) -> None:
    """Plain weights, exact zeros, the test split once, the record."""
    kept = "best" if run.options.keep == "best" and run.best else "last"
    if kept == "best" and run.best:
        run.best.load_into(run.model)
    with run.randomness, torch.no_grad():
        run.randomness.reseed("end", 0)
        for method in run.methods:
            method.on_end(run)
    run.find_weights()
    run.masks.apply_({name: weight.data for name, weight in run.weights.items()})
    run.net = run.model
    val, test = run.evaluate("val"), run.evaluate("test")
    if run.status == "running":
        missed = run.target is not None and units(run.masks, run.target["unit"])[0] > run.target["kept"]
        run.status = "target_missed" if missed else "done"
        if missed and run.target and not run.reason:
            run.reason = f"sparsity {run.sparsity:.4f} was reached, {run.target['sparsity']} was asked for"
    if run.best is None and run.status in ("done", "stopped"):
        run.best = run.snapshot(val["accuracy"])
    run.model.eval()
    run.result = _result(run, kept, val, test)


def _result(run: Run, kept_state: str, val: dict[str, float], test: dict[str, float]) -> Result:
    size = storage.sizes(run.model)
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
        start=run.start,
        budget={
            "steps": steps,
            "steps_before": run.start["steps"],
            "steps_planned": run.steps,
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
    """The small things that a method counted; tensors stay in the run."""
    simple = {k: v for k, v in state_of(method).items() if v is None or isinstance(v, bool | int | float | str)}
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
        "start": run.start,
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
    dense = parent.start["dense"] or (of_source if parent.sparsity == 0 else None)
    return {"kind": "run", "weights": of_source, "steps": parent.spent, "dense": dense}


def _go_on_from(run: Run, start: Snapshot) -> None:
    if start.step > run.steps:
        raise ConfigError(
            f"the snapshot is of step {start.step}, but epochs={run.epochs} is over after {run.steps} steps; epochs "
            "counts from step 0. To fine-tune instead, load it: snapshot.load_into(model), and masks=snapshot.masks."
        )
    start.load_into(run.model)
    run.step = run.first_step = start.step
    run.epoch = start.step // run.steps_per_epoch
    run.start |= {"weights": _hash_of(run.model), "from_step": start.step}


def _proof(run: Run) -> dict[str, Any]:
    """What else was rewound, as it is now and not as it was asked for: the optimizer's memory and the rate."""
    remembered = {f"{name}/{k}": v for name, state in optimizer_state(run).items() for k, v in state.items()}
    rate = run.options.lr * run.options.rate(run.progress)
    return {"optimizer": tensor_hash(remembered) if remembered else None, "lr": rate}


def _hash_of(model: nn.Module) -> str:
    return tensor_hash(dict(model.named_parameters()) | dict(model.named_buffers()))


def _make_optimizer(run: Run) -> None:
    """Over the groups that methods may have changed, and every parameter of the model that is in none of them."""
    known = {p for group in run.param_groups for p in group["params"]}
    run.param_groups[0]["params"] += [p for p in run.model.parameters() if p.requires_grad and p not in known]
    run.param_groups = [group for group in run.param_groups if group["params"]]
    run.optimizer = _OPTIMIZERS[run.options.optimizer](run) if run.param_groups else torch.optim.SGD([torch.zeros(1)])
    for group in run.optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])


def _try_one_batch(run: Run) -> dict[str, dict[str, float]]:
    """Two images through everything: shapes, labels, loss, metric are wrong now or never. Returns FLOPs by module."""
    data, loss, metric = run.data, run.options.loss, run.options.metric
    x, y = next(iter(data.val.batches([torch.arange(min(2, len(data.val)))])))
    try:
        with evaluating(run.model), torch.no_grad():
            flops = module_flops(run.model, x[:1])
            with run.autocast():
                logits = run.model(x)
    except RuntimeError as error:
        raise ConfigError(
            f"{type(run.model).__name__} does not take what {data.name} gives, {tuple(x.shape[1:])} a sample: {error}"
        ) from error
    if loss is F.cross_entropy and logits.ndim == 2:
        for name in ("train", "val", "test"):
            labels = getattr(data, name).y
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
                raise DataError(
                    f"labels of {data.name}'s {name} split run from {int(labels.min())} to {int(labels.max())}, "
                    f"but the model has {logits.shape[1]} outputs; expected 0 to {logits.shape[1] - 1}."
                )
    with torch.no_grad(), run.randomness:
        once = loss(*loss_arguments(loss, logits, y, x))
        twice = loss(
            *loss_arguments(loss, logits.repeat_interleave(2, 0), y.repeat_interleave(2, 0), x.repeat_interleave(2, 0))
        )
    if once.ndim:
        raise ConfigError(
            f"loss gave {tuple(once.shape)} values for {len(y)} samples; expected their mean, one number."
        )
    if once != 0 and math.isclose(float(twice), 2 * float(once), rel_tol=1e-4):
        raise ConfigError("loss doubles when every sample comes twice: it is a sum. Expected a mean over the batch.")
    if metric(logits, y).shape != y.shape[:1]:
        raise ConfigError(
            f"metric gave {tuple(metric(logits, y).shape)} for {len(y)} samples; expected one value for each."
        )
    return flops


def _last_line(run: Run) -> str:
    val = percent({"accuracy": run.history[-1]["val_accuracy"]}) if run.history else "unknown"
    return f"{run.epoch} epochs, {run.step:,} steps: val {val}, sparsity {run.sparsity:.4f}"


@contextmanager
def _channels_last(model: nn.Module, device: torch.device) -> Generator[None]:
    """1.5 times faster convolutions on a CPU, and what tensor cores want; the usual layout again afterwards."""

    def lay_out(layout: torch.memory_format) -> None:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=layout)

    lay_out(torch.channels_last if device.type != "mps" else torch.contiguous_format)
    try:
        yield
    finally:
        lay_out(torch.contiguous_format)


def _fused(make: Any, run: Run, **settings: Any) -> torch.optim.Optimizer:
    return make(run.param_groups, lr=run.options.lr, weight_decay=run.options.weight_decay, fused=True, **settings)


_OPTIMIZERS: dict[str, Callable[[Run], torch.optim.Optimizer]] = {
    "adam": lambda run: _fused(torch.optim.Adam, run),
    "adamw": lambda run: _fused(torch.optim.AdamW, run),
    "sgd": lambda run: _fused(torch.optim.SGD, run, momentum=run.options.momentum),
}


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={wanted!r} cannot be used here: {error}. Expected 'auto', 'cpu', 'cuda' or 'mps'."
        ) from None
    return torch.device(wanted)


def _precision(wanted: str, device: torch.device) -> str:
    _one_of("precision", wanted, ("auto", "fp32", "bf16"))
    return ("bf16" if device.type == "cuda" else "fp32") if wanted == "auto" else wanted


def _one_of(what: str, value: Any, known: Any) -> Any:
    if value not in known:
        raise ConfigError(f"{what}={value!r} is unknown; expected one of {', '.join(map(repr, known))}.")
    return value


def _number(what: str, value: Any, least: float, whole: bool = False) -> Any:
    kind = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value) or value < least:
        raise ConfigError(f"{what}={value!r}; expected {'a whole' if whole else 'a'} number of at least {least:g}.")
    return int(value) if isinstance(value, Integral) and whole else float(value)


@contextmanager
def _settings(device: torch.device) -> Generator[None]:
    """Reproducible and fast kernels for this block: no autotuning, TF32, and no denormals (pruned nets make them)."""
    flushes = float(torch.tensor(1e-42) * 1) == 0.0
    matmul = torch.get_float32_matmul_precision()
    torch.set_flush_denormal(True)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.set_flush_denormal(flushes)


@contextmanager
def _interruptible(run: Run) -> Generator[None]:
    """Ctrl-C ends the run after the current step, with what was reached; a second one breaks off at once."""
    before: Any = None
    try:
        with on_first_ctrl_c(run.interrupt) as before:
            yield
    finally:
        if run.interrupted and is_ours(before):
            before(signal.SIGINT, None)  # a fit inside a fit ends the outer one too

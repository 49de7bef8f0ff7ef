"""`fit`: the only training loop of the project; `prune`: a cut without it. What methods see is in `run.py`."""

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import checkpoints, criteria, storage
from .data import Data
from .errors import ConfigError, DataError
from .masks import Masks, Sparsity, keep_top, prunable, units
from .method import Method, fresh, state_of
from .progress import Bar
from .results import Result, describe, environment, layer_flops, percent, tensor_hash
from .run import Options, Run, Snapshot, accuracy, evaluating, load_optimizer, loss_arguments
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
    compile: bool = False,
    inplace: bool = False,
    progress: bool = True,
) -> Run:
    """Train `model` on `data` with `methods`, and measure what comes out.

    `model` may be a finished `Run`: its model goes on under its masks, and its steps count into the budget. What is
    passed in is left as it is unless `inplace`. `start` is a snapshot to go on from; `epochs` counts from step 0.
    `loss(logits, y)` is a mean over the batch; `metric(logits, y)` is one value a sample, the higher the better.
    `skip`, `biases` and `norms` say which weights are in scope. `patience` ends after so many epochs without a better
    validation score; `keep="best"` ends with the best state instead of the last. `checkpoint` is a file written every
    `every` steps (default: each epoch) and resumed from when it is there; `record` is a file for the JSON record.
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
    if not isinstance(source, nn.Module):
        raise ConfigError(f"model is a {type(source).__name__}; expected a torch.nn.Module or a finished Run.")
    fresh_methods = [fresh(method) for method in methods]
    trained = (source if inplace else copy.deepcopy(source)).to(place)
    run = Run(trained, data.to(place), fresh_methods, options, place)
    run.start = _start(parent, source, start)
    given = masks if masks is not None else start.masks if start else parent.masks if parent else None
    with _settings(place), ExitStack() as stack:
        trained.to(memory_format=_layout(trained, place))  # pyright: ignore[reportCallIssue]
        trained.zero_grad(set_to_none=True)
        if start:
            start.load_into(trained)
            run.step, run.epoch = start.step, start.step // run.steps_per_epoch
        run.find_weights()
        if given:
            run.masks = given
            run.cuts.clear()
        _try_one_batch(run)
        with run.randomness:
            run.randomness.reseed("start", 0)
            for method in run.methods:
                method.on_start(run)
        run.find_weights()
        run.optimizer = _OPTIMIZERS[options.optimizer](run)
        for group in run.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        if start and start.optimizer:
            load_optimizer(run, start.optimizer)
        run.config = _config(run)
        if compile:
            run.net = torch.compile(trained)  # pyright: ignore[reportAttributeAccessIssue]
        loss_sum = checkpoints.resume(run, checkpoint) if checkpoint and checkpoint.exists() else 0.0
        stack.enter_context(_interruptible(run))
        _train(run, loss_sum, checkpoint, every or run.steps_per_epoch, progress)
        _finish(run)
        trained.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    if record:
        run.save(record)
    return run


def prune(
    model: nn.Module,
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

    `data` is for criteria that take gradients; `within` are masks that hold already; the rest is as in `keep_top`.
    """
    model = copy.deepcopy(model)
    weights = prunable(model, biases=biases, norms=norms, skip=skip)
    if not weights:
        raise ConfigError("this model has nothing to prune: no convolution or linear weight is in scope.")
    with own_randomness(seed), evaluating(model):
        scores = criteria.resolve(criterion)(model, None if data is None else iter(data.train))
    masks = keep_top({name: scores[name] for name in weights}, sparsity, scope=scope, unit=unit, within=within)
    masks.apply_({name: weight.data for name, weight in weights.items()})
    return model, masks


def _train(run: Run, loss_sum: float, checkpoint: Path | None, every: int, progress: bool) -> None:
    """The loop, in full."""
    began, saved = time.perf_counter(), run.step
    methods, randomness, loss_fn = run.methods, run.randomness, run.options.loss
    bar = Bar(run.steps, " + ".join(type(m).__name__ for m in methods) or "Dense", progress)
    bar.update(run.step)
    losses = torch.tensor(loss_sum, dtype=torch.float32 if run.device.type == "mps" else torch.float64).to(run.device)
    broken = torch.zeros((), device=run.device)  # the optimizer stands still once the loss is no number

    def save() -> int:
        if checkpoint:
            checkpoints.save(run, checkpoint, float(losses), time.perf_counter() - began)
        return run.step

    run.model.train()
    while run.epoch < run.epochs and run.status == "running":
        for run.x, run.y in _batches(run):  # noqa: B020 (these are attributes of it)
            _set_rate(run)
            with randomness:
                randomness.reseed("step", run.step)
                with run.autocast():
                    run.logits = run.net(run.x)
                    loss = loss_fn(*loss_arguments(loss_fn, run.logits, run.y, run.x))
                extra = [term for m in methods if (term := m.on_loss(run)) is not None]
                sum(extra, start=loss).backward()
                for m in methods:
                    m.on_grad(run)
                broken.logical_or_(~torch.isfinite(loss.detach()))
                run.optimizer.found_inf = broken  # pyright: ignore[reportAttributeAccessIssue]
                run.optimizer.step()
                run.optimizer.zero_grad(set_to_none=True)
                run.step += 1
                for m in methods:
                    m.on_step(run)
                run.apply_masks()
            losses += loss.detach() * len(run.y)
            bar.update()
            if run.status != "running":
                break
            if run.step - saved >= every and run.step % run.steps_per_epoch:
                saved = save()
        if run.status == "interrupted":
            save()
        _end_of_epoch(run, float(losses), bar)
        losses.zero_()
        if run.status in ("running", "stopped") and (run.step - saved >= every or run.epoch == run.epochs):
            saved = save()
    run.seconds += time.perf_counter() - began
    bar.finish(_last_line(run))


def _batches(run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    """What is left of this epoch. Order and augmentation follow from seed, epoch and step alone.

    Batches differ by one image at most, so that every image is seen once an epoch and none comes alone.
    """
    seed, done = run.options.seed, run.step % run.steps_per_epoch
    order = torch.randperm(len(run.data.train), generator=generator(seed, "order", run.epoch))
    batches = torch.tensor_split(order, run.steps_per_epoch)[done:]
    return run.data.train.batches(batches, [key(seed, "augment", run.step + i) for i in range(len(batches))])


def _set_rate(run: Run) -> None:
    factor = run.options.rate(run.progress)
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _end_of_epoch(run: Run, loss_sum: float, bar: Bar) -> None:
    """Evaluate, note, keep the best, and let the methods act; the one place where the loss is read."""
    within = run.step % run.steps_per_epoch
    run.epoch += not within
    seen = sum(
        len(b) for b in torch.tensor_split(torch.arange(len(run.data.train)), run.steps_per_epoch)[: within or None]
    )
    val = run.evaluate("val")
    run.history.append(
        {
            "epoch": run.epoch,
            "step": run.step,
            "loss": loss_sum / seen,
            **{f"val_{name}": value for name, value in val.items()},
            "lr": run.optimizer.param_groups[0]["lr"],
            "sparsity": run.sparsity,
            "kept": run.masks.kept_by_layer,
        }
    )
    bar.set_postfix_str(f"val {percent(val)}, sparsity {run.sparsity:.3f}", refresh=False)
    if culprit := _not_finite(run, loss_sum, val["loss"]):
        run.status, run.reason = "diverged", f"epoch {run.epoch + bool(within)}: {culprit}"
    if run.status != "running":
        return
    if run.settled and (run.best is None or val["accuracy"] > (run.best.score or 0.0)):
        run.best = run.snapshot(val["accuracy"])
    with run.randomness:
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
    if run.options.keep == "best" and run.best:
        run.best.load_into(run.model)
    kept = run.masks.kept
    with run.randomness:
        run.randomness.reseed("end", 0)
        for method in run.methods:
            method.on_end(run)
    run.find_weights()
    run.masks.apply_({name: weight.data for name, weight in run.weights.items()})
    run.net = run.model
    last = run.history[-1] if run.history else None
    stale = (
        last is None or last["kept"] != run.masks.kept_by_layer or kept != run.masks.kept or run.options.keep == "best"
    )
    names = ("loss", "accuracy", "top5")
    val = {n: last[f"val_{n}"] for n in names if f"val_{n}" in last} if last and not stale else run.evaluate("val")
    test = run.evaluate("test")
    if run.status == "running":
        missed = run.target and units(run.masks, run.target["unit"])[0] > run.target["kept"]
        run.status = "target_missed" if missed else "done"
        if missed and run.target and not run.reason:
            run.reason = f"sparsity {run.sparsity:.4f} was reached, {run.target['sparsity']} was asked for"
    if run.best is None and run.status in ("done", "stopped"):
        run.best = run.snapshot(val["accuracy"])
    run.model.eval()
    run.result = _result(run, val, test)


def _result(run: Run, val: dict[str, float], test: dict[str, float]) -> Result:
    size = storage.sizes(run.model)
    named = dict(run.model.named_parameters())
    biases = {name: p for name, p in named.items() if name.endswith("bias")}
    kept = run.masks.kept_by_layer
    layers = [
        {"layer": name, "shape": list(mask.shape), "total": mask.numel(), "kept": kept[name]}
        for name, mask in run.masks.items()
    ]
    in_scope = {"weights": run.sparsity}
    with_biases = {**run.weights, **biases}
    zeros = sum(int((p == 0).sum()) for p in with_biases.values())
    sample = next(iter(run.data.val))[0][:1]
    with evaluating(run.model):
        flops = layer_flops(run.model, sample, {name: kept[name] / m.numel() for name, m in run.masks.items()})
    flops["training"] = 3 * flops["dense"] * len(run.data.train) * run.step / run.steps_per_epoch
    return Result(
        status=run.status,
        reason=run.reason,
        config=run.config,
        environment=environment(str(run.device)),
        start=run.start,
        budget={
            "steps": run.step,
            "steps_before": run.start["steps"],
            "steps_planned": run.steps,
            "epochs": run.epoch,
            "samples": run.step * len(run.data.train) / run.steps_per_epoch,
        },
        target=describe(run.target),
        accuracy={"metric": describe(run.options.metric), "val": val, "test": test, "kept": run.options.keep},
        sparsity={
            **in_scope,
            "weights_and_biases": zeros / max(sum(p.numel() for p in with_biases.values()), 1),
            "all": 1 - size["nonzero"] / size["parameters"],
        },
        layers=layers,
        flops=flops,
        size=size,
        history=run.history,
        cuts=[asdict(cut) for cut in run.cuts],
        methods=[_visible_state(method) for method in run.methods],
        times={"seconds": round(run.seconds, 3)},
    )


def _visible_state(method: Method) -> dict[str, Any]:
    """The small things that a method counted; tensors stay in the run."""
    simple = {k: v for k, v in state_of(method).items() if v is None or isinstance(v, bool | int | float | str)}
    return {"name": type(method).__name__, **simple}


def _config(run: Run) -> dict[str, Any]:
    """What makes a run this run and no other; a checkpoint resumes only into an equal one."""
    data, built = run.data, getattr(run.model, "built", {})
    return {
        "data": {
            "name": data.name,
            "seed": data.seed,
            "fingerprint": data.fingerprint,
            "train": len(data.train),
            "val": len(data.val),
            "test": len(data.test),
        },
        "model": {"name": type(run.model).__name__, **built},
        "methods": [describe(method) for method in run.methods],
        **{k: v for k, v in describe(run.options).items() if k != "name"},
        "start": run.start,
        "masks": run.masks.fingerprint if run.sparsity else None,
        "device": run.device.type,
    }


def _start(parent: Run | None, source: nn.Module, start: Snapshot | None) -> dict[str, Any]:
    """Where a run begins: which weights, and how many steps went into them before."""
    weights = start.weights | start.buffers if start else dict(source.named_parameters()) | dict(source.named_buffers())
    digest = tensor_hash(weights)
    if parent:
        dense = parent.start["dense"] or (digest if parent.sparsity == 0 else None)
        return {"kind": "run", "weights": digest, "steps": parent.start["steps"] + parent.step, "dense": dense}
    kind = "snapshot" if start else "model"
    return {"kind": kind, "weights": digest, "steps": 0, "dense": None}


def _try_one_batch(run: Run) -> None:
    """One small forward pass: shapes, number of classes and labels are wrong now or never."""
    x = next(iter(run.data.val))[0][:2]
    try:
        with evaluating(run.model), torch.inference_mode(), run.autocast():
            logits = run.model(x)
    except RuntimeError as error:
        raise ConfigError(
            f"{type(run.model).__name__} does not take what {run.data.name} gives, "
            f"{tuple(x.shape[1:])} a sample: {error}"
        ) from error
    if run.options.loss is not F.cross_entropy or logits.ndim != 2:
        return
    for name in ("train", "val", "test"):
        y = getattr(run.data, name).y
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
            raise DataError(
                f"labels of {run.data.name}'s {name} split run from {int(y.min())} to {int(y.max())}, "
                f"but the model has {logits.shape[1]} outputs; expected 0 to {logits.shape[1] - 1}."
            )


def _last_line(run: Run) -> str:
    val = percent({"accuracy": run.history[-1]["val_accuracy"]}) if run.history else "unknown"
    return f"{run.epoch} epochs, {run.step:,} steps: val {val}, sparsity {run.sparsity:.4f}"


def _layout(model: nn.Module, device: torch.device) -> torch.memory_format:
    """Channels last for convolutional nets: 1.5 to 1.7 times faster on a CPU, and what tensor cores want."""
    is_convolutional = any(p.ndim == 4 for p in model.parameters())
    return torch.channels_last if is_convolutional and device.type != "mps" else torch.preserve_format


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
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value) or value < least:
        raise ConfigError(f"{what}={value!r}; expected {'a whole' if whole else 'a'} number of at least {least:g}.")
    return value


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
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: Any) -> None:
        run.status, run.reason = "interrupted", "by the user"
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)

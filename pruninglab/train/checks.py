"""What `fit` refuses before it trains, and what it finds when the loss is not a number."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.dataset import Data
from ..data.splits import NO_LABEL
from ..errors import ConfigError, DataError
from ..layers.calls import Inputs
from ..layers.flops import Flops, count
from ..layers.hooks import evaluating
from ..layers.names import check_plain
from .losses import loss_arguments, returned_loss
from .method import Method
from .metrics import accuracy
from .options import Options
from .run import Run
from .snapshot import Snapshot
from .training import Training


def check_inputs(model: Any, data: Any, options: Options, inplace: bool) -> None:
    """All that can be refused before anything is copied or counted."""
    if not isinstance(data, Data):
        raise ConfigError(
            f"data is a {type(data).__name__}; expected lab.load(…), or lab.wrap(train, test) of your own."
        )
    source = model.model if isinstance(model, Run) else model
    if not isinstance(source, nn.Module):
        raise ConfigError(f"model is a {type(source).__name__}; expected a torch.nn.Module or a finished Run.")
    if isinstance(source, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ConfigError(f"model is wrapped in {type(source).__name__}; give the network within it, `model.module`.")
    check_plain(source)
    if broken := [name for name, p in source.named_parameters() if not bool(torch.isfinite(p).all())]:
        raise ConfigError(
            f"model holds NaN or infinity in {', '.join(broken[:3])} before any training; expected finite numbers. "
            "Did the run that it comes from diverge?"
        )
    if inplace and any(p.is_inference() for p in source.parameters()):
        raise ConfigError("this model was made in torch.inference_mode and cannot be changed; leave inplace=True out.")
    if not any(p.requires_grad for p in source.parameters()) and options.epochs:
        raise ConfigError(
            "this model has no parameter to train: all are frozen, or there are none. Use epochs=0 to measure."
        )


def check_length(methods: Sequence[Method], epochs: int) -> None:
    if idle := [type(method).__name__ for method in methods if method.in_training and not epochs]:
        raise ConfigError(f"{idle[0]} acts in training, and epochs=0 has no step; use OneShot or more epochs.")


_MEMORIES = {"adam": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}


def check_memory(start: Snapshot, optimizer: Any) -> None:
    """A snapshot rewinds the optimizer too, so it has to be one that remembers the same."""
    held = {name for state in (start.optimizer or {}).values() for name in state}
    if isinstance(optimizer, str) and held - _MEMORIES[optimizer.replace("adamw", "adam")]:
        raise ConfigError(
            f"start: the snapshot holds {', '.join(sorted(held))}, which optimizer={optimizer!r} does not keep. Give "
            "the optimizer that it was made with; or begin with an empty memory: "
            "start=dataclasses.replace(snapshot, optimizer=None)."
        )


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


def _try_one_batch(run: Training) -> Flops:
    """Two images through everything: shapes, labels, loss, metric are wrong now or never. Returns the FLOPs."""
    data, loss, metric = run.data, run.options.loss, run.options.metric
    x, y = run.sample
    try:
        with evaluating(run.model), torch.no_grad():
            flops = count(run.model, x[:1])
            with run.autocast():
                logits = run.model(x)
    except (RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise ConfigError(
            f"{type(run.model).__name__} does not take what {data.name} gives, {_shapes(x)} a sample: {error}"
        ) from error
    _check_labels(run, logits)
    with torch.no_grad(), run.randomness:
        once = loss(*loss_arguments(loss, logits, y, x))
    if once.ndim:
        raise ConfigError(
            f"loss gave {tuple(once.shape)} values for {len(y)} samples; expected their mean, one number."
        )
    if loss is not returned_loss:
        _check_mean(run, x, y, logits, float(once))
    values = metric(*loss_arguments(metric, logits, y, x))
    if values.shape != y.shape[:1]:
        raise ConfigError(f"metric gave {tuple(values.shape)} for {len(y)} samples; expected one value for each.")
    return flops


def _shapes(x: Tensor | Inputs) -> str:
    if isinstance(x, Tensor):
        return str(tuple(x.shape[1:]))
    return ", ".join(f"{name} {tuple(part.shape[1:])}" for name, part in x.parts().items())


def _check_labels(run: Training, logits: Tensor) -> None:
    """Labels that the network has no output for, or no labels where the loss takes some."""
    data, loss, y = run.data, run.options.loss, run.sample[1]
    if not y.numel() and loss is F.cross_entropy:
        raise ConfigError(
            f"{data.name} has no labels; give loss=lab.train.returned_loss if the network returns its loss, or loss= "
            "and metric=, functions of (logits, y)."
        )
    if y.numel() and y.is_floating_point() and (loss is F.cross_entropy or run.options.metric is accuracy):
        raise ConfigError(
            f"the labels of {data.name} are numbers with a point, not classes; give loss=F.mse_loss and "
            "metric=lab.train.negative_squared_error, or your own of (outputs, y)."
        )
    if y.numel() and y.is_floating_point() and logits.shape != y.shape:
        raise ConfigError(
            f"{type(run.model).__name__} gives {tuple(logits.shape)} for labels of shape {tuple(y.shape)}; expected "
            "one shape for both. Bring the labels to it in the data set, or the outputs by forward=."
        )
    if loss is not F.cross_entropy:
        return
    if y.ndim > 1 and logits.shape[:1] + logits.shape[2:] != y.shape:
        last = " Its classes seem to lie in the last dimension: forward=lambda model, x: model(x).movedim(-1, 1)."
        raise ConfigError(
            f"{type(run.model).__name__} gives {tuple(logits.shape)} for labels of shape {tuple(y.shape)}; expected "
            f"(samples, classes, places).{last if logits.shape[:-1] == y.shape else ''}"
        )
    for name in ("train", "val", "test"):
        labels = getattr(data, name).y
        labels = labels[labels != NO_LABEL]
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
            raise DataError(
                f"labels of {data.name}'s {name} split run from {int(labels.min())} to {int(labels.max())}, "
                f"but the model has {logits.shape[1]} outputs; expected 0 to {logits.shape[1] - 1}."
            )


def _check_mean(run: Training, x: Any, y: Tensor, logits: Tensor, once: float) -> None:
    loss = run.options.loss
    double = [part.repeat_interleave(2, 0) for part in (logits, y, x)]
    with torch.no_grad(), run.randomness:
        twice = loss(*loss_arguments(loss, *double))
    if once != 0 and math.isclose(float(twice), 2 * once, rel_tol=1e-4):
        raise ConfigError("loss doubles when every sample comes twice: it is a sum. Expected a mean over the batch.")

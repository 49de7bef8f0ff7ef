"""What `fit` refuses before it trains, and what it finds when the loss is not a number."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.dataset import Data
from ..errors import ConfigError, DataError
from ..layers.flops import Flops, count
from ..layers.hooks import evaluating
from ..layers.names import canonical_parameters, check_plain
from .losses import loss_arguments
from .options import Options
from .run import Run
from .snapshot import Snapshot


def check_inputs(model: Any, data: Any, options: Options, inplace: bool) -> None:
    """All that can be refused before anything is copied or counted."""
    if not isinstance(data, Data):
        raise ConfigError(
            f"data is a {type(data).__name__}; expected lab.load(…), or lab.wrap(train, test) of your own."
        )
    source = model.model if isinstance(model, Run) else model
    if not isinstance(source, nn.Module):
        raise ConfigError(f"model is a {type(source).__name__}; expected a torch.nn.Module or a finished Run.")
    check_plain(source)
    if inplace and any(p.is_inference() for p in source.parameters()):
        raise ConfigError("this model was made in torch.inference_mode and cannot be changed; leave inplace=True out.")
    if not any(p.requires_grad for p in source.parameters()) and options.epochs:
        raise ConfigError(
            "this model has no parameter to train: all are frozen, or there are none. Use epochs=0 to measure."
        )


_MEMORIES = {"adam": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}


def check_memory(start: Snapshot, optimizer: str) -> None:
    """A snapshot rewinds the optimizer too, so it has to be one that remembers the same."""
    held = {name for state in (start.optimizer or {}).values() for name in state}
    if held - _MEMORIES[optimizer.replace("adamw", "adam")]:
        raise ConfigError(
            f"start: the snapshot holds {', '.join(sorted(held))}, which optimizer={optimizer!r} does not keep. Give "
            "the optimizer that it was made with; or begin with an empty memory: "
            "start=dataclasses.replace(snapshot, optimizer=None)."
        )


def check_masks(given: Mapping[str, Tensor], run: Run) -> None:
    """Masks of what has been frozen since: it is in scope only if it is named."""
    parameters = canonical_parameters(run.model)
    if frozen := [n for n in given if n in parameters and not parameters[n].requires_grad and n not in run.weights]:
        raise ConfigError(
            f"these masks name {', '.join(frozen)}, which are frozen and so not in scope. Give include={frozen!r} to "
            "keep them under their masks, or masks= without them to leave them as they are."
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


def _try_one_batch(run: Run) -> Flops:
    """Two images through everything: shapes, labels, loss, metric are wrong now or never. Returns the FLOPs."""
    data, loss, metric = run.data, run.options.loss, run.options.metric
    x, y = next(iter(data.val.batches([torch.arange(min(2, len(data.val)))])))
    try:
        with evaluating(run.model), torch.no_grad():
            flops = count(run.model, x[:1])
            with run.autocast():
                logits = run.model(x)
    except RuntimeError as error:
        raise ConfigError(
            f"{type(run.model).__name__} does not take what {data.name} gives, {tuple(x.shape[1:])} a sample: {error}"
        ) from error
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"{type(run.model).__name__} returns a {type(logits).__name__}; expected one tensor of logits. Put it into "
            "a module whose forward returns that tensor, for example `return self.model(x).logits`."
        )
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

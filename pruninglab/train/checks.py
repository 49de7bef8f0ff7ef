"""What `fit` refuses before it trains, and what it finds when the loss is not a number."""

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError, DataError
from ..layers.flops import module_flops
from ..layers.hooks import evaluating
from .evaluate import loss_arguments
from .run import Run


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

"""How a network is laid out and trained on a device: memory format, kernels, optimizers."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..terminal import Asked, asked_to_stop
from .run import Run


def make_optimizer(run: Run) -> None:
    """Over the groups that methods may have changed, and every parameter of the model that is in none of them."""
    known = {p for group in run.param_groups for p in group["params"]}
    run.param_groups[0]["params"] += [p for p in run.model.parameters() if p.requires_grad and p not in known]
    run.param_groups = [group for group in run.param_groups if group["params"]]
    run.optimizer = _optimizer(run) if run.param_groups else torch.optim.SGD([torch.zeros(1)])
    for group in run.optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])


def _optimizer(run: Run) -> torch.optim.Optimizer:
    """One of ours by name, or what the user's function makes of the groups, the rate and the weight decay."""
    asked, decay = run.options.optimizer, run.options.weight_decay
    if isinstance(asked, str):
        return _OPTIMIZERS[asked](run)
    made = asked(run.param_groups, lr=run.options.lr, **({"weight_decay": decay} if decay else {}))
    if not isinstance(made, torch.optim.Optimizer) or isinstance(made, torch.optim.LBFGS):
        raise ConfigError(
            f"optimizer= made a {type(made).__name__}; expected a torch.optim.Optimizer whose step needs no closure, "
            "for example optimizer=torch.optim.RMSprop."
        )
    return made


@contextmanager
def channels_last(model: nn.Module, device: torch.device) -> Generator[None]:
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


@contextmanager
def settings(device: torch.device) -> Generator[None]:
    """Reproducible and fast kernels for this block: no autotuning, TF32, and no denormals (pruned nets make them).

    The precisions are read and set in torch's newer way alone: it refuses to read in the older way what was set in the
    newer one. On a CPU they stay as they are.
    """
    flushes = float(torch.tensor(1e-42) * 1) == 0.0
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    kernels: list[tuple[Any, str, Any]] = [(cudnn, "enabled", True), (cudnn, "benchmark", False)]
    kernels += [(cudnn, "deterministic", True)]
    kernels += [(place, "fp32_precision", "tf32") for place in (matmul, cudnn.conv, cudnn.rnn)]
    before = [(place, name, getattr(place, name)) for place, name, _ in kernels]
    torch.set_flush_denormal(True)
    try:
        _set(kernels if device.type == "cuda" else [])
        yield
    finally:
        _set(before if device.type == "cuda" else [])
        torch.set_flush_denormal(flushes)


def _set(kernels: list[tuple[Any, str, Any]]) -> None:
    for place, name, value in kernels:
        setattr(place, name, value)


@contextmanager
def interruptible(run: Run) -> Generator[Asked]:
    """Ctrl-C, SIGTERM and SIGUSR1 end the run after the current step; a second one breaks off at once."""
    with asked_to_stop(run.interrupt) as asked:
        yield asked
    if run.interrupted:
        asked.pass_on()  # a fit inside a fit ends the outer one too

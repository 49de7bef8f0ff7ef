"""How a network is laid out and trained on a device: memory format, kernels, optimizers."""

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..terminal import is_ours, on_first_ctrl_c
from .run import Run


def _make_optimizer(run: Run) -> None:
    """Over the groups that methods may have changed, and every parameter of the model that is in none of them."""
    known = {p for group in run.param_groups for p in group["params"]}
    run.param_groups[0]["params"] += [p for p in run.model.parameters() if p.requires_grad and p not in known]
    run.param_groups = [group for group in run.param_groups if group["params"]]
    run.optimizer = _OPTIMIZERS[run.options.optimizer](run) if run.param_groups else torch.optim.SGD([torch.zeros(1)])
    for group in run.optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])


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

"""FLOPs of a network by module, dense and on the weights that are kept."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .names import canonical_parameters


def module_flops(model: nn.Module, x: Tensor) -> dict[str, dict[str, float]]:
    """FLOPs of one sample in each module itself, by torch's own counter: {module: {"weights": …, "other": …}}.

    "weights" are products with a weight, "other" those of two activations, as in attention.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter cannot look into it,
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # nor into the fused kernels
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    root = type(model).__name__
    counts = {k.removeprefix(root).removeprefix("."): v for k, v in counter.get_flop_counts().items() if k != "Global"}
    flops: dict[str, dict[str, float]] = {}
    for name, ops in counts.items():
        inside = [theirs for child, theirs in counts.items() if child and child.rpartition(".")[0] == name != child]
        own = {op: n - sum(theirs.get(op, 0) for theirs in inside) for op, n in ops.items()}
        weights = sum(n for op, n in own.items() if str(op).rpartition(".")[2] in _WEIGHT_PRODUCTS)
        flops[name] = {"weights": float(weights), "other": float(sum(own.values()) - weights)}
    return flops


_WEIGHT_PRODUCTS = {"addmm", "mm", "convolution", "_convolution", "cudnn_convolution", "_scaled_mm"}


def sparse_flops(model: nn.Module, flops: Mapping[str, Mapping[str, float]], masks: Mapping[str, Tensor]) -> float:
    """Of the FLOPs by module, those on kept weights; a weight that two modules share counts in both."""
    density = {
        id(w): float(masks[name].float().mean()) for name, w in canonical_parameters(model).items() if name in masks
    }
    total = 0.0
    for name, parts in flops.items():
        module = model.get_submodule(name)
        inside = [
            p for n, p in module.named_parameters(remove_duplicate=False) if p.ndim > 1 and _is_own(n, name, flops)
        ]
        size = sum(p.numel() for p in inside)
        kept = sum(p.numel() * density.get(id(p), 1.0) for p in inside)
        total += parts["other"] + parts["weights"] * (kept / size if size else 1.0)
    return total


def _is_own(parameter: str, module: str, flops: Mapping[str, Any]) -> bool:
    """Whether the parameter belongs to `module` itself, not to a counted module inside it."""
    path = parameter.split(".")[:-1]
    return not any(f"{module}.{'.'.join(path[:i])}".strip(".") in flops for i in range(1, len(path) + 1))

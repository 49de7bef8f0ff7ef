"""Numbers of a network, counted once more and in another way than the package does: layer by layer, by hand."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

Products = list[tuple[float, Tensor | None]]
"""FLOPs of one kind in one call of a layer, and the weight that they multiply with, if any."""


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter once, by the first of its names."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), (f"{prefix}.{name}".lstrip("."), parameter))
    return dict(found.values())


def products(layer: Any, x: Tensor, out: Any) -> Products:
    """Twice the multiplications of one call of a layer for one sample."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return [(2 * x[0].numel() * layer.weight[0].numel(), layer.weight)]
    if isinstance(layer, nn.modules.conv._ConvNd):
        return [(2 * out[0].numel() * layer.weight[0].numel(), layer.weight)]
    if isinstance(layer, nn.Linear):
        return [(2 * out[0].numel() * layer.in_features, layer.weight)]
    if isinstance(layer, nn.MultiheadAttention):
        places, inside = x.shape[1], layer.in_proj_weight.shape[0] // 3
        weights: list[Tensor] = [layer.in_proj_weight]
        if type(layer) is nn.MultiheadAttention:  # one that has lost heads calls the last as a layer, which counts then
            weights.append(layer.out_proj.weight)
        return [*((2 * places * w.numel(), w) for w in weights), (4 * places**2 * inside, None)]
    if isinstance(layer, nn.RNNBase):
        return [(2 * x.shape[1] * w.numel(), w) for n, w in layer.named_parameters() if "weight" in n]
    return []


def flops(model: nn.Module, x: Tensor, masks: Mapping[str, Tensor]) -> tuple[float, float]:
    """Of one sample: all, and those on the weights that are kept."""
    kept = {id(p): float(masks[n].double().mean()) for n, p in named(model).items() if n in masks}
    found: Products = []
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack, torch.no_grad():
        for layer in modes:
            hook = layer.register_forward_hook(lambda m, given, out: found.extend(products(m, given[0], out)))
            stack.callback(hook.remove)
        model.eval()(x[:1])
    torch.backends.mha.set_fastpath_enabled(fast)
    for module, mode in modes.items():
        module.training = mode
    found += getattr(model, "bare_products", list)()
    return sum(n for n, _ in found), sum(n * (1.0 if w is None else kept.get(id(w), 1.0)) for n, w in found)


def alive(mask: Tensor, unit: str) -> Tensor:
    """Which units have anything left."""
    leading = {"weight": mask.ndim, "kernel": 2, "channel": 1}[unit]
    return mask.flatten(leading).any(-1).flatten() if mask.ndim > leading else mask.flatten()


def highest(scores: Tensor, candidates: Tensor, keep: int) -> Tensor:
    """The highest of the candidates by sorting them all, the earlier of equal ones first."""
    order = sorted(candidates.nonzero().flatten().tolist(), key=lambda i: (-float(scores[i]), i))
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[order[:keep]] = True
    return kept


def accuracy(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], bf16: bool) -> float:
    """The share of samples whose highest output is that of their label."""
    right = seen = 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for x, y in batches:
            right += int((model(x).argmax(1) == y).sum())
            seen += len(y)
    return right / seen

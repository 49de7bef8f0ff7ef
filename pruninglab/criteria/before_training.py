"""Criteria for a cut before training: `OneShot(0.9, SNIP())`, or "snip" for its defaults.

Each scores a copy, so that no weight or buffer moves.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..layers.calls import ones_like
from ..layers.precision import exact_device
from ..typed import Checked, Count, Positive
from .gradients import (
    Loss,
    differentiable_twice,
    first,
    gradient_graph,
    gradients,
    images,
    products,
    trainable,
    weights_and_gradients,
)
from .registry import BY_NAME, Batches

Mode = Literal["eval", "train"]


@dataclass(frozen=True)
class SNIP(Checked):
    """|w·∂L/∂w|, the loss's sensitivity to a weight's presence: Lee, Ajanthan and Torr, "SNIP", 2019.

    Its sum is not divided out: that changes no order. Every parameter is scored, biases too; whether they are cut is
    said by `biases` of `fit` (the paper cuts them). `init="fresh"` is the authors' code: scores are taken at weights
    drawn anew (normal, variance 1 / fan-in, biases 0), and training goes on from the model's own. Biases then score 0
    and are cut first. `mode="train"` lets BatchNorm use the batch; the authors' code scores in "eval".

    >>> _, masks = lab.prune(model, 0.9, lab.criteria.SNIP(), data=data)
    >>> print(f"{masks.density:.0%}")
    10%
    """

    batches: Count = 1
    init: Literal["own", "fresh"] = "own"
    mode: Mode = "eval"
    loss: Loss = F.cross_entropy

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        probe = _probe(model, self.mode)
        if self.init == "fresh":
            _draw(probe)
        with sdpa_kernel(SDPBackend.MATH):
            return {name: (w * g).abs() for name, (w, g) in weights_and_gradients(probe, batches, self).items()}


@dataclass(frozen=True)
class GraSP(Checked):
    """w·Hg, what a weight adds to the norm of the gradient: Wang, Zhang and Grosse, "GraSP", 2020.

    The paper removes the highest -w·Hg; here, as everywhere, the higher is kept. g is the gradient of the loss over all
    `batches`, its logits divided by `temperature`, and H is its Hessian. Both are over every parameter; the authors'
    code takes the weights of convolutions and linear layers alone.

    >>> _, masks = lab.prune(model, 0.9, lab.criteria.GraSP(), data=data)
    >>> print(f"{masks.density:.0%}")
    10%
    """

    batches: Count = 1
    temperature: Positive = 200.0
    mode: Mode = "eval"
    loss: Loss = F.cross_entropy

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        probe = _probe(model, self.mode)
        weights, seen = trainable(probe), first(batches, self.batches, "GraSP")

        def loss(logits: Tensor, y: Tensor) -> Tensor:
            return self.loss(logits / self.temperature, y)

        with differentiable_twice():
            g = list(gradients(probe, seen, loss).values())
        sums = {name: torch.zeros_like(w) for name, w in weights.items()}
        for x, y in seen:
            hg = products(gradient_graph(weights, probe, x, y, loss), weights, g)
            for total, part in zip(sums.values(), hg, strict=True):
                total += part * (len(x) / images(seen))
        return {name: w.detach() * sums[name] for name, w in weights.items()}


@dataclass(frozen=True)
class SynFlow(Checked):
    """|w·∂R/∂w|, R the sum of the outputs for an input of ones, every parameter and buffer replaced by its absolute.

    Tanaka, Kunin, Yamins and Ganguli, "Pruning neural networks without any data by iteratively conserving synaptic
    flow", 2020. In float64, since the products over a deep network leave the range of float32, and in eval mode, since
    BatchNorm would divide the flow out. LayerNorm does so in any mode, and here only scales and shifts. The data gives
    the shape of an input alone; of tokens the input is number 1 at each place. One round of it empties layers;
    `lab.methods.SynFlow` does the paper's hundred. Attention conserves no flow: at equal tokens its queries and keys
    are felt through the places alone, and are cut before its values.

    >>> _, masks = lab.prune(model, 0.9, lab.criteria.SynFlow(), data=data)
    >>> print(f"{masks.density:.0%}")
    10%
    """

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        ((x, _),) = first(batches, 1, "SynFlow")
        home, place = x.device, exact_device(x.device)
        probe, x = _probe(model, "eval").to(place).double(), x.to(place)
        for tensor in (*probe.parameters(), *probe.buffers()):
            if tensor.is_floating_point():
                tensor.data.abs_()
        named = trainable(probe)
        ones = ones_like(x[:1], torch.float64)
        with torch.enable_grad(), _LinearLayerNorm():
            flow = probe(ones).sum()
            grads = torch.autograd.grad(flow, list(named.values()), allow_unused=True)
        scores = {
            name: torch.zeros_like(w) if g is None else (w * g).detach().abs()
            for (name, w), g in zip(named.items(), grads, strict=True)
        }
        if home == place:
            return scores
        largest = max(float(score.max()) for score in scores.values()) or 1.0  # so that float32 holds their order
        return {name: (score / largest).float().to(home) for name, score in scores.items()}


class _LinearLayerNorm(TorchFunctionMode):
    """Layer norms scale and shift, as BatchNorm does in eval mode, and divide nothing out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.layer_norm:
            return func(*args, **(kwargs or {}))
        return _scaled(*args, **(kwargs or {}))


def _scaled(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _probe(model: nn.Module, mode: str) -> nn.Module:
    return copy.deepcopy(model).train(mode == "train")


@torch.no_grad()
def _draw(model: nn.Module) -> None:
    """New weights for every layer that has any; what is 0 has been cut, and stays 0."""
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if any(p.ndim > 1 for p in own.values()):
            for p in own.values():
                if p.ndim > 1:
                    cut = p == 0
                    nn.init.normal_(p, std=p[0].numel() ** -0.5)
                    p.masked_fill_(cut, 0)
                else:
                    p.zero_()
        elif own and callable(reset := getattr(module, "reset_parameters", None)):
            reset()


BY_NAME.update(snip=SNIP(), grasp=GraSP(), synflow=SynFlow())

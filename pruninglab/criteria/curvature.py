"""Second order: what cutting a weight costs by the curvature of the loss.

`OBD` is a criterion; `full` makes a `Quadratic` of all weights together, for `lab.methods.OptimalBrainSurgeon`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from ..errors import ConfigError
from ..layers.calls import Inputs
from ..layers.kinds import kind_of
from ..layers.names import canonical_parameters, real_names
from ..typed import Checked, Count, Filled, Strength, check, checked
from .gradients import Loss, Seen, differentiable_twice, first, gradient_graph, images, products, trainable
from .inputs import exactly
from .quadratic import Quadratic, dampened
from .registry import BY_NAME, Batches

Estimate = Literal["gauss_newton", "fisher", "exact"]
"""Of a whole Hessian."""
MOST_ROWS, MOST_WEIGHTS = 20_000, 10_000
"""How many rows of a Hessian are taken one by one, and how many weights a full one may have (800 megabytes)."""


@dataclass(frozen=True)
class OBD(Checked):
    """½·h·w², h the diagonal of the Hessian: LeCun, Denker and Solla, "Optimal brain damage", 1990.

    It is how much the loss rises near a minimum when a weight is cut, if the weights do not interact. With the same h
    for all it is magnitude. h is taken over `batches` batches in eval mode. `estimate` says how: "gauss_newton", the
    paper's, is never negative. It is for the cross-entropy alone, and costs a backward pass for each class of each
    image. "fisher" takes the label of the data in place of all classes (the empirical Fisher: squared gradients, image
    by image). "hutchinson" is the mean of z·Hz over `draws` random signs z: without bias, but with noise. "exact" costs
    a pass for each weight, and is for small networks.

    >>> _, masks = lab.prune(model, 0.9, lab.criteria.OBD(), data=data)
    >>> print(f"{masks.density:.0%}")
    10%
    """

    estimate: Literal["gauss_newton", "fisher", "hutchinson", "exact"] = "gauss_newton"
    batches: Count = 1
    draws: Count = 16
    loss: Loss = F.cross_entropy

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.estimate, self.loss)

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        weights = trainable(model)
        return {name: 0.5 * h * weights[name].detach().square() for name, h in self.diagonal(model, batches).items()}

    def diagonal(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        """h of every parameter that is trained."""
        seen, weights = first(batches, self.batches, "OBD"), trainable(model)
        if self.estimate == "exact":
            return _exact_diagonal(weights, model, seen, self.loss)
        if self.estimate == "hutchinson":
            return _hutchinson(weights, model, seen, self.loss, self.draws)
        sums = {name: torch.zeros_like(w) for name, w in weights.items()}
        for factors in _factors(model, weights, seen, self.estimate, self.loss):
            for name, rows in factors.items():
                sums[name] += rows.square().sum(0)
        return {name: total / images(seen) for name, total in sums.items()}


@checked
def full(
    model: nn.Module,
    batches: Batches | None,
    names: Annotated[Sequence[str], Filled()],
    *,
    estimate: Estimate = "gauss_newton",
    number: Count = 1,
    loss: Loss = F.cross_entropy,
    dampening: Strength = 0.0,
) -> Quadratic:
    """Of all these weights together, in one row; H is the mean over `number` batches, in eval mode."""
    check("estimate", estimate, Estimate)
    check_loss(estimate, loss)
    weights = {name: canonical_parameters(model)[name] for name in names}
    size = sum(w.numel() for w in weights.values())
    if size > MOST_WEIGHTS:
        raise ConfigError(
            f"a Hessian of all {size:,} weights is too large; at most {MOST_WEIGHTS:,} are taken together. Use the "
            "layer-wise form, or leave layers out with `skip`."
        )
    seen = first(batches, number, "the surgeon")
    row = torch.cat([exactly(w).flatten() for w in weights.values()])
    hessian = row.new_zeros(size, size)
    if estimate == "exact":
        rows = (row for *_, row in _hessian_rows(weights, model, seen, loss))
        hessian = torch.stack([torch.cat([exactly(part).flatten() for part in row]) for row in rows])
        hessian = (hessian + hessian.T) / 2
    else:
        for factors in _factors(model, weights, seen, estimate, loss):
            rows = torch.cat([exactly(factors[name]).flatten(1) for name in weights], 1)
            hessian += rows.T @ rows / images(seen)
    return Quadratic(row.view(1, 1, -1), dampened(hessian[None], dampening))


def check_loss(estimate: str, loss: Loss) -> None:
    if estimate == "gauss_newton" and loss is not F.cross_entropy:
        raise ConfigError("the Gauss-Newton estimate is that of the cross-entropy; with another loss take 'fisher'.")


def _factors(
    model: nn.Module, weights: Mapping[str, Tensor], seen: Seen, estimate: str, loss: Loss
) -> Iterator[dict[str, Tensor]]:
    """Rows r, some at a time, whose sum of r·rᵀ over the number of images is H: gradients of single images."""
    own = real_names(model)
    held = {name: p.detach() for name, p in model.named_parameters()}
    chosen = {own[name]: held[own[name]] for name in weights}
    piece = max(2**24 // max(sum(w.numel() for w in weights.values()), 1), 1)

    def loss_of(some: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, held | some, (x[None],)), y[None])

    def one_by_one(some: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        wanted = {name: w.requires_grad_() for name, w in some.items()}
        losses = (loss(functional_call(model, held | wanted, (a[None],)), b[None]) for a, b in zip(x, y, strict=True))
        rows = [torch.autograd.grad(one, list(wanted.values()), materialize_grads=True) for one in losses]
        return {name: torch.stack(of_one) for name, of_one in zip(wanted, zip(*rows, strict=True), strict=True)}

    at_once = vmap(grad(loss_of), in_dims=(None, 0, 0), randomness="same")
    alone = any(isinstance(x, Inputs) for x, _ in seen) or any(kind_of(m).recurrent for m in model.modules())
    each = one_by_one if alone else at_once
    for x, y in seen:
        shares = torch.ones(len(x), device=x.device)
        if estimate == "gauss_newton":  # each class as the label, as likely as the model finds it
            with torch.no_grad():
                likely = model(x).softmax(1)
            if likely.ndim > 2:
                raise ConfigError("'gauss_newton' takes one label a sample, and here are several; take 'fisher'.")
            classes = likely.shape[1]
            x, y = x.repeat_interleave(classes, 0), torch.arange(classes, device=x.device).repeat(len(x))
            shares = likely.flatten().sqrt()
        for some, labels, share in zip(x.split(piece), y.split(piece), shares.split(piece), strict=True):
            with differentiable_twice():
                rows = each(chosen, some, labels)
            yield {n: rows[own[n]] * share.view(-1, *[1] * w.ndim) for n, w in weights.items()}


def _hutchinson(
    weights: Mapping[str, Tensor], model: nn.Module, seen: Seen, loss: Loss, draws: int
) -> dict[str, Tensor]:
    sums = {name: torch.zeros_like(w) for name, w in weights.items()}
    for x, y in seen:
        graph = gradient_graph(weights, model, x, y, loss)
        for _ in range(draws):
            signs = [torch.randint(0, 2, w.shape, device=w.device).to(w) * 2 - 1 for w in weights.values()]
            for total, z, hz in zip(sums.values(), signs, products(graph, weights, signs), strict=True):
                total += z * hz * (len(x) / images(seen) / draws)
    return {name: total.detach() for name, total in sums.items()}


def _hessian_rows(
    weights: Mapping[str, Tensor], model: nn.Module, seen: Seen, loss: Loss
) -> Iterator[tuple[int, int, list[Tensor]]]:
    """Row by row, each in the weights' shapes, with the number of its tensor and its place in there."""
    if (size := sum(w.numel() for w in weights.values())) > MOST_ROWS:
        raise ConfigError(
            f"the exact Hessian takes a pass for each of {size:,} weights; at most {MOST_ROWS:,} are taken. "
            "Use 'gauss_newton', 'fisher' or 'hutchinson'."
        )
    graphs = [(gradient_graph(weights, model, x, y, loss), len(x)) for x, y in seen]
    for i, weight in enumerate(weights.values()):
        for k in range(weight.numel()):
            row = [torch.zeros_like(w) for w in weights.values()]
            for graph, n in graphs:
                one = [torch.zeros_like(w) for w in weights.values()]
                one[i].view(-1)[k] = 1.0
                for total, part in zip(row, products(graph, weights, one), strict=True):
                    total += part.detach() * (n / images(seen))
            yield i, k, row


def _exact_diagonal(weights: Mapping[str, Tensor], model: nn.Module, seen: Seen, loss: Loss) -> dict[str, Tensor]:
    diagonal = [torch.zeros_like(w).flatten() for w in weights.values()]
    for i, k, row in _hessian_rows(weights, model, seen, loss):
        diagonal[i][k] = row[i].flatten()[k]
    return {name: h.view(w.shape).detach() for (name, w), h in zip(weights.items(), diagonal, strict=True)}


BY_NAME.update(obd=OBD())

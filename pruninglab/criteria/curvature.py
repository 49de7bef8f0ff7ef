"""Second order: what cutting a weight costs by the curvature of the loss, and how the others can make up for it.

`OBD` is a criterion. `Quadratic` is the loss near its minimum w₀, ½·(w - w₀)ᵀH(w - w₀), with what follows from it in
closed form: the cost of each cut, and the best values of what is left. `full` makes one of all weights, `layerwise` one
of each layer; `lab.methods.OptimalBrainSurgeon` cuts by them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import ConfigError
from ..layers.names import canonical_parameters, owner_of, real_names
from .registry import BY_NAME, Batches

Loss = Callable[[Tensor, Tensor], Tensor]
ESTIMATES = ("gauss_newton", "fisher", "hutchinson", "exact")
MOST_ROWS, MOST_WEIGHTS = 20_000, 10_000
"""How many rows of a Hessian are taken one by one, and how many weights a full one may have (800 megabytes)."""


@dataclass(frozen=True)
class OBD:
    """½·h·w², h the diagonal of the Hessian: LeCun, Denker and Solla, "Optimal brain damage", 1990.

    It is what the loss gains near a minimum when a weight is cut, if the weights did not interact; with the same h for
    all it is magnitude. h is taken over `batches` batches in eval mode, and `estimate` says how: "gauss_newton", the
    paper's, is never negative and costs a backward pass for each class of each image, of the cross-entropy alone;
    "fisher" takes the label of the data for all classes (the empirical Fisher: squared gradients, image by image);
    "hutchinson" is the mean of z·Hz over `draws` random signs z, without bias and with noise; "exact" costs a pass for
    each weight, and is for small nets.
    """

    estimate: str = "gauss_newton"
    batches: int = 1
    draws: int = 16
    loss: Loss = F.cross_entropy

    def __post_init__(self) -> None:
        _check(self.estimate, ESTIMATES, self.loss)
        if self.batches < 1 or self.draws < 1:
            raise ConfigError(f"batches={self.batches}, draws={self.draws}; expected at least one of each.")

    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        curvature = self.diagonal(model, batches)
        return {name: 0.5 * h * canonical_parameters(model)[name].detach().square() for name, h in curvature.items()}

    def diagonal(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        """h of every parameter that is trained."""
        seen = _seen(batches, self.batches, "OBD")
        weights = _trainable(model)
        if self.estimate == "exact":
            return _exact_diagonal(weights, model, seen, self.loss)
        if self.estimate == "hutchinson":
            return _hutchinson(weights, model, seen, self.loss, self.draws)
        sums = {name: torch.zeros_like(w) for name, w in weights.items()}
        for factors in _factors(model, weights, seen, self.estimate, self.loss):
            for name, rows in factors.items():
                sums[name] += rows.square().sum(0)
        return {name: total / sum(len(x) for x, _ in seen) for name, total in sums.items()}


@dataclass(frozen=True)
class Quadratic:
    """½·(w - w₀)ᵀH(w - w₀), summed over rows w₀ that share an H: Hassibi and Stork, "Optimal brain surgeon", 1993.

    `weights` are groups x rows x inputs, `hessian` groups x inputs x inputs, symmetric and positive definite.
    """

    weights: Tensor
    hessian: Tensor

    def __post_init__(self) -> None:
        if bool(torch.linalg.cholesky_ex(self.hessian).info.any()):
            raise ConfigError(
                "this Hessian is not positive definite: some weights do not matter, or the loss is not at a minimum. "
                "Give dampening above 0, such as 0.01, or take the Gauss-Newton one."
            )

    def value(self, weights: Tensor) -> float:
        moved = weights - self.weights
        return float(0.5 * ((moved @ self.hessian) * moved).sum())

    def minimum(self, kept: Tensor) -> Tensor:
        """The weights of least value among those that are 0 where nothing is kept: w_K = w₀_K + H_KK⁻¹·H_KR·w₀_R."""
        best = torch.where(kept, self.weights, 0)
        for group, row, own in self._rows(kept):
            if not bool(own.all()):
                hessian = self.hessian[group][own]
                pull = (hessian @ self.weights[group, row])[:, None]
                best[group, row, own] = torch.cholesky_solve(pull, torch.linalg.cholesky(hessian[:, own]))[:, 0]
        return best

    def costs(self, kept: Tensor) -> Tensor:
        """How much the minimum rises when a further weight goes, w_q²/(2·[H_KK⁻¹]_qq); 0 where nothing is kept."""
        costs = torch.zeros_like(self.weights)
        for group, row, own in self._rows(kept):
            costs[group, row, own] = self._costs_of(self.weights[group, row], self.hessian[group], group, own)
        return costs

    def _costs_of(self, weights: Tensor, hessian: Tensor, group: int, own: Tensor) -> Tensor:
        gone = ~own
        if 2 * int(gone.count_nonzero()) < len(own):  # what is gone is the smaller matrix: H_KK⁻¹ from H⁻¹
            inverse = self._inverses[group]
            factor = torch.linalg.cholesky(inverse[gone][:, gone])
            right = torch.cat([inverse[gone][:, own], weights[gone, None]], 1)
            solved = torch.linalg.solve_triangular(factor, right, upper=False)
            best = weights[own] - solved[:, :-1].T @ solved[:, -1]
            diagonal = inverse.diagonal()[own] - solved[:, :-1].square().sum(0)
        else:
            factor = torch.linalg.cholesky(hessian[own][:, own])
            best = torch.cholesky_solve((hessian[own] @ weights)[:, None], factor)[:, 0]
            diagonal = torch.cholesky_inverse(factor).diagonal()
        return 0.5 * best.square() / diagonal

    @cached_property
    def _inverses(self) -> Tensor:
        return torch.cholesky_inverse(torch.linalg.cholesky(self.hessian))

    def _rows(self, kept: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        for group, rows in enumerate(kept):
            for row, own in enumerate(rows):
                if bool(own.any()):
                    yield group, row, own


def full(
    model: nn.Module,
    batches: Batches | None,
    names: Sequence[str],
    *,
    estimate: str = "gauss_newton",
    number: int = 1,
    loss: Loss = F.cross_entropy,
    dampening: float = 0.0,
) -> Quadratic:
    """Of all these weights together, in one row; H is the mean over `number` batches, in eval mode."""
    _check(estimate, ("gauss_newton", "fisher", "exact"), loss)
    weights = {name: canonical_parameters(model)[name] for name in names}
    size = sum(w.numel() for w in weights.values())
    if size > MOST_WEIGHTS:
        raise ConfigError(
            f"a Hessian of all {size:,} weights is too large; at most {MOST_WEIGHTS:,} are taken together. Use the "
            "layer-wise form, or leave layers out with `skip`."
        )
    seen = _seen(batches, number, "the surgeon")
    row = torch.cat([_exactly(w).flatten() for w in weights.values()])
    hessian = row.new_zeros(size, size)
    if estimate == "exact":
        hessian = torch.stack([_flat(rows) for rows in _hessian_rows(weights, model, seen, loss)])
        hessian = (hessian + hessian.T) / 2
    else:
        for factors in _factors(model, weights, seen, estimate, loss):
            rows = torch.cat([_exactly(factors[name]).flatten(1) for name in weights], 1)
            hessian += rows.T @ rows / sum(len(x) for x, _ in seen)
    return Quadratic(row.view(1, 1, -1), _dampened(hessian[None], dampening))


def layerwise(
    model: nn.Module,
    batches: Batches | None,
    names: Sequence[str],
    *,
    number: int = 16,
    dampening: float = 0.0,
) -> dict[str, Quadratic]:
    """Of each layer, its squared output error: Dong, Chen and Pan, "Learning to prune deep neural networks via
    layer-wise optimal brain surgeon", 2017.

    All outputs share the second moment of the layer's inputs as H, for a convolution that of the patches under its
    kernel. Inputs are those of `number` batches, in eval mode.
    """
    owners = {name: _layer(model, name) for name in names}
    moments: dict[str, Tensor] = {}
    places = dict.fromkeys(names, 0)

    def look(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for some in inputs[0].detach().split(16):  # of a whole batch they may not fit
            patches = _exactly(_patches(module, some))
            moments[name] = moments.get(name, 0) + patches.transpose(1, 2) @ patches
            places[name] += patches.shape[1]

    handles = [owner.register_forward_pre_hook(partial(look, name)) for name, owner in owners.items()]
    try:
        with torch.no_grad():
            for x, _ in _seen(batches, number, "the surgeon"):
                model(x)
    finally:
        for handle in handles:
            handle.remove()
    if unused := [name for name in names if name not in moments]:
        raise ConfigError(f"no input reached {', '.join(unused)} in a forward pass; leave it out with `skip`.")
    quadratics = {}
    for name, moment in moments.items():
        rows = _exactly(canonical_parameters(model)[name]).reshape(len(moment), -1, moment.shape[-1])
        quadratics[name] = Quadratic(rows, _dampened(moment / places[name], dampening))
    return {name: quadratics[name] for name in names}


def _check(estimate: str, known: Sequence[str], loss: Loss) -> None:
    if estimate not in known:
        raise ConfigError(f"estimate={estimate!r} is unknown; expected one of {', '.join(map(repr, known))}.")
    if estimate == "gauss_newton" and loss is not F.cross_entropy:
        raise ConfigError("the Gauss-Newton estimate is that of the cross-entropy; with another loss take 'fisher'.")


def _seen(batches: Batches | None, number: int, whose: str) -> list[tuple[Tensor, Tensor]]:
    seen = list(islice(batches or (), number))
    if not seen:
        raise ConfigError(f"{whose} needs data to take the curvature; pass data=.")
    return seen


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: w for name, w in canonical_parameters(model).items() if w.requires_grad}


def _factors(
    model: nn.Module, weights: Mapping[str, Tensor], seen: list[tuple[Tensor, Tensor]], estimate: str, loss: Loss
) -> Iterator[dict[str, Tensor]]:
    """Rows r, some at a time, whose sum of r·rᵀ over the number of images is H: gradients of single images."""
    own = real_names(model)
    held = {name: p.detach() for name, p in model.named_parameters()}
    chosen = {own[name]: held[own[name]] for name in weights}
    piece = max(2**24 // max(sum(w.numel() for w in weights.values()), 1), 1)

    def loss_of(some: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, held | some, (x[None],)), y[None])

    each = vmap(grad(loss_of), in_dims=(None, 0, 0), randomness="same")
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
            with sdpa_kernel(SDPBackend.MATH):  # the others cannot take images one by one
                rows = each(chosen, some, labels)
            yield {n: rows[own[n]] * share.view(-1, *[1] * w.ndim) for n, w in weights.items()}


def _gradient_graph(
    weights: Mapping[str, Tensor], model: nn.Module, x: Tensor, y: Tensor, loss: Loss
) -> list[Tensor | None]:
    """The gradient of a batch with its graph alive; None where a second derivative is 0 everywhere."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        first = torch.autograd.grad(loss(model(x), y), list(weights.values()), create_graph=True, allow_unused=True)
    return [g if g is not None and g.requires_grad else None for g in first]


def _products(first: Sequence[Tensor | None], weights: Mapping[str, Tensor], z: Sequence[Tensor]) -> list[Tensor]:
    """H·z."""
    felt = [(g, v) for g, v in zip(first, z, strict=True) if g is not None]
    if not felt:
        return [torch.zeros_like(w) for w in weights.values()]
    parts = torch.autograd.grad(
        [g for g, _ in felt], list(weights.values()), [v for _, v in felt], retain_graph=True, allow_unused=True
    )
    return [torch.zeros_like(w) if p is None else p for w, p in zip(weights.values(), parts, strict=True)]


def _hutchinson(
    weights: dict[str, nn.Parameter], model: nn.Module, seen: list[tuple[Tensor, Tensor]], loss: Loss, draws: int
) -> dict[str, Tensor]:
    sums = {name: torch.zeros_like(w) for name, w in weights.items()}
    images = sum(len(x) for x, _ in seen)
    for x, y in seen:
        first = _gradient_graph(weights, model, x, y, loss)
        for _ in range(draws):
            signs = [torch.randint(0, 2, w.shape, device=w.device).to(w) * 2 - 1 for w in weights.values()]
            for total, z, hz in zip(sums.values(), signs, _products(first, weights, signs), strict=True):
                total += z * hz * (len(x) / images / draws)
    return {name: total.detach() for name, total in sums.items()}


def _hessian_rows(
    weights: Mapping[str, Tensor], model: nn.Module, seen: list[tuple[Tensor, Tensor]], loss: Loss
) -> Iterator[list[Tensor]]:
    """Row by row, each in the weights' shapes."""
    if (size := sum(w.numel() for w in weights.values())) > MOST_ROWS:
        raise ConfigError(
            f"the exact Hessian takes a pass for each of {size:,} weights; at most {MOST_ROWS:,} are taken. "
            "Use 'gauss_newton', 'fisher' or 'hutchinson'."
        )
    graphs = [(_gradient_graph(weights, model, x, y, loss), len(x)) for x, y in seen]
    images = sum(len(x) for x, _ in seen)
    for i, weight in enumerate(weights.values()):
        for k in range(weight.numel()):
            row = [torch.zeros_like(w) for w in weights.values()]
            for first, n in graphs:
                one = [torch.zeros_like(w) for w in weights.values()]
                one[i].view(-1)[k] = 1.0
                for total, part in zip(row, _products(first, weights, one), strict=True):
                    total += part.detach() * (n / images)
            yield row


def _exact_diagonal(
    weights: dict[str, nn.Parameter], model: nn.Module, seen: list[tuple[Tensor, Tensor]], loss: Loss
) -> dict[str, Tensor]:
    rows = _hessian_rows(weights, model, seen, loss)
    diagonal = {name: torch.zeros_like(w) for name, w in weights.items()}
    for i, (name, weight) in enumerate(weights.items()):
        for k in range(weight.numel()):
            diagonal[name].view(-1)[k] = next(rows)[i].flatten()[k]
    return {name: h.detach() for name, h in diagonal.items()}


def _layer(model: nn.Module, name: str) -> nn.Module:
    """The layer whose weight this is, if its output is linear in patches of its input."""
    owner = owner_of(model, name)
    convolution = isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if name.rpartition(".")[2] != "weight" or not (convolution or isinstance(owner, nn.Linear)):
        raise ConfigError(
            f"the layer-wise surgeon knows the weights of linear layers and convolutions, not {name}; leave it out "
            "with `skip`, or take form='full'."
        )
    return owner


def _patches(module: Any, x: Tensor) -> Tensor:
    """What each output is a weighted sum of: groups x places x inputs."""
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, module.in_features)
    weight = module.weight
    groups, inputs = module.groups, weight[0].numel()
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        patches = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
    else:  # each filter takes out one place of the patch, with the layer's own stride, padding and dilation
        unit = torch.eye(inputs, dtype=x.dtype, device=x.device).view(inputs, *weight.shape[1:])
        patches = module._conv_forward(x, unit.repeat(groups, *[1] * (weight.ndim - 1)), None).flatten(2)
    return patches.unflatten(1, (groups, inputs)).permute(1, 0, 3, 2).flatten(1, 2)


def _dampened(hessian: Tensor, dampening: float) -> Tensor:
    """With this share of the mean of its diagonal added to the diagonal; of a zero matrix, the share itself."""
    mean = hessian.diagonal(dim1=1, dim2=2).mean(1)
    extra = dampening * torch.where(mean > 0, mean, 1.0)
    return hessian + extra[:, None, None] * torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([_exactly(t).flatten() for t in tensors])


def _exactly(tensor: Tensor) -> Tensor:
    """In double precision, where there is any."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


BY_NAME.update(obd=OBD())

"""Second order against independent answers: finite differences, constrained minima, least squares, single images."""

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

import pruninglab as lab
from pruninglab.criteria import OBD, GraSP, LargeQuadratic, Quadratic, curvature, full, gradients, layerwise, quadratic
from pruninglab.methods import OneShot, OptimalBrainSurgeon, RelevanceL2
from pruninglab.typed import choices, hints

QUIET: dict[str, Any] = {"progress": False, "collapse": "allow", "seed": 0}
ESTIMATES = choices(hints(OBD)["estimate"])
Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def source() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.fixture
def batches(source) -> Batches:
    make = lambda n: (torch.randn(n, 5, generator=source).double(), torch.randint(3, (n,), generator=source))  # noqa: E731
    return [make(7), make(4)]


def squares(z: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(z[:, 0], y)


def random_quadratic(source: torch.Generator, groups: int = 1, rows: int = 1, inputs: int = 7) -> Quadratic:
    factors = torch.randn(groups, inputs, 2 * inputs, generator=source, dtype=torch.float64)
    weights = torch.randn(groups, rows, inputs, generator=source, dtype=torch.float64)
    return Quadratic(weights, factors @ factors.transpose(1, 2))


# Optimal brain damage


def test_the_exact_diagonal_is_that_of_finite_differences(net, batches):
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    exact = OBD("exact", batches=2).diagonal(net, batches)
    assert exact.keys() == dict(net.named_parameters()).keys()
    step = 1e-4
    with torch.no_grad():
        middle = F.cross_entropy(net(x), y)
        for name, w in net.named_parameters():
            for i in range(w.numel()):
                values = w.view(-1)
                before = values[i].item()
                around = torch.zeros((), dtype=torch.float64)
                for moved in (before + step, before - step):
                    values[i] = moved
                    around += F.cross_entropy(net(x), y)
                values[i] = before
                assert exact[name].flatten()[i].item() == pytest.approx(
                    (around - 2 * middle).item() / step**2, abs=1e-6
                )
    damage = OBD("exact", batches=2)(net, batches)
    for name, w in net.named_parameters():
        assert torch.equal(damage[name], 0.5 * exact[name] * w.detach() ** 2)


def test_hutchinson_converges_to_the_exact_diagonal(net, batches):
    exact = OBD("exact", batches=2).diagonal(net, batches)
    distance = {}
    for draws in (10, 1000):
        torch.manual_seed(0)
        estimate = OBD("hutchinson", batches=2, draws=draws).diagonal(net, batches)
        distance[draws] = sum((estimate[n] - h).square().sum().item() for n, h in exact.items()) ** 0.5
    norm = sum(h.square().sum().item() for h in exact.values()) ** 0.5
    assert distance[1000] < distance[10] / 5  # the root of a hundred, were it not for chance
    assert distance[1000] < 0.2 * norm


def test_one_sign_is_enough_where_weights_do_not_interact(source):
    """z·Hz is the diagonal itself, whatever the signs, if there is nothing beside it."""

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    x = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    loss = lambda z, y: z.square().sum(1).mean()  # noqa: E731
    diagonal = OBD("hutchinson", draws=1, loss=loss).diagonal(Apart(), [(x, torch.zeros(2))])
    assert diagonal["weight"].tolist() == [10.0, 4.0, 0.0]


def test_fisher_and_gauss_newton_are_means_over_single_images(net, batches):
    expected: dict[Any, dict[str, Tensor]] = {
        kind: {n: torch.zeros_like(w) for n, w in net.named_parameters()} for kind in ("fisher", "gauss_newton")
    }
    for image, label in ((x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))):
        likely = net(image).softmax(1)[0].detach()
        for c in range(3):
            grads = torch.autograd.grad(F.cross_entropy(net(image), torch.tensor([c])), list(net.parameters()))
            for (name, _), g in zip(net.named_parameters(), grads, strict=True):
                expected["gauss_newton"][name] += likely[c] * g**2 / 11
                expected["fisher"][name] += (c == label.item()) * g**2 / 11
    for kind, diagonal in expected.items():
        found = OBD(kind, batches=2).diagonal(net, batches)
        for name, h in diagonal.items():
            assert torch.allclose(found[name], h, rtol=1e-10, atol=1e-15)


def test_gauss_newton_is_exact_where_logits_are_linear(batches):
    torch.manual_seed(0)
    linear = nn.Linear(5, 3).double()
    exact, found = (OBD(kind, batches=2).diagonal(linear, batches) for kind in ("exact", "gauss_newton"))
    assert all(torch.allclose(found[n], h, atol=1e-14) for n, h in exact.items())


# Every activation


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    **{name: getattr(nn, name) for name in nn.modules.activation.__all__},
    **{name: partial(getattr(nn, name), dim=1) for name in ("Softmin", "Softmax", "LogSoftmax")},
    "Threshold": lambda: nn.Threshold(-0.1, 0.5),
    "MultiheadAttention": Attention,
    "GLU": lambda: nn.Sequential(nn.GLU(), nn.Linear(2, 4)),
    "Softmax2d": lambda: nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.Softmax2d(), nn.Flatten()),
    "Hardsigmoid in place": lambda: nn.Hardsigmoid(inplace=True),
    "Hardswish in place": lambda: nn.Hardswish(inplace=True),
    "RReLU in place": lambda: nn.RReLU(inplace=True),
}


def loss_at(net: nn.Module, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(torch.func.functional_call(net, weights, (x,)), y)


def flat_gradient(net: nn.Module, at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Of all weights in one row."""
    shapes = {name: w.shape for name, w in net.named_parameters()}
    row = at.clone().requires_grad_()
    parts = row.split([shape.numel() for shape in shapes.values()])
    weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    return torch.autograd.grad(loss_at(net, weights, x, y), row)[0]


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_second_order_through_every_activation(name, batches):
    """Each criterion against differences of gradients, in which no second derivative is taken."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), ACTIVATIONS[name](), nn.Linear(4, 3)).double().eval()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    w = flat(dict(net.named_parameters()))
    g = flat_gradient(net, w, x, y)
    units = 1e-5 * torch.eye(len(w)).double()
    ends = [torch.stack([flat_gradient(net, w + by * unit, x, y) for unit in units]) for by in (1, -1)]
    hessian = (ends[0] - ends[1]) / 2e-5
    close = partial(torch.allclose, rtol=1e-4, atol=1e-7)

    assert close(flat(OBD("exact", batches=2).diagonal(net, batches)), hessian.diagonal())
    assert close(flat(GraSP(temperature=1)(net, [(x, y)])), w * (hessian @ g))
    torch.manual_seed(1)
    found = OBD("hutchinson", draws=3).diagonal(net, [(x, y)])
    torch.manual_seed(1)
    draw = lambda p: torch.randint(0, 2, p.shape).double() * 2 - 1  # noqa: E731
    signs = [flat({n: draw(p) for n, p in net.named_parameters()}) for _ in range(3)]
    assert close(flat(found), torch.stack([z * (hessian @ z) for z in signs]).mean(0))

    likely = net(x).detach().softmax(1)
    squares = torch.stack(
        [torch.stack([flat_gradient(net, w, x[i : i + 1], torch.tensor([c])) for c in range(3)]) for i in range(len(x))]
    ).square()  # images x classes x weights
    assert close(flat(OBD(batches=2).diagonal(net, batches)), (likely[..., None] * squares).sum(1).mean(0))
    assert close(flat(OBD("fisher", batches=2).diagonal(net, batches)), squares[torch.arange(len(y)), y].mean(0))

    c = 1 / (1 + 30 * g.abs())
    expected = 0.2 * w * c - 30 * 0.1 * hessian @ (w * c).square().mul(g.sign())
    assert close(flat(of_relevance(net, x, y, RelevanceL2(0.1, 30.0, second_order="exact"))), expected)


def of_relevance(net: nn.Module, x: Tensor, y: Tensor, method: Any) -> dict[str, Tensor]:
    """The gradient of its term of the loss."""
    options = SimpleNamespace(loss=F.cross_entropy)
    at: dict[str, Any] = {"last_cut": None, "first_step": 0, "step": 0, "steps_per_epoch": 10}
    at |= {"over_ranks": lambda gradients: gradients}
    run = SimpleNamespace(model=net, net=net, weights={}, options=options, x=x, y=y, **at)
    method.on_start(run)
    run.logits = run.net(x)
    grads = torch.autograd.grad(method.on_loss(run), list(net.parameters()))
    return {name: g for (name, _), g in zip(net.named_parameters(), grads, strict=True)}


class Distances(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return torch.cdist(input, self.weight)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * g


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return Once.apply(super().forward(input))


@pytest.mark.parametrize(("layer", "said"), [(Distances(5, 8), "cdist"), (Doubled(5, 8), "differentiate twice")])
def test_what_has_no_second_derivative_is_refused(layer, said):
    net = nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    for criterion in (GraSP(), OBD("hutchinson"), OBD("exact")):
        with pytest.raises(lab.ConfigError, match=f"second-order criteria need it: .*{said}.*'taylor'"):
            criterion(net, [(x, y)])
    with pytest.raises(lab.ConfigError, match=said):
        of_relevance(net, x, y, RelevanceL2(second_order="exact"))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("function", [F.hardsigmoid, F.rrelu, partial(F.rrelu, training=True)])
def test_an_activation_written_out_does_what_torch_s_does(function, inplace):
    found, expected = torch.linspace(-4, 4, 9), torch.linspace(-4, 4, 9)
    torch.manual_seed(0)
    value = function(expected, inplace=inplace)
    torch.manual_seed(0)
    with gradients.differentiable_twice():
        same = function(found, inplace=inplace)
    assert torch.allclose(same, value, atol=1e-7)
    assert torch.allclose(found, expected, atol=1e-7)
    assert (found is same) == inplace


def test_where_the_loss_is_linear_there_is_no_curvature():
    net = nn.Linear(5, 3)
    scores = OBD("hutchinson", loss=lambda z, y: z.sum())(net, [(torch.randn(6, 5), torch.zeros(6).long())])
    assert {name: float(score.abs().sum()) for name, score in scores.items()} == {"weight": 0, "bias": 0}


def test_an_error_of_the_network_stays_its_own(batches):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        GraSP()(nn.Linear(4, 3).double(), batches)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_a_model_is_left_as_it_was(estimate):
    data = lab.load("digits", train=60, test=20, size=8)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10))
    before = copy.deepcopy(model.state_dict())
    _, masks = lab.prune(model, 0.5, OBD(estimate, draws=2), data=data)
    assert masks.sparsity == pytest.approx(0.5, abs=1e-3)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("estimate", ["fisher", "hutchinson"])
def test_attention_and_sequences(estimate):
    data = lab.load("sorting", train=60, test=20)
    model = lab.build(lab.models.transformer, data, width=8, layers=1, heads=2)
    run = lab.fit(model, data, OneShot(0.5, OBD(estimate, draws=2)), epochs=0, batch_size=20, **QUIET)
    assert run.status == "done"
    with pytest.raises(lab.ConfigError, match="one label a sample"):
        lab.fit(model, data, OneShot(0.5, "obd"), epochs=0, **QUIET)
    inside = r"blocks\.0\.attention\.in_proj_weight, blocks\.0\.attention\.out_proj\.weight"
    with pytest.raises(
        lab.ConfigError, match=rf"not place\.weight, token\.weight, {inside}; leave these out with `skip`"
    ):
        lab.fit(model, data, OptimalBrainSurgeon(0.5), epochs=0, **QUIET)
    options = {"epochs": 0, "skip": ["*attention*", "Embedding"], **QUIET}
    left = lab.fit(model, data, OptimalBrainSurgeon(0.5, rounds=2), **options)
    assert left.status == "done"


# The surgeon, on quadratics


def test_the_minimum_is_that_of_the_constrained_problem(source):
    """Solved here with one Lagrange multiplier for each removed weight."""
    q = random_quadratic(source, groups=2, rows=3)
    kept = torch.rand(2, 3, 7, generator=source) < 0.5
    kept[0, 0], kept[1, 2] = True, False
    found = q.minimum(kept)
    assert torch.equal(found[0, 0], q.weights[0, 0])
    assert not found[1, 2].any()
    for group in range(2):
        for row in range(3):
            gone = torch.eye(7, dtype=torch.float64)[~kept[group, row]]
            corner = torch.zeros(len(gone), len(gone), dtype=torch.float64)
            system = torch.cat([torch.cat([q.hessian[group], gone.T], 1), torch.cat([gone, corner], 1)])
            right = torch.cat([q.hessian[group] @ q.weights[group, row], torch.zeros(len(gone), dtype=torch.float64)])
            assert torch.allclose(found[group, row], torch.linalg.solve(system, right)[:7], atol=1e-10)


@pytest.mark.parametrize("left", [1, 2, 4, 6, 7])
def test_a_cost_is_what_the_minimum_rises_by(source, left):
    q = random_quadratic(source, rows=2)
    kept = torch.zeros(1, 2, 7, dtype=torch.bool)
    kept[..., torch.randperm(7, generator=source)[:left]] = True
    costs = q.costs(kept)
    assert not costs[~kept].any()
    for place in kept.nonzero():
        without = kept.clone()
        without[tuple(place)] = False
        rise = q.value(q.minimum(without)) - q.value(q.minimum(kept))
        assert costs[tuple(place)].item() == pytest.approx(rise, rel=1e-8)


def test_one_by_one_with_the_papers_update_comes_to_the_same(source):
    """w ← w - w_q/[H⁻¹]_qq·H⁻¹e_q, and H⁻¹ loses its row and column."""
    q = random_quadratic(source)
    w, inverse, kept = q.weights[0, 0].clone(), torch.linalg.inv(q.hessian[0]), torch.ones(7, dtype=torch.bool)
    for _ in range(4):
        costs = torch.where(kept, w**2 / (2 * inverse.diagonal()), torch.inf)
        cheapest = int(costs.argmin())
        assert int(torch.where(kept, q.costs(kept[None, None])[0, 0], torch.inf).argmin()) == cheapest
        column = inverse[:, cheapest] / inverse[cheapest, cheapest]
        w -= w[cheapest] * column
        inverse -= torch.outer(column, inverse[cheapest])
        kept[cheapest] = False
        inverse[~kept] = inverse[:, ~kept] = 0.0
        inverse.diagonal()[~kept] = 1.0
    assert torch.allclose(q.minimum(kept[None, None])[0, 0], w * kept, atol=1e-10)


def test_magnitude_is_the_case_of_equal_curvature():
    w = torch.tensor([[[0.5, -2.0, 1.0]]], dtype=torch.float64)
    q = Quadratic(w, torch.eye(3, dtype=torch.float64)[None])
    kept = torch.tensor([[[True, True, True]]])
    assert torch.equal(q.costs(kept), w**2 / 2)
    kept[0, 0, 1] = False
    assert torch.equal(q.minimum(kept), w * kept)


def test_two_weights_by_hand():
    """H = [[2, 1], [1, 1]], w = (1, 1.1): the smaller goes by magnitude, the second by curvature and by the surgeon."""
    q = Quadratic(torch.tensor([[[1.0, 1.1]]]).double(), torch.tensor([[[2.0, 1.0], [1.0, 1.0]]]).double())
    both = torch.tensor([[[True, True]]])
    assert q.costs(both)[0, 0].tolist() == pytest.approx([0.5, 1.21 / 4])  # H⁻¹ has 1 and 2 on its diagonal
    first = q.minimum(torch.tensor([[[True, False]]]))
    assert first[0, 0].tolist() == pytest.approx([1 + 1.1 / 2, 0])
    assert q.value(first) == pytest.approx(1.21 / 4)
    assert q.value(torch.tensor([[[1.0, 0.0]]]).double()) == pytest.approx(1.21 / 2)


def test_the_full_surgeon_on_a_quadratic_loss_is_its_optimum(source):
    """Linear regression at its minimum: what is left are the least squares of the kept inputs."""
    x = torch.randn(50, 6, generator=source).double() @ torch.randn(6, 6, generator=source).double()
    y = x @ torch.randn(6, generator=source).double() + torch.randn(50, generator=source).double()
    model = nn.Linear(6, 1, bias=False).double()
    model.weight.data = torch.linalg.lstsq(x, y[:, None]).solution.T
    q = full(model, [(x, y)], ["weight"], estimate="exact", loss=squares)
    kept = torch.tensor([[[True, False, True, True, False, False]]])
    best = torch.linalg.lstsq(x[:, kept[0, 0]], y[:, None]).solution[:, 0]
    assert torch.allclose(q.minimum(kept)[kept], best, rtol=1e-9)
    rise = squares(x @ q.minimum(kept)[0].T, y) - squares(model(x), y)
    assert q.value(q.minimum(kept)) == pytest.approx(rise.item(), rel=1e-9)


def test_full_hessians_agree_with_their_diagonals(net, batches):
    names = list(lab.prunable(net))
    for kind in ("exact", "gauss_newton", "fisher"):
        q = full(net, batches, names, estimate=kind, number=2, dampening=100.0)
        diagonal = OBD(kind, batches=2).diagonal(net, batches)
        flat = torch.cat([diagonal[name].flatten() for name in names])
        undamped = q.hessian[0].diagonal() - 100.0 * flat.mean()
        assert torch.allclose(undamped, flat, atol=1e-12)
        assert torch.equal(q.hessian, q.hessian.transpose(1, 2)) or kind != "exact"


# The surgeon, layer by layer


def test_a_linear_layer_becomes_the_least_squares_on_its_kept_inputs(source):
    x = torch.randn(200, 8, generator=source).double() @ torch.randn(8, 8, generator=source).double()
    torch.manual_seed(0)
    layer = nn.Linear(8, 5).double()
    y = torch.zeros(200).long()
    q = layerwise(layer, [(x[:120], y), (x[120:], y)], ["weight"])["weight"]
    kept = torch.rand(1, 5, 8, generator=source) < 0.5
    found = q.minimum(kept)[0]
    outputs = x @ layer.weight.detach().T
    for row, own in enumerate(kept[0]):
        best = torch.linalg.lstsq(x[:, own], outputs[:, row, None]).solution[:, 0]
        assert torch.allclose(found[row, own], best, rtol=1e-9, atol=1e-12)
    assert q.value(found[None]) == pytest.approx((0.5 * (x @ found.T - outputs).square().sum() / 200).item())


CONVOLUTIONS = [
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (5, 4, 9, 9)),
    (nn.Conv2d(3, 4, (1, 3), dilation=2), (5, 3, 9, 9)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (5, 2, 6, 6)),
    (nn.Conv1d(4, 4, 3, padding="same", groups=4), (20, 4, 9)),
    (nn.Conv3d(2, 3, 2), (5, 2, 4, 4, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=[str(layer) for layer, _ in CONVOLUTIONS])
def test_a_convolution_loses_the_squared_error_of_its_output(layer, shape, source):
    """For any weights the quadratic is the error measured by running the layer; nothing near its minimum errs less."""
    layer = copy.deepcopy(layer).double()
    x = torch.randn(shape, generator=source).double()
    q = layerwise(layer, [(x, torch.zeros(len(x)))], ["weight"])["weight"]
    before = layer(x).detach()

    def error(weights: Tensor) -> float:
        layer.weight.data = weights.view(layer.weight.shape)
        gap = layer(x).detach() - before
        return (0.5 * gap.square().sum() / (gap.numel() / gap.shape[1])).item()

    kept = torch.rand(q.weights.shape, generator=source) < 0.6
    best = q.minimum(kept)
    assert q.value(best) == pytest.approx(error(best), rel=1e-9)
    for _ in range(5):
        near = best + 1e-3 * kept * torch.randn(best.shape, generator=source)
        assert error(near) > error(best)
        assert q.value(near) == pytest.approx(error(near), rel=1e-9)


# A weight and all that it is multiplied with


class Uses(nn.Module):
    """Each module reads the same input, changed a little, of as many channels as it takes."""

    def __init__(self, *modules: nn.Module, shared: bool = True) -> None:
        super().__init__()
        self.used = nn.ModuleList(modules)
        for module in modules if shared else ():
            module.weight = modules[0].weight

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.used[i](given) for i, given in enumerate(self.inputs(x))]

    def inputs(self, x: Tensor) -> list[Tensor]:
        places = [
            len(kernel if isinstance(kernel := getattr(module, "kernel_size", ()), tuple) else ())
            for module in self.used
        ]
        widths: list[Any] = [getattr(module, "in_channels", x.shape[-1]) for module in self.used]
        changed = [(1 + i) * x.roll(i, -1).pow(1 + i) for i in range(len(places))]
        return [y.narrow(x.ndim - 1 - n, 0, c) for y, n, c in zip(changed, places, widths, strict=True)]


class Decoder(nn.Module):
    """It holds a weight and is no layer; the weight itself is given to `F.linear` by name."""

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, weight=self.weight)


def conv(*sizes: Any, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(*sizes, **settings)


def twice(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    return layer, layer


class RowByRow(nn.Linear):
    """Asks for the shape of its weight, and takes inputs of one dimension."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.stack([F.linear(row, self.weight, self.bias) for row in input.view(-1, self.weight.shape[1])])


SHARED: dict[str, tuple[tuple[nn.Module, ...], tuple[int, ...]]] = {
    "linear": ((nn.Linear(6, 4),), (40, 6)),
    "sequence": ((nn.Linear(6, 4), nn.Linear(6, 4, bias=False)), (10, 5, 6)),
    "linear used twice": (twice(nn.Linear(6, 4)), (40, 6)),
    "two linears": ((nn.Linear(6, 4), nn.Linear(6, 4)), (40, 6)),
    "three linears": ((nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4)), (40, 6)),
    "linear and function": ((nn.Linear(6, 4), Decoder()), (40, 6)),
    "conv used twice": (twice(conv(2, 3, 3, padding=1)), (9, 2, 5, 5)),
    "other stride": ((conv(2, 3, 3), conv(2, 3, 3, stride=2)), (9, 2, 7, 7)),
    "other padding": ((conv(2, 3, 3, padding=1), conv(2, 3, 3, padding="same", padding_mode="circular")), (9, 2, 5, 5)),
    "other dilation": ((conv(2, 3, 3), conv(2, 3, 3, dilation=2, padding=2)), (9, 2, 6, 6)),
    "other groups": ((conv(4, 6, 3, groups=2, padding=1), conv(2, 6, 3), conv(6, 6, 3, groups=3)), (12, 6, 5, 5)),
    "one dimension": ((nn.Conv1d(2, 3, 3, padding="same"), nn.Conv1d(2, 3, 3, 2)), (12, 2, 9)),
    "three dimensions": ((nn.Conv3d(1, 2, 2), nn.Conv3d(1, 2, 2, padding=1)), (9, 1, 3, 3, 3)),
    "rows one by one": ((RowByRow(17, 3),), (60, 17)),
    "none of the batch": ((nn.Conv1d(2, 3, 3),), (2, 40)),
}


@pytest.mark.parametrize("case", SHARED)
def test_a_weight_becomes_the_least_squares_of_all_that_it_gives(case: str, source):
    """Against the outputs' own Jacobians by the weight, of every module that holds it, in double precision."""
    modules, shape = SHARED[case]
    model: Any = Uses(*copy.deepcopy(modules)).double()
    x = torch.randn(shape, generator=source).double()
    q = layerwise(model, [(x, torch.zeros(len(x)))], ["used.0.weight"])["used.0.weight"]
    weight = model.used[0].weight.detach()
    jacobians = [
        torch.func.jacrev(lambda w: torch.func.functional_call(module, {"weight": w}, (given,)))(weight)  # noqa: B023
        for module, given in zip(model.used, model.inputs(x), strict=True)
    ]
    design = torch.cat([jacobian.reshape(-1, weight.numel()) for jacobian in jacobians])
    kept = torch.rand(weight.shape, generator=source) < 0.6
    best = torch.linalg.lstsq(design[:, kept.flatten()], design @ weight.flatten()).solution
    found = q.minimum(kept.view(q.weights.shape)).view(weight.shape)
    assert torch.allclose(found[kept], best, rtol=1e-7, atol=1e-9)
    outputs = sum(jacobian.numel() for jacobian in jacobians) / weight.numel() / len(weight)
    error = (0.5 * (design @ (found - weight).flatten()).square().sum() / outputs).item()
    assert q.value(found.view(q.weights.shape)) == pytest.approx(error, rel=1e-8)


def test_layers_within_others_are_seen():
    """A transformer's layer calls neither of its linear layers as modules where it may take a shorter way."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).double().eval()
    batches = [(torch.randn(5, 4, 8).double(), torch.zeros(5))]
    found = layerwise(layer, batches, ["linear1.weight", "linear2.weight"], dampening=0.01)
    assert [tuple(q.weights.shape) for q in found.values()] == [(1, 12, 8), (1, 8, 12)]


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, 2 * self.weight)


class Transposed(nn.Module):
    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize(
    "other",
    [Scaled(6, 6), Transposed(), nn.utils.parametrizations.orthogonal(nn.Linear(6, 6)), nn.LayerNorm([6, 6])],
    ids=lambda other: type(other).__name__,
)
def test_a_weight_that_does_more_than_the_quadratic_says_is_refused(other):
    plain = nn.Linear(6, 6)
    if hasattr(other, "parametrizations"):
        plain.weight = other.parametrizations.weight.original
    else:
        other.weight = plain.weight
    with pytest.raises(lab.ConfigError, match=r"not used\.0\.weight; leave these out with `skip`"):
        layerwise(Uses(plain, other, shared=False), [(torch.randn(3, 6, 6), torch.zeros(3))], ["used.0.weight"])


# Large layers


def correlated(source: torch.Generator, groups: int, rows: int, inputs: int) -> Quadratic:
    """Of inputs that stand in for each other, as behind a ReLU, and that differ in size."""
    x = torch.randn(groups, 3 * inputs, inputs // 4, generator=source).double()
    x = x @ torch.randn(groups, inputs // 4, inputs, generator=source).double() / inputs**0.5
    x = F.relu(x + 0.3 * torch.randn(x.shape, generator=source)) * torch.rand(inputs, generator=source)
    hessian = x.transpose(1, 2) @ x / (3 * inputs) + 0.01 * torch.eye(inputs).double()
    return Quadratic(torch.randn(groups, rows, inputs, generator=source).double(), hessian)


@pytest.mark.parametrize(("groups", "rows", "inputs"), [(1, 5, 140), (3, 4, 12), (1, 1, 4)])
def test_all_rows_at_once_come_to_the_least_squares_of_each(source, groups, rows, inputs):
    """Against a solver of its own for each row, in double precision. Of the first row nothing is kept."""
    q = correlated(source, groups, rows, inputs)
    kept = torch.rand(q.weights.shape, generator=source) < torch.linspace(0, 1, rows)[:, None]
    large = LargeQuadratic(q.weights, q.hessian)
    best = torch.zeros_like(q.weights)
    for group, row in product(range(groups), range(rows)):
        own, root = kept[group, row], torch.linalg.cholesky(q.hessian[group]).T
        if own.any():
            target = (root @ q.weights[group, row])[:, None]
            best[group, row, own] = torch.linalg.lstsq(root[:, own], target).solution[:, 0]
    assert torch.allclose(large.minimum(kept), best, rtol=1e-4, atol=1e-4)
    assert large.value(large.minimum(kept)) == pytest.approx(large.value(best), rel=1e-9)
    tiny = LargeQuadratic(q.weights, 1e-30 * q.hessian)
    assert torch.allclose(tiny.minimum(kept), best, rtol=1e-4, atol=1e-4)
    assert torch.allclose(1e30 * tiny.costs(kept), large.costs(kept), rtol=1e-3)


def test_a_large_layer_of_which_nothing_goes_is_left_as_it_is(source):
    q = correlated(source, 2, 3, 20)
    large, kept = LargeQuadratic(q.weights, q.hessian), torch.ones(2, 3, 20, dtype=torch.bool)
    assert torch.equal(large.minimum(kept), q.weights)
    assert torch.allclose(large.costs(kept), q.costs(kept), rtol=1e-5)  # the first round is exact


def test_costs_of_large_layers_rank_as_the_exact_ones_do(source):
    q = correlated(source, 1, 8, 120)
    kept = torch.rand(q.weights.shape, generator=source) < 0.5
    found, exact = (kind(q.weights, q.hessian).costs(kept) for kind in (LargeQuadratic, Quadratic))
    assert not found[~kept].any()
    ranks = torch.stack([costs[kept].argsort().argsort().double() for costs in (found, exact)])
    assert torch.corrcoef(ranks)[0, 1] > 0.98


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_a_large_layer_errs_little_more_and_far_less_than_by_magnitude(source, sparsity):
    q = correlated(source, 1, 24, 160)

    def error(kind: type[Quadratic], rounds: int = 4) -> float:
        made = kind(q.weights, q.hessian)
        masks = lab.Masks({"": torch.ones(24, 160, dtype=torch.bool)})
        for k in range(rounds):
            costs = {"": made.costs(masks[""][None])[0]}
            masks = lab.masks.keep_top(costs, 1 - (1 - sparsity) ** ((k + 1) / rounds), masks=masks)
        return q.value(made.minimum(masks[""][None]))

    magnitude = lab.masks.keep_top({"": q.weights[0].abs()}, sparsity)[""]
    best, found = error(Quadratic), error(LargeQuadratic)
    assert found == pytest.approx(best, rel=0.05)
    assert found < 0.9 * q.value(q.minimum(magnitude[None]))
    assert found < 0.6 * q.value(torch.where(magnitude, q.weights, 0))


@pytest.fixture(scope="module")
def trained() -> tuple[lab.Run, lab.Data]:
    data = lab.load("digits", train=400, test=100, size=8)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 30), nn.ReLU(), nn.Linear(30, 10)
    )
    return lab.fit(model, data, epochs=12, lr=0.01, batch_size=40, **QUIET), data


def test_the_surgeon_keeps_more_than_magnitude_without_training(trained):
    dense, data = trained
    surgeon = lab.fit(dense, data, OptimalBrainSurgeon(0.8), epochs=0, **QUIET)
    shares = {name: 1 - kept / dense.masks[name].numel() for name, kept in surgeon.masks.kept_by_layer.items()}
    plain = lab.fit(dense, data, OneShot(shares), epochs=0, **QUIET)
    assert surgeon.masks.kept == surgeon.result.target["kept"] == plain.masks.kept  # pyright: ignore[reportOptionalSubscript]
    losses = [run.result.accuracy["test"]["loss"] for run in (dense, surgeon, plain)]
    assert losses[0] < losses[1] < losses[2] / 2
    errors: Any = surgeon.methods[0]
    assert [e["layer"] for e in errors.errors] == list(dense.weights)
    assert all(e["moved"] < e["unmoved"] < 1 for e in errors.errors)


def test_large_layers_are_pruned_alike(trained, monkeypatch):
    dense, data = trained
    errors, losses = {}, {}
    for most in (quadratic.MOST_WORK, 72**3 * 29, 0):  # none is large, fc1 is, all are
        monkeypatch.setattr(quadratic, "MOST_WORK", most)
        run = lab.fit(dense, data, OptimalBrainSurgeon(0.8), epochs=0, **QUIET)
        assert run.masks.kept == run.result.target["kept"]  # pyright: ignore[reportOptionalSubscript]
        errors[most] = sum(e["moved"] for e in run[OptimalBrainSurgeon].errors)
        losses[most] = run.result.accuracy["test"]["loss"]
    plain = lab.fit(dense, data, OneShot(0.8), epochs=0, **QUIET).result.accuracy["test"]["loss"]
    best, some, every = errors.values()
    assert best != some != every
    assert max(some, every) < 1.2 * best
    assert max(losses.values()) < plain / 2


def test_the_costs_of_a_large_layer_depend_on_what_its_own_row_keeps():
    """Of a full row [H⁻¹]_qq = 2/3 counts, of a row that keeps a half the mean of that and 1/H_qq = 1/2."""
    weights, hessian = torch.tensor([[[3.0, 6.0], [3.0, 6.0]]]), torch.tensor([[[2.0, 1.0], [1.0, 2.0]]])
    costs = quadratic.LargeQuadratic(weights, hessian).costs(torch.tensor([[[True, True], [True, False]]]))
    assert costs.flatten().tolist() == pytest.approx([6.75, 27.0, 0.5 * 36 / (7 / 12), 0.0])


def test_an_input_of_large_curvature_is_solved_for_as_exactly_as_the_others():
    """Kept is the first alone: its best value is 1 + 0.25·4 = 2, and [H⁻¹]_00 = 4/3."""
    hessian = 1e-6 * torch.eye(100)[None]
    hessian[0, :2, :2] = torch.tensor([[1.0, 0.25], [0.25, 0.25]])
    weights, kept = torch.zeros(1, 1, 100), torch.zeros(1, 1, 100, dtype=torch.bool)
    weights[..., 0], weights[..., 1], kept[..., 0] = 1.0, 4.0, True
    costs = quadratic.LargeQuadratic(weights, hessian).costs(kept)
    assert costs[0, 0, 0].item() == pytest.approx(0.5 * 2**2 / (0.01 * 4 / 3 + 0.99))
    assert costs.count_nonzero() == 1


def test_more_rounds_err_less(trained):
    dense, data = trained
    errors = {}
    for rounds in (1, 16):
        run: Any = lab.fit(dense, data, OptimalBrainSurgeon(0.8, scope="layer", rounds=rounds), epochs=0, **QUIET)
        errors[rounds] = sum(e["moved"] for e in run.methods[0].errors)
    assert errors[16] < errors[1]


def test_the_full_form_keeps_more_than_magnitude(blobs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 4))
    dense = lab.fit(net, blobs, epochs=150, lr=0.02, batch_size=160, **QUIET)
    each = {"epochs": 0, "batch_size": 160, **QUIET}
    surgeon = lab.fit(dense, blobs, OptimalBrainSurgeon(0.7, "full", rounds=20, dampening=1e-3), **each)
    plain = lab.fit(dense, blobs, OneShot(0.7), **each)
    before, after, magnitude = (run.evaluate("train")["loss"] for run in (dense, surgeon, plain))
    assert surgeon.masks.kept == plain.masks.kept == 25
    assert after - before < (magnitude - before) / 2
    found: Any = surgeon.methods[0]
    assert [e["layer"] for e in found.errors] == ["all"]
    assert found.errors[0]["moved"] < found.errors[0]["unmoved"]


def test_what_was_pruned_before_stays_and_is_no_loss(trained):
    dense, data = trained
    first = lab.fit(dense, data, OneShot(0.5), epochs=1, batch_size=40, **QUIET)
    run = lab.fit(first, data, OptimalBrainSurgeon(0.7, rounds=2), epochs=0, **QUIET)
    assert not any(bool((run.masks[n] & ~m).any()) for n, m in first.masks.items())
    assert run.masks.sparsity == pytest.approx(0.7, abs=1e-3)
    again = lab.fit(first, data, OptimalBrainSurgeon(0.5), epochs=0, **QUIET)
    assert all(torch.equal(again.weights[n], w) for n, w in first.weights.items())  # nothing to cut, nothing to move


@pytest.mark.parametrize(
    ("match", "make", "options"),
    [
        ("form='rows'", lambda: OptimalBrainSurgeon(0.5, "rows"), {}),  # pyright: ignore[reportArgumentType]
        ("rounds=0", lambda: OptimalBrainSurgeon(0.5, rounds=0), {}),
        ("dampening=-1", lambda: OptimalBrainSurgeon(0.5, dampening=-1.0), {}),
        ("estimate='guess'", lambda: OptimalBrainSurgeon(0.5, "full", estimate="guess"), {}),  # pyright: ignore[reportArgumentType]
        ("that of the cross-entropy", lambda: OptimalBrainSurgeon(0.5, "full", loss=squares), {}),
        ("not 0.bias, 4.bias, 6.bias; leave these out", lambda: OptimalBrainSurgeon(0.5), {"biases": True}),
        ("not positive definite", lambda: OptimalBrainSurgeon(0.5, dampening=0.0), {}),
        ("estimate='guess'", lambda: OneShot(0.5, OBD("guess")), {}),  # pyright: ignore[reportArgumentType]
        ("draws=0", lambda: OneShot(0.5, OBD("hutchinson", draws=0)), {}),
    ],
)
def test_wrong_settings_are_refused(trained, match, make, options):
    dense, data = trained  # the corners of a digit are dark: inputs without any variance
    with pytest.raises(lab.ConfigError, match=match):
        lab.fit(dense.model, data, make(), epochs=0, **options, **QUIET)


@pytest.mark.parametrize("estimate", ["gauss_newton", "exact"])
def test_as_many_weights_as_are_taken_together_are_not_too_many(monkeypatch, estimate):
    layer, batch = nn.Linear(2, 3, bias=False), (torch.ones(1, 2), torch.tensor([1]))
    for most in ("MOST_WEIGHTS", "MOST_ROWS"):
        monkeypatch.setattr(curvature, most, 6)
    found = curvature.full(layer, iter([batch]), ["weight"], estimate=estimate, dampening=1e-2)
    assert found.hessian.shape == (1, 6, 6)
    monkeypatch.setattr(curvature, "MOST_WEIGHTS", 5)
    with pytest.raises(lab.ConfigError, match="all 6 weights is too large; at most 5 are taken together"):
        curvature.full(layer, iter([batch]), ["weight"], estimate=estimate)


def test_what_is_too_large_is_refused(monkeypatch, trained):
    dense, data = trained
    monkeypatch.setattr(curvature, "MOST_WEIGHTS", 1000)
    monkeypatch.setattr(curvature, "MOST_ROWS", 1000)
    with pytest.raises(lab.ConfigError, match=r"all 2,532 weights is too large; at most 1,000"):
        lab.fit(dense, data, OptimalBrainSurgeon(0.5, "full"), epochs=0, **QUIET)
    with pytest.raises(lab.ConfigError, match=r"each of 2,580 weights; at most 1,000"):
        lab.prune(dense, 0.5, OBD("exact"), data=data)
    with pytest.raises(lab.ConfigError, match="needs data"):
        lab.prune(dense, 0.5, "obd")

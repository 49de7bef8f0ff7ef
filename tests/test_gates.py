"""Learned gates: the KL against its integral, gates against their distribution, noise against drawn weights, cuts."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, special
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab.methods import L0, TargetedDropout, VariationalDropout
from pruninglab.methods.noise import l0, steering, variational

QUIET: dict[str, Any] = {"progress": False, "collapse": "allow", "seed": 0}
PLAIN: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr_schedule": "constant", **QUIET}
WEIGHTS = (2.0, -3.0, 1.5, 1.0)
NOW: dict[str, Any] = {"warmup": (0.0, 0.0)}


@dataclass
class Call(lab.Method):
    """Calls a function of the run at one moment."""

    what: Any
    moment: str = "start"

    def on_start(self, run):
        if self.moment == "start":
            self.what(run)

    def on_grad(self, run):
        if self.moment == "grad":
            self.what(run)

    def on_epoch(self, run):
        if self.moment == "epoch":
            self.what(run)


def four_weights(*methods: lab.Method, x: float = 0.0, **options: Any) -> lab.Run:
    """Weights 2, -3, 1.5, 1 under a loss that is the mean output, for one step on 2 images of equal numbers."""
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([WEIGHTS])
    images, labels = torch.full((4, 4), x), torch.zeros(4).long()
    data = lab.wrap(TensorDataset(images, labels), TensorDataset(images, labels), val=0.5)
    return lab.fit(model, data, *methods, epochs=1, loss=lambda logits, y: logits.mean(), **PLAIN | options)


def row(run: lab.Run) -> list[float]:
    return run.model.get_parameter("weight").flatten().tolist()


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))


@pytest.fixture(scope="module")
def dense(blobs) -> lab.Run:
    return lab.fit(mlp(), blobs, epochs=10, lr=0.01, **QUIET)


def learned(run: lab.Run, of: Any = None) -> Any:
    """The gates of a run."""
    return next(m for m in run.methods if isinstance(m, of or L0 | VariationalDropout))


# -- the KL ---------------------------------------------------------------------------------------------------------


def integral(log_alpha: float) -> float:
    """-½·log α + E log|1 + √α·ε|, ε normal, less its limit: for large α, E log|√α·ε| - ½·log α = -(γ + log 2)/2."""
    pole, density = -math.exp(-log_alpha / 2), lambda e: math.exp(-e * e / 2) / math.sqrt(2 * math.pi)
    if abs(pole) < 12:
        below = integrate.quad(density, -12, pole, weight="alg-logb", wvar=(0, 0))[0]
        expected = below + integrate.quad(density, pole, 12, weight="alg-loga", wvar=(0, 0))[0]
    else:
        expected = integrate.quad(lambda e: density(e) * math.log(e - pole), -12, 12)[0]
    return expected + (np.euler_gamma + math.log(2)) / 2  # log √α is in log|1 + √α·ε| = log √α + log|ε - pole|


def test_kl_is_its_integral_and_nearer_than_the_papers_fit():
    values = torch.arange(-8, 8.01, 0.25, dtype=torch.float64)
    exact = np.array([integral(float(a)) for a in values])
    paper = 0.63576 * special.expit(-1.8732 - 1.48695 * values.numpy()) + 0.5 * np.log1p(np.exp(-values.numpy()))
    assert np.abs(variational.kl(values).numpy() - exact).max() < 2e-4
    assert 5e-3 < np.abs(paper - exact).max() < 1e-2
    assert (np.diff(exact) < 0).all()


def test_slope_is_that_of_the_kl_and_the_dawson_integral():
    """KL = 2·∫D from 0 to √(u/2), D the Dawson integral."""
    log_alpha = torch.linspace(-8, 8, 65, dtype=torch.float64, requires_grad=True)
    u = (-log_alpha.detach()).exp()
    variational.kl(log_alpha).sum().backward()
    assert torch.allclose(-u * variational.slope(u), log_alpha.grad)  # pyright: ignore[reportArgumentType]
    root = np.sqrt(u.numpy() / 2)
    assert np.allclose(variational.slope(u).numpy(), special.dawsn(root) / (2 * root), rtol=2e-3)


def test_one_step_on_the_kl_by_hand():
    """σ² = 1, so α = 1/4, 1/9, 4/9, 1; with x = |θ|/√2 the slopes are -x·D(x) by log σ², and θ·D(x)/x by θ."""
    run = four_weights(
        VariationalDropout(strength=2.0, initial=0.0, **NOW),
        lr=0.1,
    )
    theta = np.array(WEIGHTS)
    x = np.abs(theta) / math.sqrt(2)
    assert row(run) == pytest.approx(theta - 0.1 * theta * special.dawsn(x) / x, rel=1e-3)
    log_variances = learned(run).log_variances["weight"].flatten().tolist()
    assert log_variances == pytest.approx(0.1 * x * special.dawsn(x), rel=2e-3)


# -- noise ----------------------------------------------------------------------------------------------------------

LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(5, 3), (2, 5)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="circular"), (2, 4, 6, 6)),
    (nn.Conv1d(2, 3, 3), (2, 2, 7)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=["linear", "conv2d", "conv1d"])
def test_drawn_outputs_have_the_moments_of_drawn_weights(layer, shape):
    torch.manual_seed(1)
    x, variance = torch.randn(shape), 0.1 * torch.rand_like(layer.weight)
    with torch.no_grad():
        theta, drawn = layer.weight.clone(), []
        for _ in range(4000):
            layer.weight.copy_(theta + variance.sqrt() * torch.randn_like(theta))
            drawn.append(layer(x))
        layer.weight.copy_(theta)
        by_weights = torch.stack(drawn)
        mean = layer(x)
        by_outputs = torch.stack([variational.Noise(variance)(layer, (x,), {}, mean) for _ in range(4000)])
    deviation = by_weights.std(0)
    for which in (by_weights, by_outputs):
        assert torch.allclose(which.mean(0), mean, atol=5 * float(deviation.max()) / 4000**0.5)
    assert torch.allclose(by_outputs.std(0), deviation, rtol=0.08)
    assert float((by_outputs.std(0) / deviation).mean()) == pytest.approx(1, abs=0.02)


def test_a_draw_is_differentiated_as_autograd_does():
    torch.manual_seed(0)
    mean, noise = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    variance = torch.rand(3, 4, dtype=torch.float64)
    leaves = [(mean.clone().requires_grad_(), variance.clone().requires_grad_()) for _ in range(2)]
    (variational.Draw.apply(*leaves[0], noise.clone()).square()).sum().backward()
    (leaves[1][0] + (leaves[1][1] + 1e-8).sqrt() * noise).square().sum().backward()
    for ours, autograd in zip(*leaves, strict=True):
        assert torch.allclose(ours.grad, autograd.grad)


@pytest.mark.parametrize("sampled", [(), "0.weight", "*"])
def test_gradients_are_those_of_the_whole_objective(monkeypatch, sampled):
    """Against autograd through σ = exp(½·log σ²), with the same noise; one weight is beyond the clip on either side."""
    monkeypatch.setattr(variational, "normal_like", fixed_noise)
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5)).double()
    net[0].weight.data.flatten()[:2] = torch.tensor([1e-4, 40.0])  # log α is -4 + 18.4 and -4 - 7.4 at first
    x, y = torch.randn(20, 1, 6, 6).double(), torch.arange(20) % 5
    data = lab.wrap(TensorDataset(x[:12], y[:12]), TensorDataset(x[12:], y[12:]), val=0.25)
    seen: dict[str, Any] = {}

    def look(run):
        ours = learned(run)
        seen.update(x=run.x, y=run.y, n=len(run.data.train))
        seen["g"] = {n: w.grad.clone() for n, w in run.weights.items()}
        seen["v"] = {n: v.grad.clone() for n, v in ours.log_variances.items()}

    method = VariationalDropout(strength=0.5, initial=-4.0, sampled=sampled, **NOW)
    lab.fit(net, data, method, Call(look, "grad"), epochs=1, lr=0.0, **PLAIN)
    weights = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters() if p.ndim > 1}
    variances = {n: torch.full_like(w, -4.0).requires_grad_() for n, w in weights.items()}
    log_alpha = {n: variances[n] - w.square().log() for n, w in weights.items()}
    inside = {n: a.abs() < 8 for n, a in log_alpha.items()}
    used = {
        n: v.exp().where(inside[n], (weights[n].square() * (8 * log_alpha[n].sign()).exp()).detach())
        for n, v in variances.items()
    }
    h = torch.tanh(noisy(F.conv2d, seen["x"], weights["0.weight"], used["0.weight"], net[0].bias, sampled != ()))
    logits = noisy(F.linear, h.flatten(1), weights["3.weight"], used["3.weight"], net[3].bias, sampled == "*")
    kl = sum(variational.kl(a[inside[n]]).sum() for n, a in log_alpha.items())
    (F.cross_entropy(logits, seen["y"]) + 0.5 / seen["n"] * kl).backward()
    assert not inside["0.weight"].all()
    for name in weights:
        assert torch.allclose(seen["g"][name], weights[name].grad, rtol=1e-6), name
        assert torch.allclose(seen["v"][name], variances[name].grad, rtol=1e-6), name  # pyright: ignore[reportArgumentType]


def fixed_noise(tensor: Tensor) -> Tensor:
    return torch.arange(tensor.numel(), dtype=tensor.dtype).mul(0.7).sin().view(tensor.shape)


def noisy(layer: Any, x: Tensor, weight: Tensor, variance: Tensor, bias: Tensor, sampled: bool) -> Tensor:
    if sampled:
        return layer(x, weight + (variance + 1e-16).sqrt() * fixed_noise(weight), bias)
    mean = layer(x, weight, bias)
    return mean + (layer(x * x, variance) + 1e-8).sqrt() * fixed_noise(mean)


def test_outputs_are_drawn_for_each_image_and_weights_for_all_together(blobs):
    """On equal images: their own noise from the local form, the same from drawn weights, none in evaluation."""
    rows: dict[str, Tensor] = {}

    def look(run):
        same = run.data.train.x[:1].float().expand(6, -1)
        rows["train"], rows["again"] = run.net(same).detach(), run.net(same).detach()
        run.model.eval()
        rows["eval"] = run.net(same).detach()
        run.model.train()
        assert not any(module._forward_hooks for module in run.model.modules())

    for sampled, alike in (((), False), ("*", True)):
        lab.fit(mlp(), blobs, VariationalDropout(initial=-2.0, sampled=sampled), Call(look), epochs=1, **QUIET)
        assert torch.equal(rows["train"], rows["train"][:1].expand(6, -1)) == alike
        assert not torch.allclose(rows["train"], rows["again"], atol=1e-2)
        assert torch.equal(rows["eval"], rows["eval"][:1].expand(6, -1))


def test_attention_is_drawn_by_weights_and_learns_its_variances():
    data = lab.load("sorting", train=60, test=20, seed=0)
    model = lab.build(lab.models.transformer, data, seed=0, width=8, layers=1, heads=2)
    run = lab.fit(model, data, VariationalDropout(strength=0.01, lr=0.1, **NOW), epochs=2, batch_size=20, **QUIET)
    moved = {name for name, v in learned(run).log_variances.items() if bool((v != -10).any())}
    assert moved == set(run.weights)
    assert any("in_proj" in name for name in moved)
    assert list(run.model.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("method", [VariationalDropout(strength=0.01), L0(droprate=0.9)], ids=["vd", "l0"])
def test_parametrized_and_shared_weights(blobs, method):
    class Twice(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    net = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 4))
    net[2].weight = net[0].weight
    parametrize.register_parametrization(net[4], "weight", Twice())
    run = lab.fit(net, blobs, method, epochs=2, lr=0.01, **QUIET)
    assert list(run.weights) == ["0.weight", "4.weight"]
    assert list(run.model.state_dict()) == list(net.state_dict())
    assert run.model[2].weight is run.model[0].weight  # pyright: ignore[reportIndexIssue]
    assert run.status == "done"


# -- hard concrete --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_alpha", [-4.0, -2.0, -0.5, 0.0, 1.5, 4.0])
def test_gates_are_distributed_as_said(log_alpha):
    torch.manual_seed(0)
    one = torch.tensor(log_alpha)
    drawn = l0.draw(torch.full((200_000,), log_alpha))
    for above in (0.0, 0.3, 0.9):
        assert float((drawn > above).float().mean()) == pytest.approx(float(l0.p_open(one, above)), abs=0.01)
    assert float((drawn == 0).float().mean()) == pytest.approx(1 - float(l0.p_open(one)), abs=0.01)
    assert float(drawn.mean()) == pytest.approx(float(l0.mean(one)), abs=0.01)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1


def test_gates_by_hand():
    """sigmoid(±log 3) = 3/4 and 1/4; closed from sigmoid = 1/12 on; P(z > 0) at log α = 0 is 11^⅔ in odds."""
    three, eleven = math.log(3), math.log(11)
    settled = l0.settle(torch.tensor([three, 0.0, -three, -eleven - 1e-5, eleven + 1e-5, -3.0]))
    assert settled.tolist() == pytest.approx([0.8, 0.5, 0.2, 0.0, 1.0, 0.0], abs=1e-6)
    assert settled[3] == 0
    assert float(l0.p_open(torch.tensor(0.0))) == pytest.approx(11 ** (2 / 3) / (1 + 11 ** (2 / 3)))
    assert (l0.mean(torch.tensor([-8.0, -20.0])) > 0).all()


@pytest.mark.parametrize("unit", ["weight", "channel", "kernel"])
def test_gradient_of_the_expected_l0_is_that_of_finite_differences(unit):
    """Of a net with a dead unit, through the method: 36 weights of which 9 are cut before."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(2, 3)).double()
    masks = lab.Masks.full(lab.prunable(net))
    masks["0.weight"][0, 1] = False
    x, y = torch.rand(6, 2, 3, 3).double(), torch.arange(6) % 3
    data = lab.wrap(TensorDataset(x, y), TensorDataset(x, y), val=0.5)
    seen: dict[str, Any] = {}

    def look(run):
        ours = learned(run)
        penalty = ours.on_loss(run)
        tensors = list(ours.log_alphas.values())
        seen["ours"] = torch.autograd.grad(penalty, tensors)
        seen["value"], seen["numeric"] = float(penalty.detach()), []
        for tensor in tensors:
            slopes = []
            for place in np.ndindex(*tensor.shape):
                ends = []
                for step in (1e-4, -2e-4):
                    tensor.data[place] += step
                    ends.append(float(ours.on_loss(run).detach()))
                tensor.data[place] += 1e-4
                slopes.append((ends[0] - ends[1]) / 2e-4)
            seen["numeric"].append(torch.tensor(slopes).view(tensor.shape))

    method = L0(strength=3.0, unit=unit, **NOW)
    lab.fit(net, data, method, Call(look), masks=masks, epochs=1, **QUIET)
    for ours, numeric in zip(seen["ours"], seen["numeric"], strict=True):
        assert torch.allclose(ours, numeric.double(), rtol=1e-4, atol=1e-9)
    behind = 36 + 6 if unit == "channel" else 36 + 6 - 9
    p = 1 / (1 + 1 / 9 * 11 ** (-2 / 3))  # log α is about log 9
    assert seen["value"] == pytest.approx(3.0 / 3 * behind * p, rel=1e-3)


# -- cuts -----------------------------------------------------------------------------------------------------------

ODDS = (math.log(3), 0.0, -math.log(3), -3.0)


def set_gates(run: Any) -> None:
    learned(run).log_alphas["weight"].data.copy_(torch.tensor([ODDS]))


@pytest.mark.parametrize(
    ("sparsity", "kept"),
    [
        (None, [1.6, -1.5, 0.3, 0.0]),  # gates 0.8, 0.5, 0.2, 0
        (0.25, [1.6, -1.5, 0.3, 0.0]),
        (0.5, [1.6, -1.5, 0.0, 0.0]),
        (0.75, [1.6, 0.0, 0.0, 0.0]),
        (0.0, [1.6, -1.5, 0.3, float(l0.mean(torch.tensor(-3.0)))]),  # the closed gate is to stay
    ],
)
def test_gates_are_multiplied_into_four_weights(sparsity, kept):
    run = four_weights(L0(sparsity, strength=0.0, lr=0.0), Call(set_gates), lr=0.0)
    assert row(run) == pytest.approx(kept)
    assert run.status == "done"
    assert run.masks["weight"].flatten().tolist() == [bool(w) for w in kept]


def test_gates_that_are_half_open_are_not_cut_for_a_target():
    def open_three(run):
        learned(run).log_alphas["weight"].data.copy_(torch.tensor([[1.0, 2.0, 3.0, -1.0]]))

    run = four_weights(L0(0.5, strength=0.0, lr=0.0), Call(open_three), lr=0.0)
    assert run.status == "target_missed"
    assert run.reason.startswith("3 gates were more open than closed at the cut, where 2 were to stay")
    assert run.masks["weight"].flatten().tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("settings", "log_alpha", "kept", "status"),
    [
        ({}, (4.0, 2.9, 3.1, -1.0), (0, 1, 0, 1), "done"),
        ({"threshold": 2.0}, (4.0, 2.9, 3.1, -1.0), (0, 0, 0, 1), "done"),
        ({"sparsity": 0.25}, (4.0, 2.9, 3.1, -1.0), (0, 1, 1, 1), "done"),
        ({"sparsity": 0.75}, (4.0, 0.1, 3.1, -1.0), (0, 0, 0, 1), "done"),
        ({"sparsity": 0.75}, (4.0, -0.1, 3.1, -1.0), (0, 1, 0, 1), "target_missed"),
    ],
)
def test_four_weights_are_cut_by_noise(settings, log_alpha, kept, status):
    def set_noise(run):
        wanted = torch.tensor([log_alpha]) + torch.tensor([WEIGHTS]).square().log()
        learned(run).log_variances["weight"].data.copy_(wanted)

    run = four_weights(VariationalDropout(strength=0.0, lr=0.0, **settings), Call(set_noise), lr=0.0)
    assert row(run) == [w * k for w, k in zip(WEIGHTS, kept, strict=True)]
    assert run.status == status
    assert run.reason == ("" if status == "done" else f"2 gates {run.reason.partition('2 gates ')[2]}")


@pytest.mark.parametrize("method", [VariationalDropout(initial=-5.0), L0(droprate=0.9)], ids=["vd", "l0"])
def test_validation_sees_what_would_be_left_now(blobs, dense, method):
    compared = []

    def look(run):
        if not run.settled:
            ours, plain = learned(run), copy.deepcopy(run.model)
            for name in run.weights:
                of_noise = isinstance(ours, VariationalDropout)
                gate = ours.log_alpha(run, name) <= 3 if of_noise else l0.settle(ours.log_alphas[name])
                plain.get_parameter(name).data.mul_(gate)
            mine = lab.fit(plain, run.data, epochs=0, progress=False).result.accuracy["val"]
            compared.append((run.evaluate("val"), mine))

    run = lab.fit(dense, blobs, method, Call(look, "epoch"), epochs=3, lr=0.01, **QUIET)
    assert len(compared) == 2
    assert all(ours == pytest.approx(plain) for ours, plain in compared)
    assert run.masks.sparsity > 0.1


@pytest.mark.parametrize("method", [VariationalDropout(strength=0.05), L0(droprate=0.9)], ids=["vd", "l0"])
def test_what_was_cut_before_stays_cut_and_does_not_count(blobs, dense, method):
    masks = lab.prune(dense, 0.5)[1]
    run = lab.fit(dense, blobs, method, masks=masks, epochs=2, **QUIET)
    assert not any(bool((run.masks[n] & ~masks[n]).any()) for n in masks)
    first = learned(run).seen[:2]
    assert all(row["open"] <= sum(row["counts"]) == int(masks[row["layer"]].sum()) for row in first)


# -- strength -------------------------------------------------------------------------------------------------------


def test_the_ramp_by_hand(blobs):
    assert [steering.ramp(p, (0.25, 0.5)) for p in (0, 0.25, 0.375, 0.5, 1)] == [0, 0, 0.5, 1, 1]
    assert [steering.ramp(p, (0.0, 0.0)) for p in (0, 1)] == [1, 1]
    for method in (VariationalDropout(strength=0.1, warmup=(0.25, 0.75)), L0(warmup=(0.25, 0.75))):
        run = lab.fit(mlp(), blobs, method, epochs=4, batch_size=160, **QUIET)
        strengths = [row["strength"] for row in learned(run).seen[::2]]
        assert strengths == pytest.approx([0, 0, 0.05, 0.1])  # of the step before


def test_steering_answers_to_the_number_of_open_gates():
    run: Any = type("Run", (), {})()
    run.progress, run.steps, run.options = 0.8, 100, type("Options", (), {"lr_factor": staticmethod(lambda p: 0.5)})()

    def steered(opened: float) -> tuple[float, float]:
        pull = torch.tensor(0.0)
        factor = steering.steer(run, pull, torch.tensor(opened), 1000, 0.9, 1.0)
        return float(factor), float(pull)

    aimed = 1000 * 0.1 * (1 - steering.SPARE)
    assert steered(aimed) == pytest.approx((1, 0), abs=1e-4)
    assert steered(2 * aimed) == pytest.approx((math.exp(0.1 * math.log(2)) * (1 + 4 * math.log(2)), 0.1 * math.log(2)))
    assert steered(900)[1] == pytest.approx(0.1)  # no more than 1 of error,
    assert steered(995)[1] == 0  # and no sum before the first gates close
    assert steered(aimed / 2)[0] < 0


@pytest.mark.parametrize(
    "method",
    [
        VariationalDropout(0.7, strength=0.05),
        VariationalDropout(lab.Linear(0.7), strength=1.0, sampled="2.weight", end=0.8),
        L0(0.7),
        L0(0.5, unit="channel", end=0.8),
    ],
    ids=["vd", "vd-sampled", "l0", "l0-channel"],
)
def test_a_sparsity_is_reached_exactly_at_little_cost(blobs, dense, method):
    run = lab.fit(dense, blobs, method, epochs=80, batch_size=40, lr=5e-3, **QUIET)
    assert run.status == "done", run.reason
    kept, total = lab.masks.units(run.masks, getattr(method, "unit", "weight"))
    assert kept == total - lab.masks.count(total, 0.5 if isinstance(method, L0) and method.unit == "channel" else 0.7)
    assert run.result.accuracy["test"]["accuracy"] > dense.result.accuracy["test"]["accuracy"] - 0.05
    assert run.cuts[-1].step == round(method.end * run.steps)


def test_gates_have_their_own_rate_and_no_weight_decay(blobs):
    for method, rate in (
        (VariationalDropout(lr=0.3), 0.3),
        (VariationalDropout(), 0.01),
        (L0(), 0.1),
        (L0(lr=0.2), 0.2),
    ):
        run = lab.fit(mlp(), blobs, method, epochs=2, lr=0.01, weight_decay=0.5, **QUIET)
        weights, own = run.optimizer.param_groups
        assert (weights["weight_decay"], own["weight_decay"]) == (0.5, 0.0)
        assert (weights["initial_lr"], own["initial_lr"]) == (0.01, rate)


@pytest.mark.parametrize("made", [VariationalDropout(), L0()], ids=["vd", "l0"])
def test_a_broken_run_is_left_as_it_is(blobs, made):
    def loss(logits, y):
        return F.cross_entropy(logits, y) * (float("nan") if torch.is_grad_enabled() else 1.0)

    run = lab.fit(mlp(), blobs, made, epochs=2, loss=loss, **QUIET)
    assert run.status == "diverged"
    assert run.masks.sparsity == 0
    assert all(torch.equal(p, mlp().get_parameter(n)) for n, p in run.model.named_parameters())


def test_wrong_settings_are_refused(blobs):
    wrong: dict[str, Any] = {"unit": "filter"}
    cases: list[tuple[str, Callable[[], list[lab.Method]], int]] = [
        ("strength=-1.0; expected a number of at least 0", lambda: [VariationalDropout(strength=-1.0)], 1),
        ("has to end before end=", lambda: [VariationalDropout(warmup=(0.5, 0.2))], 1),
        ("has to end before end=", lambda: [L0(warmup=(0.0, 0.5), end=0.5)], 1),
        ("Did you mean 0.9", lambda: [VariationalDropout(90.0)], 1),
        ("give a number", lambda: [L0(lab.Cubic({"0.weight": 0.5}))], 1),
        ("within the clip", lambda: [VariationalDropout(threshold=9.0)], 1),
        ("lr=-1.0; expected", lambda: [L0(lr=-1.0)], 1),
        ("a number above 3", lambda: [L0(clip=2.0)], 1),
        ("droprate=0.0; expected", lambda: [L0(droprate=0.0)], 1),
        ("unit='filter'", lambda: [L0(**wrong)], 1),
        ("matches no weight in scope: 0.weight, 2.weight", lambda: [VariationalDropout(sampled="fc*")], 1),
        ("epochs=0 has no step", lambda: [VariationalDropout()], 0),
        ("would cut all 36", lambda: [L0(0.999, unit="channel")], 1),
        ("use one of them", lambda: [VariationalDropout(), L0()], 1),
        ("use one of them", lambda: [L0(), TargetedDropout(0.5)], 1),
    ]
    for match, make, epochs in cases:
        with pytest.raises(lab.ConfigError, match=match):
            lab.fit(mlp(), blobs, *make(), epochs=epochs, **QUIET)
    with pytest.raises(lab.ConfigError, match="nothing to prune"):
        lab.fit(nn.Sequential(nn.LayerNorm(10)), blobs, L0(), epochs=1, **QUIET)

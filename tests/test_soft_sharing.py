"""Soft weight-sharing against torch's and scipy's own mixtures, its collapse by hand, and what it leaves."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab.methods import OneShot, SoftSharing
from pruninglab.methods.penalties import soft_sharing
from pruninglab.methods.penalties.soft_sharing import divergence, log_joint, log_prior, merged

QUIET: dict[str, Any] = {"progress": False, "collapse": "allow", "seed": 0}


def mixture(means: list[float], sigmas: list[float], zero: float) -> SoftSharing:
    """A method with this state, the component at 0 first in `sigmas`, the others in equal proportions."""
    method = SoftSharing(components=len(sigmas), zero=zero)
    method.means = torch.tensor(means, dtype=torch.float64)
    method.log_variances = 2 * torch.tensor(sigmas, dtype=torch.float64).log()
    method.proportions = torch.zeros_like(method.means)
    return method


def test_densities_are_those_of_torch():
    method = mixture([-0.5, 0.2, 0.7], [0.05, 0.3, 0.1, 0.2], zero=0.9)
    method.proportions = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    shares = torch.cat((torch.tensor([0.9]), 0.1 * method.proportions.softmax(0)))
    normals = Normal(torch.cat((torch.zeros(1), method.means)), torch.tensor([0.05, 0.3, 0.1, 0.2]).double())
    values = torch.linspace(-1.5, 1.5, 101, dtype=torch.float64)
    expected = MixtureSameFamily(Categorical(shares), normals).log_prob(values)
    assert torch.allclose(log_joint(values, *method.mixture()).logsumexp(1), expected, atol=1e-6)


@pytest.mark.parametrize("block", [7, 4096])
def test_the_derivatives_of_the_prior_are_those_of_autograd(block, monkeypatch):
    monkeypatch.setattr(soft_sharing, "BLOCK", block)
    source = torch.Generator().manual_seed(0)
    values = torch.randn(40, generator=source, dtype=torch.float64)
    parts = (torch.linspace(-1, 1, 5), torch.linspace(-3, 1, 5), torch.randn(5, generator=source).log_softmax(0))
    tensors = [tensor.double().requires_grad_() for tensor in (values, *parts)]
    plain = log_joint(*tensors).logsumexp(1).sum()
    ours = log_prior(*tensors)
    assert float(ours.detach()) == pytest.approx(float(plain.detach()), rel=1e-12)
    both = zip(torch.autograd.grad(3 * ours, tensors), torch.autograd.grad(3 * plain, tensors), strict=True)
    assert all(torch.allclose(one, other, rtol=1e-10) for one, other in both)


@dataclass
class Collect(lab.Method):
    """Gradients of the weights and of the mixture in the first step, where the loss itself is 0."""

    seen: dict[str, Tensor] = field(init=False)

    def on_start(self, run: Any):
        self.seen = {}

    def on_grad(self, run: Any):
        method = run.methods[0]
        grads = {"w": run.weights["weight"].grad, "m": method.means.grad, "v": method.log_variances.grad}
        self.seen = self.seen or {n: g.clone() for n, g in grads.items()}


def four_weights(method: SoftSharing, *others: lab.Method, lr: float = 0.0) -> tuple[lab.Run, Any]:
    """Weights 2, -3, 1.5, 1 under no loss but the prior, for one step; 2 training images."""
    model = nn.Linear(4, 1, bias=False).double()
    model.weight.data = torch.tensor([[2.0, -3.0, 1.5, 1.0]]).double()
    x, y = torch.zeros(4, 4).double(), torch.zeros(4).long()
    data = lab.wrap(TensorDataset(x, y), TensorDataset(x, y), val=0.5)
    run = lab.fit(model, data, method, *others, epochs=1, lr=lr, loss=lambda logits, y: logits.mean(), **QUIET)
    return run, run.methods[0]


def test_the_gradient_is_that_of_the_log_densities():
    """Means at -3, -0.5 and 2, all σ 2.5; by scipy, differentiated numerically."""
    run, _ = four_weights(SoftSharing(tau=0.1, components=4, zero=0.4), Collect())
    collected: Any = run.methods[1]

    def loss(w: list[float], means: list[float], log_variances: list[float]) -> float:
        sigma = [math.exp(v / 2) for v in log_variances]
        shares = [0.4, 0.2, 0.2, 0.2]
        at = [0.0, *means]
        weights = sum(
            math.log(sum(p * stats.norm.pdf(each, m, s) for p, m, s in zip(shares, at, sigma, strict=True)))
            for each in w
        )
        priors = [(5e3, 2.0), *[(250.0, 0.1)] * 3]
        hyper = sum(stats.gamma.logpdf(s**-2, a, scale=1 / b) for s, (a, b) in zip(sigma, priors, strict=True))
        return float(-0.1 / 2 * (weights + hyper))

    point = {"w": [2.0, -3.0, 1.5, 1.0], "m": [-3.0, -0.5, 2.0], "v": [2 * math.log(2.5)] * 4}
    for name, values in point.items():
        for i in range(len(values)):
            up, down = ({n: [*v] for n, v in point.items()} for _ in range(2))
            up[name][i] += 1e-5
            down[name][i] -= 1e-5
            numeric = (loss(*up.values()) - loss(*down.values())) / 2e-5
            assert float(collected.seen[name].flatten()[i]) == pytest.approx(numeric, rel=1e-4, abs=1e-6)


def test_collapse_by_hand():
    """σ = 1, π = 0.5 at 0, 0.25 at -3 and at 2: w goes to 2 where 2w - 2 > log 2, that is from 1.35 on."""
    method, weight = (
        mixture([-3.0, 2.0], [1.0] * 3, zero=0.5),
        nn.Parameter(torch.tensor([2.0, -3.0, 1.5, 1.0]).double()),
    )
    run: Any = type("Run", (), {"status": "running"})()
    run.weights, run.masks = {"w": weight}, lab.Masks(w=torch.ones(4, dtype=torch.bool))
    method.on_end(run)
    assert weight.tolist() == [2.0, -3.0, 2.0, 0.0]
    assert run.masks["w"].tolist() == [True, True, True, False]


def test_a_large_share_at_zero_cuts_and_a_small_one_does_not():
    run, _ = four_weights(SoftSharing(tau=0.0, components=4, zero=0.999))
    assert run.masks.collapsed == ["weight"]
    run, method = four_weights(SoftSharing(tau=0.0, components=4, zero=0.001))
    assert run.masks.kept == 4
    assert {round(w, 3) for w in run.model.get_parameter("weight").flatten().tolist()} <= {
        round(float(m), 3) for m in method.means.detach()
    }


def test_it_prunes_and_shares_at_little_cost(blobs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))
    dense = lab.fit(net, blobs, epochs=40, lr=0.01, **QUIET)
    method = SoftSharing(components=9, zero=0.9, tau=0.02, lrs=(1e-3, 3e-2))
    run = lab.fit(dense, blobs, method, epochs=150, lr=3e-3, lr_schedule="constant", **QUIET)
    values = torch.cat([w.detach()[run.masks[n]] for n, w in run.weights.items()])
    assert run.sparsity > 0.5
    assert len(values.unique()) <= 8
    assert run.result.accuracy["test"]["accuracy"] > dense.result.accuracy["test"]["accuracy"] - 0.05


def test_what_is_pruned_before_has_no_say(blobs):
    net = nn.Linear(10, 4)
    masks = lab.fit(net, blobs, OneShot(0.5), epochs=0, **QUIET).masks
    run = lab.fit(net, blobs, SoftSharing(zero=1e-6, components=5), masks=masks, epochs=1, **QUIET)
    assert run.masks.fingerprint == masks.fingerprint


def test_wrong_settings_are_refused(blobs):
    flat = nn.Linear(10, 4)
    flat.weight.data.fill_(0.1)
    cases: list[tuple[str, nn.Module, dict[str, Any], int]] = [
        ("tau=-1", nn.Linear(10, 4), {"tau": -1.0}, 1),
        ("expected a whole number of at least 2", nn.Linear(10, 4), {"components": 1}, 1),
        ("a number above 0 and below 1", nn.Linear(10, 4), {"zero": 1.0}, 1),
        ("epochs=0 has no step", nn.Linear(10, 4), {}, 0),
        ("no range of weights", flat, {}, 1),
    ]
    for match, net, settings, epochs in cases:
        with pytest.raises(lab.ConfigError, match=match):
            lab.fit(net, blobs, SoftSharing(**settings), epochs=epochs, **QUIET)


def test_divergences_are_those_of_torch():
    means, variances = torch.tensor([0.0, 0.5, -1.0]).double(), torch.tensor([0.04, 1.0, 0.25]).double()
    normals = Normal(means, variances.sqrt())
    pairs = torch.distributions.kl_divergence(Normal(means[:, None], variances.sqrt()[:, None]), normals)
    assert torch.allclose(divergence(means, variances), pairs)


def test_components_that_are_alike_become_one():
    """Of 1 and 1.1 with proportions 0.1 and 0.3: 1.075; what is near 0 becomes 0."""
    means, variances = torch.tensor([0.0, 1.0, 1.1, 0.01, 3.0]).double(), torch.full((5,), 0.04).double()
    proportions = torch.tensor([0.4, 0.1, 0.3, 0.1, 0.1]).double()
    made = merged(means, variances, proportions, 0.2)  # 0.1²/(2·0.04) = 0.125
    assert made[0].tolist() == pytest.approx([0, 1.075, 3])
    assert made[1].tolist() == pytest.approx([0.04] * 3)
    assert made[2].tolist() == pytest.approx([0.5, 0.4, 0.1])
    assert merged(means, variances, proportions, 0.1)[0].tolist() == pytest.approx([0, 1.0, 1.1, 3])
    assert len(merged(means, variances, proportions, 1e9)[0]) == 1


def test_everything_that_is_merged_with_zero_is_cut():
    kept = [four_weights(SoftSharing(tau=0.0, components=4, zero=0.001, merge_below=m))[0] for m in (None, 1e9)]
    assert [run.masks.kept for run in kept] == [4, 0]


def test_frozen_weights_are_left_as_they_are(blobs):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))
    net[0].requires_grad_(False)
    before = net.get_parameter("0.weight").clone()
    run = lab.fit(net, blobs, SoftSharing(components=4, zero=0.5), epochs=1, **QUIET)
    assert torch.equal(run.model.get_parameter("0.weight"), before)
    assert len(run.model.get_parameter("2.weight").unique()) <= 4

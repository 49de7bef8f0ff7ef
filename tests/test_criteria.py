"""Scores against formulas worked out independently, and criteria that leave no trace."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pruninglab as lab
from pruninglab import criteria


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    source = torch.Generator().manual_seed(1)
    make = lambda n: (torch.randn(n, 5, generator=source).double(), torch.randint(3, (n,), generator=source))  # noqa: E731
    return [make(7), make(4)]


def test_magnitude_and_its_layer_normalised_form():
    layer = nn.Linear(2, 2)
    layer.weight.data = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    model = nn.Sequential(layer)
    assert criteria.magnitude(model)["0.weight"].tolist() == [[1, 2], [3, 4]]
    deviation = torch.tensor([1.0, -2, 3, -4]).std(correction=0)
    expected = torch.tensor([[1.0, 2], [3, 4]]) / deviation
    assert torch.allclose(criteria.layer_magnitude(model)["0.weight"], expected)


def test_taylor_is_the_derivative_by_the_mask(net, batches):
    """|w·g| = |dL/dc| at c = 1, taken by autograd on explicit masks."""
    x, y = batches[0]
    masks = {n: torch.ones_like(w, requires_grad=True) for n, w in net.named_parameters()}
    masked = {n: w.detach() * masks[n] for n, w in net.named_parameters()}
    loss = F.cross_entropy(torch.func.functional_call(net, masked, (x,)), y)
    expected = torch.autograd.grad(loss, list(masks.values()))
    scores = criteria.Taylor(batches=1)(net, batches)
    for name, g in zip(masks, expected, strict=True):
        assert torch.allclose(scores[name], g.abs(), rtol=1e-10, atol=1e-14)


def test_gradients_are_means_over_samples_not_over_batches(net, batches):
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    F.cross_entropy(net(x), y).backward()
    for name, score in criteria.Gradient(batches=2)(net, batches).items():
        assert torch.allclose(score, net.get_parameter(name).grad.abs(), rtol=1e-10)
    signed = criteria.Movement(batches=2)(net, batches)
    for name, w in net.named_parameters():
        assert torch.allclose(signed[name], -w.detach() * w.grad, rtol=1e-10)


def test_a_criterion_leaves_no_gradient_and_no_change(net, batches):
    before = copy.deepcopy(net.state_dict())
    for criterion in criteria.BY_NAME.values():
        criterion(net, batches)
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_names_and_their_errors(net):
    assert criteria.resolve("magnitude") is criteria.magnitude
    with pytest.raises(lab.ConfigError, match="did you mean 'magnitude'"):
        criteria.resolve("magnitud")
    with pytest.raises(lab.ConfigError, match="needs data"):
        criteria.Taylor()(net, None)
    assert repr(criteria.Movement(3)).startswith("Movement(batches=3")

"""Scores against formulas worked out independently, and criteria that leave no trace."""

import copy
import math
from dataclasses import is_dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pruninglab as lab
from pruninglab import criteria
from pruninglab.train.evaluate import scored
from pruninglab.typed import bounds, choices, hints


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
    layer.weight.data = torch.tensor([[1.0, 3.0]])  # one standard deviation is 1
    layer.bias.data = torch.tensor([-3.0])  # alone, so it has none
    scores = criteria.layer_magnitude(model)
    assert [scores["0.weight"].tolist(), scores["0.bias"].tolist()] == [[[1, 3]], [1]]


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


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow", "gradient", "taylor", "movement", "filter_taylor", "obd"])
def test_by_gradients_a_layer_that_is_not_used_scores_0(net, batches, name):
    net[1].unused = nn.Linear(3, 2).double()
    assert not criteria.BY_NAME[name](net, batches)["1.unused.weight"].any()


def test_names_and_their_errors(net):
    assert criteria.resolve("magnitude") is criteria.magnitude
    with pytest.raises(lab.ConfigError, match=r"or a function\. Did you mean 'magnitude'"):
        criteria.resolve("magnitud")
    with pytest.raises(
        lab.ConfigError, match=r"OneShot: criterion='magnitud'; expected one of 'snip', .* Did you mean 'ma"
    ):
        lab.methods.OneShot(0.5, "magnitud")
    assert choices(hints(lab.methods.OneShot)["criterion"]) == tuple(criteria.BY_NAME)
    with pytest.raises(lab.ConfigError, match="needs data"):
        criteria.Taylor()(net, None)
    assert repr(criteria.Movement(3)).startswith("Movement(batches=3")


# --- settings ---------------------------------------------------------------------------------------------------------

KINDS: tuple[Any, ...] = (
    *(kind for kind in map(criteria.__dict__.get, criteria.__all__) if isinstance(kind, type) and is_dataclass(kind)),
    *(lab.Constant, lab.Linear, lab.Cubic, lab.Exponential, lab.Narang, lab.CosineLR, lab.StepLR),
)
REQUIRED = {"final": 0.9}


def own_settings(kind: Any) -> dict[str, Any]:
    return {
        name: hint for name, hint in hints(kind).items() if kind not in (criteria.Quadratic, criteria.LargeQuadratic)
    }


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in own_settings(kind)])
def test_a_setting_of_a_criterion_or_schedule_is_what_its_type_says(kind, name):
    hint = own_settings(kind)[name]
    assert hint not in (int, float, str), "its type says nothing of what it may be"
    given = {key: value for key, value in REQUIRED.items() if key in hints(kind)}
    wrong: list[Any] = [None, object(), "no such word", True]
    if span := bounds(hint):
        wrong += [span.low if span.above else span.low - 1, span.high if span.below else span.high + 1, math.nan]
    for value in wrong:
        with pytest.raises(lab.ConfigError, match=f"{kind.__name__}: {name}="):
            kind(**given | {name: value})
    for word in choices(hint):
        assert getattr(kind(**given | {name: word}), name) == word


# --- of channels -----------------------------------------------------------------------------------------------------


@pytest.fixture
def convs() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16, 5)),
    )
    net[1].weight.data = torch.tensor([0.5, -2.0, 0.1])
    net[1].bias.data = torch.tensor([0.3, -0.3, 0.0])
    return net.eval()


@pytest.fixture
def photos() -> list[tuple[torch.Tensor, torch.Tensor]]:
    source = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 2, 6, 6, generator=source), torch.randint(5, (n,), generator=source)) for n in (7, 4)]


def by_filter(scores: torch.Tensor) -> torch.Tensor:
    """One score for each, and the same at each of its weights."""
    rows = scores.flatten(1)
    assert (rows == rows[:, :1]).all()
    return rows[:, 0]


def test_norms_of_filters(convs):
    for name in ("0.weight", "3.weight", "6.weight"):
        w = convs.get_parameter(name).detach()
        assert torch.allclose(by_filter(criteria.filter_l1(convs)[name]), torch.stack([f.abs().sum() for f in w]))
        assert torch.allclose(by_filter(criteria.filter_l2(convs)[name]), torch.stack([f.norm() for f in w]))
    assert "0.bias" not in criteria.filter_l1(convs)


def test_geometric_median_against_all_pairs(convs):
    w = convs[3].weight.detach().double()
    expected = [sum(float(((w[i] - w[j]) ** 2).sum()) ** 0.5 for j in range(4)) for i in range(4)]
    assert by_filter(criteria.geometric_median(convs)["3.weight"]).tolist() == pytest.approx(expected)
    # of two equal filters and one far away, one of the equal ones goes first
    convs[3].weight.data[0] = convs[3].weight.data[1]
    convs[3].weight.data[2] += 10
    scores = by_filter(criteria.geometric_median(convs)["3.weight"])
    assert scores.argmax() == 2
    assert scores[0] == scores[1]


def test_the_scale_of_the_norm_that_follows(convs, photos):
    scores = criteria.norm_scale(convs, photos)
    assert by_filter(scores["0.weight"]).tolist() == pytest.approx([0.5, 2.0, 0.1])
    assert torch.isinf(scores["3.weight"]).all()  # no norm follows
    assert torch.isinf(scores["6.weight"]).all()
    with pytest.raises(lab.ConfigError, match="pass data="):
        criteria.norm_scale(convs)
    _, masks = lab.prune(convs, 1 / 12, lambda model, batches: criteria.norm_scale(model, photos), unit="channel")
    assert masks["0.weight"].flatten(1).any(1).tolist() == [True, True, False]


def test_taylor_of_filters_is_the_derivative_by_a_gate(convs, photos):
    """A factor c on each filter, at c = 1."""
    x, y = photos[0]
    gates = torch.ones(4, requires_grad=True)
    gated = {"3.weight": convs[3].weight.detach() * gates.view(-1, 1, 1, 1)}
    (expected,) = torch.autograd.grad(F.cross_entropy(torch.func.functional_call(convs, gated, (x,)), y), gates)
    assert torch.allclose(by_filter(criteria.FilterTaylor()(convs, photos)["3.weight"]), expected.abs(), rtol=1e-4)


def test_activation_is_what_a_relu_lets_pass(convs, photos):
    with torch.no_grad():
        passed = torch.cat([convs[:3](x) for x, _ in photos])
        later = torch.cat([convs[:5](x) for x, _ in photos])
        last = torch.cat([convs(x) for x, _ in photos]).relu()
    scores = criteria.Activation(batches=2)(convs, photos)
    assert torch.allclose(by_filter(scores["0.weight"]), passed.mean((0, 2, 3)))  # behind the norm
    assert torch.allclose(by_filter(scores["3.weight"]), later.mean((0, 2, 3)))
    assert torch.allclose(by_filter(scores["6.weight"]), last.mean(0))


def test_channel_criteria_leave_no_trace(convs, photos):
    before = copy.deepcopy(convs.state_dict())
    convs.train()
    for name in ("filter_l1", "filter_l2", "geometric_median", "norm_scale", "filter_taylor", "activation"):
        scores = scored(convs, name, photos, lab.prunable(convs))
        assert scores.keys() == lab.prunable(convs).keys()
    assert convs.training
    assert all(torch.equal(v, before[k]) for k, v in convs.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in convs.modules())


def test_two_of_four_by_hand():
    net: Any = nn.Linear(8, 2)
    net.weight.data = torch.tensor([[1.0, -4, 2, 3, 9, 9, -1, 9], [5, 5, 5, 5, 0, 1, 0, 0]])
    _, masks = lab.prune(net, 0.5, criteria.NofM())
    assert masks["weight"].int().tolist() == [[0, 1, 0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1, 0, 0]]
    # a quarter: the four lowest of those eight that may go; the 0 in place 4 of the last row is not one of them
    _, masks = lab.prune(net, 0.25, criteria.NofM())
    assert masks["weight"].int().tolist() == [[0, 1, 1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 0, 0]]
    net.weight.data[1, :4] = torch.tensor([-5.0, -6, -7, 1])
    _, masks = lab.prune(net, 0.75, criteria.NofM(lambda model, batches: {"weight": net.weight}, 1))
    assert masks["weight"].int().tolist() == [[0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 1, 0, 0]]


def test_a_schedule_ends_in_two_of_four(blobs):
    """Of ten inputs the last two are neighbours of none."""
    cut = lab.methods.Gradual(lab.Cubic(0.5), criteria.NofM("taylor"), cuts=4)
    net = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 4))
    run = lab.fit(net, blobs, cut, epochs=2, batch_size=20, progress=False)
    assert run.masks.sparsity == 0.5
    for mask in run.masks.values():
        assert F.pad(mask, (0, -mask.shape[1] % 4)).unflatten(1, (-1, 4)).sum(-1).max() <= 2

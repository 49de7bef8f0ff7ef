"""SNIP, GraSP and SynFlow against computations of their own, and that scoring moves nothing."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruninglab as lab
from pruninglab import methods
from pruninglab.criteria import SNIP, GraSP, SynFlow, before_training
from pruninglab.masks.choose import Scope

Batches = list[tuple[Tensor, Tensor]]
SMALL: dict[str, dict[str, Any]] = {key: {"width": 0.1} for key in lab.models.MODELS}
SMALL |= {"lenet300": {}, "lenet5": {}, "resnet20": {"width": 0.25}}


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.fixture
def batches() -> Batches:
    source = torch.Generator().manual_seed(1)
    make = lambda n: (torch.randn(n, 5, generator=source).double(), torch.randint(3, (n,), generator=source))  # noqa: E731
    return [make(7), make(4)]


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("digits", train=100, test=30, size=14)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_snip_is_the_derivative_by_explicit_masks(net, batches, mode):
    x, y = batches[0]
    probe = copy.deepcopy(net).train(mode == "train")
    masks = {n: torch.ones_like(w, requires_grad=True) for n, w in net.named_parameters()}
    masked = {n: w.detach() * masks[n] for n, w in net.named_parameters()}
    loss = F.cross_entropy(torch.func.functional_call(probe, masked, (x,)), y)
    expected = torch.autograd.grad(loss, list(masks.values()))
    scores = SNIP(mode=mode)(net, batches)
    for name, g in zip(masks, expected, strict=True):
        assert torch.allclose(scores[name], g.abs(), rtol=1e-6, atol=1e-12)


def test_snip_takes_the_mean_over_samples(net, batches):
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    together = SNIP()(net, [(x, y)])
    for name, score in SNIP(batches=2)(net, batches).items():
        assert torch.allclose(score, together[name], rtol=1e-10, atol=1e-14)


def test_snip_at_fresh_weights_spares_biases_nothing(net, batches):
    torch.manual_seed(3)
    fresh, own = SNIP(init="fresh")(net, batches), SNIP()(net, batches)
    assert not torch.allclose(fresh["0.weight"], own["0.weight"])
    assert not fresh["0.bias"].any()
    assert own["3.bias"].any()
    with torch.no_grad():  # what is cut stays cut
        net[0].weight[0, 0] = 0
    assert SNIP(init="fresh")(net, batches)["0.weight"][0, 0] == 0


def test_fresh_weights_owe_nothing_to_the_own_ones(batches):
    """Neither to what norms have learned, nor to what they have seen."""
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(5, 1), nn.BatchNorm1d(1), nn.Linear(1, 3)).double()
        net(batches[seed - 1][0])
        nn.init.constant_(net.get_parameter("1.weight"), seed)
        torch.manual_seed(0)
        scores.append(SNIP(init="fresh")(net, batches[:1]))
    assert all(torch.equal(scores[0][name], scores[1][name]) for name in scores[0])


def test_fresh_weights_are_drawn_layer_by_layer():
    """A parameter that is no layer's, a scale for example, stays; of a linear layer each kept weight is drawn."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.scale = nn.Linear(2, 2), Scale()

        def forward(self, x: Tensor) -> Tensor:
            return self.scale(self.fc(x))

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by = nn.Parameter(torch.tensor([3.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.by

    score = SNIP(init="fresh", loss=lambda out, y: out.sum())(Scaled(), [(torch.ones(1, 2), torch.zeros(1))])
    assert (score["fc.weight"] != 0).tolist() == [[True, True], [False, False]]
    assert bool(score["scale.by"][0] != 0)


def test_where_float64_cannot_be_the_order_of_synflow_is_kept_in_float32(net, batches, monkeypatch):
    exact = SynFlow()(net, batches)
    monkeypatch.setattr(before_training, "exact_device", lambda home: torch.device("cpu", 0))  # another than "cpu"
    largest = max(float(score.max()) for score in exact.values())
    for name, score in SynFlow()(net, batches).items():
        assert score.dtype == torch.float32
        assert torch.equal(score, (exact[name] / largest).float())


def test_fresh_weights_have_a_variance_of_one_over_what_comes_in():
    """With the sum of the outputs as the loss and an input of ones, a score is the size of the weight drawn."""
    net = nn.Sequential(nn.Conv2d(4, 500, 5), nn.Flatten())
    score = SNIP(init="fresh", loss=lambda out, y: out.sum())(net, [(torch.ones(1, 4, 5, 5), torch.zeros(1))])
    assert score["0.weight"].square().mean() == pytest.approx(1 / 100, rel=0.03)  # 50,000 draws: 0.6 % is one deviation


def test_grasp_is_the_hessian_times_the_gradient(net, batches):
    """H·g as the central difference of the gradient along g, over both batches at once."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    probe = copy.deepcopy(net).eval()
    named = dict(probe.named_parameters())

    def gradient(shift: dict[str, Tensor], by: float) -> dict[str, Tensor]:
        moved = {n: (w + by * shift[n]).detach().requires_grad_() for n, w in named.items()}
        loss = F.cross_entropy(torch.func.functional_call(probe, moved, (x,)) / 200, y)
        return dict(zip(moved, torch.autograd.grad(loss, list(moved.values())), strict=True))

    g = gradient({n: torch.zeros_like(w) for n, w in named.items()}, 0)
    ahead, behind = gradient(g, 1e-2), gradient(g, -1e-2)
    scores = GraSP(batches=2)(net, batches)
    for name, w in named.items():
        expected = w.detach() * (ahead[name] - behind[name]) / 2e-2
        assert torch.allclose(scores[name], expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_grasp_prefers_what_raises_the_flow_of_the_gradient(net, batches):
    """Its scores' direction: a small step of scale on the best-scored weight raises ‖g‖², on the worst lowers it."""
    net.eval()
    x, y = batches[0]
    scores = GraSP(temperature=1)(net, batches)["0.weight"]

    def flow(index: int, factor: float) -> float:
        probe = copy.deepcopy(net)
        with torch.no_grad():
            probe[0].weight.view(-1)[index] *= factor
        grads = torch.autograd.grad(F.cross_entropy(probe(x), y), list(probe.parameters()))
        return float(sum(g.square().sum() for g in grads))

    for index in (int(scores.argmax()), int(scores.argmin())):
        slope = (flow(index, 1 + 1e-5) - flow(index, 1 - 1e-5)) / 2e-5
        assert slope == pytest.approx(2 * float(scores.view(-1)[index]), rel=1e-4)


def test_synflow_has_a_closed_form_on_a_linear_net():
    """R = 1ᵀ|W₃||W₂||W₁|1: a weight's score is |w| times what comes in times what goes out."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in ((5, 4), (4, 6), (6, 3)))).double()
    first, second, third = (w.detach().abs() for w in net.parameters())
    scores = SynFlow()(net, [(torch.randn(2, 5), torch.zeros(2))])
    ones = torch.ones
    into = [ones(5).double(), first @ ones(5).double(), second @ first @ ones(5).double()]
    out = [ones(3).double() @ third @ second, ones(3).double() @ third, ones(3).double()]
    for i, w in enumerate((first, second, third)):
        assert torch.allclose(scores[f"{i}.weight"], w * out[i][:, None] * into[i], rtol=1e-12)
        assert scores[f"{i}.weight"].sum() == pytest.approx(float(scores["0.weight"].sum()))  # flow is conserved


def test_synflow_of_tokens_by_hand():
    """Number 1 goes in at each of 6 places, and the norm only scales and shifts."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3, bias=False)).double()
    for p in net[1].parameters():
        nn.init.normal_(p)
    token, scale, shift, w = (p.detach().abs() for p in net.parameters())
    scores = SynFlow()(net, [(torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2))])
    assert torch.allclose(scores["2.weight"], 6 * w * (token[1] * scale + shift), rtol=1e-12)
    assert torch.allclose(scores["0.weight"][1], 6 * token[1] * scale * w.sum(0), rtol=1e-12)
    assert not scores["0.weight"][[0, 2, 3, 4]].any()


@pytest.mark.parametrize("criterion", [SNIP(), SNIP(2, "fresh", "train"), GraSP(), GraSP(2, mode="train"), SynFlow()])
def test_scoring_leaves_no_trace(net, batches, criterion):
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    scores = criterion(net, batches)
    assert scores.keys() == dict(net.named_parameters()).keys()
    assert all(not score.requires_grad for score in scores.values())
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    with pytest.raises(lab.ConfigError, match="needs data"):
        criterion(net, None)


@pytest.mark.parametrize(
    "criterion",
    [SNIP(), SNIP(init="fresh"), SNIP(2, mode="train"), GraSP()],
    ids=lambda c: f"{type(c).__name__}-{c.batches}-{c.mode}",
)
def test_one_shot_takes_them_biases_in_or_out(data, criterion):
    model = lab.build("lenet5", data, seed=0)
    for biases in (False, True):
        run = lab.fit(model, data, methods.OneShot(0.9, criterion), epochs=0, biases=biases, progress=False)
        assert run.masks.kept == run.masks.total - lab.masks.count(run.masks.total, 0.9)
        assert ("fc1.bias" in run.masks) == biases
    again = lab.fit(model, data, methods.OneShot(0.9, criterion), epochs=0, biases=True, progress=False)
    assert again.masks.fingerprint == run.masks.fingerprint


@pytest.mark.parametrize(("name", "criterion"), [("snip", SNIP()), ("grasp", GraSP()), ("synflow", SynFlow())])
def test_a_name_is_the_criterion_with_its_defaults(data, name, criterion):
    assert lab.criteria.resolve(name) == criterion
    model = lab.build("lenet5", data, seed=0)
    by_name, masks = lab.prune(model, 0.9, name, data=data)
    assert masks.fingerprint == lab.prune(model, 0.9, criterion, data=data)[1].fingerprint
    assert masks.kept == masks.total - lab.masks.count(masks.total, 0.9)
    methods_ = (methods.OneShot(0.9, name), methods.Gradual(lab.Cubic(0.9), name, cuts=2))
    for run in (lab.fit(by_name, data, m, epochs=1, progress=False) for m in methods_):
        assert run.masks.kept == masks.kept
        assert run.config["methods"][0]["criterion"] == name
    with pytest.raises(lab.ConfigError, match="needs data"):
        lab.prune(model, 0.9, name)


@pytest.mark.parametrize("name", SMALL)
def test_counts_are_exact_on_every_model_with_every_criterion_and_scope(data, name):
    model = lab.build(name, data, seed=0, **SMALL[name])
    total = sum(w.numel() for w in lab.prunable(model).values())
    # The targets take turns.
    targets: list[tuple[float, Scope]] = [
        (0.9, "global"),
        (1 - 1 / 15, "layer"),
        (0.95, "erk"),
        (0.98, "global"),
    ]
    for turn, criterion in enumerate(("snip", SNIP(init="fresh"), "grasp", "synflow", "random"), [*SMALL].index(name)):
        sparsity, scope = targets[turn % 4]
        _, masks = lab.prune(model, sparsity, criterion, scope=scope, data=data, collapse="allow")
        assert abs(masks.kept - (1 - sparsity) * total) <= 0.5 + 1e-6
        assert not (scope != "global" and masks.collapsed)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("alexnet", "resnet50", "vgg16"))) for n in SMALL]
)
def test_synflow_empties_no_layer_and_is_exact(data, name):
    model = lab.build(name, data, seed=0, **SMALL[name])
    for sparsity in (0.98,) if name == "resnet50" else (0.9, 0.98):
        run = lab.fit(model, data, methods.SynFlow(sparsity, rounds=20), epochs=0, progress=False)
        assert run.masks.kept == run.masks.total - lab.masks.count(run.masks.total, sparsity)
        assert not run.masks.collapsed


def titles(figure):
    return " ".join(
        filter(
            None,
            (figure.get_suptitle(), *(axes.get_title(place) for axes in figure.axes for place in ("left", "center"))),
        )
    )


def test_a_criterion_that_empties_layers_says_so(data):
    """One round of SynFlow does, as its paper shows; and so do SNIP and global magnitude, at few weights."""
    model = lab.build("resnet20", data, seed=0, **SMALL["resnet20"])
    for criterion in ("snip", "synflow", "magnitude"):
        run = lab.fit(model, data, methods.OneShot(0.995, criterion), epochs=0, progress=False)
        assert run.result.collapsed == run.masks.collapsed != []
        assert f"nothing is left of {run.masks.collapsed[0]}" in repr(run)
        assert run.result.row()["collapsed_layers"] == len(run.masks.collapsed)
        assert f"{len(run.masks.collapsed)} layers emptied" in lab.results.table({"a": run})["status"]["a"]
        figure = lab.plots.layers(run)
        assert f"Nothing is left of {run.masks.collapsed[0].removesuffix('.weight')}" in figure.alt
        assert "A cross marks a layer with nothing left" in titles(figure)
    assert "emptied" not in str(lab.results.table({"a": lab.fit(model, data, epochs=0, progress=False)}))


def test_synflow_as_its_paper_has_it_empties_shortcuts_and_says_so(data):
    """What it conserves is the flow through all ways together: a shortcut's convolution is one beside another."""
    model = lab.build("resnet50", data, seed=0, **SMALL["resnet50"])
    run = lab.fit(model, data, methods.SynFlow(0.95, rounds=20, keep_one=False), epochs=0, progress=False)
    assert run.result.collapsed == run.masks.collapsed != []
    assert all("shortcut" in name for name in run.masks.collapsed)
    spared = lab.fit(model, data, methods.SynFlow(0.95, rounds=20), epochs=0, progress=False)
    assert not spared.masks.collapsed
    assert spared.masks.kept == run.masks.kept
    assert all(spared.masks.kept_by_layer[name] == 1 for name in run.masks.collapsed)


def test_synflow_of_fewer_weights_than_layers_is_its_papers(data):
    model = lab.build("resnet20", data, seed=0, **SMALL["resnet20"])
    ours, papers = (methods.SynFlow(0.999, rounds=5, keep_one=keep) for keep in (True, False))
    masks = [lab.fit(model, data, method, epochs=0, progress=False).masks for method in (ours, papers)]
    assert masks[0].kept < len(masks[0])
    assert masks[0].fingerprint == masks[1].fingerprint


def test_synflow_follows_the_exponential_schedule(data):
    model = lab.build("lenet5", data, seed=0)
    run = lab.fit(model, data, methods.SynFlow(0.91, rounds=2), epochs=0, progress=False)
    assert [round(cut.after / run.masks.total, 3) for cut in run.cuts] == [0.3, 0.09]

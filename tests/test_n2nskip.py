"""N2NSkip: where its connections lead, exact shares of a common budget, and heat on a graph small enough for a hand."""

import copy
import pickle
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import nn
from torch.nn import functional as F

import pruninglab as lab
from pruninglab import analysis
from pruninglab.methods import N2NSkip
from pruninglab.methods.cuts.n2nskip import keep_groups
from pruninglab.models.n2nskip import BASES, is_skip

SMALL: dict[str, dict[str, Any]] = {
    "lenet5": {},
    "alexnet": {"width": 0.125},
    "vgg16": {"width": 0.125},
    "resnet20": {},
    "resnet50": {"width": 0.125},
}
DENSITIES = (0.1, 1 / 15, 0.05, 0.02)


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("digits", train=60, test=20, size=16)


def build(base: str, data: lab.Data, **options: Any) -> Any:
    return lab.build("n2nskip", data, base=base, **SMALL[base] | options)


@pytest.mark.parametrize("base", BASES)
def test_base_weights_are_those_of_the_plain_model(base, data):
    """So that both can be compared from one start, and masks and checkpoints of the plain one fit."""
    plain, skipping = lab.build(base, data, seed=3, **SMALL[base]), build(base, data, seed=3)
    own = {n: p for n, p in skipping.named_parameters() if not is_skip(n)}
    assert own.keys() == dict(plain.named_parameters()).keys()
    assert all(torch.equal(own[name], p) for name, p in plain.named_parameters())


@pytest.mark.parametrize(("base", "links", "weights"), [
    # 1*50*5*5 from the image, and 20*12*12 activations into the 500
    ("lenet5", {"relu2": "conv1", "relu3": "conv2"}, 1_250 + 1_440_000),
    # conv5 takes 256*4*4 activations, fc1 256*2*2
    ("alexnet", {f"relu{i + 1}": f"conv{i}" for i in range(1, 6)} | {"relu7": "fc1"},
     9 * (192 + 64 * 384 + 192 * 256 + 384 * 256) + (4096 + 1024) * 4096),
    ("vgg16", {f"relu{s + 1}_1": f"conv{s}_1" for s in range(1, 5)}, 9 * (128 + 64 * 256 + 128 * 512 + 256 * 512)),
    ("resnet20", None, 9 * (2 * 16 * 16 + 2 * 16 * 32 + 32 * 32 + 2 * 32 * 64 + 64 * 64)),
    ("resnet50", None, 3_616_832 + 8_128),
])  # fmt: skip
def test_links_and_skip_weights_of_the_full_models(base, links, weights):
    grey: Any = type("", (), {"shape": (1, 28, 28), "classes": 10})
    with torch.device("meta"):
        model = lab.build("n2nskip", grey, base=base)
    assert links is None or model.links == links
    assert sum(w.numel() for n, w in lab.prunable(model).items() if is_skip(n)) == weights


def test_equation_2_by_hand(data):
    """a = g(z + g(skip(a))), against the layers called one by one; behind the activation it is another function."""
    model = build("lenet5", data).eval()
    x = torch.rand(3, 1, 16, 16)
    get = model.get_submodule
    a1 = F.relu(get("pool1")(get("conv1")(x)))
    z2 = get("pool2")(get("conv2")(a1))
    s2 = F.adaptive_max_pool2d(F.relu(get("relu2").skip.conv(x)), z2.shape[2:])
    for inside in (True, False):
        get("relu2").inside = get("relu3").inside = inside
        a2 = F.relu(z2 + s2) if inside else F.relu(z2) + s2
        z3, s3 = get("fc1")(a2.flatten(1)), F.relu(get("relu3").skip.fc(a1.flatten(1)))
        a3 = F.relu(z3 + s3) if inside else F.relu(z3) + s3
        assert torch.equal(model(x), get("fc2")(a3))
    assert build("lenet5", data, inside_activation=False).get_submodule("relu2").inside is False


@pytest.mark.parametrize("base", BASES)
def test_a_skip_that_is_cut_leaves_the_plain_network(base, data):
    plain, skipping = lab.build(base, data, seed=1, **SMALL[base]).eval(), build(base, data, seed=1).eval()
    with torch.no_grad():
        for name, p in skipping.named_parameters():
            if is_skip(name):
                p.zero_()
        x = torch.rand(2, 1, 28, 28)[..., :16, :16]
        assert torch.allclose(skipping(x), plain(x), atol=1e-6)


@pytest.mark.parametrize("base", BASES)
def test_a_longer_span_has_fewer_links_and_the_skips_matter(base, data):
    short, long = build(base, data), build(base, data, skip_span=2)
    assert len(long.links) == len(short.links) - 1
    x = torch.rand(2, *data.shape)
    model = short.eval()
    before = model(x)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if is_skip(n)).mul_(-3)
    assert not torch.allclose(model(x), before)


@pytest.mark.parametrize("base", ["vgg16", "resnet20", "resnet50"])
def test_a_shared_norm_is_one_and_the_same(base, data):
    shared, own = build(base, data, share_bn=True), build(base, data)
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    joined = [m for m in own.modules() if type(m).__name__ == "Joined"]
    assert count(own) - count(shared) == sum(2 * m.skip.bn.num_features for m in joined)
    clone = copy.deepcopy(shared)
    norm = "bn2_1" if base == "vgg16" else "block1_2.bn1"
    skip = "relu2_1" if base == "vgg16" else "block1_2.relu1"
    assert clone.get_submodule(norm) is clone.get_submodule(f"{skip}.skip.bn")


PLAIN = ("lenet5", "alexnet")  # without BatchNorm
OPTIONS = [{}, {"inside_activation": False, "skip_span": 2}, {"share_bn": True}]
TRAINED = [(b, o) for b in BASES for o in OPTIONS[2 * (b == "resnet50") : 2 if b in PLAIN else 3]]


@pytest.mark.parametrize(("base", "options"), TRAINED)
def test_a_plain_model_that_trains_under_its_masks(base, data, options, tmp_path):
    model, quiet = build(base, data, **options), cast(Any, {"progress": False, "collapse": "allow"})
    cut = lab.fit(model, data, N2NSkip(0.9, "snip" if options else "random", 0.3), epochs=0, **quiet)
    run = lab.fit(model, data, masks=cut.masks, epochs=1, **quiet, checkpoint=tmp_path / "a.safetensors")
    assert run.status == "done"
    assert run.masks.fingerprint == cut.masks.fingerprint
    assert all(not run.weights[name][~mask].any() for name, mask in run.masks.items())
    clone = pickle.loads(pickle.dumps(copy.deepcopy(run.model)))  # noqa: S301
    fresh = build(base, data, seed=9, **options)
    fresh.load_state_dict(run.model.state_dict())
    x = torch.rand(2, *data.shape)
    assert torch.equal(clone(x), run.model(x))
    assert torch.equal(fresh.eval()(x), run.model(x))


# Shares


@pytest.mark.parametrize("base", [pytest.param(b, marks=[pytest.mark.slow] * (b == "alexnet")) for b in BASES])
def test_counts_are_exact_on_the_full_models(base):
    colour: Any = type("", (), {"shape": (3, 32, 32), "classes": 10})
    with torch.device("meta"):
        shapes = {n: w.shape for n, w in lab.prunable(lab.build("n2nskip", colour, base=base)).items()}
    source = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(shape, generator=source) for name, shape in shapes.items()}
    total = sum(s.numel() for n, s in scores.items() if not is_skip(n))
    for density in DENSITIES if total < 10**7 else DENSITIES[-1:]:
        assert_exact(keep_groups(scores, 1 - density), total, density, 0.5)


def assert_exact(masks: lab.Masks, total: int, density: float, fraction: float, step: int = 1) -> None:
    """The sum to one weight, and the skips' share but for less than a `step`, the largest that one of them can take."""
    keep = total - lab.masks.count(total, 1 - density)
    in_skips = sum(int(m.sum()) for n, m in masks.items() if is_skip(n))
    assert abs(keep - density * total) <= 0.5 + 1e-6
    assert masks.kept == keep
    wanted = int(keep * fraction + 0.5)
    assert wanted > 0
    assert 0 <= wanted - in_skips < step


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("base", BASES)
def test_counts_are_exact_with_every_option(base, density, data):
    for span in (1, 2):
        shapes = {n: w.shape for n, w in lab.prunable(build(base, data, skip_span=span)).items()}
        source = torch.Generator().manual_seed(0)
        scores = {name: torch.rand(shape, generator=source) for name, shape in shapes.items()}
        total = sum(s.numel() for n, s in scores.items() if not is_skip(n))
        for granularity in ("weight", "kernel", "channel"):
            for fraction, scope in ((0.5, "global"), (0.25, "layer")):
                options = {"skip_fraction": fraction, "granularity": granularity, "scope": scope}
                masks = keep_groups(scores, 1 - density, **options)
                sizes = [(score[0, 0].numel(), min(score.shape[:2])) for n, score in scores.items() if is_skip(n)]
                steps = {"weight": 1, "kernel": max(k for k, _ in sizes), "channel": max(k * c for k, c in sizes)}
                assert_exact(masks, total, density, fraction, steps[granularity])


@pytest.mark.parametrize("criterion", ["random", "snip"])
def test_the_best_scores_stay_in_each_group(criterion, data):
    model = build("resnet20", data)
    run = lab.fit(model, data, N2NSkip(0.9, criterion), epochs=0, progress=False)
    assert_exact(run.masks, 268_048, 0.1, 0.5)  # 268,336 with three channels instead of one
    method = run.methods[0]
    assert isinstance(method, N2NSkip)
    assert method.density_of_base == pytest.approx(0.1, abs=1e-5)
    assert run.result.methods[0]["kept_in_skips"] == method.kept_in_skips == 13_403  # of 26,805
    assert run.status == "done"
    again = lab.fit(model, data, N2NSkip(0.9, criterion), epochs=0, progress=False)
    assert again.masks.fingerprint == run.masks.fingerprint


def test_kernels_and_partners_are_whole():
    source = torch.Generator().manual_seed(0)
    scores = {
        "a.weight": torch.rand(40, 40, generator=source),
        "b.skip.conv.weight": torch.rand(6, 4, 3, 3, generator=source),  # 4 inputs are the narrower side
        "c.skip.conv.weight": torch.rand(4, 8, 3, 3, generator=source),
        "d.skip.fc.weight": torch.rand(10, 30, generator=source),
        "d.skip.fc.bias": torch.rand(10, generator=source),
    }
    kernels = keep_groups(scores, 0.75, granularity="kernel")
    partners = keep_groups(scores, 0.75, granularity="channel")
    for masks in (kernels, partners):
        assert masks.kept == 400
        for name in ("b.skip.conv.weight", "c.skip.conv.weight"):
            of_kernels = masks[name].flatten(2)
            assert torch.equal(of_kernels.all(2), of_kernels.any(2))
    # 200 over 216, 288, 300 and 10 weights are 53.1, 70.8, 73.7 and 2.5. Rounded down 45, 63, 73 and 2, and of the 17
    # left each takes one more but c, which needs 9; or 36, 36, 70 and 2, and of the 56 left b needs more than c leaves.
    assert [int(m.sum()) for n, m in kernels.items() if is_skip(n)] == [54, 63, 74, 3]
    assert [int(m.sum()) for n, m in partners.items() if is_skip(n)] == [36, 72, 80, 3]
    b, c, d = (partners[n].flatten(2).any(2) if partners[n].ndim > 2 else partners[n] for n in list(scores)[1:4])
    assert b.sum(0).tolist() == [1] * 4
    assert c.sum(1).tolist() == [2] * 4
    assert d.sum(1).tolist() == [8] * 10
    best = scores["b.skip.conv.weight"].flatten(2).mean(2).argmax(0)
    assert b.int().argmax(0).tolist() == best.tolist()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"base": "lenet300"}, "base=.lenet300.; expected one of .lenet5"),
        ({"base": "lenet5", "share_bn": True}, "no BatchNorm that a skip could share"),
        ({"base": "vgg16", "skip_span": 5}, "vgg16 has 5 blocks, so expected 1 to 4"),
        ({"base": "resnet20", "skip_span": 1.5}, "expected a whole number"),
        ({"base": "resnet20", "depth": 3}, "resnet20 has no option depth; it has shortcut, width"),
    ],
    ids=str,
)
def test_impossible_models_are_refused(wrong, message, data):
    with pytest.raises(lab.ConfigError, match=message):
        lab.build("n2nskip", data, **wrong)


def test_impossible_shares_are_refused(data):
    with pytest.raises(lab.ConfigError, match="skip_fraction=1; expected a number above 0"):
        N2NSkip(0.9, skip_fraction=1)
    with pytest.raises(lab.ConfigError, match="granularity='filter'; expected one of"):
        N2NSkip(0.9, granularity="filter")  # pyright: ignore[reportArgumentType]
    with pytest.raises(lab.ConfigError, match="there are no skip connections"):
        lab.fit(lab.build("lenet5", data), data, N2NSkip(0.9), epochs=0, progress=False)
    with pytest.raises(lab.ConfigError, match=r"120,622, and the skips hold 96,768; expected 1 to"):
        lab.fit(build("resnet20", data), data, N2NSkip(0.1), epochs=0, progress=False)
    methods = [lab.methods.OneShot(0.1), N2NSkip(0.9)]
    with pytest.raises(lab.ConfigError, match="before anything is cut"):
        lab.fit(build("resnet20", data), data, *methods, epochs=0, progress=False)


# Connectivity


def chain(*weights: list[list[float]]) -> nn.Module:
    layers: list[nn.Module] = []
    for values in weights:
        layer = nn.Linear(len(values[0]), len(values))
        layer.weight.data = torch.tensor(values)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_channel_graph_by_hand():
    graph, inputs = analysis.channel_graph(chain([[1.0, -2], [0, 3]], [[0.5, 4]]))
    assert inputs == 2
    expected = [[0, 0, 1, 0, 0], [0, 0, 2, 3, 0], [1, 2, 0, 0, 0.5], [0, 3, 0, 0, 4], [0, 0, 0.5, 4, 0]]
    assert graph.toarray().tolist() == expected


def test_heat_of_two_channels_by_hand():
    """One edge of weight w: exp(-L·t) = ½[[1 + e, 1 - e], [1 - e, 1 + e]] with e = exp(-2wt)."""
    graph, _ = analysis.channel_graph(chain([[3.0]]))
    e = np.exp(-2 * 3 * 0.25)
    assert analysis.heat(graph, np.array([1.0, 0]), 0.25) == pytest.approx([(1 + e) / 2, (1 - e) / 2], rel=1e-14)
    # without the edge the heat stays: S differs by (1 - e)/2 in both; a mean degree of 3 makes the unit of time
    e = np.exp(-2 * 3 * 0.75 / 3)
    found = analysis.distance(chain([[0.0]]), chain([[3.0]]), 0.75)
    assert found == pytest.approx(np.hypot((1 - e) / 2, (1 - e) / 2), rel=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.01, 1.0, 30.0])
def test_heat_is_the_matrix_exponential(t):
    model = lab.models.lenet300((1, 4, 4), 3)
    graph, inputs = analysis.channel_graph(model)
    weights = graph.toarray()
    start = np.zeros(len(weights))
    start[:inputs] = 1
    expected = expm(-t * (np.diag(weights.sum(1)) - weights)) @ start
    assert np.allclose(analysis.heat(graph, start, t), expected, rtol=1e-9, atol=1e-12)


def test_kernels_pixels_and_both_ways_of_a_residual_are_edges():
    model = lab.models.resnet20((3, 8, 8), 10, width=0.125)  # 2, 4 and 8 channels, shortcuts that pad
    graph, inputs = analysis.channel_graph(model)
    assert (inputs, graph.shape[0]) == (3, 3 + 2 * 7 + 4 * 6 + 8 * 6 + 10)
    weights = graph.toarray()
    conv1 = model.get_parameter("conv1.weight").detach().double().abs().sum((2, 3)).numpy()
    assert np.allclose(weights[3:5, :3], conv1)
    fc = model.get_parameter("fc.weight").detach().double().abs().numpy()
    last, stem = weights[-10:, -18:-10], weights[-10:, 3:5]
    assert np.allclose(last, fc)  # the last convolution's eight channels
    assert np.allclose(stem, fc[:, :2])  # the stem's two, handed on by nine shortcuts that add zeros
    lenet, _ = analysis.channel_graph(lab.models.lenet5((1, 28, 28), 10))
    assert lenet.shape[0] == 1 + 20 + 50 + 500 + 10


@pytest.mark.parametrize("base", BASES)
def test_skips_are_edges_between_the_channels_of_the_plain_network(base, data):
    plain, skipping = lab.build(base, data, **SMALL[base]), build(base, data)
    (few, _), (more, _) = analysis.channel_graph(plain), analysis.channel_graph(skipping)
    added = more - few
    assert added.min() >= -1e-12
    skips = sum(float(w.detach().abs().sum()) for n, w in lab.prunable(skipping).items() if is_skip(n))
    assert added.sum() >= 2 * skips * (1 - 1e-5)  # each once for every source that a residual sum hands on
    assert analysis.distance(plain, plain) == 0
    assert analysis.distance(skipping, plain) > 0


def test_what_is_cut_off_stays_cold_and_the_distance_says_so(data):
    model = lab.build("lenet5", data, seed=0)
    found = [analysis.distance(lab.prune(model, s, "random")[0], model) for s in (0.5, 0.9, 0.98)]
    assert 0 < found[0] < found[1] < found[2]
    with pytest.raises(lab.ConfigError, match="compare two of one architecture"):
        analysis.distance(model, lab.build("lenet300", data))
    with pytest.raises(lab.ConfigError, match="expected a number of at least 0"):
        analysis.distance(model, model, -1)

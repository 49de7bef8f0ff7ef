"""Channels taken out: equal logits on many networks, each rule by hand on a small one, and what comes out."""

import copy
import pickle
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import pruninglab as lab
from pruninglab import identity, layers, structured
from pruninglab.coupling import removal
from pruninglab.layers import Attention
from pruninglab.models.resnet import BasicBlock

NETS: dict[str, Any] = {
    "lenet5": 16,
    "vgg16": 16,
    "resnet20": 16,
    "resnet50": 16,
    "torchvision:resnet18": 32,
    "torchvision:mobilenet_v2": 32,
    "torchvision:densenet121": 32,
    "torchvision:vgg11_bn": 32,
    "torchvision:regnet_y_400mf": 32,
    "torchvision:squeezenet1_1": 32,
    "torchvision:efficientnet_b0": 32,
    "torchvision:convnext_tiny": 32,
}
THINNER = {  # the dense layers of 100 million weights take most of the time, and show no more
    "classifier.0": {"in_features": 25088, "out_features": 128},
    "classifier.3": {"in_features": 128, "out_features": 128},
    "classifier.6": {"in_features": 128, "out_features": 10},
}


shrink: Any = structured.shrink  # whose networks have layers by any name


def colour(size: int) -> Any:
    """What a model is built for."""
    return SimpleNamespace(shape=(3, size, size), classes=10)


def lively(model: nn.Module) -> Any:
    """As if trained: layers with biases, norms with scales, shifts and statistics of their own."""
    source = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.ndim == 1 and name.endswith(("weight", "running_var")):
            tensor.data.uniform_(0.5, 1.5, generator=source)
        elif tensor.ndim == 1:
            tensor.data.normal_(0, 0.3, generator=source)
    return model.eval()


def audible(model: nn.Module, x: torch.Tensor, share: float) -> nn.Module:
    """So that the image is still heard at the end of a deep network that lost a share of its channels: norms measure
    what comes in now, and without any the weights grow.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.ndim > 1 and not norms):
            weight.mul_(2 * (1 - share) ** -0.5)
        model.train()(x)
    return model.eval()


def by_chance(model: nn.Module, batches: object) -> dict[str, torch.Tensor]:
    """A random score for each filter."""
    source = torch.Generator().manual_seed(5)
    named = {name: w for name, w in model.named_parameters() if w.ndim > 1}
    each = {name: torch.rand(len(w), generator=source) for name, w in named.items()}
    return {name: each[name].view(-1, *[1] * (w.ndim - 1)).expand_as(w) for name, w in named.items()}


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def equal(model: nn.Module, small: nn.Module, x: torch.Tensor, tolerance: float = 1e-5) -> bool:
    with torch.no_grad():
        a, b = model.eval()(x), small.eval()(x)
    return bool((a - b).abs().max() <= tolerance * max(1.0, float(a.abs().max())))


QUICK = {f"torchvision:{n}" for n in ("resnet18", "mobilenet_v2", "densenet121", "squeezenet1_1")}
"""A sum, channels one by one, a concatenation and a network without linear layers."""
LONG = {name for name in NETS if name == "resnet50" or name.startswith("torchvision:")}
SHARES = [
    pytest.param(name, share, marks=[pytest.mark.slow] * slow)
    for name in NETS
    for share, slow in ((0.3, name in LONG), (0.6, name in LONG - QUICK), (0.9, name in LONG))
]


@pytest.fixture(scope="module")
def net(request):
    size = NETS[request.param]
    options: dict[str, Any] = {"init_weights": False, "widths": THINNER} if "vgg11" in request.param else {}
    model = lively(lab.build(request.param, colour(size), seed=0, **options))
    x = images(2, 3, size, size)
    return model, x, structured.groups(model, x)


@pytest.mark.parametrize(("net", "share"), SHARES, indirect=["net"])
def test_equal_logits_and_no_layer_emptied(net, share):
    model, x, found = net
    pruned, masks = structured.prune(model, x, share, by_chance, groups=found)
    audible(pruned, images(16, *x.shape[1:], seed=3), share)
    small = shrink(pruned, x, masks, groups=found)
    assert small.removed == int(share * found.channels + 0.5)
    assert not small.report["left"].any()
    assert min(t.numel() for t in small.model.parameters()) > 0
    assert small.parameters < small.before == sum(p.numel() for p in model.parameters())
    assert list(small.model.state_dict()) == list(model.state_dict())
    fresh = images(4, *x.shape[1:], seed=2)
    # a deep network is itself not always that exact in 32 bits
    assert equal(pruned, small.model, fresh) or equal(pruned.double(), small.model.double(), fresh.double(), 1e-9)
    assert small.model(fresh.to(next(small.model.parameters()).dtype)).std(0).max() > 1e-3  # it tells images apart


# --- what is chosen --------------------------------------------------------------------------------------------------

FAMILIES = [
    *("vgg16", "resnet20", "torchvision:resnet18", "torchvision:mobilenet_v2"),
    pytest.param("torchvision:efficientnet_b0", marks=pytest.mark.slow),
]


def heavy(model: nn.Module) -> nn.Module:
    """Filters whose sizes differ a lot, within a layer and between layers."""
    source = torch.Generator().manual_seed(1)
    for weight in (p for p in model.parameters() if p.ndim > 1):
        factors = torch.randn(len(weight) + 1, generator=source).exp()
        weight.data.mul_((factors[0] * factors[1:]).view(-1, *[1] * (weight.ndim - 1)))
    return model


def constant(model: nn.Module, batches: object) -> dict[str, torch.Tensor]:
    """All filters of a layer are equal, and no sum of them is exact."""
    return {name: torch.full_like(w, 0.1 * len(w)) for name, w in model.named_parameters() if w.ndim > 1}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "change", [pytest.param(lambda model: model, marks=pytest.mark.slow, id="new"), pytest.param(heavy, id="heavy")]
)
def test_no_group_collapses_and_the_count_is_exact(family, change):
    size = NETS[family]
    model, x = change(lab.build(family, colour(size), seed=0)), images(1, 3, size, size)
    found = structured.groups(model, x)
    free = [group for group in found if not group.fixed]
    for criterion in ("filter_l1", "filter_l2", "magnitude", "random", constant, by_chance):
        for share in (0.3, 0.5):
            _, masks = structured.prune(model, x, share, criterion, groups=found)
            dead = [group.dead(masks) for group in free]
            assert sum(int(flags.sum()) for flags in dead) == int(share * found.channels + 0.5)
            for group, flags in zip(free, dead, strict=True):
                assert (~flags).sum() >= max(2, 0.2 * group.size), (group.name, criterion, share)


def test_raw_scores_are_compared_as_they_are():
    """Layer 0 has the smaller filters by far, so that it loses all but one; relative to their groups they are alike."""
    net = dense(3, 10, 10, 2)
    net[0].weight.data = torch.arange(1.0, 11).view(10, 1).expand(10, 3) / 100
    net[2].weight.data = torch.arange(1.0, 11).view(10, 1).expand(10, 10)
    left = {scope: structured.prune(net, images(1, 3), 0.5, scope=scope)[1] for scope in ("global", "layer", "raw")}
    kept = {scope: [int(m.any(1).sum()) for m in masks.values()] for scope, masks in left.items()}
    assert kept == {"global": [5, 5, 2], "layer": [5, 5, 2], "raw": [1, 9, 2]}


def test_an_infinite_score_stays_and_is_not_counted():
    def some(model: nn.Module, batches: object) -> dict[str, torch.Tensor]:
        scores = {name: w.abs() for name, w in model.named_parameters() if w.ndim > 1}
        return scores | {"2.weight": torch.full((4, 6), torch.inf)}

    net = dense(3, 6, 4, 2)
    net[0].weight.data[5] = torch.inf
    _, masks = structured.prune(net, images(1, 3), 0.6, some)
    assert [int(m.any(1).sum()) for m in masks.values()] == [3, 4, 2]  # of six one is not counted, and of five go three


@pytest.mark.parametrize("criterion", ["filter_l1", "norm_scale", by_chance])
def test_what_a_run_has_cut_counts_and_never_comes_back(criterion):
    data = lab.load("digits", train=60, test=20, size=16)
    model = lab.build("vgg16", data, seed=0, width=0.125)
    lively(model)
    found = structured.groups(model, data)
    free = [group for group in found if not group.fixed]
    pruned, masks = structured.prune(model, data, 0.3, "filter_l2", groups=found)
    masks["conv3_1.weight"][:, 0] = False  # some single weights are missing as well
    run = lab.fit(pruned, data, masks=masks, epochs=0, progress=False)
    _, after = structured.prune(run, None, 0.5, criterion, groups=found)
    assert all(bool((after[name] <= masks[name]).all()) for name in masks)
    uncounted = int((~free[-1].dead(masks)).sum()) if criterion == "norm_scale" else 0  # fc1 has no norm
    assert sum(int(group.dead(after).sum()) for group in free) == int(0.5 * (found.channels - uncounted) + 0.5)


@pytest.mark.parametrize("scope", ["global", "layer", "raw"])
def test_a_coupled_criterion_ranks_as_prune_cuts(scope):
    net, x = heavy(lab.build("resnet20", colour(16), seed=0, width=0.5)), images(1, 3, 16, 16)
    found = structured.groups(net, x)
    free = [group for group in found if not group.fixed]
    _, masks = structured.prune(net, x, 0.4, "filter_l2", scope=scope, groups=found)
    scores = structured.Coupled("filter_l2", found, scope)(net, None)
    assert all(scores[name].isinf().all() for name in found.fixed)
    for group in free:
        rows = [scores[part.weight].flatten(1)[part.index, 0] for part in group.givers]
        whole = torch.full((group.size,), torch.nan)
        for part, mine in zip(group.givers, rows, strict=True):
            assert ((whole[part.channel] == mine) | whole[part.channel].isnan()).all()
            whole[part.channel] = mine
        gone = group.dead(masks)
        if scope != "layer":
            assert gone.tolist() == (whole < int(0.4 * found.channels + 0.5)).tolist()
        assert not gone.any() or whole[gone].max() < whole[~gone].min()


# --- what is found ---------------------------------------------------------------------------------------------------


def test_the_channels_of_a_network_are_all_found():
    """Every filter of VGG16 and LeNet-5 but those of the last layer; in a residual stage each channel once."""
    names = ("vgg16", "lenet5", "resnet20")
    found = {name: structured.groups(lab.build(name, colour(32)), torch.zeros(1, 3, 32, 32)) for name in names}
    assert found["vgg16"].channels == 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512 + 512
    assert found["lenet5"].channels == 20 + 50 + 500
    assert found["lenet5"].fixed == ["fc2.weight"]
    assert "570 channels that can be removed" in repr(found["lenet5"])
    assert "why fixed" in found["lenet5"]._repr_html_()
    # 64 of the sum that all stages share, since the shortcuts pad; and those inside the blocks
    assert found["resnet20"].channels == 64 + 3 * (16 + 32 + 64)
    shared = max(found["resnet20"], key=lambda group: len(group.givers))
    assert len(shared.givers) == 10


# --- each rule by hand -----------------------------------------------------------------------------------------------


def dense(*sizes: int) -> Any:
    torch.manual_seed(0)
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def test_a_constant_is_taken_up_by_the_next_bias():
    """Unit 1 is relu(2) = 2 whatever comes in, unit 2 is relu(-1) = 0: the next bias gets 2 times column 1."""
    net = dense(3, 4, 2)
    net[0].weight.data[[1, 2]] = 0
    net[0].bias.data[[1, 2]] = torch.tensor([2.0, -1.0])
    expected = net[2].bias + 2 * net[2].weight[:, 1]
    small = shrink(net, images(5, 3))
    assert small.model[0].weight.shape == (2, 3)
    assert torch.allclose(small.model[2].bias, expected)
    assert torch.equal(small.model[2].weight, net[2].weight[:, [0, 3]])
    assert small.kept["0.bias"][0].tolist() == [0, 3]


def test_what_nobody_reads_goes_and_so_does_what_only_it_read():
    net = dense(3, 4, 4, 2)
    net[4].weight.data[:, [0, 1]] = 0  # units 0 and 1 of the second layer are not read
    net[2].weight.data[2:, 3] = 0  # unit 3 of the first is read by these two alone
    small = shrink(net, images(5, 3))
    assert [m.out_features for m in small.model if isinstance(m, nn.Linear)] == [3, 2, 2]
    assert equal(net, small.model, images(7, 3, seed=3))


def test_a_row_that_reads_only_constants_is_constant():
    net = dense(3, 4, 4, 2)
    net[0].weight.data[[0, 1]] = 0
    net[2].weight.data[3, 2:] = 0  # reads units 0 and 1 alone
    small = shrink(net, images(5, 3))
    assert [m.out_features for m in small.model if isinstance(m, nn.Linear)] == [2, 3, 2]


def conv_net(padding: int, norm: bool = True) -> Any:
    torch.manual_seed(0)
    net: Any = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 5, 3, padding=padding, bias=not norm), nn.BatchNorm2d(5) if norm else nn.Identity(), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(5 * (4 + 2 * padding) ** 2, 2)),
    )
    lively(net)
    net[0].weight.data[1] = 0
    net[1].bias.data[1], net[1].running_mean[1] = 2.0, 0.0  # behind the ReLU channel 1 is 2 everywhere
    return net


@pytest.mark.parametrize("norm", [True, False])
def test_a_constant_goes_where_nothing_is_padded(norm):
    net = conv_net(padding=0, norm=norm)
    small = shrink(net, images(2, 1, 6, 6))
    assert small.model[3].in_channels == 3
    assert equal(net, small.model, images(4, 1, 6, 6, seed=3))
    if norm:  # the convolution has no bias: the mean of its norm went down by what is missing
        assert torch.allclose(small.model[4].running_mean, net[4].running_mean - 2 * net[3].weight[:, 1].sum((1, 2)))


def test_a_constant_stays_where_zeros_are_padded_until_it_is_silenced():
    net, x = conv_net(padding=1), images(2, 1, 6, 6)
    kept = shrink(net, x)
    assert kept.removed == 0
    assert "still emit a constant, and 3 pads with zeros: `silence`" in kept.report["why"].max()
    assert "1 cut but not removed" in repr(kept)
    silent = structured.silence(net, x)
    assert not equal(net, silent, x)  # that is a change, and said
    small = shrink(silent, x)
    assert small.model[3].in_channels == 3
    assert equal(silent, small.model, images(4, 1, 6, 6, seed=3))
    assert net[1].bias[1] == 2  # the given one is left as it is


class Forks(nn.Module):
    """A convolution without a bias, whose output a norm reads, and something else as well."""

    def __init__(self, fork: str):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.conv, self.norm, self.other = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.twin, self.fc, self.fork = nn.Conv2d(4, 4, 1, bias=False), nn.Linear(4, 2), fork

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        z = self.conv(y)
        if self.fork == "in place":
            z = self.norm(z.relu_())
        elif self.fork == "detached":
            z = self.norm(z) + z.detach()
        elif self.fork == "two norms":
            z = self.norm(z) * self.other(z)
        elif self.fork == "one norm for two":
            z = self.norm(z) + self.norm(self.twin(y)) * self.twin(y)
        else:
            z = self.norm(z) + (z if self.fork == "sum" else 0)
        return self.fc(z.relu().mean((2, 3)))


@pytest.mark.parametrize("fork", ["none", "sum", "detached", "two norms", "one norm for two", "in place"])
def test_a_constant_goes_into_a_norm_only_where_nothing_else_reads_the_layer(fork):
    net: Any = lively(Forks(fork))
    net.first[0].weight.data[1] = 0
    net.first[1].bias.data[1], net.first[1].running_mean[1] = 2.0, 0.0  # behind the ReLU channel 1 is 2 everywhere
    small = shrink(net, images(2, 1, 6, 6))
    assert small.model.conv.in_channels == (3 if fork == "none" else 4)
    assert fork == "none" or "conv has nothing to take it up: `silence`" in small.report["why"].max()
    assert equal(net, small.model, images(4, 1, 6, 6, seed=3))
    silent = structured.silence(net, images(2, 1, 6, 6))
    assert shrink(silent, images(2, 1, 6, 6)).model.conv.in_channels == 3


def test_a_norm_without_scale_makes_a_constant():
    """What network slimming leaves: a scale of 0, whatever the filter before it is."""
    net = conv_net(padding=1)
    net[1].weight.data[3], net[1].bias.data[3] = 0.0, -1.0
    small = shrink(net, images(2, 1, 6, 6))
    assert small.kept["1.weight"][0].tolist() == [0, 1, 2]


def test_a_residual_sum_loses_what_all_its_members_lost():
    torch.manual_seed(0)
    net: Any = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(BasicBlock(8, 8, 1, "A"), BasicBlock(8, 8, 1, "A")),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )
    lively(net)
    x = images(2, 3, 8, 8)
    masks = lab.Masks.full(lab.prunable(net))
    members = ("0.weight", "3.conv2.weight", "4.conv2.weight")
    for name in members:
        masks[name][[2, 5]] = False
    masks["0.weight"][7] = False  # alive in the blocks
    silent = structured.silence(net, x, masks)
    small = shrink(silent, x, masks)
    assert [small.model[0].out_channels, small.model[3].conv2.out_channels, small.model[7].in_features] == [6, 6, 6]
    assert small.removed == 2
    assert "another layer that gives them is alive" in small.report["why"].max()
    assert equal(silent, small.model, images(3, 3, 8, 8, seed=3))


class Joins(nn.Module):
    """Concatenates two branches, and may add the image to what comes out."""

    def __init__(self, image: bool):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 3, padding=1)
        self.c = nn.Conv2d(9, 3, 3, padding=1)
        self.fc = nn.Linear(3, 2)
        self.image = image

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.c(torch.cat([self.a(x).relu(), self.b(x).relu()], 1))
        y = y + x if self.image else y
        return self.fc(y.mean((2, 3)))


@pytest.mark.parametrize("image", [True, False])
def test_concatenation_and_a_sum_with_the_image(image):
    torch.manual_seed(0)
    net, x = Joins(image), images(2, 3, 6, 6)
    masks = lab.Masks.full(lab.prunable(net))
    masks["a.weight"][0], masks["b.weight"][[1, 4]], masks["c.weight"][1] = False, False, False
    silent = structured.silence(net, x, masks)
    small = shrink(silent, x, masks)
    assert (small.model.a.out_channels, small.model.b.out_channels, small.model.c.in_channels) == (3, 3, 6)
    assert small.kept["c.weight"][1].tolist()[0] == [1, 2, 3, 4, 6, 7]
    assert small.model.c.out_channels == (3 if image else 2)
    assert ("the image itself is one of them" in set(small.report["why"])) == image
    assert equal(silent, small.model, images(4, 3, 6, 6, seed=3))


def grouped(groups: int) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.ReLU()),
        *(nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4 * 16, 2)),
    )
    return lively(net)


def test_whole_groups_of_a_convolution_go():
    """Of 0-1, 2-3, 4-5 and 6-7 all of the second is dead, and of the fourth one of two."""
    net, x = grouped(4), images(2, 3, 4, 4)
    for layer in (net[0], net[2]):
        layer.weight.data[[2, 3, 6]] = layer.bias.data[[2, 3, 6]] = 0
    small = shrink(net, x)
    assert (small.model[2].groups, small.model[2].in_channels, small.model[2].out_channels) == (3, 6, 6)
    assert "goes as a whole" in small.report["why"].max()
    assert equal(net, small.model, images(4, 3, 4, 4, seed=3))
    # what is chosen goes by whole groups, too
    _, masks = structured.prune(grouped(4), x, 0.5)
    rows = masks["2.weight"].flatten(1).any(1).view(4, 2)
    assert (rows.all(1) | ~rows.any(1)).all()
    scores = structured.Coupled("filter_l1", structured.groups(net, x))(net, None)
    pairs = scores["2.weight"][:, 0, 0, 0].view(4, 2)
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    assert len(pairs[:, 0].unique()) == 4


def test_a_depthwise_filter_of_zeros_is_enough():
    net, x = grouped(8), images(2, 3, 4, 4)
    net[2].weight.data[[0, 5]] = net[2].bias.data[[0, 5]] = 0
    small = shrink(net, x)
    assert (small.model[2].groups, small.model[0].out_channels, small.model[4].in_channels) == (6, 6, 6)
    assert equal(net, small.model, images(4, 3, 4, 4, seed=3))


def test_a_layer_keeps_one_channel():
    net = dense(3, 4, 2)
    net[0].weight.data.zero_()
    small = shrink(net, images(5, 3))
    assert small.model[0].out_features == 1
    assert "keeps one channel" in small.report["why"][0]


@pytest.fixture(scope="module")
def sorting():
    return lab.load("sorting", train=60, test=20)


def test_heads_go_whole(sorting):
    model: Any = lab.build(lab.models.transformer, sorting, seed=0)
    attention = model.blocks[0].attention
    nn.init.normal_(attention.in_proj_bias)
    attention.in_proj_weight.data[64 + 8 : 64 + 16] = 0  # the values of head 1: its output is their bias
    attention.out_proj.weight.data[:, 24:32] = 0  # nobody reads head 3
    attention.in_proj_weight.data[64 + 1] = 0  # one channel of head 0, which stays
    small = shrink(model, sorting)
    assert isinstance(small.model.blocks[0].attention, Attention)
    assert small.model.blocks[0].attention.in_proj_weight.shape == (3 * 16, 32)
    assert small.removed == 16
    assert "a head goes as a whole" in small.report["why"].max()
    x, _ = next(iter(sorting.test))
    assert equal(model, small.model, x)
    assert list(lab.prunable(small.model)) == list(lab.prunable(model))


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_of_some_heads_computes_what_torch_does(batch_first):
    torch.manual_seed(0)
    full = nn.MultiheadAttention(12, 3, batch_first=batch_first).eval()
    nn.init.normal_(full.in_proj_bias)
    same = Attention(full, 3, 4)
    same.load_state_dict(full.state_dict())
    x, y = images(2, 5, 12), images(2, 5, 12, seed=2)
    assert torch.allclose(full(x, y, y)[0], same(x, y, y)[0], atol=1e-6)
    with pytest.raises(NotImplementedError, match="takes no masks"):
        same(x, x, x, attn_mask=torch.ones(5, 5))


def test_units_of_a_transformer_are_chosen(sorting):
    model = lab.build(lab.models.transformer, sorting, seed=0)
    found = structured.groups(model, sorting)
    assert found.channels == 2 * (32 + 128)
    assert "norm takes its statistics over all of them" in {group.fixed for group in found}
    pruned, masks = structured.prune(model, sorting, 0.5, scope="layer")
    rows = masks["blocks.0.attention.in_proj_weight"].any(1).view(3, 4, 8)
    assert (rows == rows[:1, :, :1]).all()
    assert rows[0, :, 0].sum() == 2
    small = shrink(pruned, sorting, masks)
    assert small.removed == 160
    assert small.model.blocks[1].attention.heads == 2


@pytest.fixture(scope="module")
def text():
    return lab.load("code", train=60, test=20, size=16)


def gpt(text: lab.Data, kv_heads: int, **options: Any) -> Any:
    model = lab.build("gpt", text, width=16, layers=2, heads=4, kv_heads=kv_heads, **options)
    for p in model.parameters():
        if p.ndim == 1:
            nn.init.normal_(p)  # so that biases and norms are not those that change nothing
    return model


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_heads_that_share_keys_and_values_go_together(text, kv_heads):
    model = gpt(text, kv_heads)
    found = structured.groups(model, text)
    assert found.channels == 2 * (16 + 64)
    pruned, masks = structured.prune(model, text, 0.5, scope="layer")
    rows = masks["blocks.0.attention.qkv.weight"].any(1)
    queries, keys, values = rows.split([16, 4 * kv_heads, 4 * kv_heads])
    units = queries.view(kv_heads, -1)
    assert (units == units[:, :1]).all()
    assert units[:, 0].sum() == kv_heads / 2
    assert torch.equal(keys, values)
    assert torch.equal(keys.view(kv_heads, 4)[:, 0], units[:, 0])
    small = shrink(pruned, text, masks)
    assert small.removed == 80
    attention = small.model.blocks[0].attention
    assert (attention.kv_heads, attention.heads, attention.head_dim) == (kv_heads / 2, 2, 4)
    x, _ = next(iter(text.test))
    assert equal(pruned, small.model, x)
    masks = small.take(masks)
    assert {n: m.shape for n, m in masks.items()} == {n: p.shape for n, p in lab.prunable(small.model).items()}
    again = gpt(text, kv_heads, widths=small.widths)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in small.model.named_parameters()}
    assert lab.fit(small.model, text, epochs=1, progress=False).status == "done"


def test_values_that_are_the_same_whatever_comes_in_are_taken_up(text):
    model = gpt(text, 2)
    attention = model.blocks[1].attention
    attention.qkv.weight.data[16 + 8 : 16 + 12] = 0  # the values of the first two heads are their bias
    small = shrink(model, text)
    assert small.removed == 8
    assert small.model.blocks[1].attention.kv_heads == 1
    x, _ = next(iter(text.test))
    assert equal(model, small.model, x)


def test_one_group_of_heads_stays_and_a_tied_projection_is_fixed(text):
    one = structured.groups(gpt(text, 1), text)
    assert "blocks.0.attention.qkv.weight" not in one.fixed
    _, masks = structured.prune(gpt(text, 1), text, 0.4, scope="layer")
    assert masks["blocks.0.attention.qkv.weight"].all()
    tied = gpt(text, 2)
    tied.blocks[1].attention.qkv.weight = tied.blocks[0].attention.qkv.weight
    fixed = structured.groups(tied, text).fixed
    assert "blocks.0.attention.qkv.weight" in fixed


def test_a_run_cuts_whole_groups_of_heads(text):
    model = gpt(text, 2)
    found = structured.groups(model, text)
    coupled = structured.Coupled("filter_l1", found)
    cut = lab.methods.OneShot(0.4, coupled, unit="channel"), lab.methods.Silence()
    run = lab.fit(model, text, *cut, epochs=1, skip=found.fixed, progress=False)
    small = shrink(run, text)
    assert 0 < small.removed < found.channels
    x, _ = next(iter(text.test))
    assert equal(run.model, small.model, x)


# --- what is refused -------------------------------------------------------------------------------------------------


class Views(nn.Module):
    """Counts on the number of its channels."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4 * 16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().view(-1, 4 * 16))


class Splits(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.conv(x).relu().split(2, dim=1)
        return self.fc((a * b).mean((2, 3)))


class Hides(nn.Module):
    """A ReLU in which what is unknown gets lost."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.fc(torch.where(y > 0, y, 0.0).mean((2, 3)))


def test_code_that_counts_on_its_channels_is_refused_with_the_reason():
    x, net, splits = images(2, 3, 4, 4), lively(Views()), lively(Splits())
    net.conv.weight.data[1] = net.conv.bias.data[1] = 0
    with pytest.raises(lab.RunError, match=r"does not run .*its code counts on their number"):
        shrink(net, x)
    splits.conv.weight.data[1] = splits.conv.bias.data[1] = 0
    assert shrink(splits, x).report["why"].tolist() == ["the code of the network splits them", ""]


class Two(nn.Module):
    """Returns more than logits."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        return self.fc(x), 1


@pytest.mark.parametrize("call", [structured.groups, shrink])
def test_more_than_logits_is_refused(call):
    with pytest.raises(lab.ConfigError, match=r"^the model returns a tuple; expected one tensor of logits"):
        call(Two(), images(2, 3))


def test_a_difference_of_logits_is_refused():
    with pytest.raises(lab.RunError, match="the logits differ by"):
        shrink(Hides(), images(2, 3, 4, 4))


def deep() -> nn.Module:
    """Without norms: what comes in is hardly heard at the end."""
    torch.manual_seed(0)
    return dense(3, *[12] * 20, 2)


def new(name: str) -> Any:
    return lambda: lab.build(name, colour(NETS[name]), seed=0)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: dense(3, 8, 8, 2), (3,)),
        (deep, (3,)),
        (new("resnet20"), (3, NETS["resnet20"], NETS["resnet20"])),
        (new("torchvision:squeezenet1_1"), (3, 32, 32)),
        *(
            pytest.param(new(name), (3, NETS[name], NETS[name]), marks=pytest.mark.slow)
            for name in ("vgg16", "torchvision:mobilenet_v2")
        ),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_a_wrong_removal_is_noticed(make, shape, scale, monkeypatch):
    """In networks that are not trained, on few images, and however small the logits are."""
    model, x = make().eval(), images(2, *shape)
    last: Any = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    last.weight.data *= scale
    last.bias.data *= scale
    before = identity.tensor_hash(model.state_dict())
    assert shrink(model, x).removed == 0
    right = removal.Shared.unneeded

    def too_many(shared: Any) -> torch.Tensor:
        flags = right(shared)
        if shared.group is chosen and not shared.gone.any():
            flags[::4] = True  # some channels are 0 on all these images
        return flags

    found = structured.groups(model, x)
    chosen = [group for group in found if not group.fixed][-1]
    monkeypatch.setattr(removal.Shared, "unneeded", too_many)
    with pytest.raises(lab.RunError, match="the logits differ by"):
        shrink(model, x, groups=found)
    assert identity.tensor_hash(model.state_dict()) == before


def test_shared_weights_stay():
    net = dense(4, 4, 4, 2)
    net[2].weight = net[0].weight
    net[0].weight.data[1] = net[0].bias.data[1] = net[2].bias.data[1] = 0
    small = shrink(net, images(3, 4))
    assert small.removed == 0
    assert "shares its weights with another layer" in small.report["why"][0]


ERK: Any = "erk"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: structured.prune(m, images(1, 3), 0.9), "the most that can be cut of them is 3"),
        (lambda m: structured.prune(m, images(1, 3), 0.5, scope=ERK), "expected one of 'global', 'layer', 'raw'"),
        (lambda m: structured.prune(m, images(1, 3), 50), "Did you mean 0.5"),
        (lambda m: structured.prune(m, images(1, 3), 0.5, "taylor"), "needs data"),
        (lambda m: structured.prune(m, images(1, 3), 0.5, skip="*"), "no channel of this model can be removed"),
        (lambda m: shrink(m), "expected a torch.nn.Module or a finished Run, and the data set"),
        (lambda m: shrink(m, images(1, 3), {"3.weight": torch.ones(1)}), "which the model does not have"),
        (lambda m: structured.Coupled("l1", structured.groups(m, images(1, 3)), ERK), "expected one of 'snip'"),
        (lambda m: lab.build("lenet5", colour(16), widths={"0": {"in_features": 2}}), "widths are of another model"),
    ],
)
def test_what_cannot_be_is_said(call, said):
    with pytest.raises(lab.ConfigError, match=said):
        call(dense(3, 4, 2))


# --- the pass in which unknown is NaN --------------------------------------------------------------------------------

ACTIVATIONS = (
    *(nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.SiLU(), nn.GELU(), nn.ELU(), nn.LeakyReLU()),
    *(nn.Mish(), nn.Softplus(), nn.Sigmoid(), nn.Tanh(), nn.Hardtanh(), nn.Hardshrink(), nn.Softshrink()),
    *(nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1)),
    *(nn.AdaptiveMaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.InstanceNorm2d(4), nn.Dropout()),
)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_unknown_stays_unknown_and_in_its_channel(activation, layout):
    """The reasoning rests on this: torch's functions hand a NaN on, and to no other channel."""
    x = images(2, 4, 6, 6).to(memory_format=layout)
    x[:, 2, 1:] = torch.nan
    with torch.no_grad():
        y = activation.eval()(x).flatten(2)
    assert y.isnan().any(2).tolist() == [[False, False, True, False]] * 2


def test_readings_by_hand():
    """Filter 0 is dead and gives its bias 3, filter 1 lives; zero padding makes 3 uneven for the depthwise layer."""
    net: Any = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.Conv2d(2, 1, 1))
    net[0].weight.data[0], net[0].bias.data[0] = 0.0, 3.0
    net[1].weight.data[0], net[1].bias.data[0] = 1.0, 0.0
    found = layers.readings(net.train(), images(1, 1, 5, 5))
    assert found["0"].low.isnan().all()
    assert found["1"].even.tolist() == [True, False]
    assert (found["2"].low[0], found["2"].high[0]) == (12, 27)  # 4 and 9 places of the kernel are inside
    assert found["2"].low.isnan().tolist() == [False, True]
    assert net.training


# --- what the small network is for -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("digits", train=200, test=60, size=16)


@pytest.fixture(scope="module")
def slim(data):
    model = lab.build("vgg16", data, seed=0, width=0.125)
    pruned, masks = structured.prune(model, data, 0.6)
    return pruned, shrink(pruned, data, masks)


def test_it_is_plain_and_trains_on(slim, data, tmp_path):
    pruned, small = slim
    again = pickle.loads(pickle.dumps(copy.deepcopy(small.model)))  # noqa: S301
    assert [type(m) for m in again.modules()] == [type(m) for m in pruned.modules()]
    run = lab.fit(small.model, data, epochs=2, batch_size=50, progress=False, checkpoint=tmp_path / "a.safetensors")
    assert run.result.size["parameters"] == small.parameters
    taken = small.take(dict(pruned.named_parameters()))
    assert all(torch.equal(taken[n], p) for n, p in small.model.named_parameters() if n.endswith("weight"))
    assert run.result.flops["dense"] < lab.fit(pruned, data, epochs=0, progress=False).result.flops["dense"] / 2
    assert run.result.config["model"]["widths"] == small.widths
    again = lab.fit(small.model, data, epochs=2, batch_size=50, progress=False, checkpoint=tmp_path / "a.safetensors")
    assert identity.tensor_hash(again.model.state_dict()) == identity.tensor_hash(run.model.state_dict())


def test_its_file_and_its_widths_are_the_network(slim, data, sorting, tmp_path):
    model = lab.build(lab.models.transformer, sorting, seed=0)
    pruned, masks = structured.prune(model, sorting, 0.5, scope="layer")
    heads, build, thin = shrink(pruned, sorting, masks), lab.build, slim[1]
    for small, given, full in (
        (thin, data, build("vgg16", data, seed=3, widths=thin.widths, width=0.125)),
        (heads, sorting, build(lab.models.transformer, sorting, seed=3, widths=heads.widths)),
    ):
        lab.storage.save(small, tmp_path / "small.net")
        back = lab.storage.load(tmp_path / "small.net", full)
        assert identity.tensor_hash(back.state_dict()) == identity.tensor_hash(small.model.state_dict())
        assert list(back.state_dict()) == list(small.model.state_dict())
        x, _ = next(iter(given.test))
        assert equal(small.model, back, x)


def test_new_weights_in_its_form_are_drawn_for_their_inputs(data):
    """Deviation times √inputs is 1/√3 for torch's layers, whatever the width; slices would have less."""
    model = lab.build("vgg16", data, seed=0)
    pruned, masks = structured.prune(model, data, 0.5, scope="layer")
    small = shrink(pruned, data, masks)
    anew: Any = lab.build("vgg16", data, seed=7, widths=small.widths)
    assert [p.shape for p in anew.parameters()] == [p.shape for p in small.model.parameters()]
    for layer in (anew.conv5_2, anew.fc1):
        assert float(layer.weight.detach().std() * layer.weight[0].numel() ** 0.5) == pytest.approx(3**-0.5, rel=0.02)
    with pytest.raises(lab.ConfigError, match="widths are of another model"):
        lab.build("lenet5", data, widths=small.widths)


def test_shrinking_twice_counts_from_the_first(slim, data):
    again, masks = structured.prune(slim[1].model, data, 0.5)
    smaller = shrink(again, data, masks)
    assert smaller.widths.keys() >= slim[1].widths.keys()
    built = lab.build("vgg16", data, width=0.125, widths=smaller.widths)
    assert [p.shape for p in built.parameters()] == [p.shape for p in smaller.model.parameters()]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_schedule_cuts_whole_groups(data, scope):
    """With the coupled criterion all layers of a residual sum lose the same; one channel may be cut in part."""
    model = lab.build("resnet20", data, seed=0, width=0.5)
    found = structured.groups(model, data)
    cut = lab.methods.Gradual(lab.Cubic(0.5), structured.Coupled("filter_l2", found, scope), unit="channel", cuts=5)
    run = lab.fit(
        model, data, cut, lab.methods.Silence(), epochs=2, batch_size=50, skip=found.fixed, progress=False, lr=1e-2
    )
    assert run.status == "done"
    small = shrink(run, groups=found)
    assert small.report["left"].sum() <= 1
    assert small.removed > 0.4 * found.channels
    assert small.report["removed"].ge(1).sum() > len(found) // 2
    x, _ = next(iter(data.test))
    assert equal(run.model, small.model, x)


def test_two_to_four_needs_a_gpu_that_has_it():
    model: Any
    model, _ = lab.prune(dense(64, 64, 64), 0.5, lab.criteria.NofM())
    assert all(structured.is_2_to_4(m.weight) for m in model if isinstance(m, nn.Linear))
    assert not structured.is_2_to_4(torch.ones(4, 4))
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        x = images(64, 64).half().cuda()
        fast = structured.semi_structured(model)
        assert torch.allclose(fast(x), copy.deepcopy(model).half().cuda()(x), atol=1e-2)
    else:
        with pytest.raises(lab.ConfigError, match="only on NVIDIA GPUs"):
            structured.semi_structured(model)

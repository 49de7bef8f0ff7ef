"""Cases that other pruning libraries hold themselves to, in our words and on our calls.

The ideas and numbers are those of torch's pruning utilities, Torch-Pruning, jaxpruner, open_lth, ShrinkBench and NNI.
"""

import copy
import itertools
import math
from typing import Any

import pytest
import recount
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab import _torchvision, criteria, layers
from pruninglab.methods.regrowth.turnover import annealed

QUIET: dict[str, Any] = {"progress": False, "collapse": "allow", "seed": 0}


@pytest.fixture(scope="module")
def photos() -> lab.Data:
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(48, 3, 8, 8, generator=source), torch.arange(48) % 3
    return lab.wrap(TensorDataset(x[:32], y[:32]), TensorDataset(x[32:], y[32:]), val=0.25, name="photos")


def cut(model: nn.Module, *args: Any, **options: Any) -> Any:
    """The pruned network, of any kind, and its masks."""
    return lab.prune(model, *args, **{"collapse": "allow", **options})


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3))


# ----------------------------------------------------------------------------------------- torch.nn.utils.prune


@pytest.mark.parametrize("amount", [1.1, 20.0, -0.1, math.nan, "0.5", None, True, torch.tensor(0.5)])
def test_an_amount_that_is_no_fraction_is_refused(amount):
    """Torch refuses amounts outside [0, 1] and what is no number; here 1 too, which leaves nothing."""
    with pytest.raises(lab.ConfigError, match="expected a number of at least 0 and below 1"):
        lab.prune(two_layers(), amount)


@pytest.mark.parametrize("size", [7, 10, 13, 15, 50])
@pytest.mark.parametrize("amount", [0.0, 0.1, 0.3, 0.5, 0.77, 0.9])
def test_as_many_are_cut_as_torch_cuts(size, amount):
    """Torch rounds amount times size to the nearest; the two may differ at exact halves alone, which go up here."""
    ours, theirs = lab.masks.count(size, amount), round(amount * size)
    assert ours == theirs or (ours == theirs + 1 and amount * size % 1 == 0.5)


def test_an_amount_of_zero_changes_nothing():
    """Pruning by 0 leaves every weight and keeps all."""
    model = two_layers()
    pruned, masks = lab.prune(model, 0)
    assert masks.kept == masks.total
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), pruned.parameters(), strict=True))


def test_cuts_of_known_numbers_follow_each_other():
    """Of 1 2 3 4 | -4 -3 -2 -1 the two ones go first, the two twos next: signs do not count."""
    model = nn.Linear(4, 2)
    model.weight.data = torch.tensor([[1.0, 2, 3, 4], [-4, -3, -2, -1]])
    once, masks = cut(model, 0.25)
    assert once.weight.tolist() == [[0, 2, 3, 4], [-4, -3, -2, 0]]
    twice, _ = cut(once, 0.5, masks=masks)
    assert twice.weight.tolist() == [[0, 0, 3, 4], [-4, -3, 0, 0]]


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_global_magnitude_is_torch_s_own(amount):
    """One ranking over all layers: the same weights as torch's global pruning, where there are no ties."""
    model = two_layers()
    theirs: Any = copy.deepcopy(model)
    places = [(theirs[i], "weight") for i in (0, 2, 4)]
    torch_prune.global_unstructured(places, torch_prune.L1Unstructured, amount=amount)
    _, masks = lab.prune(model, amount, collapse="allow")
    assert all(torch.equal(masks[f"{i}.weight"], theirs[i].weight_mask.bool()) for i in (0, 2, 4))


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.7])
@pytest.mark.parametrize("norm", [1, 2])
def test_filters_are_chosen_as_by_torch_s_structured_pruning(amount, norm):
    """The filters of a layer with the smallest norm go whole, and the other layers are left alone."""
    model = two_layers()
    theirs: Any = copy.deepcopy(model[2])
    torch_prune.ln_structured(theirs, "weight", amount=amount, n=norm, dim=0)
    _, masks = lab.prune(model, {"2.weight": amount}, f"filter_l{norm}", unit="channel")
    assert torch.equal(masks["2.weight"], theirs.weight_mask.bool())
    assert masks["0.weight"].all()


def test_scores_of_one_s_own_take_the_place_of_magnitudes():
    """Any scores rank the weights: with the magnitudes turned round, the largest go."""
    model = nn.Linear(4, 1)
    model.weight.data = torch.tensor([[4.0, 3, 2, 1]])
    assert cut(model, 0.5)[1]["weight"].tolist() == [[True, True, False, False]]
    by_own = cut(model, 0.5, lambda m, batches: {"weight": 1 / m.weight})[1]
    assert by_own["weight"].tolist() == [[False, False, True, True]]


def test_a_random_mask_is_that_of_its_seed():
    """The same seed gives the same random mask, another seed another."""
    first, same, other = (lab.prune(two_layers(), 0.5, "random", seed=s)[1].fingerprint for s in (0, 0, 1))
    assert first == same != other


def test_torch_s_masks_survive_saving_and_the_weights_beneath_do_not_show(tmp_path):
    """Under torch's pruning the originals are kept; what is imported has zeros there, and the model runs alike."""
    model: Any = two_layers()
    x = torch.randn(2, 3, 8, 8)
    for layer in (model[0], model[4]):
        torch_prune.random_unstructured(layer, "weight", amount=0.5)
        torch_prune.random_unstructured(layer, "weight", amount=0.5)
    torch.save(model.state_dict(), tmp_path / "pruned.pt")
    plain, masks = lab.Masks.from_torch(torch.load(tmp_path / "pruned.pt", weights_only=True))
    fresh = two_layers()
    fresh.load_state_dict(plain)
    assert torch.equal(fresh(x), model(x))
    assert masks.kept_by_layer == {"0.weight": 162 - 81 - 40, "4.weight": 192 - 96 - 48}  # 40.5 goes to even
    assert bool((model[0].weight_orig[~masks["0.weight"]] != 0).any())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_runs_under_masks(kind, photos):
    """Torch can prune weights of recurrent layers by name; masks of them come in, and the zeros stay."""
    layer = kind(4, 3, batch_first=True)
    torch_prune.l1_unstructured(layer, "weight_hh_l0", amount=0.5)
    plain, masks = lab.Masks.from_torch(layer.state_dict())
    fresh = kind(4, 3, batch_first=True)
    fresh.load_state_dict(plain)
    assert bool((fresh.weight_hh_l0[~masks["weight_hh_l0"]] == 0).all())
    assert fresh(torch.randn(2, 5, 4))[0].shape == (2, 5, 3)


# ------------------------------------------------------------------------------------------------ Torch-Pruning


class Joined(nn.Module):
    """Two ways that are put beside each other."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3)))


class Added(nn.Module):
    """Two ways that are added."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.a(x) + self.b(x)).mean((2, 3)))


class Branched(nn.Module):
    """One layer that is read by two."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.a(x).mean((2, 3)) + self.b(x).mean((2, 3))


def plain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 3))
    )


def separable() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


A_CHANNEL = {
    "plain": (plain, "0.weight", 3 * 9 + 1 + 2 + 9 * 3),
    "separable": (separable, "0.weight", 3 + 1 + 9 + 1 + 4),
    "joined": (Joined, "a.weight", 3 * 9 + 1 + 3),
    "added": (Added, "a.weight", 3 * 9 + 1 + 3 + 1 + 3),
    "branched": (Branched, "stem.weight", 3 * 9 + 1 + 3 * 9 + 3),
}


@pytest.mark.parametrize("net", A_CHANNEL)
def test_a_channel_takes_with_it_all_that_depends_on_it(net, photos):
    """Filter, bias, norm, the columns of every reader, and the same channel of what is added to it."""
    make, name, each = A_CHANNEL[net]
    torch.manual_seed(0)
    model = make().eval()
    others = [n for n in lab.prunable(model) if n != name]
    scores = {n: w.detach().abs() for n, w in lab.prunable(model).items()}
    scores[name][[2, 5]] = 0.0
    if net in ("added", "separable"):  # a channel's score is the mean over the layers that share it
        scores[others[0]][[2, 5]] = 0.0
    size = sum(g.size for g in lab.structured.groups(model, photos) if not g.fixed)
    pruned, masks = lab.structured.prune(model, photos, 2 / size, lambda m, b: scores, scope="raw")
    shrunk = lab.structured.shrink(pruned, photos, masks)
    assert shrunk.before - shrunk.parameters == 2 * each
    x = photos.val.x[:2]
    assert torch.allclose(shrunk.model(x), pruned.eval()(x), atol=1e-6)
    assert recount.named(shrunk.model)[name].shape[0] == 6


def test_groups_of_a_grouped_convolution_go_whole(photos):
    """What one group of a grouped convolution gives cannot go by halves: widths stay divisible by the groups."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )
    for amount in (0.2, 0.4, 0.6):
        pruned, masks = lab.structured.prune(model, photos, amount)
        small: Any = lab.structured.shrink(pruned, photos, masks).model
        grouped = small[2]
        assert grouped.in_channels % grouped.groups == grouped.out_channels % grouped.groups == 0
        assert grouped.in_channels == 2 * grouped.groups


def test_no_layer_loses_its_last_channel(photos):
    """However much is asked for, every layer keeps a channel, or the request is refused with the most that can go."""
    model = Joined()
    with pytest.raises(lab.ConfigError, match="at most 10"):
        lab.structured.prune(model, photos, 11 / 12)
    pruned, masks = lab.structured.prune(model, photos, 10 / 12)
    assert all(mask.any() for mask in masks.values())
    assert lab.structured.shrink(pruned, photos, masks).model(photos.val.x[:2]).shape == (2, 3)


def test_the_classes_stay(photos):
    """The outputs of the network are no channels that can be removed."""
    pruned: Any = lab.structured.prune(plain(), photos, 0.75)[0]
    assert bool((pruned[5].weight != 0).any(1).all())


# ---------------------------------------------------------------------------------------------------- jaxpruner


@pytest.mark.parametrize(
    ("progress", "sparsity"), [(0, 0), (0.25, 0.5203125), (0.5, 0.7875), (0.75, 0.8859375), (1, 0.9)]
)
def test_the_cubic_schedule_at_known_points(progress, sparsity):
    """s(t) = s_f (1 - (1 - t)^3): nine tenths of the way lies in the first half."""
    assert lab.Cubic(0.9)(progress) == pytest.approx(sparsity)


def test_a_schedule_does_nothing_before_its_begin_and_after_its_end(photos):
    """Masks change between `begin` and `end` of training alone, and reach the target exactly."""
    method = lab.methods.Gradual(lab.Cubic(0.9), begin=0.25, end=0.75, cuts=4)
    run = lab.fit(two_layers(), photos, method, epochs=4, batch_size=4, **QUIET)
    steps = [cut.step for cut in run.cuts]
    assert run.steps == 24
    assert steps[0] > 6  # the first, at step 6, cuts nothing yet
    assert steps[-1] == 18
    assert run.masks.kept == run.masks.total - lab.masks.count(run.masks.total, 0.9)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (1, 2), (3, 5)])
def test_n_of_m_keeps_n_of_every_group(n, m):
    """Of each m neighbours along the inputs the n largest stay, so the density is n/m in every row."""
    weight = torch.randn(6, 4 * m, generator=torch.Generator().manual_seed(0))
    mask = lab.masks.n_of_m({"w": weight}, n, m)["w"]
    groups = mask.view(6, 4, m)
    assert (groups.sum(-1) == n).all()
    lowest_kept = weight.abs().view(6, 4, m).masked_fill(~groups, math.inf).amin(-1)
    highest_cut = weight.abs().view(6, 4, m).masked_fill(groups, -math.inf).amax(-1)
    assert (lowest_kept > highest_cut).all()


@pytest.mark.parametrize("sparsity", [0.6, 0.8, 0.9])
def test_erk_densities_are_in_the_ratio_of_the_formula(sparsity):
    """Density goes with the sum of a layer's dimensions over their product; the whole has the sparsity asked for."""
    shapes = {"a": (64, 32, 3, 3), "b": (64, 64, 3, 3), "c": (200, 100)}
    scores = {name: torch.rand(shape) for name, shape in shapes.items()}
    masks = lab.keep_top(scores, sparsity, scope="erk")
    scale = {n: masks.kept_by_layer[n] / sum(shapes[n]) for n in shapes}
    assert max(scale.values()) - min(scale.values()) < 0.02
    assert masks.kept == masks.total - lab.masks.count(masks.total, sparsity)


def test_uniform_and_global_differ_where_layers_have_other_scales():
    """A layer of small weights loses all that a global ranking asks for, and its share alone by layer."""
    scores = {"small": torch.arange(1.0, 11), "large": torch.arange(101.0, 111)}
    assert lab.keep_top(scores, 0.45).kept_by_layer == {"small": 1, "large": 10}
    assert lab.keep_top(scores, 0.5, scope="layer").kept_by_layer == {"small": 5, "large": 5}


@pytest.mark.parametrize(("step", "fraction"), [(0, 0.3), (25, 0.3 * (2 + 2**0.5) / 4), (50, 0.15), (100, 0.0)])
def test_rigl_s_fraction_falls_along_half_a_cosine(step, fraction):
    """f(t) = a/2 (1 + cos(pi t / T)): the full fraction at first, half of it in the middle, nothing at the end."""
    assert annealed(0.3, step, 100) == pytest.approx(fraction, abs=1e-12)


@pytest.mark.parametrize("kind", [lab.methods.RigL, lab.methods.SET])
def test_training_sparse_keeps_the_count_of_every_layer(kind, photos):
    """Each update drops as many weights of a layer as it grows, so that sparsity by layer never moves."""
    run = lab.fit(two_layers(), photos, kind(0.8, every_steps=2, end=1.0), epochs=3, batch_size=8, **QUIET)
    changes = next(vars(m)["turnover"].changes for m in run.methods)
    assert any(change["grown"] for change in changes)
    assert all(change["dropped"] == change["grown"] for change in changes)
    assert len({tuple(entry["kept"].items()) for entry in run.history}) == 1


# ------------------------------------------------------------------------------------------------------ open_lth


def test_rewinding_sets_every_kept_weight_to_what_it_was(photos):
    """A ticket starts from the initial weights under its mask: kept ones to the bit, the others at 0."""
    model = two_layers()
    before = {name: w.detach().clone() for name, w in lab.prunable(model).items()}
    dense = lab.fit(model, photos, epochs=1, lr=0.1, **QUIET)
    masks = lab.prune(dense, 0.8, collapse="allow")[1]
    ticket = lab.fit(model, photos, start=lab.Snapshot.of(model, masks), epochs=0, **QUIET)
    for name, weight in ticket.weights.items():
        assert torch.equal(weight, torch.where(masks[name], before[name], 0))


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_rounds_of_the_same_share_multiply(rounds, photos):
    """A fifth of the survivors a round leaves 0.8 to the power of the rounds."""
    made = lab.recipes.iterative(
        two_layers(), photos, 1 - 0.8**rounds, rounds=rounds, epochs=0, criterion="magnitude", **QUIET
    )
    for number, run in enumerate(made.runs):
        assert run.masks.density == pytest.approx(0.8**number, abs=1 / run.masks.total)


def test_a_random_ticket_has_as_many_weights_of_each_layer():
    """Masks at random places keep each layer's count, and are other masks."""
    masks = lab.prune(two_layers(), 0.7, collapse="allow")[1]
    moved = lab.masks.scattered(masks, seed=0)
    assert moved.kept_by_layer == masks.kept_by_layer
    assert moved.fingerprint not in (masks.fingerprint, lab.masks.scattered(masks, seed=1).fingerprint)


def test_rounds_only_ever_remove(photos):
    """The mask of each round lies within that of the round before."""
    made = lab.recipes.tickets(two_layers(), photos, 0.8, rounds=3, epochs=1, controls=(), **QUIET)
    chain = [run.masks for run in made.runs]
    assert all((later & ~earlier).kept == 0 for earlier, later in itertools.pairwise(chain))


# --------------------------------------------------------------------------------------------------- ShrinkBench


@pytest.mark.parametrize("compression", [1, 2, 4, 8, 16])
def test_a_compression_ratio_of_the_whole_network(compression, photos):
    """What is cut of the weights so that all parameters, biases included, are so many times more than what is left."""
    model = two_layers()
    total, weights = sum(p.numel() for p in model.parameters()), sum(w.numel() for w in lab.prunable(model).values())
    share = (1 - 1 / compression) * total / weights
    run = lab.fit(model, photos, lab.methods.OneShot(share), epochs=0, **QUIET)
    assert run.result.size["parameters"] / run.result.size["nonzero"] == pytest.approx(compression, rel=0.02)


def test_operations_count_at_every_place_a_weight_is_used(photos):
    """A weight of a convolution works at each place of its output, one of a linear layer once: zeros save so many."""
    model = two_layers()
    masks = lab.prune(model, 0.6, "random", collapse="allow")[1]
    run = lab.fit(model, photos, masks=masks, epochs=0, **QUIET)
    places = {"0.weight": 36, "2.weight": 16, "4.weight": 1}
    dense = 2 * sum(places[name] * mask.numel() for name, mask in masks.items())
    sparse = 2 * sum(places[name] * kept for name, kept in masks.kept_by_layer.items())
    assert (run.result.flops["dense"], run.result.flops["sparse"]) == (dense, pytest.approx(sparse, abs=0.1))


# ----------------------------------------------------------------------------------------------------------- NNI


def of_constants(*values: float) -> nn.Sequential:
    """A convolution whose filters are full of one number each, and a norm behind it whose scales are these numbers."""
    model = nn.Sequential(nn.Conv2d(3, len(values), 3, padding=1), nn.BatchNorm2d(len(values)), nn.ReLU())
    model.append(nn.Conv2d(len(values), 3, 8)).append(nn.Flatten())
    model[0].weight.data = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 3, 3).contiguous()
    model[1].weight.data = torch.tensor(values)
    return model


@pytest.mark.parametrize(
    ("criterion", "share", "gone"),
    [
        ("filter_l1", 0.2, [0]),
        ("filter_l1", 0.6, [0, 1, 2]),
        ("filter_l2", 0.2, [0]),
        ("filter_l2", 0.4, [0, 1]),
        ("geometric_median", 0.2, [2]),
        ("geometric_median", 0.6, [1, 2, 3]),
        ("norm_scale", 0.2, [0]),
        ("norm_scale", 0.6, [0, 1, 2]),
    ],
)
def test_filters_of_the_constants_one_to_five(criterion, share, gone, photos):
    """By norms small numbers go first; by the geometric median those in the middle, which others can replace."""
    _, masks = lab.prune(
        of_constants(1.0, 2.0, 3.0, 4.0, 5.0), {"0.weight": share}, criterion, unit="channel", data=photos
    )
    assert (~masks["0.weight"].flatten(1).any(1)).nonzero().flatten().tolist() == gone


def test_the_taylor_score_of_a_filter_by_hand(photos):
    """|sum of w times g| over each filter, g the gradient of the mean loss."""
    model = two_layers()
    x, y = photos.val.x[:6], photos.val.y[:6]
    F.cross_entropy(model(x), y).backward()
    by_hand = {n: (w * w.grad).flatten(1).sum(1).abs() for n, w in lab.prunable(model).items() if w.grad is not None}
    scores = criteria.FilterTaylor()(model, [(x, y)])
    assert by_hand.keys() == scores.keys()
    assert all(torch.allclose(scores[n].flatten(1)[:, 0], by_hand[n], rtol=1e-4) for n in scores)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_the_level_asked_for_is_the_level_reached(sparsity, photos):
    """Every pruner ends at the sparsity that its configuration names, to one weight."""
    for method in (
        lab.methods.OneShot(sparsity),
        lab.methods.Gradual(lab.Cubic(sparsity), cuts=3),
        lab.methods.ADMM(sparsity, updates=2),
        lab.methods.PGD(sparsity),
        lab.methods.SynFlow(sparsity, rounds=3),
    ):
        run = lab.fit(two_layers(), photos, method, epochs=2, batch_size=8, **QUIET)
        assert run.result.status == "done"
        assert abs(run.sparsity - sparsity) < len(run.masks) / run.masks.total


NETWORKS = {
    "alexnet": "AlexNet_Weights.IMAGENET1K_V1",
    "vgg16": "VGG16_Weights.IMAGENET1K_V1",
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V1",
    "mobilenet_v2": "MobileNet_V2_Weights.IMAGENET1K_V1",
    "densenet121": "DenseNet121_Weights.IMAGENET1K_V1",
    "squeezenet1_1": "SqueezeNet1_1_Weights.IMAGENET1K_V1",
    "shufflenet_v2_x1_0": "ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_operations_of_known_networks(name):
    """Parameters exactly, and two FLOPs for each multiply-add, as torchvision publishes them at 224 pixels."""
    torchvision: Any = _torchvision.torchvision
    meta = torchvision.models.get_weight(NETWORKS[name]).meta
    with torch.device("meta"):
        model = torchvision.models.get_model(name).eval()
        with torch.no_grad():
            operations = layers.count(model, torch.empty(1, 3, 224, 224)).dense
    assert sum(p.numel() for p in model.parameters()) == meta["num_params"]
    assert operations / 2e9 == pytest.approx(meta["_ops"], rel=0.01, abs=6e-4)

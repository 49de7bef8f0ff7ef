"""WeightMom on trajectories and layers worked out by hand, and its exact targets in every meaning and mode."""

from collections.abc import Mapping
from itertools import product
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import pruninglab as lab
from pruninglab.layers import Flops
from pruninglab.masks import Masks
from pruninglab.methods import WeightMom
from pruninglab.methods.cuts.interpretations import Interpretation, keeps, positions
from pruninglab.methods.cuts.memory import Mode, bits, places
from pruninglab.methods.cuts.weightmom import MEANINGS, PAPER, importance, lowest_cut

MODES = get_args(Mode)
INTERPRETATIONS = get_args(Interpretation)
BASES = ("size", "density")
SPARSITIES = (0.9, 1 - 1 / 15, 0.95, 0.98)
NETS: dict[str, dict[str, Any]] = {"lenet5": {}, "resnet20": {"width": 0.25}, "vgg16": {"width": 0.1}}
SMALL: dict[str, dict[str, Any]] = {key: {"width": 0.1} for key in lab.models.MODELS} | {"lenet300": {}} | NETS


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("digits", train=60, test=20, size=12)


def train(name: str, data: lab.Data, method: WeightMom, **options: Any) -> tuple[lab.Run, WeightMom]:
    model = lab.build(name, data, seed=0, **NETS[name])
    run = lab.fit(model, data, method, **{"epochs": 3, "progress": False, "collapse": "allow"} | options)
    made = run.methods[0]
    assert isinstance(made, WeightMom)
    return run, made


# Four weights of one layer over five epochs; the signs are there to be ignored.
TRAJECTORY = [[4.0, 1, -8, 2], [2, -1, 8, 2], [-1, 1, 8, 6], [1, 1, -8, -6], [1, 5, 8, 0]]


def without_training(weights: Mapping[str, Tensor], epochs: int) -> Any:
    """What WeightMom sees of a run, for weights that no model uses: their order is that in which they are given."""
    run: dict[str, Any] = {"weights": weights, "masks": Masks.full(weights), "flops": Flops()}
    return SimpleNamespace(**run, steps=9, epochs=epochs, epoch=0, aim=lambda _: None)


def watch(method: WeightMom, trajectory: list[list[float]] = TRAJECTORY) -> tuple[Tensor, Tensor, SimpleNamespace]:
    """Momentum and eligibility after these epochs, without a cut."""
    run = without_training({"fc.weight": torch.zeros(1, 4)}, epochs=999)
    method.on_start(run)
    for values in trajectory:
        run.epoch += 1
        run.weights["fc.weight"].copy_(torch.tensor([values]))
        method.on_epoch(run)
    return method.momentum()["fc.weight"][0], method.eligible()["fc.weight"][0], run


def made(mode: str, window: int = 3, needed: int = 2, **options: Any) -> WeightMom:
    settings: dict[str, Any] = {"begin": 0.5, "end": 1.0, "threshold": 2.5} | options
    return WeightMom(lab.Cubic(0.5), mode, window=window, min_epochs_below=needed, **settings)  # pyright: ignore[reportArgumentType]


def test_moving_average_is_bias_corrected():
    # m = (m + |w|)/2 from 0: with 4 2 1 1 1 it goes 2, 2, 1.5, 1.25, 1.125; all over 1 - 1/32
    momentum, _, _ = watch(made("ema", beta=0.5))
    assert torch.allclose(momentum * 31 / 32, torch.tensor([1.125, 2.96875, 7.75, 2.4375]), rtol=1e-6)
    constant, _, _ = watch(made("ema"), [[3.0, 3, 3, 3]] * 2)  # β = 1 - 1/window
    assert torch.allclose(constant, torch.full((4,), 3.0), rtol=1e-6)
    one_after_the_other, _, _ = watch(made("ema"), [[3.0, 0, 0, 0], [0.0, 3, 0, 0]])
    assert torch.allclose(one_after_the_other[:2], torch.tensor([3 * 2 / 9, 3 * 1 / 3]) / (1 - 4 / 9), rtol=1e-6)


def test_windows_hold_the_last_epochs_alone():
    assert torch.allclose(watch(made("window_mean"))[0], torch.tensor([1, 7 / 3, 8, 4]), rtol=1e-6)
    assert watch(made("window_max"))[0].tolist() == [1, 5, 8, 6]
    # two epochs so far: what has been seen, not zeros
    assert watch(made("window_mean"), TRAJECTORY[:2])[0].tolist() == [3, 1, 8, 2]
    assert watch(made("consecutive_below"))[0].tolist() == [1, 5, 8, 0]


def test_eligible_is_low_in_enough_epochs_of_the_window_or_in_a_row():
    # below 2.5 in the last three epochs: 3, 2, 0, 1; in a row at the end: 4, 0, 0, 1
    assert watch(made("ema"))[1].tolist() == [True, True, False, False]
    assert watch(made("consecutive_below"))[1].tolist() == [True, False, False, False]
    # one epoch of three: two thirds of it, rounded up, is this one
    assert watch(made("ema"), TRAJECTORY[:1])[1].tolist() == [False, True, False, True]
    # an epoch that has left the window counts no more; the widest and the wide integer too
    for window in (15, 16, 62):
        low_first = [[1.0, 9, 9, 9]] * window + [[9.0, 9, 9, 1]] * window
        assert watch(made("window_max", window, window), low_first)[1].tolist() == [False, False, False, True]
        assert watch(made("window_max", window, window), low_first[:-1])[1].tolist() == [False] * 4


@pytest.mark.parametrize(("dtype", "width"), [(torch.int16, 15), (torch.int64, 62)])
def test_low_epochs_are_counted_by_their_bits(dtype, width):
    numbers = [0, 1, 5, 2**width - 1, 2 ** (width - 1), 2**width // 3]
    assert bits(torch.tensor(numbers, dtype=dtype)).tolist() == [n.bit_count() for n in numbers]


def test_quantile_is_the_share_that_the_layer_loses_by_the_end():
    # two of four go: the two lowest of each epoch are low
    momentum, eligible, _ = watch(made("window_mean", threshold="quantile"))
    lowest_two = [[1, 3], [1, 0], [0, 1], [0, 1], [3, 0]]
    counts = torch.zeros(4)
    for pair in lowest_two[-3:]:
        counts[pair] += 1
    assert eligible.tolist() == (counts >= 2).tolist()
    assert momentum.tolist() == pytest.approx([1, 7 / 3, 8, 4])


def test_eligible_weights_go_first_and_others_are_counted():
    momentum = torch.tensor([5.0, 1, 3, 2, 4])
    alive = torch.tensor([True, True, True, True, False])
    eligible = torch.tensor([True, False, True, False, True])
    for cut, left, missed in (
        (0, [1, 1, 1, 1, 0], 0),
        (1, [1, 1, 0, 1, 0], 0),
        (2, [0, 1, 0, 1, 0], 0),
        (3, [0, 0, 0, 1, 0], 1),
        (4, [0, 0, 0, 0, 0], 2),
    ):
        kept, count = lowest_cut(momentum, alive, eligible, cut)
        assert kept.int().tolist() == left
        assert count == missed


def test_importance_of_vgg16_by_hand():
    model = lab.models.vgg16((3, 32, 32), 10)
    sizes = {key.rpartition(".")[0]: w.numel() for key, w in lab.prunable(model).items()}
    at = positions(sizes)
    total = 14_977_728  # 14,710,464 in thirteen convolutions, 262,144 and 5,120 in two linear layers
    assert sum(sizes.values()) == total
    by_hand = {"conv1_1": (1_728, 1), "conv1_2": (36_864, 2), "conv2_1": (73_728, 3), "fc2": (5_120, 15)}
    for layer, (size, place) in by_hand.items():
        assert at[layer] == place
        relative = size * 15 / total
        assert importance(sizes, at, "text")[layer] == pytest.approx(relative * place, rel=1e-12)
        for name in ("formula", "formula_prune"):
            assert importance(sizes, at, name)[layer] == pytest.approx(relative / place, rel=1e-12)
        assert importance(sizes, at, "literal")[layer] == pytest.approx(total / place, rel=1e-12)
        assert importance(sizes, at, "off")[layer] == 1
    assert importance(sizes, at)["conv1_1"] == pytest.approx(0.00173057, rel=1e-5)
    assert importance(sizes, at)["fc2"] == pytest.approx(0.0769142, rel=1e-5)


def test_shortcuts_share_the_place_of_their_blocks_first_layer():
    model = lab.models.resnet20((3, 8, 8), 10, shortcut="B", width=0.25)
    layers = [name.rpartition(".")[0] for name in lab.prunable(model)]
    at = positions(layers)
    assert at["conv1"] == 1
    assert at["block2_1.shortcut.conv"] == at["block2_1.conv1"] == 8
    assert at["block2_2.conv1"] == 10
    assert at["fc"] == 20
    assert positions(layers, "sequential")["fc"] == 22
    torchvision_names = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.downsample.0", "fc"]
    assert list(positions(torchvision_names).values()) == [1, 2, 3, 2, 4]


def test_every_interpretation_has_a_meaning():
    assert set(MEANINGS) == set(INTERPRETATIONS)


class Called(nn.Module):
    """Equal layers that are defined in one order and called in another."""

    def __init__(self, defined: str, called: str):
        super().__init__()
        for name in defined:
            self.add_module(name, nn.Linear(144, 144))
        self.called = called

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for name in self.called:
            x = self.get_submodule(name)(x).relu()
        return x


@pytest.mark.parametrize("index", ["forward", "sequential"])
@pytest.mark.parametrize("called", ["abcd", "dcba", "cacabd"])
@pytest.mark.parametrize("defined", ["abcd", "dabc", "cbad"])
def test_the_order_of_the_forward_pass_says_which_layer_is_late(defined, called, index, data):
    """Of equal layers the share that is cut grows with the place, 1 to 4, wherever a layer is defined."""
    method = WeightMom(lab.Linear(0.5), layer_index=index)
    run = lab.fit(Called(defined, called), data, method, epochs=2, progress=False)
    cut = {name: 144**2 - run.masks.kept_by_layer[f"{name}.weight"] for name in dict.fromkeys(called)}
    assert list(cut.values()) == pytest.approx([0.2 * 144**2 * place for place in (1, 2, 3, 4)], abs=1)


def test_shares_are_in_proportion_and_what_a_layer_cannot_give_the_others_do():
    def left(sparsity: float, **settings: Any) -> list[int]:
        method = WeightMom(lab.Cubic(sparsity), **settings)
        grows = MEANINGS[method.interpretation].grows
        return list(keeps(masks, sparsity, method.of_layers(masks), grows, method.floor).values())

    masks = Masks({f"{n}.weight": torch.ones(size, dtype=torch.bool) for n, size in (("a", 100), ("b", 200))})
    # π = W/mean·l: a 2/3, b 8/3; at 30 % b loses 2·4 parts of 9, a 1
    assert left(0.3) == [90, 120]
    # at 80 % b would lose 240·8/9 = 213 of 200: it keeps a quarter of the density, 5 %
    assert left(0.8, floor=0.25) == [50, 10]
    # I = W/(l·mean): 2/3 and 2/3: an importance, so both keep 20 %
    assert left(0.8, interpretation="formula") == [20, 40]
    # I = sum/l: a keeps twice the share of b, 2·100 parts of 400
    assert left(0.8, interpretation="literal") == [30, 30]
    # density as the basis: equal ones leave the place alone, so b loses twice the share of a
    assert left(0.5, basis="density") == [70, 80]
    # nothing comes back: b, pruned to 60 before, stays there, and a gives the rest
    masks["b.weight"][60:] = False
    assert left(0.5) == [90, 60]


def test_in_one_ranking_the_ratio_weighs_the_momentum():
    weights = {"a.weight": torch.tensor([3.0, 4]), "b.weight": torch.tensor([1.0, 2, 4, 8])}
    settings: dict[str, Any] = {"window": 1, "min_epochs_below": 1, "end": 1.0}

    def left(**options: Any) -> list[list[int]]:
        method = WeightMom(lab.Cubic(0.5), **settings, **options)
        run = without_training(weights, epochs=1)
        run.epoch = 1
        method.on_start(run)
        method.on_epoch(run)
        assert method.not_eligible == 0  # the threshold is of the same ranking
        return [mask.int().tolist() for mask in run.masks.values()]

    # π = W/mean·l: 2/3 and 8/3. Over it 4.5 6 and 0.375 0.75 1.5 3, and of the shares a would lose 3·(4/3)/12 = 0
    assert left(interpretation="text_scores") == [[1, 1], [0, 0, 0, 1]]
    # without the place 2/3 and 4/3: 4.5 6 and 0.75 1.5 3 6; as shares a loses 3·(4/3)/(20/3) = 1
    assert left(interpretation="text_scores", depth_exponent=0) == [[1, 1], [0, 0, 0, 1]]
    assert left(depth_exponent=0) == [[0, 1], [0, 0, 1, 1]]
    # I = sum/l: 6 and 3, an importance, so 18 24 and 3 6 12 24
    assert left(interpretation="literal_scores") == [[1, 1], [0, 0, 0, 1]]
    assert left(interpretation="off") == [[0, 1], [0, 0, 1, 1]]


def test_the_power_of_the_place():
    sizes, at = {"a": 2.0, "b": 4.0}, {"a": 1, "b": 3}
    assert importance(sizes, at, "text", 2) == pytest.approx({"a": 2 / 3, "b": 12})
    assert importance(sizes, at, "formula", 2) == pytest.approx({"a": 2 / 3, "b": 4 / 27})
    assert importance(sizes, at, "literal", 0) == {"a": 6, "b": 6}


def test_a_bias_belongs_to_its_layer():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    masks = Masks.full(lab.prunable(model, biases=True))
    assert WeightMom(lab.Cubic(0.5)).of_layers(masks) == pytest.approx({"0": 15 / 11.5, "1": 2 * 8 / 11.5})


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("name", NETS)
def test_targets_are_exact_and_no_layer_is_emptied(name, data, turn):
    """Every interpretation with every mode at every target is too many to train: they take turns."""
    i, sparsity = turn + list(NETS).index(name), SPARSITIES[turn]
    mode, meaning = MODES[i % len(MODES)], INTERPRETATIONS[i % len(INTERPRETATIONS)]
    method = WeightMom(lab.Cubic(sparsity), mode, interpretation=meaning, basis=BASES[i % 2])
    run, state = train(name, data, method, epochs=2, batch_size=50, lr=1e-2)
    assert run.status == "done"
    assert run.masks.kept == run.masks.total - lab.masks.count(run.masks.total, sparsity)
    assert not run.masks.collapsed
    assert state.settled


def test_fewer_weights_than_layers_are_refused_before_training(data):
    with pytest.raises(lab.ConfigError, match="cannot be spread over 20 layers"):
        train("resnet20", data, WeightMom(lab.Cubic(0.9994)))


@pytest.mark.parametrize("name", SMALL)
def test_counts_are_exact_on_every_model_with_every_option(name, data):
    """Every interpretation; bases, targets, modes and the two kinds of places take turns, down three cuts."""
    model = lab.build(name, data, seed=0, **SMALL[name])
    for i, meaning in enumerate(INTERPRETATIONS, [*SMALL].index(name)):
        sparsity, basis = SPARSITIES[i // 3 % 4], BASES[i // 2 % 2]
        run = without_training(lab.prunable(model), epochs=3)
        index = ("forward", "sequential")[i // 4 % 2]
        options = {"basis": basis, "layer_index": index, "end": 1.0}
        method = WeightMom(lab.Cubic(sparsity), MODES[i % 4], interpretation=meaning, **options)
        method.on_start(run)
        for run.epoch in (1, 2, 3):
            method.on_epoch(run)
        assert abs(run.masks.kept - (1 - sparsity) * run.masks.total) <= 0.5 + 1e-6
        assert not run.masks.collapsed


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("meaning", INTERPRETATIONS)
def test_every_interpretation_and_mode_cuts_exactly_without_training(mode, meaning, data):
    model = lab.build("resnet20", data, seed=0, width=0.25, shortcut="B")
    run = without_training(lab.prunable(model), epochs=10)
    method = WeightMom(lab.Cubic(0.98), mode, interpretation=meaning, window=4, min_epochs_below=3)
    method.on_start(run)
    before = run.masks
    with torch.no_grad():
        for run.epoch in range(1, 11):
            for name, weight in run.weights.items():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(run.epoch)) * 0.01)
                weight.mul_(run.masks[name])
            method.on_epoch(run)
            assert all(bool((before[n] | ~mask).all()) for n, mask in run.masks.items())
            before = run.masks
    assert run.masks.kept == run.masks.total - lab.masks.count(run.masks.total, 0.98)
    assert not run.masks.collapsed


def test_the_record_says_what_was_cut_too_early(data):
    run, state = train("lenet5", data, WeightMom(lab.Linear(0.9), threshold=1e-9, interpretation="off"))
    assert state.not_eligible == run.masks.total - run.masks.kept
    assert run.result.methods[0]["not_eligible"] == state.not_eligible
    assert f"not_eligible {state.not_eligible:,}, short_windows 1" in repr(run)
    assert run.result.methods[0]["short_windows"] == 1  # after epoch 2; after epoch 1 nothing is cut yet
    run, state = train("lenet5", data, WeightMom(lab.Linear(0.9), threshold=1e9))
    assert state.not_eligible == 0
    settings: dict[str, Any] = {"window": 2, "min_epochs_below": 1, "begin": 0.5, "end": 1.0}
    _, state = train("lenet5", data, WeightMom(lab.Linear(0.9), **settings), epochs=4)
    assert state.short_windows == 0


def test_cuts_fall_on_the_scheduled_epochs(data):
    run, _ = train("lenet5", data, WeightMom(lab.Linear(0.8), begin=0.25, end=0.75, every_epochs=2), epochs=8)
    # epochs 2, 4, 6 at progress 0, 1/2, 1; the first cuts nothing
    assert [(cut.step // run.steps_per_epoch, round(1 - cut.after / run.masks.total, 4)) for cut in run.cuts] == [
        (4, 0.4),
        (6, 0.8),
    ]
    assert run.best is not None
    assert run.best.step > 6 * run.steps_per_epoch


def test_shares_by_layer_may_be_given(data):
    run, _ = train("lenet5", data, WeightMom(lab.Cubic({"conv*": 0.5, "fc1.*": 0.95})))
    kept = run.masks.table().set_index("layer")["sparsity"].round(4)
    assert kept[["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"]].tolist() == [0.5, 0.5, 0.95, 0]


@pytest.mark.parametrize(("mode", "tensors"), [("ema", 2), ("consecutive_below", 2), ("window_mean", 16)])
def test_memory(mode, tensors):
    _, _, run = watch(method := WeightMom(lab.Cubic(0.5), mode))
    size = run.weights["fc.weight"].numel()
    state = [*method.past.values(), *method.lows.values()]
    assert sum(tensor.numel() for tensor in state) == tensors * size


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "mean"},
        {"interpretation": "size"},
        {"basis": "place"},
        {"layer_index": "backward"},
        {"depth_exponent": -1.0},
        {"window": 63},
        {"min_epochs_below": 16},
        {"beta": 1.0},
        {"threshold": "absolute"},
        {"threshold": 0.0},
        {"begin": 0.8},
        {"floor": 1.0},
        {"every_epochs": 0},
        {"watch": -1},
        {"schedule": 0.9},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(lab.ConfigError):
        WeightMom(**{"schedule": lab.Cubic(0.9)} | wrong)


def test_few_weights_that_stay_are_watched_beside_as_many_large_ones():
    """Two times one weight may stay, and six are wanted: the six largest, and six others."""
    followed = places(torch.arange(40.0), watch=12, largest=2, seed=0)
    assert followed[:6].tolist() == [39, 38, 37, 36, 35, 34]
    assert len(followed.unique()) == 12


def test_the_papers_setting_halves_the_rate_every_30_epochs(data):
    rate = PAPER["lr_schedule"]
    assert [0.05 * rate(epoch / 300) for epoch in (0, 29, 30, 60, 299)] == pytest.approx(
        [0.05, 0.05, 0.025, 0.0125, 0.05 / 2**9]
    )
    settings: dict[str, Any] = {**PAPER, "epochs": 2, "progress": False, "collapse": "allow"}
    trained = lab.fit(lab.build("lenet5", data), data, **settings)
    run = lab.fit(trained, data, WeightMom(lab.Cubic(0.9)), **settings)
    assert run.result.config["optimizer"] == "sgd"
    assert run.sparsity == pytest.approx(0.9, abs=1e-4)


def test_watched_weights_are_half_chosen_half_random_and_followed_to_the_end(data):
    watching = WeightMom(lab.Cubic(0.9), begin=0.25, end=0.75, watch=8)
    run, state = train("lenet5", data, watching, epochs=4, seed=3)
    plain, _ = train("lenet5", data, WeightMom(lab.Cubic(0.9), begin=0.25, end=0.75), epochs=4, seed=3)
    assert plain.masks.fingerprint == run.masks.fingerprint  # to look changes nothing
    first = lab.build("lenet5", data, seed=0)
    for name, followed in state.watched.items():
        assert len(followed.unique()) == 8
        size = first.get_parameter(name).detach().abs().flatten()
        ranks = size.argsort(descending=True, stable=True).argsort()[followed]
        most = min(2 * run.masks.kept_by_layer[name], len(size)) - 1
        assert ranks[:4].tolist() == torch.linspace(0, most, 4).round().long().tolist()
        magnitude, momentum, level = state.trajectories[name].unbind(1)
        kept = run.masks[name].flatten()[followed]
        assert torch.equal(magnitude[-1], run.weights[name].detach().flatten()[followed].abs())
        assert (magnitude[-1] > 0).tolist() == kept.tolist()
        assert not magnitude.isnan().any()
        assert [bool(x) for x in momentum.isnan().all(1)] == [bool(x) for x in level.isnan().all(1)] == [0, 0, 0, 1]
        assert torch.allclose(momentum[0], magnitude[0])  # bias-corrected: the first epoch is itself
    assert not train("lenet5", data, WeightMom(lab.Cubic(0.9)))[1].trajectories


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "alexnet", "vgg16", "resnet20", "resnet50"])
def test_shares_of_the_full_models_are_exact(name):
    with torch.device("meta"):
        shapes = {n: w.shape for n, w in lab.prunable(lab.models.MODELS[name]((3, 32, 32), 10)).items()}
    masks = Masks({n: torch.ones(shape, dtype=torch.bool) for n, shape in shapes.items()})
    for i, (meaning, basis) in enumerate(product(INTERPRETATIONS, BASES)):
        sparsity = SPARSITIES[i // 3 % 4]
        ratios = WeightMom(lab.Cubic(sparsity), interpretation=meaning, basis=basis).of_layers(masks)
        left = keeps(masks, sparsity, ratios, MEANINGS[meaning].grows).values()
        assert sum(left) == masks.total - lab.masks.count(masks.total, sparsity)
        assert min(left) >= 1

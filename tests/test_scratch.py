"""Training from scratch, and the enhanced setting: masks, weights, budgets and what they cost."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruninglab as lab
from pruninglab.recipes import enhanced, scratch, tickets
from pruninglab.recipes.enhanced import shares


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("digits", train=300, test=60, size=16)


@pytest.fixture(scope="module")
def model(data) -> nn.Module:
    return lab.build("lenet5", data, seed=3)


def go(model, data, sparsity: lab.masks.Sparsity = 0.8, **options):
    given = {"epochs": 2, "finetune": 1, "batch_size": 50, "progress": False, "collapse": "allow"} | options
    return scratch(model, data, sparsity, **given)


def test_a_found_architecture_is_trained_anew(model, data):
    made = go(model, data)
    tuned, anew = made["fine-tuned"], made["Scratch-E"]
    assert tuned.masks.fingerprint == anew.masks.fingerprint == made["Scratch-B"].masks.fingerprint
    assert tuned.origin["kind"] == "run"
    assert tuned.result.config["lr"] == pytest.approx(1e-4)
    # new weights, of the distribution of the untrained ones, and not theirs
    starts = {trial.method: trial.run.result.origin["weights"] for trial in made}
    assert starts["Scratch-E"] == starts["Scratch-B"] != starts["dense"]
    assert anew.step == made["dense"].step
    table = made.table().set_index("method")
    assert table.loc["Scratch-E", "steps_in_all"] == 2 * made["dense"].step  # an architecture has to be found


def test_a_predefined_architecture_is_only_counts(model, data):
    made = go(model, data, {"fc1*": 0.9}, architecture="predefined")
    tuned, anew = made["fine-tuned"].masks, made["Scratch-E"].masks
    assert tuned.kept_by_layer == anew.kept_by_layer
    assert tuned.kept_by_layer["fc1.weight"] == tuned["fc1.weight"].numel() // 10
    assert not torch.equal(tuned["fc1.weight"], anew["fc1.weight"])
    assert made.table().set_index("method").loc["Scratch-E", "steps_in_all"] == made["dense"].step


def outputs(run: lab.Run) -> dict[str, int]:
    return {name: len(weight) for name, weight in run.weights.items()}


@pytest.mark.parametrize("options", [{}, {"scope": "layer"}, {"architecture": "predefined"}])
def test_channels_are_taken_out_and_no_class_is(model, data, options):
    made = go(model, data, 0.5, unit="channel", **options)
    tuned, *anew = (made[way] for way in ("fine-tuned", "Scratch-E", "Scratch-B"))
    sizes = outputs(tuned)
    assert sum(sizes.values()) == (20 + 50 + 500) // 2 + 10
    assert (sizes["fc2.weight"], min(sizes.values()) > 0) == (10, True)
    assert ([*sizes.values()] == [10, 25, 250, 10]) == bool(options)
    for run in anew:
        assert outputs(run) == sizes
        assert run.origin["weights"] not in (tuned.origin["weights"], made["dense"].origin["weights"])
    # what Scratch-B computes is what the dense training did, to half an epoch
    table = made.table().set_index("method")
    gflops, steps = table["gflops_kept"].to_dict(), table["steps_in_all"].to_dict()
    assert gflops["Scratch-B"] == pytest.approx(gflops["dense"], abs=0.51 * gflops["Scratch-E"] / 2)
    assert (steps["Scratch-E"] > steps["dense"]) == ("architecture" not in options)


@pytest.mark.parametrize(
    ("compute", "epochs"), [("epochs", 0), ("flops", None), ("flops+tuning", None), (3, 6), (1.5, 3)]
)
def test_the_disputed_compute(model, data, compute, epochs):
    made = go(model, data, {"fc1*": 0.9, "conv*": 0.5}, compute=compute)
    if epochs == 0:
        assert [trial.method for trial in made] == ["dense", "fine-tuned", "Scratch-E"]
        return
    run, dense = made["Scratch-B"], made["dense"]
    ratio = dense.result.flops["dense"] / run.result.flops["sparse"]
    assert ratio > 2
    assert run.epoch == (epochs or round(2 * ratio) + (compute == "flops+tuning"))
    if compute == "flops":  # computes on kept weights what the dense training did, to half an epoch
        table = made.table().set_index("method")["gflops_kept"].to_dict()
        assert table["Scratch-B"] == pytest.approx(table["dense"], abs=0.51 * table["Scratch-E"] / 2)


def test_a_folder_is_gone_on_from(model, data, tmp_path):
    go(model, data, folder=tmp_path, compute=1)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    assert sorted(p.stem for p in times) == ["dense", "fine-tuned", "scratch-b", "scratch-e"]
    go(model, data, folder=tmp_path, compute=1)
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compute": "seconds"}, "'epochs' or a number of at least 1, a factor"),
        ({"compute": 0.5}, "a factor of the epochs"),
        ({"compute": True}, "'epochs' or a number of at least 1, a factor"),
        ({"architecture": "given"}, "one of 'found', 'predefined'"),
        ({"architecture": "predefined", "scope": "global"}, "a global cut finds"),
        ({"inplace": True}, "sets inplace by itself"),
        ({"skip": "*"}, "nothing to prune"),
        ({"unit": "chanel"}, "one of 'weight', 'channel'"),
        ({"sparsity": 1.5}, "1.5"),
        ({"sparsity": 0.99999999}, "would cut all"),
        ({"sparsity": 0.999, "unit": "channel"}, "at most"),
        ({"sparsity": {"conv*": 0.5}, "unit": "channel"}, "one share"),
        ({"criterion": "magnitud"}, "magnitude"),
    ],
)
def test_what_cannot_be_is_said_before_any_training(model, data, options, said, tmp_path):
    with pytest.raises(lab.ConfigError, match=said):
        go(model, data, folder=tmp_path, **options)
    assert not any(tmp_path.iterdir())


def weights(**sizes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.zeros(size) for name, size in sizes.items()}


def test_enhanced_shares_by_hand():
    """1000 weights, 100 to stay: 40 of the first convolution, 20 of the last layer (a fifth), 40 of 860 between."""
    four = weights(first=(10, 1, 2, 2), a=(43, 10), b=(10, 43), last=(10, 10))
    assert shares(four, 0.9, list(four)) == pytest.approx(
        {"first": 0.0, "a": 1 - 20 / 430, "b": 1 - 20 / 430, "last": 0.8}
    )
    # where 80 % is not reached, the last layer is one of many: 240 of 960
    one_of_many = {"first": 0.0, "a": 0.75, "b": 0.75, "last": 0.75}
    assert shares(four, 0.72, list(four)) == pytest.approx(one_of_many, abs=2e-3)
    linear = weights(a=(80, 10), last=(20, 10))
    assert shares(linear, 0.9, list(linear)) == pytest.approx({"a": 1 - 60 / 800, "last": 0.8})
    with pytest.raises(lab.ConfigError, match="leaves nothing of a, b"):
        shares(four, 0.95, list(four))
    with pytest.raises(lab.ConfigError, match="a layer between"):
        shares(two := weights(first=(10, 1, 2, 2), last=(10, 10)), 0.5, list(two))
    # the order of the forward pass says which is first and last; a bias goes with its weight
    mixed = {"head.weight": torch.zeros(10, 10), "head.bias": torch.zeros(10)} | weights(a=(43, 10), b=(10, 43))
    assert shares(mixed, 0.9, ["a", "b", "head"]) == pytest.approx(
        {"head.weight": 0.8, "head.bias": 0.8, "a": 1 - 37 / 430, "b": 1 - 38 / 430}, abs=3e-3
    )


def test_enhanced_trains_longer_to_the_exact_share(model, data):
    run = enhanced(model, data, 0.9, epochs=2, batch_size=50, progress=False).last
    assert run.epoch == 3
    assert run.masks.kept == run.masks.total - int(run.masks.total * 0.9 + 0.5)
    kept = run.masks.kept_by_layer
    assert kept["conv1.weight"] == run.masks["conv1.weight"].numel()
    assert kept["fc2.weight"] == run.masks["fc2.weight"].numel() // 5
    with pytest.raises(lab.ConfigError, match="a number of at least 1"):
        enhanced(model, data, 0.9, epochs=2, longer=0.5)


class Head(nn.Module):
    """The head is defined first, and the second convolution before the first."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 10)
        self.late, self.early = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.late(self.early(x).relu()).relu().mean((2, 3)))


def test_first_and_last_are_those_of_the_forward_pass(data):
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 50, "progress": False, "collapse": "allow"}
    kept = enhanced(Head(), data, 0.8, **settings).last.masks.kept_by_layer
    assert kept == {"head.weight": 16, "late.weight": 58, "early.weight": 72}
    other_way: dict[str, Any] = {
        "forward": lambda model, x: model.head(model.late(model.early(x)).mean((2, 3)))
    } | settings
    assert enhanced(Head(), data, 0.8, **other_way).last.masks.kept_by_layer == kept
    dense = lab.fit(Head(), data, **settings)
    assert enhanced(dense, data, 0.8, **settings).last.masks.kept_by_layer == kept
    ticket = tickets(Head(), data, 0.5, rounds=1, controls=(), **settings)["ticket"].masks
    shares_left = [kept / ticket[name].numel() for name, kept in ticket.kept_by_layer.items()]
    assert shares_left == pytest.approx([0.75 * 0.96, 0.47, 0.47], abs=0.03)


def test_tables_tell_the_cost(model, data):
    run = lab.fit(model, data, epochs=1, progress=False)
    row = lab.results.table({"dense": run}).loc["dense"]
    assert row["GFLOPs of this run"] == f"{3 * run.result.flops['dense'] * 270 / 1e9:,.0f}"
    assert row["seconds of it"] == f"{run.seconds:,.0f}"

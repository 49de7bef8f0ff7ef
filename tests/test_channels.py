"""What makes channels go: slimming, group lasso, silence, the recipe of three stages; and what it buys, measured."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import pruninglab as lab
from pruninglab import analysis, structured
from pruninglab.analysis import cost
from pruninglab.methods import GroupLasso, OneShot, Silence, Slimming
from pruninglab.methods.channels.group_lasso import group_norms
from pruninglab.recipes import slimming


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("digits", train=200, test=60, size=16)


def vgg(data, **options) -> Any:
    return lab.build("vgg16", data, seed=0, width=0.0625, **options)


def fit(model, data, *methods, **options) -> Any:
    return lab.fit(
        model, data, *methods, **{"epochs": 1, "batch_size": 90, "progress": False, "collapse": "allow"} | options
    )


@dataclass
class Gradients(lab.Method):
    """Keeps the gradients of every step, as they are at its turn."""

    seen: list[dict[str, Tensor]] = field(init=False)

    def on_start(self, run):
        self.seen = []

    def on_grad(self, run):
        self.seen.append({n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None})


def test_slimming_adds_its_sign_to_the_gradient_of_scales(data):
    model = vgg(data)
    model.bn1_1.weight.data[:2] = torch.tensor([-0.5, 0.0])
    plain, slim = (fit(model, data, *made, Gradients()) for made in ((), (Slimming(0.25),)))
    before, after = plain.methods[-1].seen[0], slim.methods[-1].seen[0]
    scales = {name for name in before if "bn" in name and name.endswith("weight")}
    assert len(scales) == 13
    for name, gradient in before.items():
        sign = model.get_parameter(name).detach().sign() if name in scales else 0
        assert torch.allclose(after[name], gradient + 0.25 * sign, atol=1e-7)
    assert (after["bn1_1.weight"] - before["bn1_1.weight"])[:3].tolist() == pytest.approx([-0.25, 0, 0.25])
    (row,) = slim.methods[0].scales
    assert row["scales"]["bn3_2"] == pytest.approx(slim.model.bn3_2.weight.detach().abs().tolist())
    halved = fit(model, data, Slimming(0.0, begin=0.5), epochs=0)
    assert {float(m.weight.detach().sum()) for m in halved.model.modules() if isinstance(m, nn.BatchNorm2d)} == {
        2,
        4,
        8,
        16,
    }


def test_slimming_pulls_scales_down(data):
    ways = [Slimming(strength) for strength in (0.0, 0.5)]
    free, slim = (fit(vgg(data), data, way, epochs=3, batch_size=20, optimizer="sgd", lr=0.05) for way in ways)

    def scales(run: Any) -> float:
        return sum(float(m.weight.detach().abs().sum()) for m in run.model.modules() if isinstance(m, nn.BatchNorm2d))

    assert scales(slim) < 0.8 * scales(free)


@pytest.mark.parametrize(
    ("over", "dims"), [("filters", (1, 2, 3)), ("channels", (0, 2, 3)), ("rows", (1, 2, 3)), ("columns", (0,))]
)
def test_group_lasso_against_autograd(data, over, dims):
    model: Any = lab.build("lenet5", data, seed=1)
    model.conv2.weight.data[3] = 0  # a group that is 0 has no direction
    plain, lasso = (fit(model, data, *made, Gradients()) for made in ((), (GroupLasso(0.1, over),)))
    for name in ("conv2.weight", "fc1.weight"):
        w: Any = model.get_parameter(name).detach().clone().requires_grad_()
        d = tuple(i for i in dims if i < w.ndim)
        groups = (w.square().sum(d) + 1e-30).sqrt()
        (0.1 * groups.sum()).backward()
        added = lasso.methods[-1].seen[0][name] - plain.methods[-1].seen[0][name]
        assert torch.allclose(added, w.grad, atol=1e-6)
    assert not (lasso.methods[-1].seen[0]["conv1.bias"] - plain.methods[-1].seen[0]["conv1.bias"]).any()


def test_group_norms_by_hand():
    w = torch.tensor([[3.0, 0.0], [4.0, 1.0]])
    assert group_norms(w, "filters").flatten().tolist() == pytest.approx([3, 17**0.5])
    assert group_norms(w, "channels").flatten().tolist() == group_norms(w, "columns").flatten().tolist() == [5, 1]
    conv = torch.zeros(2, 1, 1, 2)
    conv[:, 0, 0, 1] = torch.tensor([3.0, 4.0])
    assert group_norms(conv, "channels").flatten().tolist() == [5]
    assert group_norms(conv, "columns").flatten().tolist() == [0, 5]


def test_group_lasso_pulls_whole_filters_to_zero(data):
    model, way = lab.build("lenet5", data, seed=0), {"epochs": 8, "batch_size": 20, "optimizer": "sgd", "lr": 0.02}
    free, lasso = (fit(model, data, GroupLasso(strength), **way) for strength in (0.0, 0.1))
    before, after = (group_norms(run.model.conv2.weight, "filters").flatten() for run in (free, lasso))
    assert after.median() < 0.2 * before.median()
    assert after.min() / after.max() < 0.1 < before.min() / before.max()
    small = pd.DataFrame(lasso.methods[0].norms)
    assert set(small["layer"]) == set(lasso.weights)
    assert small["small"].between(0, 1).all()
    cut = fit(lasso, data, OneShot(0.5, "filter_l2", scope="layer", unit="channel"), epochs=0)
    assert {0.0, 1.0} == set(cut.masks["conv2.weight"].flatten(1).float().mean(1).tolist())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Slimming(-1), "at least 0"),
        (lambda: Slimming(begin=0.0), "a number above 0 or None"),
        (lambda: GroupLasso(float("nan")), "at least 0"),
        (lambda: GroupLasso(over="filter"), "'filters', 'channels', 'rows', 'columns'"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_bad_settings_are_refused(make, said):
    with pytest.raises(lab.ConfigError, match=said):
        make()


def test_nothing_to_slim_is_said(data):
    with pytest.raises(lab.ConfigError, match="no batch norm with scales"):
        fit(lab.build("lenet5", data), data, Slimming())


# --- silence ---------------------------------------------------------------------------------------------------------


def swish(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.SiLU()),
        *(nn.Conv2d(6, 6, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10)),
    )


def test_silence_holds_what_a_smooth_activation_would_wake(data):
    """At 0 the slope of a SiLU is 1/2: without silence the shift of a dead channel is trained on."""
    cut = OneShot(0.5, "filter_l1", scope="layer", unit="channel")
    loud, quiet = (fit(swish(), data, cut, *made, epochs=2, skip="7.weight") for made in ((), (Silence(),)))
    dead = ~quiet.masks["0.weight"].flatten(1).any(1)
    assert dead.sum() == 3
    assert loud.model[1].bias[dead].all()
    for tensor in (quiet.model[1].bias, quiet.model[1].weight):
        assert not tensor[dead].any()
        assert tensor[~dead].all()
    assert not quiet.model[3].bias[~quiet.masks["3.weight"].flatten(1).any(1)].any()
    assert quiet.model[7].bias.all()  # of the last layer every bias is an answer
    assert structured.shrink(loud).removed < structured.shrink(quiet).removed == 6
    assert quiet.methods[1].entries["1.bias"].tolist() == dead.tolist()


def test_silence_follows_a_schedule(data):
    gradual = lab.methods.Gradual(lab.Cubic(0.5), "filter_l1", scope="layer", unit="channel", cuts=3, end=1.0)
    run = fit(swish(), data, gradual, Silence(), epochs=4, batch_size=20, skip="7.weight")
    assert len(run.cuts) > 1
    assert structured.shrink(run).removed == 6


# --- the recipe ------------------------------------------------------------------------------------------------------


def test_three_stages_and_their_controls(data, tmp_path):
    settings = {
        "epochs": 1,
        "finetune": 1,
        "strength": 1e-3,
        "batch_size": 90,
        "progress": False,
        "collapse": "allow",
        "folder": tmp_path,
    }
    model = lab.build("vgg16", data, seed=0, width=0.0625)
    made: Any = slimming(model, data, 0.5, **settings)
    assert [trial.method for trial in made] == ["dense", "slimmed", "removed", "fine-tuned", "Scratch-E", "Scratch-B"]
    tuned, anew, longer = (made[way] for way in ("fine-tuned", "Scratch-E", "Scratch-B"))
    sizes = [run.result.size["parameters"] for run in (made["dense"], made["removed"], tuned, anew, longer)]
    assert sizes[0] > sizes[1] == sizes[2] == sizes[3] == sizes[4]
    assert anew.model.conv3_1.weight.shape == tuned.model.conv3_1.weight.shape
    assert anew.origin["weights"] == longer.origin["weights"] != tuned.origin["weights"]
    assert longer.epoch == round(made["dense"].result.flops["dense"] / tuned.result.flops["dense"]) > 1
    left = sum(m.num_features for m in tuned.model.modules() if isinstance(m, nn.BatchNorm2d))
    assert left == sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)) // 2
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert len(times) + 1 == len(list(tmp_path.glob("*.json"))) == 6  # what is removed is not trained
    slimming(model, data, 0.5, **settings)
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    with pytest.raises(lab.ConfigError, match="by itself"):
        slimming(model, data, 0.5, epochs=1, finetune=1, masks={})  # pyright: ignore[reportCallIssue]


# --- measure ---------------------------------------------------------------------------------------------------------


def test_truth_tells_masked_from_removed(data):
    model = lab.build("lenet5", data, seed=0)
    pruned, masks = structured.prune(model, data, 0.8)
    small = structured.shrink(pruned, data, masks)
    table: Any = analysis.truth({"dense": model, "masked": pruned, "removed": small}, data, batches=(1, 8), rounds=6)
    assert table.loc["dense", "parameters"] == table.loc["masked", "parameters"] > table.loc["removed", "parameters"]
    assert table.loc["masked", "nonzero"] < table.loc["dense", "nonzero"]
    assert table.loc["dense", "flops"] == table.loc["masked", "flops"] > 3 * table.loc["removed", "flops"]
    assert table.loc["dense", "bytes"] == table.loc["masked", "bytes"]
    assert table.loc["masked", "gzip_bytes"] < 0.7 * table.loc["dense", "gzip_bytes"]
    by_hand = 2 * (12 * 12 * 20 * 25 + 2 * 2 * 50 * 20 * 25 + 50 * 500 + 500 * 10)
    assert table.loc["dense", "flops"] == by_hand
    for batch in (1, 8):
        assert (table[f"ms_low_{batch}"] <= table[f"ms_{batch}"]).all()
        assert (table[f"ms_{batch}"] <= table[f"ms_high_{batch}"]).all()
        columns = [f"{column}_{batch}" for column in ("faster", "faster_low", "faster_high")]
        assert table.loc["dense", columns].tolist() == [1, 1, 1]


def test_rounds_take_turns_and_ratios_are_within_rounds(monkeypatch):
    """A machine that gets slower with every round: b takes half of a's time in each, whatever the round."""
    now, order = [0.0], []

    class Takes(nn.Module):
        def __init__(self, name: str, time: float):
            super().__init__()
            self.name, self.time = name, time

        def forward(self, x: Tensor) -> Tensor:
            order.append(self.name)
            now[0] += self.time * 2 ** ((len(order) - 1) // 2)
            return x

    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    table = analysis.latency({"a": Takes("a", 0.002), "b": Takes("b", 0.001)}, torch.zeros(1, 1), rounds=9, warm=1)
    assert order == ["a", "b", "b", "a"] * 5
    assert table.loc["b", ["faster", "faster_low", "faster_high"]].tolist() == pytest.approx([2, 2, 2])
    assert table.loc["a", "ms"] == pytest.approx(2 * 2**5)
    # of nine ordered times the second and the eighth hold the median in 96 % of samples
    assert (table.loc["a", "ms_low"], table.loc["a", "ms_high"]) == pytest.approx((2 * 2**2, 2 * 2**8))


def test_what_is_called_is_timed_even_if_it_has_a_network_inside():
    """An engine has one, which is not what it computes with."""

    class Engine:
        model, calls = nn.Linear(1, 1), 0

        def __call__(self, x):
            self.calls += 1

    engine = Engine()
    assert len(analysis.latency({"engine": engine, "plain": engine.model}, torch.zeros(2, 1), rounds=6, warm=1)) == 2
    assert engine.calls == 7


def test_measuring_leaves_the_mode_and_says_what_it_needs(data):
    model = lab.build("lenet5", data).train()
    analysis.latency({"net": model}, torch.zeros(2, *data.shape), rounds=6)
    assert model.training
    with pytest.raises(lab.ConfigError, match="at least 6"):
        analysis.latency({"net": model}, torch.zeros(2, *data.shape), rounds=5)
    with pytest.raises(lab.ConfigError, match="not empty"):
        analysis.latency({}, torch.zeros(2, *data.shape))


def test_few_images_fill_a_batch(blobs):
    assert cost._images(blobs, 64).shape == (64, 10)
    assert cost._images(torch.zeros(2, 3), 64).shape == (64, 3)


def test_silence_leaves_what_is_frozen_and_says_so(data):
    model = swish()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith("bias"))
    biases = {name: p.clone() for name, p in model.named_parameters() if name.endswith("bias")}
    run = fit(model, data, OneShot(0.5, scope="layer", unit="channel"), Silence(), epochs=1)
    assert all(torch.equal(run.model.get_parameter(name), before) for name, before in biases.items())
    assert any("Silence leaves" in warning and "bias" in warning for warning in run.result.warnings)


@pytest.mark.parametrize("epochs", [0, 1])
def test_statistics_of_norms_are_those_of_the_network_after_the_cut(data, epochs):
    old: Any
    norm: Any
    own: Any
    model, options = swish(), {"epochs": epochs, "lr": 0.0}
    cutting = lab.methods.Gradual(lab.Linear(0.9), begin=0.0, cuts=1) if epochs else OneShot(0.9)
    run, stale = (fit(model, data, cutting, *more, **options) for more in ((lab.methods.Recalibrate(),), ()))
    first, norm = (next(m for m in run.model.modules() if isinstance(m, kind)) for kind in (nn.Conv2d, nn.BatchNorm2d))
    with torch.no_grad():
        expected = torch.stack([first(x).mean((0, 2, 3)) for x, _ in data.train.batches(90)]).mean(0)
    last = run.methods[1].estimated[-1]
    if last == run.step:  # nothing has been trained since
        assert torch.allclose(norm.running_mean, expected, atol=1e-5)
    old = next(m for m in stale.model.modules() if isinstance(m, nn.BatchNorm2d))
    assert not torch.allclose(old.running_mean, expected, atol=1e-3)
    assert norm.momentum == old.momentum
    owned = swish().train()
    next(m for m in owned.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    kept = fit(owned, data, OneShot(0.9), lab.methods.Recalibrate(), epochs=0)
    own = next(m for m in kept.model.modules() if isinstance(m, nn.BatchNorm2d))
    assert not own.running_mean.any()

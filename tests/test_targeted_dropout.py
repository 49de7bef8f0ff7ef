"""Targeted dropout by hand, its rate by counting, and what it cuts."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab.methods import OneShot, TargetedDropout

QUIET: dict[str, Any] = {"progress": False, "collapse": "allow", "seed": 0}
PLAIN: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr_schedule": "constant", **QUIET}


@dataclass
class Watch(lab.Method):
    """What the forward pass gave and what came back, step by step."""

    outputs: list[float] = field(init=False)
    gradients: list[Tensor] = field(init=False)

    def on_start(self, run: Any):
        self.outputs, self.gradients = [], []

    def on_grad(self, run: Any):
        self.outputs.append(float(run.logits[0].detach().sum()))
        self.gradients.append(run.weights["weight"].grad.clone())


def ones(rows: list[list[float]], method: lab.Method, steps: int, lr: float = 0.0) -> tuple[lab.Run, Any]:
    """These weights on inputs of 1, with the sum of all outputs as the loss; each step is an epoch."""
    model = nn.Linear(len(rows[0]), len(rows), bias=False)
    model.weight.data = torch.tensor(rows)
    x, y = torch.ones(4, len(rows[0])), torch.zeros(4).long()
    data = lab.wrap(TensorDataset(x, y), TensorDataset(x, y), val=0.5)
    options: dict[str, Any] = {"epochs": steps, "lr": lr, "loss": lambda logits, y: logits.sum(1).mean(), **PLAIN}
    run = lab.fit(model, data, method, Watch(), **options)
    return run, run.methods[1]


def test_one_step_by_hand():
    """Of 2, -3, 1.5, 1 the last two are dropped for sure: output 2 - 3, no gradient for them, and then they are cut."""
    run, seen = ones([[2.0, -3.0, 1.5, 1.0]], TargetedDropout(0.5, drop=1.0), steps=1, lr=0.1)
    assert seen.outputs == [-1.0]
    assert seen.gradients[0].tolist() == [[1.0, 1.0, 0.0, 0.0]]
    assert run.model.get_parameter("weight").tolist() == [[pytest.approx(1.9), pytest.approx(-3.1), 0.0, 0.0]]
    assert run.history[0]["val_loss"] == pytest.approx(1.9 - 3.1)  # already under the mask


def test_validation_sees_all_weights():
    run, seen = ones([[2.0, -3.0, 1.5, 1.0]], TargetedDropout(0.5, drop=1.0), steps=2)
    assert seen.outputs == [-1.0, -1.0]
    assert [h["val_loss"] for h in run.history] == [1.5, -1.0]


def test_units_go_as_a_whole_by_their_norm():
    """Norms 5, 3.6, 4.2; sums 7, 5, 6. The second row has the largest single weight of the two lowest."""
    rows = [[3.0, 4.0], [3.5, 0.5], [3.0, 3.0]]
    run, seen = ones(rows, TargetedDropout(1 / 3, drop=1.0, unit="channel"), steps=1)
    assert seen.outputs == [13.0]
    assert seen.gradients[0].tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    assert run.masks["weight"].tolist() == [[True, True], [False, False], [True, True]]


@pytest.mark.parametrize("unit", ["weight", "channel"])
def test_candidates_are_dropped_at_the_rate_and_the_others_never(unit):
    rows = [[float(i) + 1] * 5 for i in range(20)]
    _, seen = ones(rows, TargetedDropout(0.5, drop=0.3, unit=unit), steps=400)
    felt = torch.stack(seen.gradients)
    assert bool((felt[:, 10:] == 1).all())
    dropped = 1 - felt[:, :10].mean(0)
    assert float(dropped.mean()) == pytest.approx(0.3, abs=0.02)
    assert float((dropped - 0.3).abs().max()) < 0.1
    together = bool((felt == felt[:, :, :1]).all())
    assert together == (unit == "channel")


def test_a_schedule_raises_the_share_with_progress():
    """At progress 0, 1/4, 1/2, 3/4 none, 1, 2, 3 of four weights are dropped; all but one are cut at the end."""
    run, seen = ones([[8.0, 4.0, 2.0, 1.0]], TargetedDropout(lab.Linear(0.8), drop=1.0), steps=4)
    assert seen.outputs == [15.0, 14.0, 12.0, 12.0]  # shares 0, 0.2, 0.4, 0.6
    assert run.masks.kept == 1


def test_the_cut_comes_at_its_share_of_the_training_and_training_goes_on():
    run, seen = ones([[2.0, -3.0, 1.5, 1.0]], TargetedDropout(0.5, drop=0.0, end=0.5), steps=4)
    assert [(c.step, c.after) for c in run.cuts] == [(2, 2)]
    assert seen.outputs == [1.5, 1.5, -1.0, -1.0]


def test_the_net_learns_to_do_without(blobs):
    """Cut without training afterwards, the targeted net keeps more than the plain one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))
    dense = lab.fit(net, blobs, epochs=40, lr=0.01, **QUIET)
    cut = lab.fit(dense, blobs, OneShot(0.9, scope="layer"), epochs=0, **QUIET)
    targeted = lab.fit(net, blobs, TargetedDropout(0.9, drop=0.7), epochs=40, lr=0.01, **QUIET)
    assert targeted.masks.kept_by_layer == cut.masks.kept_by_layer
    accuracy = [run.result.accuracy["test"]["accuracy"] for run in (cut, targeted)]
    assert accuracy[1] > accuracy[0] + 0.1


def test_wrong_settings_are_refused(blobs):
    net = nn.Linear(10, 4)
    cases: list[tuple[str, dict[str, Any], int]] = [
        ("drop=1.5", {"drop": 1.5}, 1),
        ("above 0 and at most 1", {"end": 0.0}, 1),
        ("epochs=0 has no step", {}, 0),
    ]
    for match, settings, epochs in cases:
        with pytest.raises(lab.ConfigError, match=match):
            lab.fit(net, blobs, TargetedDropout(0.5, **settings), epochs=epochs, **QUIET)

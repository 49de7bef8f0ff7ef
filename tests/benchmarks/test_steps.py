"""A step of training beside a loop written by hand, and what each method adds to it: all in turns, in one process."""

import copy
from collections.abc import Callable

import pytest
import torch
from benchmarks.history import measured
from benchmarks.lockstep import lockstep, steps
from torch import nn
from torch.nn import functional as F

import pruninglab as lab
from pruninglab import methods
from pruninglab.data import Split

BATCH = 100


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("strokes", train=2200, test=100, val=0.0909)


def deep() -> nn.Module:
    """200 small layers, where what is around a layer costs most."""
    layers = [part for _ in range(200) for part in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), *layers, nn.Linear(64, 10))


def by_hand(model: nn.Module, data: lab.Data, tuned: bool) -> Callable[[], object]:
    """The loop of a tutorial over tensors in memory; tuned, in channels-last and with a fused optimizer."""
    assert isinstance(data.train, Split)
    assert isinstance(data.train.x, torch.Tensor)
    x, y = (data.train.x.float() - 25) / 76, data.train.y
    if tuned:
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=tuned)

    def step() -> None:
        chosen = torch.randint(len(y), (BATCH,))
        loss = F.cross_entropy(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "200 layers"])
def test_a_step_is_as_fast_as_one_by_hand(name: str, data: lab.Data) -> None:
    torch.set_num_threads(1)
    model = deep() if name == "200 layers" else lab.build(name, data, seed=0)
    hand = {f"{kind} loop": by_hand(copy.deepcopy(model).train(), data, kind == "tuned") for kind in ("plain", "tuned")}
    found = lockstep({"ours": steps(model, data, batch_size=BATCH), **hand}, rounds=200)
    for kind in hand:
        measured(f"step of {name} / {kind}", 1 / found[kind])
    assert found["plain loop"] >= 0.97


HOOKS: dict[str, tuple[lab.Method, float]] = {
    "OneShot": (methods.OneShot(0.9), 1.05),
    "Gradual": (methods.Gradual(lab.Cubic(0.9)), 1.05),
    "WeightMom": (methods.WeightMom(lab.Cubic(0.9)), 1.05),
    "ADMM": (methods.ADMM(0.9), 1.05),
    "RelevanceL2": (methods.RelevanceL2(), 1.05),
    "RigL": (methods.RigL(0.9), 1.05),
    "LOBSTER": (methods.LOBSTER(), 1.05),
    "PGD": (methods.PGD(0.9), 1.15),
    "DynamicSurgery": (methods.DynamicSurgery(0.9), 1.15),
    "GSM": (methods.GlobalSparseMomentum(0.9), 1.15),
    "L0": (methods.L0(), 1.15),
    "VariationalDropout": (methods.VariationalDropout(), 4),
    "SoftSharing": (methods.SoftSharing(), 4),
    "TargetedDropout": (methods.TargetedDropout(0.9), 4),
}
"""Each method, and what a step with it may take of a step without."""


@pytest.mark.parametrize("name", HOOKS)
def test_what_a_method_adds_to_a_step(name: str, data: lab.Data) -> None:
    torch.set_num_threads(1)
    model, (method, most) = lab.build("lenet5", data, seed=0), HOOKS[name]
    sides = {"plain": steps(model, data, batch_size=BATCH), name: steps(model, data, method, batch_size=BATCH)}
    found = lockstep(sides, rounds=40)[name]
    measured(f"step of lenet5 with {name} / plain", found)
    assert found <= most

"""Killed at any moment and resumed: the same bits. Another configuration or a damaged file: refused, and why."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch

import pruninglab as lab
from pruninglab import storage

SCRIPT = """
import os, sys, torch, torch._dynamo, pruninglab as lab
torch.set_num_threads(1)
data = lab.load("digits", train=300, test=60, size=14, augment="shift")
def train(name):
    model = lab.build("resnet20", data, seed=0, width=0.25)
    model.fc = torch.nn.Sequential(torch.nn.Dropout(0.3), model.fc)
    run = lab.fit(
        model, data, lab.methods.Gradual(lab.Cubic(0.9), reactivate=True), epochs=8, batch_size=30, optimizer="sgd",
        lr=0.1, weight_decay=1e-3, keep="best", checkpoint=f"{name}.safetensors", every_steps=4, record=f"{name}.json",
        progress=False,
    )
    open(f"{name}.txt", "w").write(f"{lab.results.tensor_hash(run.model.state_dict())} {run.masks.fingerprint}")
for line in sys.stdin:
    if not (child := os.fork()):
        train(line.strip())
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Each line that it reads is a training, in a process of its own; it answers with the process and how that ended."""


@pytest.fixture
def trainer(tmp_path) -> Iterator[Any]:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    pipe: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(command, cwd=tmp_path, **pipe) as process:
        yield process


def begin(trainer: Any, name: str) -> int:
    print(name, file=trainer.stdin)
    return int(trainer.stdout.readline())


def ended(trainer: Any) -> int:
    return int(trainer.stdout.readline())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_five_random_moments_gives_the_same_bits(trainer, tmp_path):
    begin(trainer, "whole")
    assert ended(trainer) == 0
    chance, checkpoint = random.Random(0), tmp_path / "killed.safetensors"
    for kill in range(5):
        before = checkpoint.stat().st_mtime_ns if kill else 0
        pid = begin(trainer, "killed")
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before:  # until training has got further
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.1))
        os.kill(pid, signal.SIGKILL)
        assert ended(trainer) == -signal.SIGKILL
    begin(trainer, "killed")
    assert ended(trainer) == 0
    assert (tmp_path / "killed.txt").read_text() == (tmp_path / "whole.txt").read_text()
    whole, killed = (lab.Result.read(tmp_path / f"{n}.json") for n in ("whole", "killed"))
    assert {k: v for k, v in vars(killed).items() if k != "times"} == {
        k: v for k, v in vars(whole).items() if k != "times"
    }
    assert not [p for p in os.listdir(tmp_path) if p.startswith(".") and "whole" in p]


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("digits", train=200, test=60, size=8)


@pytest.fixture
def fit(data, tmp_path):
    def go(*methods, path=tmp_path / "c.safetensors", **options):
        model = lab.build("lenet300", data, seed=options.pop("model_seed", 0))
        settings: dict[str, Any] = {"epochs": 2, **options}
        return lab.fit(model, data, *methods, progress=False, checkpoint=path, **settings)

    return go


def test_a_finished_run_is_not_trained_again(fit):
    method = lab.methods.Gradual(lab.Cubic(0.5))
    first, second = fit(method), fit(method)
    assert torch.equal(first.model.fc1.weight, second.model.fc1.weight)
    assert second.history == first.history
    assert second.result.accuracy == first.result.accuracy


def test_another_configuration_is_refused_with_the_difference(fit):
    fit(lab.methods.OneShot(0.5))
    with pytest.raises(lab.RunError, match=r"lr was 0\.001 there and is 0\.01 now"):
        fit(lab.methods.OneShot(0.5), lr=0.01)
    with pytest.raises(lab.RunError, match=r"methods\[0\]\.sparsity was 0\.5 there and is 0\.9 now"):
        fit(lab.methods.OneShot(0.9))
    with pytest.raises(lab.RunError, match=r"origin\.weights was"):
        fit(lab.methods.OneShot(0.5), model_seed=1)


def test_what_is_not_written_down_elsewhere_is_compared_too(data, tmp_path):
    def go(**options):
        model = lab.build("lenet300", options.pop("data", data))
        path = tmp_path / "c.safetensors"
        return lab.fit(model, options.pop("train_on", data), epochs=1, progress=False, checkpoint=path, **options)

    go(lr_schedule=lambda progress: 1.0)
    with pytest.raises(lab.RunError, match="lr_schedule was"):
        go(lr_schedule=lambda progress: 0.0)
    (tmp_path / "c.safetensors").unlink()
    shifted = lab.load("digits", train=200, test=60, size=8, augment="shift")
    go(train_on=shifted)
    with pytest.raises(lab.RunError, match=r"data\.augment was"):
        go()


def test_a_methods_own_parameters_resume_with_their_optimizer_state(data, tmp_path):
    @dataclass
    class Gates(lab.Method):
        at: ClassVar[int] = 3
        gates: dict[str, torch.nn.Parameter] = field(init=False)

        def on_start(self, run):
            self.gates = {n: torch.nn.Parameter(torch.ones(())) for n in run.weights}
            run.param_groups.append({"params": list(self.gates.values()), "lr": 0.01, "weight_decay": 0.0})

        def on_loss(self, run):
            return torch.stack([(g - 2).square() for g in self.gates.values()]).sum()

        def on_step(self, run):
            if run.step == self.at:
                run.interrupt()

    def go(path, at):
        Gates.at = at
        model = lab.build("lenet300", data)
        return lab.fit(model, data, Gates(), epochs=3, batch_size=60, progress=False, checkpoint=path, every_steps=2)

    whole = go(tmp_path / "a", -1)
    go(tmp_path / "b", 5)
    resumed = go(tmp_path / "b", -1)
    for name, gate in method(whole).gates.items():
        assert torch.equal(gate, method(resumed).gates[name])
        assert isinstance(method(resumed).gates[name], torch.nn.Parameter)
        assert gate > 1.04


def method(run: lab.Run) -> Any:
    return run.methods[0]


def test_another_kind_of_file_is_refused(fit, tmp_path):
    run = fit()
    run.snapshot().save(tmp_path / "snapshot")
    with pytest.raises(lab.DataError, match="no checkpoint of a run"):
        fit(path=tmp_path / "snapshot")
    with pytest.raises(lab.DataError, match="no snapshot"):
        lab.Snapshot.load(tmp_path / "c.safetensors")


def test_a_damaged_checkpoint_is_named(fit, tmp_path):
    path = tmp_path / "c.safetensors"
    fit()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(lab.DataError, match=r"c\.safetensors cannot be read as a state file"):
        fit()


def test_state_makes_the_round_trip(tmp_path):
    state = {"a": [1, 2.5, None, "x", True], "b": {"t": torch.arange(6).view(2, 3), 3: torch.tensor(1.0)}, "c": []}
    storage.save_state(tmp_path / "s", state)
    again = storage.load_state(tmp_path / "s")
    assert again["a"] == state["a"]
    assert again["c"] == []
    assert torch.equal(again["b"]["t"], state["b"]["t"])
    assert again["b"][3] == 1
    with pytest.raises(lab.ConfigError, match="holds a set"):
        storage.save_state(tmp_path / "s", {"x": {1}})


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    storage.write_atomic(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]

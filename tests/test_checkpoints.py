"""Killed at any moment and resumed: the same bits. Another configuration or a damaged file: refused, and why."""

import errno
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import pruninglab as lab
from pruninglab import storage
from pruninglab.benchmark import TABLES, runner
from pruninglab.storage import locks
from pruninglab.train import checkpoints

SCRIPT = """
import os, sys, torch, torch._dynamo, pruninglab as lab
torch.set_num_threads(1)
data = lab.load("digits", train=300, test=60, size=14, augment="shift")
def train(name):
    model = lab.build("resnet20", data, seed=0, width=0.25)
    model.fc = torch.nn.Sequential(torch.nn.Dropout(0.3), model.fc)
    run = lab.fit(
        model, data, lab.methods.Gradual(lab.Cubic(0.9), reactivate=True), epochs=5, batch_size=30, optimizer="sgd",
        lr=0.1, weight_decay=1e-3, keep="best", checkpoint=f"{name}.safetensors", every_steps=4, record=f"{name}.json",
        collapse="allow", progress=False,
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
@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_at_random_moments_gives_the_same_bits(kills, trainer, tmp_path):
    begin(trainer, "whole")
    assert ended(trainer) == 0
    chance, checkpoint = random.Random(0), tmp_path / "killed.safetensors"
    for kill in range(kills):
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
        settings: Any = {"epochs": 2, "progress": False, "checkpoint": path, **options}
        return lab.fit(model, data, *methods, **settings)

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
    with pytest.raises(lab.RunError, match=r"sparsity was 0\.5 there and is \{'fc1\.weight': 0\.9\} now"):
        fit(lab.methods.OneShot({"fc1.weight": 0.9}))
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


@dataclass
class Part:
    steps: int = 0
    mean: torch.Tensor = field(default_factory=lambda: torch.zeros(2))


@dataclass
class Remembering(lab.Method):
    """State of every kind, which each step changes."""

    at: ClassVar[int] = -1
    part: Part = field(init=False)
    turned: lab.Masks = field(init=False)
    sums: list[torch.Tensor] = field(init=False)
    pair: tuple[int, torch.Tensor] = field(init=False)
    grown: torch.Tensor | None = field(init=False)

    def on_start(self, run):
        self.part, self.turned, self.grown = Part(), lab.Masks.full(run.weights), None
        self.sums, self.pair = [torch.zeros(1)], (0, torch.zeros(1))

    def on_step(self, run):
        self.part.steps += 1
        self.part.mean += run.step
        self.turned = ~self.turned
        self.grown = torch.cat([torch.zeros(0) if self.grown is None else self.grown, torch.ones(1)])
        self.sums[0] += run.step
        self.pair = (run.step, self.pair[1] + run.step)
        if run.step == self.at:
            run.interrupt()

    def kept(self) -> list[Any]:
        grown = None if self.grown is None else self.grown.tolist()
        part = (type(self.part), self.part.steps, self.part.mean.tolist())
        pair = (type(self.pair), self.pair[0], self.pair[1].tolist())
        return [part, self.turned.fingerprint, grown, self.sums[0].tolist(), pair]


@dataclass
class Watching(lab.Method):
    """Sees the steps, and changes nothing."""

    observes: ClassVar[bool] = True
    factor: int = 1
    seen: list[int] = field(init=False)

    def on_start(self, run):
        self.seen = []

    def on_step(self, run):
        self.seen.append(self.factor * run.step)


def test_all_that_a_method_remembers_goes_on_within_the_first_epoch(data, tmp_path, monkeypatch):
    def go(at, **options):
        monkeypatch.setattr(Remembering, "at", at)
        methods = (Remembering(), Watching(1), Watching(2))
        return lab.fit(
            lab.build("lenet300", data),
            data,
            *methods,
            epochs=2,
            batch_size=60,
            progress=False,
            every_steps=2,
            **options,
        )

    whole = go(-1)
    path = tmp_path / "c"
    assert go(2, checkpoint=path).status == "interrupted"
    resumed = go(-1, checkpoint=path)
    assert method(resumed).kept() == method(whole).kept()
    assert [m.seen for m in resumed.methods[1:]] == [m.seen for m in whole.methods[1:]]
    assert resumed.history == whole.history == go(-1, checkpoint=tmp_path / "d").history


def test_the_checkpoint_before_takes_the_name_of_the_lost_one(fit, tmp_path):
    path = tmp_path / "c.safetensors"
    run = fit(epochs=2)
    path.unlink()
    with pytest.warns(RuntimeWarning, match="was gone"):
        checkpoints.resume(run, path)
    assert [p.name for p in tmp_path.glob("c.*")] == ["c.safetensors"]


def test_another_kind_of_file_is_refused(fit, tmp_path):
    run = fit()
    run.snapshot().save(tmp_path / "snapshot")
    with pytest.raises(lab.DataError, match="no checkpoint of a run"):
        fit(path=tmp_path / "snapshot")
    with pytest.raises(lab.DataError, match="no snapshot"):
        lab.Snapshot.load(tmp_path / "c.safetensors")


def test_a_damaged_checkpoint_is_named(fit, tmp_path):
    path = tmp_path / "c.safetensors"
    fit(epochs=1)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(lab.DataError, match=r"c\.safetensors cannot be read as a state file"):
        fit(epochs=1)


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "gone"])
def test_the_checkpoint_before_takes_the_place_of_a_damaged_one(fit, tmp_path, harm):
    path, method = tmp_path / "c.safetensors", lab.methods.Gradual(lab.Cubic(0.5))
    whole = fit(method, epochs=3, keep="best", path=tmp_path / "whole")
    fit(method, epochs=3, keep="best")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.unlink() if harm == "gone" else path.write_bytes(content[: {"cut": 999, "empty": 0}.get(harm)])
    with pytest.warns(RuntimeWarning, match=r"c\.safetensors was (damaged|gone)"):
        again = fit(method, epochs=3, keep="best", record=tmp_path / "r.json")
    assert again.history == whole.history
    assert torch.equal(again.model.fc1.weight, whole.model.fc1.weight)
    assert "the one before it" in " ".join(lab.Result.read(tmp_path / "r.json").warnings)
    again = fit(method, epochs=3, keep="best")  # whole again, and the word of the damage stays in the record
    assert "the one before it" in " ".join(again.result.warnings)
    assert sorted(p.name for p in tmp_path.glob("c.*")) == ["c.safetensors", "c.safetensors.previous"]


def test_a_checkpoint_of_another_run_is_no_damage(fit, tmp_path):
    fit(epochs=3)
    whole = (tmp_path / "c.safetensors").read_bytes()
    with pytest.raises(lab.RunError, match="epochs was 3 there and is 4 now"):
        fit(epochs=4)
    assert (tmp_path / "c.safetensors").read_bytes() == whole


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_checkpoint_is_at_most_four_times_the_model(fit, tmp_path, keep, optimizer):
    stop: Any = {"keep": keep, "optimizer": optimizer, "epochs": 6, "every_steps": 1}
    run = fit(lab.methods.OneShot(0.3), **stop, progress=lambda run: run.interrupt() if run.step == 7 else None)
    assert run.best is not None
    assert run.best.step < run.step
    size = (tmp_path / "c.safetensors").stat().st_size
    assert size <= 4 * len(storage.state_bytes(run.model))


def test_a_method_that_goes_back_finds_the_memory_of_then(blobs, tmp_path):
    def go(path: Path, at: int = -1) -> lab.Run:
        gate = lab.methods.PruneWhileAccurate(lower_bound=0.5, every_steps=2, restore=True, patience=None)
        stop = {"progress": lambda run: run.interrupt() if run.step == at else None}
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(10, 4))
        options: Any = {"epochs": 6, "batch_size": 20, "checkpoint": path, "every_steps": 1, **stop}
        return lab.fit(model, blobs, gate, **options)

    whole = go(tmp_path / "whole")
    go(tmp_path / "broken", at=23)
    again = go(tmp_path / "broken")
    assert lab.results.tensor_hash(again.model.state_dict()) == lab.results.tensor_hash(whole.model.state_dict())
    assert again.best is not None
    assert again.best.optimizer


LEAVES = """
import os, sys
from pruninglab import storage
from pruninglab.storage import locks
os.replace = os.fsync = lambda *_: os.kill(os.getpid(), 9)
storage.write_atomic(sys.argv[1], b"new")
"""


def test_what_killed_writers_left_is_removed_by_the_next(tmp_path):
    storage.write_atomic(tmp_path / "f", b"old")
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", LEAVES, str(tmp_path / "f")]).returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    other = tmp_path / ".f2.12345678.partial"
    other.write_bytes(b"of another file")
    storage.write_atomic(tmp_path / "f", b"newer")
    assert sorted(os.listdir(tmp_path)) == [".f2.12345678.partial", "f"]
    assert (tmp_path / "f").read_bytes() == b"newer"


def test_a_writer_at_work_is_left_alone(tmp_path, monkeypatch):
    """Two that write one file: each finds its own part, and the last one counts."""
    replace = os.replace

    def meanwhile(*names: Any) -> None:
        monkeypatch.undo()
        storage.write_atomic(tmp_path / "f", b"second")
        replace(*names)

    monkeypatch.setattr(os, "replace", meanwhile)
    storage.write_atomic(tmp_path / "f", b"first")
    assert (tmp_path / "f").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["f"]


def test_the_folder_is_flushed_too(tmp_path, monkeypatch):
    flushed: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(os.fstat(file).st_mode) or fsync(file))
    storage.write_atomic(tmp_path / "f", b"x")
    assert [stat.S_ISDIR(mode) for mode in flushed] == [False, True]


def test_without_links_a_file_keeps_its_predecessor(tmp_path, monkeypatch):
    def refuse(*_: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    for content in (b"1", b"2", b"3"):
        storage.write_atomic(tmp_path / "f", content, keep_previous=True)
    assert (tmp_path / "f").read_bytes() == b"3"
    assert (tmp_path / "f.previous").read_bytes() == b"2"
    assert len(os.listdir(tmp_path)) == 2


# -- one writer -------------------------------------------------------------------------------------------------------

HOLDS = """
import sys, time, torch, pruninglab as lab
data = lab.load("digits", train=200, test=60, size=8)
def slow(run):
    print("training", flush=True)
    time.sleep(600)
model = lab.build("lenet300", data)
if sys.argv[2] == "recipe":
    lab.recipes.iterative(model, data, 0.5, epochs=2, finetune=1, folder=sys.argv[1], progress=slow)
else:
    lab.fit(model, data, epochs=2, checkpoint=sys.argv[1] + "/c.safetensors", progress=slow)
"""


@pytest.mark.parametrize("kind", ["fit", pytest.param("recipe", marks=pytest.mark.slow)])
def test_a_second_process_is_refused_by_name_and_takes_over_from_a_dead_one(tmp_path, data, monkeypatch, kind):
    monkeypatch.setattr(locks, "WAIT", 0.2)
    first = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path), kind], stdout=subprocess.PIPE, text=True)
    assert first.stdout
    assert first.stdout.readline() == "training\n"
    model = lab.build("lenet300", data)

    def second() -> Any:
        if kind == "recipe":
            options: Any = {"epochs": 2, "finetune": 1, "folder": tmp_path, "progress": False}
            return lab.recipes.iterative(model, data, 0.5, **options)
        return lab.fit(model, data, epochs=2, checkpoint=tmp_path / "c.safetensors", progress=False)

    with pytest.raises(lab.RunError, match=rf"in use by process {first.pid} on .*\. "):
        second()
    first.kill()
    first.communicate()
    second()
    assert not [name for name in os.listdir(tmp_path) if "lock" in name]


# -- a disk that fails ------------------------------------------------------------------------------------------------


def full(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["write", "replace", "fsync"])
def test_a_full_disk_loses_nothing_that_was_trained(fit, tmp_path, monkeypatch, call):
    whole = fit(path=tmp_path / "whole", epochs=4)
    real = getattr(os, call)

    def filling(run: lab.Run) -> None:
        monkeypatch.setattr(os, call, full if 3 <= run.step < 6 else real)

    options: Any = {"epochs": 4, "every_steps": 1, "batch_size": 100, "record": tmp_path / "r.json"}
    with pytest.warns(RuntimeWarning, match=r"c\.safetensors could not be written \(No space left") as said:
        run = fit(**options, progress=filling)
    assert len(said) == 1
    assert run.status == "done"
    assert run.history == whole.history
    assert "could not be written" in " ".join(lab.Result.read(tmp_path / "r.json").warnings)
    assert lab.storage.load_state(tmp_path / "c.safetensors")["progress"]["step"] == run.steps
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


def test_a_disk_that_stays_full_gives_the_run_back(fit, tmp_path, monkeypatch):
    options: Any = {"record": tmp_path / "r.json", "progress": lambda _: monkeypatch.setattr(os, "write", full)}
    with pytest.warns(RuntimeWarning, match=r"could not be written") as said:
        run = fit(**options)
    assert len(said) == 2
    assert run.status == "done"
    assert len(run.result.warnings) == 2
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def fitted(blobs):
    return lab.fit(torch.nn.Sequential(torch.nn.Linear(10, 4)), blobs, epochs=0, progress=False)


WRITERS: dict[str, Callable[[lab.Run, Path], Any]] = {
    "record": lambda run, path: run.save(path),
    "result": lambda run, path: run.result.save(path),
    "snapshot": lambda run, path: run.snapshot().save(path),
    "state": lambda run, path: lab.storage.save_state(path, {"a": 1}),
    "sparse file": lambda run, path: lab.storage.save(run, path),
    "any bytes": lambda run, path: lab.storage.write_atomic(path, b"x"),
    "published": lambda run, path: lab.train.publish(run, path.parent),
    "row of a table": lambda run, path: runner.keep(run, TABLES["MNIST"].rows["dense"], path),
    "C": lambda run, path: lab.deploy.export_c(run, path),
}


@pytest.mark.parametrize("call", ["write", "replace"])
@pytest.mark.parametrize("name", WRITERS)
def test_whatever_is_written_says_in_words_that_the_disk_is_full(fitted, tmp_path, monkeypatch, name, call):
    monkeypatch.setattr(os, call, full)
    with pytest.raises(lab.RunError, match=rf"{tmp_path}.* could not be written: No space left on device.*room"):
        WRITERS[name](fitted, tmp_path / "file")
    monkeypatch.undo()
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]
    WRITERS[name](fitted, tmp_path / "file")


def test_a_folder_that_is_removed_is_made_again(fit, tmp_path):
    def remove(run: lab.Run) -> None:
        if run.step == 3:
            shutil.rmtree(tmp_path / "x")

    options: Any = {"path": tmp_path / "x" / "c", "record": tmp_path / "x" / "r", "every_steps": 1, "progress": remove}
    with pytest.warns(RuntimeWarning, match=r"x was removed"):
        run = fit(**options, batch_size=100)
    assert lab.Result.read(tmp_path / "x" / "r").warnings == run.result.warnings
    assert fit(**{**options, "progress": False}, batch_size=100).history == run.history


LIMITED = """
import resource, sys, pruninglab as lab
data = lab.load("digits", train=200, test=60, size=8)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
run = lab.fit(lab.build("lenet300", data), data, epochs=2, checkpoint=sys.argv[1] + "/c", record=sys.argv[1] + "/r")
print(run.status, len(run.history), run.result.warnings)
"""


def test_a_limit_of_file_sizes_is_survived(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.startswith("done 2 [")
    assert "File too large" in done.stdout
    assert "could not be written" in done.stderr
    assert os.listdir(tmp_path) == ["r"]


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


# -- other code -------------------------------------------------------------------------------------------------------

EDITED = """
import torch, pruninglab as lab
from dataclasses import dataclass
from torch import nn
from torch.nn import functional as F
{helper}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(10, 4)
    def forward(self, x):
        return {forward}
@dataclass
class Own(lab.Method):
    def on_step(self, run):
        {method}
def loss(logits, y):
    return {loss}
"""
PLAIN = {
    "helper": "def inner(x): return x",
    "forward": "self.fc(inner(x))",
    "method": "pass",
    "loss": "F.cross_entropy(logits, y)",
}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"forward": "-self.fc(inner(x))"}, "the model's code was"),
        ({"helper": "def inner(x): return 2 * x"}, "the model's code was"),
        ({"helper": "SCALE = 2\ndef inner(x): return SCALE * x"}, "the model's code was"),
        ({"method": "run.model.fc.weight.data.mul_(0.5)"}, r"methods\[0\]\.code was"),
        ({"loss": "2 * F.cross_entropy(logits, y)"}, "loss was"),
        ({"__version__": "9"}, "pruninglab was '0"),
        ({"code_hash": lambda: "other"}, "its source was"),
        ({"torch": SimpleNamespace(**vars(torch) | {"__version__": "1.2"})}, "torch was"),
    ],
    ids=["forward", "helper", "constant", "method", "loss", "version", "source", "torch"],
)
def test_a_finished_checkpoint_of_other_code_is_refused(blobs, tmp_path, monkeypatch, edit, said):
    def go(edit: dict[str, Any], **options: Any) -> lab.Run:
        mine: dict[str, Any] = {"__name__": "mine"}
        exec(EDITED.format(**PLAIN | edit), mine)
        for name in edit.keys() - PLAIN.keys():
            monkeypatch.setattr(checkpoints, name, edit[name])
        fixed: Any = {"epochs": 1, "loss": mine["loss"], "checkpoint": tmp_path / "c", "progress": False}
        return lab.fit(mine["Net"](), blobs, mine["Own"](), **fixed, **options)

    first = go({})
    assert go({}).result.warnings == []
    with pytest.raises(lab.RunError, match=rf"{said}.*other_code=True"):
        go(edit)
    with pytest.warns(RuntimeWarning, match=rf"begun by other code: .*{said}"):
        gone_on = go(edit, other_code=True)
    assert gone_on.history == first.history
    assert re.search(said, " ".join(gone_on.result.warnings))


def test_what_changes_only_bits_is_in_the_record(fit, monkeypatch):
    fit()
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    run = fit()
    torch.set_num_threads(before)
    (warning,) = run.result.warnings
    assert re.match(r"not the bits of an undisturbed run: instructions was .*'ABACUS' now; threads was", warning)


def test_another_setting_is_refused_whatever_the_code(fit):
    fit(lab.methods.OneShot(0.5))
    with pytest.raises(lab.RunError, match=r"methods\[0\]\.sparsity was"):
        fit(lab.methods.OneShot(0.6), other_code=True)

"""`fit` in any circumstances: precisions set before, inference mode, other optimizers, little memory, onlookers."""

import dataclasses
import inspect
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

import pruninglab as lab
from pruninglab.identity import tensor_hash
from pruninglab.methods import L0, Gradual, OneShot
from pruninglab.train import options

QUIET: dict[str, Any] = {"progress": False, "collapse": "allow", "epochs": 1}
fit: Any = lab.fit  # options are put together as dicts here


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


# -- what was set before ----------------------------------------------------------------------------------------------

PRECISIONS = """
import os, sys, torch, torch._dynamo, pruninglab as lab
from pruninglab.train import machine
from torch.utils.data import TensorDataset
b = torch.backends
ways = {
    "new matmul": lambda: setattr(b.cuda.matmul, "fp32_precision", "tf32"),
    "new all": lambda: setattr(b, "fp32_precision", "tf32"),
    "new cudnn": lambda: setattr(b.cudnn, "fp32_precision", "ieee"),
    "new conv": lambda: setattr(b.cudnn.conv, "fp32_precision", "tf32"),
    "new rnn": lambda: setattr(b.cudnn.rnn, "fp32_precision", "ieee"),
    "new mkldnn": lambda: setattr(b.mkldnn.matmul, "fp32_precision", "ieee"),
    "old matmul": lambda: torch.set_float32_matmul_precision("high"),
    "old cuda": lambda: setattr(b.cuda.matmul, "allow_tf32", True),
    "old cudnn": lambda: setattr(b.cudnn, "allow_tf32", False),
}
def states():
    cudnn = (b.cudnn.benchmark, b.cudnn.deterministic, b.cudnn.enabled)
    return cudnn, b.cuda.matmul.fp32_precision, b.cudnn.conv.fp32_precision, b.cudnn.rnn.fp32_precision
g = torch.Generator().manual_seed(0)
x, y = torch.randn(80, 10, generator=g), torch.arange(80) % 4
data = lab.wrap(TensorDataset(x, y), TensorDataset(x, y), val=0.2, name="b")
def check(before):
    before()
    then = states()
    torch.manual_seed(0)
    run = lab.fit(torch.nn.Linear(10, 4), data, epochs=1, progress=False)
    assert run.status == "done"
    assert states() == then
    with machine.settings(torch.device("cuda")):  # what a GPU would get, set and undone on any build
        assert b.cuda.matmul.fp32_precision == "tf32"
        assert b.cudnn.conv.fp32_precision == "tf32" and b.cudnn.deterministic and not b.cudnn.benchmark
    assert states() == then
    before()
failed = []
for name, before in ways.items():
    if not (child := os.fork()):
        check(before)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit(", ".join(failed) or 0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_any_precision_may_be_set_before():
    """Each in a process of its own: torch refuses to mix its two ways of setting it."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PRECISIONS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("guard", [torch.inference_mode, torch.no_grad])
def test_fit_inside_inference_mode_is_fit(blobs, guard):
    plain = fit(net(), blobs, Gradual(lab.Cubic(0.5)), **QUIET)
    with guard():
        inside = fit(net(), blobs, Gradual(lab.Cubic(0.5)), **QUIET)
        again = fit(inside, blobs, **QUIET)
        pruned, masks = lab.prune(inside, 0.9, collapse="allow")
        loaded = lab.load("digits", train=100, test=30, size=8)
        own = fit(lab.build("lenet300", loaded), loaded, OneShot(0.5, "snip"), **QUIET)
    assert tensor_hash(plain.model.state_dict()) == tensor_hash(inside.model.state_dict())
    assert (again.status, own.status) == ("done", "done")
    fit(pruned, blobs, masks=masks, **QUIET)
    inside.model(torch.zeros(2, 10)).sum().backward()  # plain tensors came out


# -- going on from a snapshot -----------------------------------------------------------------------------------------


def snapshot(blobs: lab.Data, *methods: lab.Method, **options: Any) -> lab.Snapshot:
    return fit(net(), blobs, *methods, **{**QUIET, **options}).snapshot()


@pytest.mark.parametrize(
    ("was", "now"), [("adam", "sgd"), ("sgd", "adam"), ("adamw", "sgd"), ("sgd", "adamw")], ids=str
)
def test_a_snapshot_of_another_optimizer_is_refused_before_training(blobs, was, now):
    start = snapshot(blobs, optimizer=was)
    with pytest.raises(lab.ConfigError, match=rf"start: the snapshot .* optimizer={now!r}.*optimizer=None"):
        fit(net(), blobs, start=start, **{**QUIET, "epochs": 2, "optimizer": now})


@pytest.mark.parametrize(("was", "now"), [("adam", "adamw"), ("adamw", "adam")], ids=str)
def test_optimizers_with_the_same_memory_take_it_over(blobs, was, now):
    start = snapshot(blobs, optimizer=was)
    run = fit(net(), blobs, start=start, **{**QUIET, "epochs": 2, "optimizer": now})
    assert run.origin["optimizer"] is not None
    assert run.status == "done"


def test_momentum_turned_off_leaves_the_memory_behind(blobs):
    start = snapshot(blobs, optimizer="sgd", momentum=0.9)
    assert fit(net(), blobs, start=start, **{**QUIET, "epochs": 2}, optimizer="sgd", momentum=0.0).status == "done"
    start = snapshot(blobs, optimizer="sgd", momentum=0.0)
    assert fit(net(), blobs, start=start, **{**QUIET, "epochs": 2}, optimizer="sgd", momentum=0.9).status == "done"


@pytest.mark.parametrize("was", [(), (L0(droprate=0.9),), (OneShot(0.5),)], ids=str)
@pytest.mark.parametrize("now", [(), (L0(0.3, unit="channel", droprate=0.9),), (lab.methods.SoftSharing(),)], ids=str)
def test_a_snapshot_of_another_method_gives_what_both_have(blobs, was, now):
    start = snapshot(blobs, *was)
    run = fit(net(), blobs, *now, start=start, **{**QUIET, "epochs": 2})
    assert run.status in ("done", "target_missed")
    assert run.first_step == start.step


# -- batches ----------------------------------------------------------------------------------------------------------


@dataclass
class Sizes(lab.Method):
    observes = True
    seen: list[int] = field(init=False)

    def on_start(self, run: lab.Run) -> None:
        self.seen = []

    def on_step(self, run: lab.Run) -> None:
        self.seen.append(len(run.y))


@pytest.mark.parametrize("size", [1, 2, 3, 53, 159, 160, 161])
def test_batches_have_their_size_and_a_last_image_is_alone_only_if_all_are(blobs, size):
    seen = fit(nn.Linear(10, 4), blobs, Sizes(), batch_size=size, **QUIET)[Sizes].seen
    assert sum(seen) == 160
    assert set(seen[:-1]) <= {size}
    assert seen[-1] <= max(size + 1, 2) if size > 1 else seen == [1] * 160
    assert size == 1 or min(seen) > 1


class Greedy(nn.Module):
    """Runs out of memory on batches above a size, as a device would."""

    def __init__(self, most: int, error: type[Exception] = torch.OutOfMemoryError):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.most, self.error, self.batches = nn.Linear(10, 4), most, error, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            self.batches.append(len(x))
            if len(x) > self.most:
                raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 26 GB")
        return self.fc(x)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_evaluation_that_runs_out_of_memory_is_tried_once_more_with_half(blobs, tmp_path, error):
    whole = fit(Greedy(10**9), blobs, **QUIET)
    run = fit(Greedy(50, error), blobs, eval_batch_size=100, record=tmp_path / "r", **QUIET)
    assert run.result.accuracy["test"] == pytest.approx(whole.result.accuracy["test"])
    assert run.model.batches.count(100) == 1
    assert "batches of 50" in " ".join(lab.Result.read(tmp_path / "r").warnings)
    assert "eval_batch_size" in repr(run)
    with pytest.raises(lab.RunError, match=r"batches of 50.*eval_batch_size"):
        fit(Greedy(20, error), blobs, eval_batch_size=100, **QUIET)


def test_another_error_is_not_taken_for_a_lack_of_memory(blobs):
    class Broken(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            if not self.training and len(input) > 2:
                raise RuntimeError("something else")
            return super().forward(input)

    with pytest.raises(RuntimeError, match="something else"):
        fit(Broken(10, 4), blobs, **QUIET)


@pytest.mark.parametrize("size", [1, 7, 40, 1000])
def test_the_size_of_evaluation_batches_changes_no_count(blobs, size):
    run = fit(net(), blobs, eval_batch_size=size, **QUIET)
    assert run.test == pytest.approx(fit(net(), blobs, **QUIET).test)


# -- looking on -------------------------------------------------------------------------------------------------------


def test_progress_sees_the_last_epoch(blobs):
    seen: list[tuple[int, int]] = []
    options: Any = {**QUIET, "epochs": 3, "progress": lambda run: seen.append((run.step, len(run.history)))}
    run = fit(net(), blobs, **options)
    assert seen == [(step, step // run.steps_per_epoch) for step in range(1, run.steps + 1)]
    seen.clear()
    stopped = fit(net(), blobs, **{**options, "epochs": 40, "patience": 1})
    assert stopped.status == "stopped"
    assert seen[-1] == (stopped.step, len(stopped.history))
    seen.clear()
    fit(net(), blobs, **{**options, "epochs": 0})
    assert seen == []


@dataclass
class Logs(lab.Method):
    """Looks at everything, draws at every moment, and changes nothing."""

    observes = True
    often: int = 1
    seen: list[float] = field(init=False)

    def look(self, run: lab.Run) -> None:
        self.seen.append(float(torch.rand(())) + run.step)

    def on_start(self, run: lab.Run) -> None:
        self.seen = []
        self.look(run)

    def on_loss(self, run: lab.Run) -> None:
        self.look(run)

    on_grad = on_step = on_epoch = on_end = look


@pytest.mark.parametrize(
    "methods",
    [(), (OneShot(0.5),), (OneShot(0.5, "random"),), (lab.methods.TargetedDropout(0.5),), (L0(droprate=0.9),)],
    ids=str,
)
def test_an_observer_changes_nothing(blobs, tmp_path, methods):
    def record(*all_methods: lab.Method, file: str = "a") -> dict[str, Any]:
        run = fit(net(), blobs, *all_methods, **{**QUIET, "epochs": 2, "checkpoint": tmp_path / file})
        return {k: v for k, v in vars(run.result).items() if k != "times"} | {
            "weights": tensor_hash(run.model.state_dict()),
            "row": {k: v for k, v in run.result.row().items() if k != "seconds"},
            "name": run.name,
        }

    plain = record(*methods)
    assert record(Logs(3), *methods) == plain  # resumed with an onlooker that was not there
    assert record(Logs(), *methods, Logs(2), file="b") == plain
    assert record(*methods, file="b") == plain  # and without one that was


def test_an_observer_resumes_with_what_it_saw(blobs, tmp_path):
    @dataclass
    class Press(lab.Method):
        def on_step(self, run: lab.Run) -> None:
            if run.step == 3:
                run.interrupt()

    options: Any = {**QUIET, "epochs": 2, "checkpoint": tmp_path / "c", "batch_size": 40}
    first = fit(net(), blobs, Press(), Logs(), **options)
    assert first.status == "interrupted"
    whole = fit(net(), blobs, Press(), Logs(), **{**options, "checkpoint": None})
    resumed = fit(net(), blobs, Press(), Logs(), **options)
    assert resumed[Logs].seen[: len(whole[Logs].seen) - 1] == whole[Logs].seen[:-1]
    assert resumed.step == resumed.steps


def test_an_observer_that_interferes_is_stopped(blobs):
    @dataclass
    class Meddles(lab.Method):
        observes = True

        def on_step(self, run: lab.Run) -> None:
            run.cut("magnitude", 0.5)

    @dataclass
    class Adds(lab.Method):
        observes = True

        def on_loss(self, run: lab.Run) -> torch.Tensor:
            return run.logits.square().mean()

    for method in (Meddles(), Adds()):
        with pytest.raises(lab.ConfigError, match="observes"):
            fit(net(), blobs, method, **QUIET)


# -- options ----------------------------------------------------------------------------------------------------------


def test_options_are_described_once():
    """The types that recipes pass on, the fields with defaults, and what `help(lab.fit)` shows are the same."""
    named = {f.name for kind in (options.Options, options.Session) for f in dataclasses.fields(kind)}
    assert set(options.FitOptions.__annotations__) == named
    shown = {
        name: p for name, p in inspect.signature(lab.fit).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert set(shown) == named
    assert shown["epochs"].default is inspect.Parameter.empty
    assert shown["eval_batch_size"].default == 1000


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("lr_shedule", "lr_schedule"),
        ("batchsize", "batch_size"),
        ("evalbatch_size", "eval_batch_size"),
        ("tag", "tags"),
    ],
)
def test_a_misspelt_option_is_refused_with_the_one_that_was_meant(blobs, wrong, meant):
    with pytest.raises(lab.ConfigError, match=f"{wrong!r}.*Did you mean {meant}"):
        fit(net(), blobs, **QUIET, **{wrong: 1})

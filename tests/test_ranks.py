"""One training over several processes: equal masks, the result of one process, and no run lost with a process."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pruninglab as lab
from pruninglab import methods
from pruninglab.__main__ import main
from pruninglab.randomness import Share, own_randomness
from pruninglab.train import ranks

HERE = Path(__file__).parent


def net() -> nn.Module:
    """All that a share of a batch could change: statistics of the batch, and noise for each sample."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(144, 10))
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def digits():
    return lab.load("digits", train=130, test=40, size=8)


def close(losses: list[float], others: list[float]) -> None:
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(others), rtol=1e-4, atol=0)


def test_two_processes_train_as_one_does_and_one_goes_on_alone(digits, tmp_path):
    """33 images a batch: no share is as large as the other. Broken off by two processes, ended by one."""

    def trained(**more: Any) -> Any:
        how = {"epochs": 3, "batch_size": 33, "device": "cpu", "progress": False, "collapse": "allow"}
        return lab.fit(net(), digits, methods.Gradual(lab.Cubic(0.8)), methods.L0(0.5), **how | more)

    whole = trained()
    place = {"checkpoint": tmp_path / "run.ckpt", "record": tmp_path / "run.json"}
    begun = trained(devices=2, **place, progress=lambda run: run.interrupt() if run.step == 5 else None)
    assert begun.status == "interrupted"
    assert json.loads(place["record"].read_text())["environment"]["processes"] == 2
    rest = trained(**place)
    assert rest.status == whole.status
    assert rest.masks.fingerprint == whole.masks.fingerprint
    assert any("processes was 2 there" in warning for warning in rest.warnings)
    close([entry["loss"] for entry in rest.history], [entry["loss"] for entry in whole.history])
    assert "processes" not in whole.result.environment


def test_what_other_processes_cannot_read_is_refused_before_training(digits):
    with pytest.raises(lab.ConfigError, match=r"cannot be sent to other processes.*torchrun"):
        lab.fit(net(), digits, epochs=1, devices=2, device="cpu", loss=lambda logits, y: F.cross_entropy(logits, y))
    with pytest.raises(lab.ConfigError, match="devices=0"):
        lab.fit(net(), digits, epochs=1, devices=0)


@pytest.mark.parametrize("samples", [1, 2, 3, 7])
def test_shares_are_all_of_a_batch_and_none_is_empty(samples):
    shares = [ranks.Ranks(number, 3).share(samples) for number in range(3)]
    assert [i for share in shares if share.counts for i in range(samples)[share.rows]] == list(range(samples))
    assert all(share.here >= 1 for share in shares)


def test_noise_for_a_share_is_that_of_the_whole_batch():
    """Whatever draws: dropout, uniform and normal numbers, in the layout of a batch and in one row."""
    x = torch.ones(7, 4, 3)

    def drawn(share: Share | None) -> list[torch.Tensor]:
        mine = x if share is None else x[share.rows]
        with own_randomness(0) as source:
            source.share = share
            row = torch.randn(mine.numel())
            uniform = torch.empty_like(mine).uniform_()
            return [F.dropout(mine), F.dropout2d(mine), torch.rand(len(mine), 2), row.view_as(mine), uniform]

    whole, shares = drawn(None), [ranks.Ranks(number, 2).share(7) for number in range(2)]
    for share in shares:
        for all_of_it, own in zip(whole, drawn(share), strict=True):
            assert torch.equal(all_of_it[share.rows], own)


def test_a_script_and_a_notebook_run_from_the_command_line(tmp_path, capsys):
    script = tmp_path / "study.py"
    script.write_text("import sys\nprint('given', sys.argv[1:])\n")
    assert main(["run", str(script), "a", "b"]) == 0
    assert "given ['a', 'b']" in capsys.readouterr().out
    assert main(["run", str(tmp_path / "none.py")]) == 2
    assert main(["run", str(HERE / "conftest.md")]) == 2
    assert "no file" in capsys.readouterr().err


def launched(folder: Path, *command: str, count: int = 2) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", *command]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "may_differ"), [("float64", 0), ("float32", 0.05)])
def test_every_method_keeps_equal_masks_and_the_losses_of_one_process(tmp_path, dtype, may_differ):
    """In float32 two of 67 may cut another weight than one process does, of the same score but for rounding."""
    worker = [str(HERE / "ranks_worker.py"), str(tmp_path), dtype]
    together = launched(tmp_path, *worker)
    subprocess.run([sys.executable, *worker], cwd=HERE, check=True)
    output = together.communicate(timeout=1200)[0]
    assert together.returncode == 0, output
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "0", "1"))
    assert first == second
    assert first.keys() == one.keys()
    others = [name for name, alone in one.items() if first[name]["masks"] != alone["masks"]]
    assert len(others) <= may_differ * len(one), others
    for name in one.keys() - others:
        close(first[name]["loss"], one[name]["loss"])


@pytest.mark.slow
def test_a_process_without_a_sample_trains_along():
    """Each batch of three in parts of two and of one, for two processes."""
    few = lab.load("digits", train=14, test=10, size=8)
    how: dict[str, Any] = {"epochs": 2, "batch_size": 3, "accumulate": 2, "device": "cpu", "progress": False}
    alone, together = (lab.fit(net(), few, methods.Gradual(lab.Cubic(0.5)), devices=n, **how) for n in (1, 2))
    assert together.masks.fingerprint == alone.masks.fingerprint
    close([entry["loss"] for entry in together.history], [entry["loss"] for entry in alone.history])


@pytest.mark.slow
def test_a_process_that_a_training_started_dies_and_another_number_of_them_goes_on(digits, tmp_path):
    def kill(run: lab.Run) -> None:
        if run.step == 9:
            for child in psutil.Process().children():
                child.kill()

    how: dict[str, Any] = {"epochs": 500, "batch_size": 33, "device": "cpu", "checkpoint": tmp_path / "run.ckpt"}
    with pytest.raises(lab.RunError, match=r"another process of this run has ended .*the checkpoint is kept"):
        lab.fit(net(), digits, devices=2, progress=kill, **how)
    for count, step in ((3, 10), (1, 11)):  # from step 8; several processes stop together, a step after they are asked
        run = lab.fit(net(), digits, devices=count, progress=lambda run: run.interrupt(), **how)
        assert run.step == step


SCRIPT = """
import os, sys, time, torch, pruninglab as lab
sys.path.insert(0, {tests!r})
from test_ranks import net
data = lab.load("digits", train=130, test=40, size=8)
model = net()
rank = int(os.environ["RANK"])
def progress(run):
    if {dies} and rank == 1 and run.step == 9:
        os._exit(7)
if {unseeded}:
    torch.manual_seed(rank)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
how = dict(epochs=500, batch_size=33, device="cpu", checkpoint="run.ckpt")
lab.fit(model, data, **how, progress=progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dies", "unseeded"])
def test_a_process_that_dies_or_differs_ends_the_others_and_the_checkpoint_stays(tmp_path, digits, how):
    script = tmp_path / "study.py"
    asked = {"dies": how == "dies", "unseeded": how == "unseeded"}
    script.write_text(SCRIPT.format(tests=str(HERE), **asked))
    process = launched(tmp_path, "-m", "pruninglab", "run", str(script))
    began = time.monotonic()
    output = process.communicate(timeout=300)[0]
    assert process.returncode != 0
    if how == "unseeded":
        assert "differ before the first step in the network" in output
        return
    assert time.monotonic() - began < 60 or os.getloadavg()[0] > 4
    run = lab.fit(net(), digits, epochs=500, batch_size=33, device="cpu", progress=lambda run: run.interrupt(),
                  checkpoint=tmp_path / "run.ckpt")  # fmt: skip
    assert run.step == 9

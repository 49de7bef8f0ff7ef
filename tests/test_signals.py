"""SIGTERM and SIGUSR1 act as Ctrl-C does: the step ends, a checkpoint is written, and the process ends with 143."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import pruninglab as lab
from pruninglab import storage, sweep, terminal

TRAINS = """
import os, time, torch, pruninglab as lab
data = lab.load("digits", train=200, test=60, size=8)
def slow(run):
    with open(f"{out}/steps", "a") as steps:
        print(run.step, run.steps, file=steps)
    time.sleep(pause)
model = lab.build("lenet300", data)
run = lab.fit(
    model, data, lab.methods.Gradual(lab.Cubic(0.5)), epochs=6, batch_size=50, progress=slow,
    checkpoint=f"{out}/c", record=f"{out}/r.json",
)
"""
PARAMETERS = 'pause: float = 0.3  # seconds a step\nout: str = ""  # folder'
WAIT = 120


def script(out: Path, pause: float, before: str = "", after: str = "print('went on')") -> list[str]:
    return [sys.executable, "-c", f"out, pause = {str(out)!r}, {pause}\n{before}\n{TRAINS}\n{after}"]


def steps(out: Path) -> list[int]:
    """The steps that were made, in order."""
    return [int(line.split()[0]) for line in (out / "steps").read_text().splitlines()]


def until(there: Callable[[], Any]) -> None:
    for _ in range(20 * WAIT):
        if there():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")


def training(out: Path, least: int = 3) -> Callable[[], bool]:
    return lambda: (out / "steps").exists() and len(steps(out)) >= least


LONG = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=LONG)], ids=lambda n: n.name)
def test_a_training_ends_with_a_checkpoint_and_goes_on_from_it(tmp_path, number):
    process = subprocess.Popen(script(tmp_path, 0.3), stdout=subprocess.PIPE, text=True)
    until(training(tmp_path))
    process.send_signal(number)
    said, _ = process.communicate(timeout=WAIT)
    assert (process.returncode, said) == (143, "")
    record = lab.Result.read(tmp_path / "r.json")
    assert (record.status, record.reason) == ("interrupted", f"by {number.name}")
    made = steps(tmp_path)
    assert storage.load_state(tmp_path / "c")["progress"]["step"] == made[-1]
    done = subprocess.run(script(tmp_path, 0), stdout=subprocess.PIPE, text=True, timeout=WAIT)
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert steps(tmp_path) == list(range(1, 25))


@LONG
def test_a_handler_of_the_users_gets_its_signal_after_the_checkpoint(tmp_path):
    own = "import signal, sys\nsignal.signal(signal.SIGUSR1, lambda *_: print('requeued', steps_so_far()))\n"
    own += "def steps_so_far(): return open(out + '/steps').read().count(chr(10))"
    process = subprocess.Popen(script(tmp_path, 0.3, own), stdout=subprocess.PIPE, text=True)
    until(training(tmp_path))
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=WAIT)
    assert said == f"requeued {len(steps(tmp_path))}\nwent on\n"
    assert len(steps(tmp_path)) < 24


def test_handlers_are_given_back_and_work_inside_work_ends_both():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    asked: list[str] = []
    with terminal.asked_to_stop(lambda by: asked.append(f"outer {by}")) as outer:
        with terminal.asked_to_stop(lambda by: asked.append(f"inner {by}")) as inner:
            signal.raise_signal(signal.SIGTERM)
        inner.pass_on()
        inner.end()  # the outer one sees to it
    assert asked == ["inner SIGTERM", "outer SIGTERM"]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    with pytest.raises(SystemExit) as ended:
        outer.end()
    assert ended.value.code == 143


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with terminal.asked_to_stop(lambda by: pytest.fail("it was asked")) as asked:
            signal.raise_signal(signal.SIGUSR1)
        asked.end()
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    ("who", "number"),
    [
        pytest.param("papermill", signal.SIGTERM, marks=LONG),
        pytest.param("papermill", signal.SIGKILL, marks=LONG),
        pytest.param("kernel", signal.SIGTERM, marks=LONG),
    ],
    ids=str,
)
def test_in_papermill_the_kernel_writes_its_checkpoint(notebook, tmp_path, who, number):
    source, done = notebook(PARAMETERS, TRAINS), tmp_path / "done.ipynb"
    command = [sys.executable, "-m", "papermill", "--language", "python", "-k", "python3", str(source), str(done)]
    process = subprocess.Popen([*command, "-p", "out", str(tmp_path)], stderr=subprocess.DEVNULL)
    until(training(tmp_path))
    (kernel,) = [p for p in psutil.Process(process.pid).children() if "ipykernel_launcher" in " ".join(p.cmdline())]
    (kernel if who == "kernel" else process).send_signal(number)
    assert process.wait(WAIT) != 0
    until(lambda: not alive([kernel]))
    assert storage.load_state(tmp_path / "c")["progress"]["step"] == steps(tmp_path)[-1] < 24


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def started(source: Path, out: Path) -> tuple[subprocess.Popen[str], Path, list[psutil.Process]]:
    """A sweep of one cell that trains: its process, the folder where it works, and all that it has started."""
    (name,) = sweep.plan(source, {"pause": [0.3]}, out).cells
    command = [sys.executable, "-m", "pruninglab", "sweep", str(source), "-p", "pause=0.3", "--out", str(out)]
    process = subprocess.Popen([*command, "--jobs", "1"], stdout=subprocess.PIPE, text=True)
    work = out / ".work" / name
    until(training(work))
    return process, work, psutil.Process(process.pid).children(recursive=True)


@LONG
def test_a_sweep_ends_with_a_checkpoint_of_each_cell(notebook, tmp_path):
    source = notebook(PARAMETERS, TRAINS)
    process, work, below = started(source, tmp_path / "out")
    process.terminate()
    said, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 143, said
    assert "write their checkpoints" in said
    assert not alive(below)
    assert storage.load_state(work / "c")["progress"]["step"] == steps(work)[-1] < 24
    planned = sweep.plan(source, {"pause": [0.3]}, tmp_path / "out")
    assert len(planned.missing) == 1
    planned.run(jobs=1, say=lambda line: None)
    assert steps(tmp_path / "out" / work.name) == list(range(1, 25))


def test_a_sweep_that_is_killed_leaves_no_process(notebook, tmp_path):
    process, work, below = started(notebook(PARAMETERS, TRAINS), tmp_path / "out")
    assert below
    process.kill()
    process.communicate()
    until(lambda: not alive(below))
    assert storage.load_state(work / "c")["progress"]["step"] == steps(work)[-1] < 24

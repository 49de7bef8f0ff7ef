"""Sweeps under kill -9, what they cost beside papermill, what a second worker gains, and a worker that shares no disk.

A worker, the scheduler, or the whole command is killed at random moments: nothing may be lost, nothing done twice.
`make bench`, or one: `pytest tests/benchmarks/test_sweeps.py -s -k kill_a_worker`. KILLS and CELLS set how many.
"""

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import papermill
import psutil
import pytest
from benchmarks.history import measured

from pruninglab import sweep

CELLS, KILLS = int(os.environ.get("CELLS", "48")), int(os.environ.get("KILLS", "10"))
PARAMETERS = 'x: int = 0  # a number\nout: str = ""  # folder'
WORK = """\
import hashlib, time
from pathlib import Path
with open("begun.log", "a") as log:
    print(x, time.time(), file=log)
time.sleep(1.5)
Path(out, "result").write_text(hashlib.sha256(str(x).encode()).hexdigest())
"""


def command(notebook: Path, out: Path, *more: str) -> list[str]:
    grid = ["-p", f"x=0:{CELLS}", "--out", str(out), "--jobs", "2"]
    return [sys.executable, "-m", "pruninglab", "sweep", str(notebook), *grid, *more]


@contextmanager
def started(*arguments: str) -> Generator[subprocess.Popen[bytes]]:
    """A process in a session of its own, gone at the end with all its children."""
    process = subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    process.kill()
    process.communicate()


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                line = " ".join(child.cmdline())
                if "spawn_main" in line and "resource_tracker" not in line:
                    found.append(child)
    return found


def wait_for_progress(planned: sweep.Sweep, process: subprocess.Popen[bytes]) -> bool:
    """Until another cell is done and a random moment more has passed; False if the command ended before."""
    before = len(planned.records())
    while process.poll() is None and len(planned.records()) == before:
        time.sleep(0.05)
    time.sleep(random.uniform(0, 3))
    return process.poll() is None


def finish(planned: sweep.Sweep, arguments: list[str], notebook: Path, kills: int) -> None:
    """Run to the end undisturbed, and compare with a grid that always was."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    records = planned.records()
    assert [r["status"] for r in records.values()] == ["done"] * CELLS
    twice = 0
    begun: dict[int, list[float]] = {}
    for line in (notebook.parent / "begun.log").read_text().splitlines():
        x, moment = line.split()
        begun.setdefault(int(x), []).append(float(moment))
    for name, parameters in planned.cells.items():
        placed = (planned.out / name).stat().st_ctime  # of the renaming
        twice += sum(moment > placed for moment in begun[parameters["x"]])
    again = sum(map(len, begun.values())) - CELLS
    print(f"\n{kills} kills, {CELLS} cells: {again} begun again, {twice} after their record existed")
    assert twice == 0
    assert again <= 2 * kills + 2
    calm = sweep.plan(notebook, {"x": range(CELLS)}, planned.out.with_name("calm"))
    undisturbed = subprocess.run([*command(notebook, calm.out)], capture_output=True, text=True, timeout=3600)
    assert undisturbed.returncode == 0
    for name in planned.cells:
        assert (planned.out / name / "result").read_bytes() == (calm.out / name / "result").read_bytes()


@pytest.fixture
def source(notebook: Any) -> Path:
    return notebook(PARAMETERS, WORK)


def test_kill_a_worker(source: Path, tmp_path: Path) -> None:
    planned = sweep.plan(source, {"x": range(CELLS)}, tmp_path / "out")
    arguments, kills = command(source, planned.out), 0
    while kills < KILLS and len(planned.records()) < CELLS:
        with started(*arguments) as process:
            while kills < KILLS and wait_for_progress(planned, process):
                if alive := workers(process):
                    random.choice(alive).kill()
                    kills += 1
            if kills == KILLS:
                process.communicate(timeout=3600)
    finish(planned, arguments, source, kills)


def test_kill_the_command(source: Path, tmp_path: Path) -> None:
    planned = sweep.plan(source, {"x": range(CELLS)}, tmp_path / "out")
    arguments, kills = command(source, planned.out), 0
    while kills < KILLS and len(planned.records()) < CELLS:
        process = subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.DEVNULL)
        if wait_for_progress(planned, process):
            os.kill(process.pid, signal.SIGKILL)  # its workers and their kernels have to notice by themselves
            kills += 1
        process.wait()
    finish(planned, arguments, source, kills)


def test_kill_the_scheduler(source: Path, tmp_path: Path) -> None:
    planned = sweep.plan(source, {"x": range(CELLS)}, tmp_path / "out")
    kills = 0
    while kills < KILLS and len(planned.records()) < CELLS:
        port = str(random.randrange(20_000, 40_000))
        address = f"tcp://127.0.0.1:{port}"
        dask = [sys.executable, "-m", "dask"]
        scheduling = [*dask, "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]
        working = [*dask, "worker", address, "--nthreads", "1", "--no-dashboard", "--death-timeout", "60"]
        sweeping = command(source, planned.out, "--scheduler", address)
        with started(*scheduling) as scheduler, started(*working, "--nworkers", "2"), started(*sweeping) as process:
            if wait_for_progress(planned, process):
                scheduler.kill()
                kills += 1
                said, _ = process.communicate(timeout=300)
                assert process.returncode != 0
                assert b"run the same command again" in said
    finish(planned, command(source, planned.out), source, kills)


@pytest.fixture
def busy(notebook: Any) -> Path:
    work = (
        "import time, pathlib\ntotal = sum(i * i for i in range(20_000_000))\npathlib.Path(out, 'r').write_text(str(x))"
    )
    return notebook(PARAMETERS, work)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_a_cell_costs_at_most_two_seconds_more_than_papermill(busy: Path, tmp_path: Path) -> None:
    planned = sweep.plan(busy, {"x": range(8)}, tmp_path / "out")
    (planned.out / ".work").mkdir(parents=True)

    def plain() -> None:
        papermill.execute_notebook(busy, tmp_path / "plain.ipynb", {"out": str(tmp_path)}, progress_bar=False,
                                   kernel_name="python3", language="python")  # fmt: skip

    def ours(name: str) -> None:
        record, files = sweep.run_cell(planned.job(name, 1, None, None))
        planned.finish(name, record, files)

    more = [seconds(lambda name=name: ours(name)) - seconds(plain) for name in planned.cells]
    print(f"\na cell beside papermill alone: {statistics.median(more):+.2f} s (median of {len(more)})")
    measured("cell of a sweep, seconds more than papermill", statistics.median(more))
    assert statistics.median(more) < 2


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_two_workers_do_at_least_1_6_times_as_much_as_one(busy: Path, tmp_path: Path) -> None:
    """Between the first and the last cell of each: without what a cluster takes to come up."""

    def pace(jobs: int) -> float:
        out = tmp_path / f"{jobs}"
        command = [sys.executable, "-m", "pruninglab", "sweep", str(busy), "-p", "x=0:12", "--out", str(out)]
        subprocess.run([*command, "--jobs", str(jobs)], check=True, capture_output=True)
        placed = sorted(path.stat().st_ctime for path in out.iterdir() if path.is_dir() and path.name[0] != ".")
        return (len(placed) - 1) / (placed[-1] - placed[0])

    one, two = pace(1), pace(2)
    print(f"\ncells an hour: {3600 * one:.0f} by one worker, {3600 * two:.0f} by two, {two / one:.2f} times as many")
    measured("sweep by two workers / by one", one / two)
    assert two / one >= 1.6


@pytest.mark.skipif(not shutil.which("unshare") or os.geteuid() != 0, reason="needs a mount namespace of its own")
def test_a_worker_that_sees_none_of_our_files_sends_its_own(busy: Path, tmp_path: Path) -> None:
    """A second host stood in for: another working folder, this test's folder hidden from it, only TCP between."""
    elsewhere = Path("/var/tmp") / f"pruninglab-{os.getpid()}"
    elsewhere.mkdir()
    port = str(20_000 + os.getpid() % 20_000)
    address = f"tcp://127.0.0.1:{port}"
    dask = [sys.executable, "-m", "dask"]
    hidden = (
        f"mount -t tmpfs none {tmp_path} && cd {elsewhere} && ls -A {tmp_path} > hidden && "
        f"PRUNINGLAB_CACHE={elsewhere}/cache {' '.join(dask)} worker {address} --nthreads 1 --no-dashboard"
    )
    scheduling = [*dask, "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pruninglab", "sweep", str(busy), "-p", "x=0:4", "--out", str(out)]
    try:
        with started(*scheduling), started("unshare", "--mount", "sh", "-c", hidden):
            done = subprocess.run([*command, "--scheduler", address], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (elsewhere / "hidden").read_text() == ""
        records = sweep.plan(busy, {"x": range(4)}, out).records()
        assert [r["status"] for r in records.values()] == ["done"] * 4
        for name, record in records.items():
            assert (out / name / "r").read_text() == str(record["parameters"]["x"])
            parameters = json.loads((out / name / "notebook.ipynb").read_text())["metadata"]["papermill"]["parameters"]
            assert parameters["out"].startswith(str(elsewhere))
        print("\n4 cells by a worker that sees none of our files: 4 done")
    finally:
        shutil.rmtree(elsewhere)

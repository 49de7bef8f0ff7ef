"""A grid: only what is missing is run, what is finished is whole, and what goes wrong stays with its cell."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import distributed
import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from filelock import FileLock

import pruninglab as lab
from pruninglab import sweep
from pruninglab.__main__ import main
from pruninglab.sweep import cell, sequential
from pruninglab.sweep.plan import FORGIVEN, _Loop

CELL = """\
x: int = 1  # a number
method: str = "a"  # one of a, b or c
out: str = ""  # folder
"""
WORK = """\
from pathlib import Path
with open("done.log", "a") as log:
    print(x, method, file=log)
Path(out, "result.txt").write_text(f"{x * x} {method}")
assert x < 9, "too much"
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A scheduler and two workers in this process: what a cell costs is then its kernel alone."""
    settings: Any = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    made: Any
    with distributed.LocalCluster(**settings, silence_logs=logging.ERROR) as made:
        yield made.scheduler_address


@pytest.fixture
def tiny(notebook) -> Path:
    return notebook(CELL, WORK)


def run(planned: sweep.Sweep, cluster: str, **options: Any) -> list[str]:
    said: list[str] = []
    planned.run(scheduler=cluster, say=options.pop("say", said.append), **options)
    return said


def log(planned: sweep.Sweep) -> list[str]:
    return sorted((planned.notebook.parent / "done.log").read_text().splitlines())


def folders(planned: sweep.Sweep) -> list[str]:
    return sorted(p.name for p in planned.out.iterdir() if p.is_dir() and not p.name.startswith("."))


def test_each_cell_is_an_executed_notebook_and_a_record(tiny, cluster, tmp_path):
    planned = sweep.plan(tiny, {"x": "2:4", "method": ["a", "b"]}, tmp_path / "out")
    said = run(planned, cluster)
    assert folders(planned) == sorted(planned.cells)
    for name, parameters in planned.cells.items():
        cell = planned.out / name
        assert (cell / "result.txt").read_text() == f"{parameters['x'] ** 2} {parameters['method']}"
        record = json.loads((cell / "cell.json").read_text())
        assert (record["status"], record["parameters"], record["name"]) == ("done", parameters, name)
        executed: Any = nbformat.read(cell / "notebook.ipynb", 4)
        assert "injected-parameters" in executed.cells[1].metadata.tags
        assert f"x = {parameters['x']}" in executed.cells[1].source
    assert "4 to run" in said[0]
    assert said[-1].startswith("[4/4] ")
    assert planned.table()["status"].tolist() == ["done"] * 4
    assert (planned.out / "summary.csv").read_text().splitlines()[0].startswith("cell,x,method,status,seconds")
    assert "4 of 4 cells done" in (planned.out / "index.html").read_text()
    assert "4 of 4 cells done" in planned._repr_html_()


def test_only_what_is_missing_is_run(tiny, cluster, tmp_path):
    """A folder is finished by its record: a notebook that has no error and an end is not enough."""
    planned = sweep.plan(tiny, {"x": "0:4"}, tmp_path / "out")
    run(planned, cluster)
    assert log(planned) == ["0 a", "1 a", "2 a", "3 a"]
    assert "0 to run" in run(planned, cluster)[0]
    first, second = list(planned.cells)[:2]
    executed: Any = nbformat.read(planned.out / first / "notebook.ipynb", 4)
    assert executed.metadata.papermill.exception is None
    assert executed.metadata.papermill.end_time
    (planned.out / first / "cell.json").unlink()
    (planned.out / second / "cell.json").write_text('{"sweep": 1, "sta')
    wider = sweep.plan(tiny, {"x": "0:5"}, tmp_path / "out")
    assert "3 to run" in run(wider, cluster)[0]
    assert log(planned) == ["0 a", "0 a", "1 a", "1 a", "2 a", "3 a", "4 a"]
    assert wider.missing == []


def test_another_notebook_is_another_cell(tiny, cluster, notebook, tmp_path):
    out = tmp_path / "out"
    run(sweep.plan(tiny, {"x": 1}, out), cluster)
    changed = sweep.plan(notebook(CELL, WORK + "\nprint()"), {"x": 1}, out)
    said = run(changed, cluster)
    assert "1 to run" in said[0] or "1 to run" in said[1]
    assert any("1 cells here are of another grid or notebook" in line for line in said)
    assert len(folders(changed)) == 2


def test_a_cell_that_fails_leaves_the_others_alone_and_is_run_again_only_when_asked(tiny, cluster, tmp_path):
    planned = sweep.plan(tiny, {"x": [8, 9, 10]}, tmp_path / "out")
    said = run(planned, cluster)
    assert len(planned.failed) == 2
    assert any("failed" in line and "AssertionError: too much" in line for line in said)
    assert planned.table()["status"].tolist() == ["done", "failed", "failed"]
    assert "too much" in (planned.out / "index.html").read_text()
    assert "0 to run" in run(planned, cluster)[0]
    assert "2 to run" in run(planned, cluster, retry_failed=True)[0]
    assert log(planned) == ["10 a", "10 a", "8 a", "9 a", "9 a"]
    frame = lab.results.load(planned.out)
    assert set(frame.attrs["failed"]) == set(planned.failed)
    assert frame.attrs["skipped"] == {}


def test_over_its_own_limit_a_cell_has_failed_over_that_of_all_it_is_missing(notebook, cluster, tmp_path):
    slow = notebook(CELL, "import time\ntime.sleep(600)")
    planned = sweep.plan(slow, {"x": [0, 1]}, tmp_path / "own")
    run(planned, cluster, cell_limit=4)
    assert planned.table()["status"].tolist() == ["failed"] * 2
    assert "time limit of 4 s" in planned.table()["error"][1]
    hanging = sweep.plan(slow, {"x": [1, 2, 3]}, tmp_path / "all")
    run(hanging, cluster, limit=3)
    assert hanging.table()["status"].tolist() == ["missing"] * 3
    assert hanging.failed == []


def test_ctrl_c_lets_the_running_cells_end(tiny, cluster, tmp_path):
    planned = sweep.plan(tiny, {"x": "0:6"}, tmp_path / "out")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("[1/6]"):
            signal.raise_signal(signal.SIGINT)

    run(planned, cluster, say=say)
    done = 6 - len(planned.missing)
    assert 1 <= done <= 3
    assert any(line.startswith("stopping: ") for line in said)
    assert len(log(planned)) == done
    run(planned, cluster)
    assert log(planned) == [f"{x} a" for x in range(6)]


def test_what_a_killed_cell_left_is_found_by_the_next_try(notebook, cluster, tmp_path):
    """As a training finds its checkpoint."""
    source = notebook(
        CELL, "from pathlib import Path\nleft = Path(out, 'checkpoint')\nassert left.read_text() == 'half'"
    )
    planned = sweep.plan(source, {"x": 1}, tmp_path / "out")
    (name,) = planned.cells
    work = planned.out / ".work" / name
    work.mkdir(parents=True)
    (work / "checkpoint").write_text("half")
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    cell._note(work, orphan.pid)
    run(planned, cluster)
    assert orphan.wait(10) == -signal.SIGKILL
    assert planned.table()["status"].tolist() == ["done"]
    assert not (planned.out / name / "kernel.json").exists()


def test_a_process_that_only_has_the_old_number_is_left_alone(tmp_path):
    cell._note(tmp_path, os.getpid())
    host, pid, born = json.loads((tmp_path / "kernel.json").read_text())
    (tmp_path / "kernel.json").write_text(json.dumps([host, pid, born - 1]))
    cell._end_orphan(tmp_path)  # or these tests would end here
    assert psutil.pid_exists(pid)


def test_a_worker_that_does_not_see_the_folder_sends_the_files(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNINGLAB_CACHE", str(tmp_path / "elsewhere"))
    planned = sweep.plan(tiny, {"x": 3}, tmp_path / "out")
    (name,) = planned.cells
    (planned.out / ".work").mkdir(parents=True)
    job = planned.job(name, 1, None, None)
    record, files = sweep.run_cell(job | {"out": str(tmp_path / "of another host")})
    assert files is not None
    assert files["result.txt"] == b"9 a"
    assert {"cell.json", "notebook.ipynb"} <= files.keys()
    assert folders(planned) == []
    assert not (tmp_path / "elsewhere" / "sweep" / name).exists()
    planned.finish(name, record, files)
    assert planned.table()["status"].tolist() == ["done"]
    assert (planned.out / name / "result.txt").read_text() == "9 a"


def test_a_cell_that_is_finished_is_not_run_again_whether_it_was_fetched_or_not(tiny, tmp_path):
    planned = sweep.plan(tiny, {"x": 3}, tmp_path / "out")
    (name,) = planned.cells
    (planned.out / ".work").mkdir(parents=True)
    first, _ = sweep.run_cell(planned.job(name, 1, None, None))
    assert sweep.run_cell(planned.job(name, 1, None, None))[0] == first
    planned.finish(name, first, None)
    assert sweep.run_cell(planned.job(name, 1, None, None))[0] == first  # asked again after its worker died
    assert log(planned) == ["3 a"]


def test_a_cell_whose_workers_die_is_tried_again_but_not_for_ever(tiny, tmp_path):
    planned = sweep.plan(tiny, {"x": 3}, tmp_path / "out")
    (name,) = planned.cells
    dead = SimpleNamespace(status="error", exception=type("KilledWorker", (Exception,), {}))
    loop = _Loop(planned, cast(Any, SimpleNamespace(slots=1)), [], 1, None, None, None, print)
    for _ in range(FORGIVEN):
        loop._take(dead, name)
        assert loop.todo == [name]
        loop.todo.clear()
    loop._take(dead, name)
    assert loop.todo == []
    assert planned.table()["error"].tolist() == ["its workers died again and again"]


def test_a_scheduler_that_is_lost_is_said_and_its_cells_stay_missing(tiny, tmp_path, monkeypatch):
    planned = sweep.plan(tiny, {"x": [3, 4]}, tmp_path / "out")
    first, second = planned.cells
    loop = _Loop(planned, cast(Any, SimpleNamespace(slots=0)), [second], 1, None, None, None, print)

    def gone(*_: Any, **__: Any) -> None:
        raise distributed.CancelledError

    loop.running[object()] = first
    monkeypatch.setattr(distributed, "wait", gone)
    for told in (loop._wait, lambda: loop._take(SimpleNamespace(status="cancelled"), first)):
        with pytest.raises(lab.RunError, match=r"scheduler was lost with 2 cells.*run the same command again"):
            told()
    assert planned.missing == [first, second]


def test_two_sweeps_do_not_share_a_folder(tiny, cluster, tmp_path):
    planned = sweep.plan(tiny, {"x": 3}, tmp_path / "out")
    (planned.out / ".work").mkdir(parents=True)
    with FileLock(planned.out / ".work" / "sweep.lock"), pytest.raises(lab.RunError, match="another sweep"):
        run(planned, cluster)
    run(planned, cluster)
    assert planned.missing == []


def test_more_threads_than_cores_are_refused(tiny, tmp_path):
    planned = sweep.plan(tiny, {"x": 3}, tmp_path / "out")
    with pytest.raises(lab.ConfigError, match="more than the"):
        planned.run(jobs=os.cpu_count(), threads=2)
    with pytest.raises(lab.ConfigError, match="no cluster with a worker answers at"):
        planned.run(scheduler="nonsense://x")


def test_runs_of_cells_load_with_their_parameters(notebook, cluster, tmp_path):
    source = notebook(
        "density: float = 0.1  # left\nout: str = ''  # folder",
        "import pruninglab as lab\ndata = lab.load('digits', train=100, test=40, size=8)",
        "model = lab.build('lenet300', data)\n"
        "run = lab.fit(model, data, lab.methods.OneShot(1 - density), epochs=1, record=f'{out}/record.json')\n"
        "lab.plots.layers(run)",
    )
    planned = sweep.plan(source, {"density": 0.25}, tmp_path / "out")
    run(planned, cluster)
    frame = lab.results.load(planned.out)
    assert frame["param_density"].tolist() == [0.25]
    assert frame["sparsity_weights"].round(3).tolist() == [0.75]
    assert planned.table()["sparsity_weights"].round(3).tolist() == [0.75]
    page = (planned.out / "index.html").read_text()
    assert page.count("<img ") == 1
    assert (planned.out / next(iter(planned.cells)) / "thumbnail.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_checks_lists_and_says_how_it_went(tiny, tmp_path, capsys, cluster):
    out = str(tmp_path / "out")
    assert main(["sweep", str(tiny), "-p", "x=9:11", "-p", "method=a,b", "--out", out, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("to run") == 4
    assert "a guess: none has run yet" in shown
    assert not Path(out).exists()
    for wrong in (["-p", "y=1"], ["-p", "x=one"], ["-p", "method=d"], ["-p", "x"], ["--grid", "none.toml"]):
        assert main(["sweep", str(tiny), *wrong, "--out", out]) == 2
    assert not Path(out).exists()
    arguments = ["sweep", str(tiny), "-p", "x=8:10", "--out", out, "--scheduler", cluster]
    assert main(arguments) == 1
    assert "Some cells failed" in capsys.readouterr().out
    (tmp_path / "grid.toml").write_text('x = [7, 8]\nmethod = "a"\n')
    grid = ["sweep", str(tiny), "--grid", str(tmp_path / "grid.toml"), "--out", out, "--scheduler", cluster]
    assert main(grid) == 0
    assert "8 a" in log(sweep.plan(tiny, {"x": 1}, out))
    assert main(["sweep", str(tmp_path / "none.ipynb"), "--out", out]) == 2
    with pytest.raises(SystemExit):
        main(["sweep", str(tiny), "--out", out, "--limit", "soon"])


@pytest.mark.parametrize(
    "name",
    ["../x", "../../../x", "a/../../x", "/x/y", "..", "", ".", "C:\\x", "..\\x", "\\\\host\\x", "a\0b", 3],
    ids=repr,
)
def test_the_files_of_a_worker_stay_inside_its_cell(tiny, tmp_path, name):
    planned = sweep.plan(tiny, {"x": 3}, tmp_path / "a" / "b" / "out")
    (cell_name,) = planned.cells
    before = sorted(tmp_path.rglob("*"))
    files: Any = {"result.txt": b"good", name: b"bad"}
    with pytest.raises(lab.DataError, match="which does not lie in its cell"):
        planned.finish(cell_name, {"status": "done"}, files)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_record_of_a_cell_is_no_record(tiny, tmp_path):
    planned = sweep.plan(tiny, {"x": 3}, tmp_path / "out")
    (name,) = planned.cells
    planned.finish(name, cell._made(name, {"x": 3}, "done", "", 1.0), {"result.txt": b"9"})
    path = planned.out / name / "cell.json"
    assert planned.missing == []
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"done", b"dond"))
    assert planned.missing == [name]
    assert lab.results.load(planned.out).attrs["skipped"].keys() == {str(path)}
    path.write_bytes(whole.replace(b'"sweep": 2', b'"sweep": 1').replace(b'"sha256"', b'"other"'))
    assert planned.missing == []  # an older one, without a checksum


def test_a_full_disk_is_said_and_what_is_missing_is_run_by_the_next(tiny, cluster, tmp_path, monkeypatch):
    planned = sweep.plan(tiny, {"x": [3, 4]}, tmp_path / "out")
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name in ("cell.json", "summary.csv"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(lab.RunError, match=r"broke off: .*No space left.*the same command goes on"):
        run(planned, cluster)
    monkeypatch.undo()
    assert len(planned.missing) == 2
    run(planned, cluster)
    assert planned.missing == []
    assert planned.failed == []


def test_any_name_of_a_folder_and_of_a_value_will_do(notebook, cluster, tmp_path):
    source = notebook('word: str = "a"  # any', "print(word)", name="{a}.ipynb")
    planned = sweep.plan(source, {"word": ["剪" * 200, "{b}", "ß ñ"]}, tmp_path / "{c} {}")
    assert all(len(name.encode()) < 200 for name in planned.cells)
    run(planned, cluster)
    assert planned.missing == planned.failed == []


NAN = float("nan")


@pytest.mark.parametrize(
    "wrong",
    [{"jobs": 0}, {"jobs": -1}, {"jobs": 1.5}, {"threads": 0}, {"limit": NAN}, {"limit": 0}, {"cell_limit": -1.0},
     {"cell_limit": NAN}],
    ids=str,
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused_before_anything_is_written(tiny, tmp_path, wrong):
    planned = sweep.plan(tiny, {"x": 3}, tmp_path / "out")
    with pytest.raises(lab.ConfigError, match=next(iter(wrong))):
        planned.run(**wrong)
    assert not (tmp_path / "out").exists()
    for number in ("0", "-1"):
        command = ["sweep", str(tiny), "-p", "x=1", "--out", str(tmp_path / "out"), "--jobs", number]
        assert main(command) == main([*command, "--dry-run"]) == 2


def test_a_hundred_thousand_cells_are_listed_without_looking_for_each(tiny, tmp_path, monkeypatch):
    planned = sweep.plan(tiny, {"x": range(50_000), "method": ["a", "b"]}, tmp_path / "out")
    first, *_, last = planned.cells
    for name in (first, last):
        planned.finish(name, cell._made(name, planned.cells[name], "done", "", 1.0), {})
    looked: list[Any] = []
    read = cell.tables.read_cell
    monkeypatch.setattr(cell.tables, "read_cell", lambda path: looked.append(path) or read(path))
    assert list(planned.records()) == [first, last]
    assert len(looked) == 2
    assert "2 of 100000 cells done" in planned._counts()


def test_finished_cells_are_read_from_one_file_until_they_change(tiny, tmp_path, monkeypatch):
    planned = sweep.plan(tiny, {"x": range(20), "method": ["a", "b"]}, tmp_path / "out")
    for name, parameters in planned.cells.items():
        planned.finish(name, cell._made(name, parameters, "done", "", 1.0), {})
    whole, looked = planned.records(), []
    planned.write_tables()
    other = sweep.plan(tiny, {"x": [70]}, tmp_path / "out")
    (name,) = other.cells
    other.finish(name, cell._made(name, {"x": 70}, "done", "", 1.0), {})
    other.write_tables()  # another grid in this folder
    read = cell.tables.read_cell
    monkeypatch.setattr(cell.tables, "read_cell", lambda path: looked.append(path) or read(path))
    assert planned.records() == whole
    assert looked == []
    first, second, *_ = planned.cells
    path = planned.out / first / "cell.json"
    path.write_bytes(path.read_bytes() + b" ")
    (planned.out / second / "cell.json").unlink()
    assert planned.missing == [first, second]
    index = planned.out / ".work" / "records"
    index.write_bytes(index.read_bytes().replace(b"done", b"dond", 1))
    looked.clear()
    assert planned.missing == [first, second]
    assert len(looked) == len(planned.cells)


def test_nothing_of_a_sweep_on_this_machine_can_be_reached_from_outside(tiny, tmp_path):
    def listening() -> set[Any]:
        return {c.laddr for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN}

    before, seen = listening(), set[Any]()

    def say(line: str) -> None:
        seen.update(address.ip for address in listening() - before)
        if "dashboard" in line:
            assert "http://127.0.0.1:" in line

    planned = sweep.plan(tiny, {"x": 3}, tmp_path / "out")
    planned.run(jobs=1, say=say)
    assert planned.missing == []
    assert seen == {"127.0.0.1"}


def ask(folder: str) -> lab.Run:
    """What a cell does, here or in a process of its own."""
    data = lab.load("digits", train=100, test=40, size=8)
    model = lab.build("lenet300", data)
    return lab.recipes.dense_start(model, data, folder=folder, epochs=3, loss=noting(folder), progress=False)


def noting(folder: str) -> Callable[..., Any]:
    """Cross-entropy that notes who makes each step, and ends the process at the second while a file says so."""

    def loss(logits: Any, y: Any) -> Any:
        if logits.requires_grad:
            with open(f"{folder}/steps", "a") as steps:
                print(os.getpid(), file=steps)
            if Path(f"{folder}/crash").exists() and len(Path(f"{folder}/steps").read_text().split()) == 2:
                time.sleep(1)
                os._exit(1)
        return torch.nn.functional.cross_entropy(logits, y)

    return loss


def test_a_dense_start_is_waited_for_and_after_a_crash_gone_on_with(tmp_path, cache):
    (tmp_path / "crash").touch()
    first = get_context("spawn").Process(target=ask, args=(str(tmp_path),))
    first.start()
    while not (tmp_path / "steps").exists():
        time.sleep(0.05)
    dense = ask(str(tmp_path))
    first.join()
    assert first.exitcode == 1
    assert (tmp_path / "steps").read_text().split() == [str(first.pid)] * 2 + [str(os.getpid())] * 2
    data = lab.load("digits", train=100, test=40, size=8)
    undisturbed = lab.fit(lab.build("lenet300", data), data, epochs=3, progress=False)
    assert dense.history == undisturbed.history
    again = ask(str(tmp_path))
    assert len((tmp_path / "steps").read_text().split()) == 4
    assert again.origin == dense.origin
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), dense.model.parameters(), strict=True))


def test_a_dense_start_is_found_by_what_it_depends_on(tmp_path, monkeypatch):
    data = lab.load("digits", train=100, test=40, size=8)
    make = lab.recipes.dense_start
    started = {
        "first": make(lab.build("lenet300", data), data, folder=tmp_path, epochs=1, progress=False),
        "same": make(lab.build("lenet300", data), data, folder=tmp_path, epochs=1, progress=False),
    }
    assert started["first"].history == started["same"].history
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    make(lab.build("lenet300", data, seed=1), data, folder=tmp_path, epochs=1, progress=False)
    make(lab.build("lenet300", data), data, folder=tmp_path, epochs=2, progress=False)
    other = lab.load("digits", train=100, test=40, size=8, seed=1)
    make(lab.build("lenet300", other), other, folder=tmp_path, epochs=1, progress=False)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    monkeypatch.setenv("PRUNINGLAB_STARTS", str(tmp_path / "of the sweep"))
    make(lab.build("lenet300", data), data, epochs=1, progress=False)
    assert len(list((tmp_path / "of the sweep").glob("*.safetensors"))) == 1
    runs = [lab.fit(dense, data, lab.methods.OneShot(0.9), epochs=1, progress=False) for dense in started.values()]
    timeless = {"seconds": 0, "seconds_before": 0}
    assert runs[0].result.row() | timeless == runs[1].result.row() | timeless
    with pytest.raises(lab.ConfigError, match="sets record by itself"):
        make(lab.build("lenet300", data), data, epochs=1, record=tmp_path / "a.json")  # pyright: ignore[reportCallIssue]


NOISY = """\
import random
import pruninglab as lab
data = lab.load("digits", train=100, test=100, size=8)
run = lab.fit(lab.build("lenet300", data), data, epochs=0, tags={"method": method})
run.result.accuracy["test"]["accuracy"] = 0.5 + spread * random.Random(seed).uniform(-1, 1)
run.save(f"{out}/record.json")
"""
SPREADS = (
    'spread: float = 0.1  # of the accuracy\nseed: int = 0  # of the run\nmethod: str = "a"  # a name\nout: str = ""'
)


@pytest.mark.slow
def test_seeds_are_added_in_a_sweep(notebook, cluster, tmp_path):
    source, each = notebook(SPREADS, NOISY), {"least": 2, "most": 3, "scheduler": cluster}
    wide: Any = sweep.until_width(source, {"spread": 0.1}, tmp_path / "wide", 0.01, **each)
    assert len(wide.cells) == 3
    assert not wide.missing


def test_seeds_are_added_until_the_intervals_are_narrow(notebook, tmp_path, monkeypatch):
    def made(self: sweep.Sweep) -> pd.DataFrame:
        rows = [p | {"test_accuracy": 0.5 + p["spread"] * (-1) ** p["seed"]} for p in self.cells.values()]
        return pd.DataFrame(rows).assign(status="done")

    monkeypatch.setattr(sweep.Sweep, "table", made)
    monkeypatch.setattr(sweep.Sweep, "run", lambda self, **options: self)
    monkeypatch.setattr(sweep.Sweep, "missing", [])
    source, said = notebook(SPREADS, NOISY), []
    each: Any = {"least": 2, "most": 4, "say": said.append}
    narrow = sweep.until_width(source, {"spread": 0.0, "method": "a,b"}, tmp_path / "narrow", 0.01, **each)
    assert len(narrow.cells) == 4  # two seeds were enough
    wide = sweep.until_width(source, {"spread": 0.1}, tmp_path / "wide", 0.01, **each)
    assert len(wide.cells) == 4
    assert "after 4 seeds an interval is still wider than 0.01" in said[-1]
    assert sum("the widest interval is" in line for line in said) == 1 + 3


def test_the_widths_are_those_of_all_looks_together(notebook, tmp_path, monkeypatch):
    planned = sweep.plan(notebook(SPREADS, NOISY), {"seed": "0:5"}, tmp_path)
    scores = [0.1, 0.2, 0.4, 0.3, 0.5]
    table = planned.table().assign(status="done", test_accuracy=scores)
    monkeypatch.setattr(sweep.Sweep, "table", lambda self: table)
    found = sequential.widths(planned, 0.01).iloc[0]
    half = 4.6041 * np.std(scores, ddof=1) / np.sqrt(5)  # the two-sided 99 % point of t with 4 degrees of freedom
    assert found["width"] == pytest.approx(2 * half, rel=1e-4)


@pytest.mark.parametrize("wrong", [{"width": 0.0}, {"width": 0.1, "most": 1}, {"width": 0.1, "least": 1}])
def test_a_width_that_cannot_be_is_refused(notebook, tmp_path, wrong):
    with pytest.raises(lab.ConfigError):
        sweep.until_width(notebook(SPREADS, NOISY), {}, tmp_path / "out", **wrong)
    with pytest.raises(lab.ConfigError, match="chooses the seeds"):
        sweep.until_width(notebook(SPREADS, NOISY), {"seed": 1}, tmp_path / "out", 0.1)
    assert not (tmp_path / "out").exists()

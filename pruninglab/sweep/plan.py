"""A sweep: one notebook run with many parameters on Dask workers."""

import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PureWindowsPath
from typing import Any

import nbformat
import pandas as pd
from filelock import FileLock, Timeout

from .. import _html
from .._html import Raw
from ..errors import ConfigError, DataError, RunError
from ..results import environment
from ..storage.files import check_writable, save_json, write_atomic
from ..terminal import Asked, asked_to_stop
from ..typed import Count, Positive, check_arguments, checked
from . import headless
from .cell import RECORD, UNFINISHED, _made, run_cell
from .index import read_records, write_index
from .parameters import Parameter, declared, grid, named, source_hash

FORGIVEN = 5
"""How often a cell is handed out again after four workers that had it died, which is what Dask by itself allows."""
USUAL = 25.0
"""Seconds that a notebook of this project takes at its defaults: an estimate where nothing was measured."""


@checked
def plan(notebook: str | Path, given: Mapping[str, Any], out: str | Path) -> "Sweep":
    """The cells of a grid, all parameters checked against what the notebook declares; nothing is run or written."""
    path = Path(notebook)
    try:
        source: Any = nbformat.read(path, as_version=4)
        known, code = declared(source), source_hash(source)
    except ConfigError:
        raise
    except Exception as error:  # nbformat and jsonschema fail in a dozen ways, and all mean the same here
        raise ConfigError(f"{path} cannot be read as a notebook: {str(error)[:300]}.") from None
    cells = {named(parameters, code): parameters for parameters in grid(known, given)}
    return Sweep(path.resolve(), known, source, cells, Path(out).expanduser().resolve())


@dataclass(frozen=True, repr=False)
class Sweep:
    """The cells of a grid by name, with what the folder holds of them. Showing it is the table."""

    notebook: Path
    parameters: dict[str, Parameter]
    source: Any
    cells: dict[str, dict[str, Any]]
    out: Path

    def records(self) -> dict[str, dict[str, Any]]:
        """Of every cell that is finished, in the order of the grid."""
        return read_records(self.out, self.cells)

    def table(self) -> pd.DataFrame:
        """One row for each cell: its parameters, how it ended, and of a single run what that reached."""
        found = self.records()
        rows = []
        for name, parameters in self.cells.items():
            record = found.get(name, {"status": "missing"})
            shown = {k: record.get(k) for k in ("status", "seconds", "error")}
            rows.append({"cell": name, **parameters, **shown, **record.get("reached", {})})
        return pd.DataFrame(rows)

    def estimate(self, jobs: int) -> str:
        """How long what is left will take, by the cells that are done."""
        found = self.records()
        done = [r["seconds"] for r in found.values() if r["status"] == "done"]
        left = len(self.cells) - len(found)
        if not left:
            return "nothing is left to run"
        each = sum(done) / len(done) if done else USUAL
        why = f"the mean of {len(done)}" if done else "a guess: none has run yet"
        return f"about {_duration(each * math.ceil(left / jobs))} with {jobs} at a time, {each:.0f} s each ({why})"

    def run(
        self,
        *,
        jobs: Count | None = None,
        threads: Count = 1,
        scheduler: str | None = None,
        resources: Mapping[str, float] | None = None,
        cell_limit: Positive | None = None,
        limit: Positive | None = None,
        retry_failed: bool = False,
        say: Callable[[str], None] = partial(print, flush=True),  # noqa: B008 (it holds nothing)
    ) -> "Sweep":
        """Run what is missing, and write the table of all.

        `jobs` cells at a time with `threads` each, by default one for each core; more than there are cores is refused.
        `scheduler` is the address of a running Dask cluster to use instead, `resources` what each cell takes of a
        worker there, such as {"GPU": 1}. `cell_limit` and `limit` are seconds for each cell and for all. What is then
        still running is killed. A cell over its own limit counts as failed, one over the limit of all as missing. A
        cell that fails leaves the others alone. Ctrl-C lets the running cells end and starts no more; a second one
        breaks off. SIGTERM and SIGUSR1 let each running cell write its checkpoint, and end the process with exit code
        143.
        """
        check_arguments(Sweep.run, {"jobs": jobs, "threads": threads, "cell_limit": cell_limit, "limit": limit})
        check_writable(self.out / "summary.csv", "out")
        (self.out / ".work").mkdir(exist_ok=True)
        try:
            alone = FileLock(self.out / ".work" / "sweep.lock").acquire(timeout=0)
        except Timeout:
            raise RunError(f"another sweep is at work in {self.out}; wait for it, or take another folder.") from None
        stopped = threading.Event()
        with _written(self.out), alone, asked_to_stop(lambda by: stopped.set()) as asked, ExitStack() as stack:
            stack.callback(self.write_tables)
            if retry_failed:
                for name in self.failed:
                    self._discard(name)
            before = self.records()
            todo = [name for name in self.cells if name not in before]
            self._say_what_else_is_here(say)
            say(f"{len(self.cells)} cells, {len(before)} finished before, {len(todo)} to run, in {self.out}")
            if todo:
                cluster = _Cluster.local(stack, jobs, threads) if scheduler is None else _Cluster.at(stack, scheduler)
                say(cluster.said)
                _Loop(self, cluster, todo, threads, resources, cell_limit, limit, say).run(stopped, asked)
            for name in self.records():
                (self.out / ".work" / f"{name}.lock").unlink(missing_ok=True)
                shutil.rmtree(self.out / ".work" / name, ignore_errors=True)
        asked.end()
        return self

    @property
    def failed(self) -> list[str]:
        return [name for name, record in self.records().items() if record["status"] == "failed"]

    @property
    def missing(self) -> list[str]:
        found = self.records()
        return [name for name in self.cells if name not in found]

    def write_tables(self) -> None:
        write_index(self.out, self.records())
        table = self.table()
        write_atomic(self.out / "summary.csv", table.to_csv(index=False).encode())
        write_atomic(self.out / "index.html", self._page(table).encode())

    def job(self, name: str, threads: int, cell_limit: float | None, end: float | None) -> dict[str, Any]:
        """All that a worker needs, wherever it is."""
        (self.out / ".work" / self._token).touch()
        return {
            "name": name,
            "notebook": self._stripped,
            "parameters": self.cells[name],
            "takes_out": "out" in self.parameters and "out" not in self.cells[name],
            "folder": str(self.notebook.parent),
            "out": str(self.out),
            "token": self._token,
            "threads": threads,
            "cell_limit": cell_limit,
            "end": end,
        }

    def finish(self, name: str, record: dict[str, Any], files: dict[str, bytes] | None) -> None:
        """Put a cell into place. `files` come from a worker that does not see this folder, and stay inside the cell."""
        work = self.out / ".work" / name
        if files is not None:
            for path in files:
                _check_inside(work, path)
            shutil.rmtree(work, ignore_errors=True)
            for path, content in files.items():
                (work / path).parent.mkdir(parents=True, exist_ok=True)
                write_atomic(work / path, content)
        work.mkdir(parents=True, exist_ok=True)
        if not (work / RECORD).exists():  # its worker died too often to write one
            save_json(work / RECORD, record)
        if (self.out / name).exists():  # a folder without a record, which is no cell
            self._discard(name)
        os.rename(work, self.out / name)

    @cached_property
    def _stripped(self) -> str:
        bare = nbformat.from_dict(self.source)
        for cell in bare.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        return nbformat.writes(bare)

    @cached_property
    def _token(self) -> str:
        """A file that only those find who see this very folder."""
        for old in (self.out / ".work").glob("here-*"):
            old.unlink(missing_ok=True)
        return f"here-{os.urandom(8).hex()}"

    def _discard(self, name: str) -> None:
        """Take a finished cell out of its place, at once and whole."""
        gone = self.out / ".work" / f"{name}.{os.urandom(4).hex()}"
        os.rename(self.out / name, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _say_what_else_is_here(self, say: Any) -> None:
        others = {path.parent.name for path in self.out.glob(f"*/{RECORD}")} - self.cells.keys()
        if others:
            say(f"{len(others)} cells here are of another grid or notebook; they stay, and results.load reads them too")
        commits = {record["commit"] for record in self.records().values()} - {environment._commit()}
        if commits:
            say(f"some cells here were run by other code ({', '.join(sorted(map(str, commits)))})")

    def _page(self, table: pd.DataFrame) -> str:
        """A table with a thumbnail of each cell's last figure."""
        shown = [c for c in table.columns if c not in ("cell", "error")]
        rows = []
        for row in table.to_dict("records"):
            name = row["cell"]
            picture = self.out / name / "thumbnail.png"
            link = f'<a href="{_html.cell(name)}/notebook.ipynb">notebook</a>' if (self.out / name).exists() else ""
            image = f'<img src="{_html.cell(name)}/thumbnail.png" alt="last figure of {_html.cell(name)}">'
            values = [_shown(row[c]) for c in shown]
            rows.append([*values, row["error"] or "", Raw(link), Raw(image if picture.exists() else "")])
        head = "<!doctype html><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        style = "<style>body{font-family:sans-serif}td,th{padding:.2em .6em;border-bottom:1px solid #8886}</style>"
        body = _html.table([*shown, "error", "", ""], rows, f"{self.notebook.name}: {self._counts()}")
        return f"{head}<title>{_html.cell(self.notebook.name)}</title>{style}{body}\n"

    def _counts(self) -> str:
        found = self.records()
        failed = sum(record["status"] == "failed" for record in found.values())
        missing = len(self.cells) - len(found)
        parts = [f"{len(self.cells) - failed - missing} of {len(self.cells)} cells done"]
        parts += [f"{failed} failed"] * bool(failed) + [f"{missing} missing"] * bool(missing)
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"{self.notebook.name}: {self._counts()}\n{self.table().to_string(index=False)}"

    def _repr_html_(self) -> str:
        table = self.table().drop(columns="cell")
        rows = [[_shown(value) for value in row] for row in table.to_numpy()]
        return _html.table(list(table.columns), rows, f"{self.notebook.name}: {self._counts()}")


@dataclass(frozen=True)
class _Cluster:
    """A client of a Dask scheduler, its own or another's."""

    client: Any
    said: str

    @classmethod
    def local(cls, stack: ExitStack, jobs: int | None, threads: int) -> "_Cluster":
        from dask.system import CPU_COUNT

        jobs = jobs or max(CPU_COUNT // threads, 1)
        if jobs * threads > CPU_COUNT:
            raise ConfigError(
                f"{jobs} jobs of {threads} threads are more than the {CPU_COUNT} cores here, and all would be many "
                f"times slower; take at most {CPU_COUNT // threads} jobs of {threads}."
            )
        import distributed

        # in this process: a cell is a kernel of its own, and nobody else on this machine can reach a scheduler here
        cluster = stack.enter_context(
            distributed.LocalCluster(
                n_workers=jobs, threads_per_worker=1, processes=False, memory_limit=0, silence_logs=logging.ERROR,
                dashboard_address="127.0.0.1:0", worker_dashboard_address="127.0.0.1:0",
            )
        )  # fmt: skip
        client = stack.enter_context(distributed.Client(cluster))
        stack.callback(headless.stop_all)  # what a second Ctrl-C breaks off
        said = f"{jobs} worker{'s' * (jobs > 1)} of {threads} thread{'s' * (threads > 1)}"
        port = client.scheduler_info()["services"]["dashboard"]
        return cls(client, f"{said}; dashboard: http://127.0.0.1:{port}/status")

    @classmethod
    def at(cls, stack: ExitStack, address: str) -> "_Cluster":
        import distributed

        try:
            client = stack.enter_context(distributed.Client(address, timeout=20))
            client.wait_for_workers(1, timeout=60)
        except (OSError, ValueError, TimeoutError) as error:
            raise ConfigError(
                f"no cluster with a worker answers at {address}: {error}. Start `dask scheduler` and `dask worker`, "
                "and give the address that the scheduler prints."
            ) from None
        return cls(client, f"{address}; dashboard: {client.dashboard_link}")

    @property
    def slots(self) -> int:
        """How many cells can run at a time, now."""
        return int(sum(w["nthreads"] for w in self.client.scheduler_info(n_workers=-1)["workers"].values()))


class _Loop:
    """Hands out as many cells as there are slots, and puts into place what comes back."""

    def __init__(self, sweep: Sweep, cluster: _Cluster, todo: list[str], threads: int, resources: Any, cell_limit: Any,
                 limit: Any, say: Any):  # fmt: skip
        self.sweep, self.cluster, self.todo, self.say = sweep, cluster, todo, say
        self.threads, self.resources, self.cell_limit = threads, dict(resources or {}), cell_limit
        self.end = None if limit is None else time.time() + limit
        self.running: dict[Any, str] = {}
        self.seconds: list[float] = []
        self.killed: dict[str, int] = {}
        self.total = len(todo)
        self.alone = False

    def run(self, stopped: threading.Event, asked: Asked) -> None:
        while self.todo or self.running:
            if stopped.is_set():
                self._stop(asked)
                stopped.clear()
            if self.end is not None and time.time() > self.end:
                self.todo.clear()
                if time.time() > self.end + 60:  # their own clocks should have ended them
                    break
            self._wait()
            for future in [f for f in self.running if f.status != "pending"]:
                self._take(future, self.running.pop(future))

    def _stop(self, asked: Asked) -> None:
        self.todo.clear()
        if asked.ends:
            self.end = time.time() + headless.GRACE - 60
            self.cluster.client.run(headless.stop_all, on_error="ignore")
            self.say(f"ending: {len(self.running)} cells write their checkpoints. The same command goes on with them.")
        else:
            self.say(f"stopping: {len(self.running)} cells end, no more begin. Ctrl-C once more breaks off.")

    def _wait(self) -> None:
        """Until one of the running cells has ended, or half a second."""
        import distributed

        try:
            self._hand_out()
            if self.running:
                distributed.wait(list(self.running), timeout=0.5, return_when="FIRST_COMPLETED")
            else:
                time.sleep(0.5)
        except TimeoutError:
            pass
        except (distributed.CancelledError, OSError):
            raise self._lost() from None

    def _lost(self) -> RunError:
        return RunError(
            f"the scheduler was lost with {len(self.running) + len(self.todo)} cells to go. What is finished is safe; "
            "run the same command again."
        )

    def _hand_out(self) -> None:
        slots = self.cluster.slots
        if not slots and not self.alone:
            self.say("no worker is there; waiting for one")
        self.alone = not slots
        while self.todo and len(self.running) < slots:
            name = self.todo.pop(0)
            job = self.sweep.job(name, self.threads, self.cell_limit, self.end)
            key = f"{name}-{os.urandom(4).hex()}"
            future = self.cluster.client.submit(run_cell, job, key=key, pure=False, resources=self.resources or None)
            self.running[future] = name

    def _take(self, future: Any, name: str) -> None:
        if future.status == "finished":
            record, files = future.result()
            future.release()  # or it would be made again if its worker died now
        elif future.status == "error":
            error = future.exception()
            if isinstance(error, OSError):  # a full disk, say: it can be run again
                self.say(f"{name} could not be written and stays missing: {error}")
                return
            if died := type(error).__name__ == "KilledWorker":  # Dask blames cells that only waited there, too
                self.killed[name] = self.killed.get(name, 0) + 1
                if self.killed[name] <= FORGIVEN:
                    self.todo.append(name)
                    return
            said = "its workers died again and again" if died else repr(error)
            record, files = _made(name, self.sweep.cells[name], "failed", said, 0.0), None
        else:
            raise self._lost()
        if record["status"] in UNFINISHED:
            return
        self.sweep.finish(name, record, files)
        self.seconds.append(record["seconds"])
        left = len(self.todo) + len(self.running)
        each = sum(self.seconds) / len(self.seconds)
        ahead = _duration(each * math.ceil(left / max(self.cluster.slots, 1))) if left else ""
        self.say(
            f"[{len(self.seconds)}/{self.total}] {name}: {record['status']} in {record['seconds']:.1f} s"
            + (f" ({record['error']})" if record["error"] else "")
            + (f"; about {ahead} left" if left else "")
        )


@contextmanager
def _written(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"the sweep in {folder} broke off: {error}. What is finished is safe; the same command goes on with the "
            "rest once there is room to write."
        ) from None


def _check_inside(folder: Path, path: Any) -> None:
    """A name from another machine, by the rules of all systems."""
    windows = PureWindowsPath(path) if isinstance(path, str) else PureWindowsPath("..")
    if windows.anchor or not windows.parts or ".." in windows.parts or "\0" in str(windows):
        raise DataError(
            f"a worker sent a file named {path!r:.80}, which does not lie in its cell, {folder}. Nothing of it was "
            "written; look at who can reach that scheduler."
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _shown(value: Any) -> str:
    if value is None or value != value:  # NaN
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""One cell of a sweep: a notebook run once, in a folder of its own."""

import json
import re
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from filelock import FileLock

from ..data.stored import cache_folder
from ..errors import DataError, RunError
from ..results import environment, tables
from ..results.environment import with_threads
from ..results.record import finite
from ..storage.files import save_json, write_atomic
from ..version import __version__
from . import headless

RECORD = "cell.json"
UNFINISHED = ("out of time", "stopped")
"""How a cell ends that is to be gone on with."""


def run_cell(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes] | None]:
    """Run one cell where this is called; its record, and its files if the sweep's folder is not seen from here."""
    name, out = job["name"], Path(job["out"])
    shared = (out / ".work" / job["token"]).exists()
    base = out / ".work" if shared else cache_folder() / "sweep"
    work = base / name
    base.mkdir(parents=True, exist_ok=True)
    with FileLock(base / f"{name}.lock"):  # a worker that was given up on may still be at it
        if shared and (placed := _record(out / name)):  # Dask asks again for what a dead worker had in its memory
            return placed, None
        work.mkdir(exist_ok=True)
        record = _record(work)
        if not record or record["status"] != "done":
            _end_orphan(work)
            starts = out / ".starts" if shared else base / "starts"
            record = _run_in(work, job, {"PRUNINGLAB_STARTS": str(starts)})
        if shared:
            return record, None
        files = {str(p.relative_to(work)): p.read_bytes() for p in work.rglob("*") if p.is_file()}
        shutil.rmtree(work, ignore_errors=True)
        return record, files


def _run_in(work: Path, job: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:

    name, began = job["name"], time.time()
    output = work / "notebook.ipynb"
    (work / RECORD).unlink(missing_ok=True)
    limits = [job["cell_limit"], None if job["end"] is None else max(job["end"] - began, 0.1)]
    limit = min((x for x in limits if x is not None), default=None)
    threads = with_threads(job["threads"])
    parameters = job["parameters"] | ({"out": str(work)} if job["takes_out"] else {})
    status, error = "done", ""
    try:
        headless.execute(
            nbformat.reads(job["notebook"], 4), output, parameters, limit=limit, environment=environment | threads,
            folder=Path(job["folder"]) if Path(job["folder"]).is_dir() else work, on_start=lambda pid: _note(work, pid),
        )  # fmt: skip
    except headless.OutOfTime as reached:
        over_all = limit != job["cell_limit"]
        status, error = ("out of time" if over_all else "failed"), str(reached)
    except headless.Stopped as stopped:
        status, error = "stopped", str(stopped)
    except RunError as failure:
        status, error = "failed", str(failure)
    (work / "kernel.json").unlink(missing_ok=True)
    _thumbnail(output, work / "thumbnail.png")
    record = _made(name, job["parameters"], status, error, time.time() - began) | {"reached": _reached(work)}
    if status not in UNFINISHED:  # the last file: with it the cell is whole
        save_json(work / RECORD, finite(record))
    return record


def _made(name: str, parameters: dict[str, Any], status: str, error: str, seconds: float) -> dict[str, Any]:
    return {
        "sweep": tables.CELL_SCHEMA,
        "name": name,
        "parameters": parameters,
        "status": status,
        "error": error,
        "seconds": round(seconds, 2),
        "host": socket.gethostname(),
        "commit": environment._commit(),
        "pruninglab": __version__,
    }


def _record(folder: str | Path) -> dict[str, Any] | None:
    """The record of a cell that is whole."""
    try:
        return tables.read_cell(f"{folder}/{RECORD}")
    except DataError:
        return None


def _reached(work: Path) -> dict[str, Any]:
    """Of a notebook with one run, what that reached; of others, how many there are."""
    frame = tables.load(work)
    if len(frame) != 1:
        return {"runs": len(frame)}
    row = frame.iloc[0]
    return {"runs": 1, **{c: float(row[c]) for c in ("test_accuracy", "sparsity_weights") if pd.notna(row[c])}}


def _note(work: Path, pid: int) -> None:
    import psutil

    with suppress(psutil.Error):
        born = psutil.Process(pid).create_time()
        write_atomic(work / "kernel.json", json.dumps([socket.gethostname(), pid, born]).encode())


def _end_orphan(work: Path) -> None:
    """The kernel of a worker that was killed lives on for a moment, and would write into the same files."""
    import psutil

    with suppress(OSError, ValueError, psutil.Error):
        host, pid, born = json.loads((work / "kernel.json").read_text())
        if host == socket.gethostname() and psutil.Process(pid).create_time() == born:
            headless.kill(pid)


def _picture(shown: Mapping[str, Any]) -> str:
    """The PNG of an output: of a figure of this package, which shows itself as an `<img>`, or of any other."""
    within = re.search(r'<img src="data:image/png;base64,([^"]+)"', shown.get("text/html", ""))
    return shown.get("image/png", "") or (within.group(1) if within else "")


def _thumbnail(notebook: Path, path: Path) -> None:
    """The last figure, small."""
    import base64
    import io

    from PIL import Image

    with suppress(OSError, ValueError, KeyError):
        executed: Any = nbformat.read(notebook, 4)
        outputs = [o for cell in executed.cells if cell.cell_type == "code" for o in cell.outputs]
        pictures = [picture for o in outputs if (picture := _picture(o.get("data", {})))]
        if pictures:
            image = Image.open(io.BytesIO(base64.b64decode(pictures[-1])))
            image.thumbnail((240, 160))
            image.save(path)

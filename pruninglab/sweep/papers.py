"""The rows of a paper's table on Dask workers, each row of each seed in a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from ..benchmark.runner import left
from ..errors import RunError
from ..results.environment import with_threads
from .plan import _Cluster

STOPPED = (-signal.SIGINT, 130, 143)
"""Exit codes of a row that wrote its checkpoint and ended."""


def run_rows(
    table: str,
    seeds: Sequence[int],
    out: Path,
    arguments: Sequence[str],
    *,
    only: Sequence[str] = (),
    jobs: int | None = None,
    scheduler: str | None = None,
    say: Callable[[str], object] = print,
) -> list[str]:
    """Train what has no record in `out`, `jobs` rows at a time with one thread each; the names of those that failed.

    `arguments` are those of `pruninglab papers` besides table, rows and seeds. The rows of a seed wait for its dense
    network, which one of them trains. Rows with trials wait for all of these. When this is ended, the running rows
    write their checkpoints.
    """
    todo = [[f"{seed}/{name}" for name in rows] for seed, rows in left(table, seeds, out, only)]
    trials = todo.pop(0) if todo and "-trial-" in todo[0][0] else []
    rows = [cell for of in todo for cell in of]
    failed: list[str] = []
    if not trials and not rows:
        return failed
    import distributed

    with ExitStack() as stack:
        cluster = _Cluster.local(stack, jobs, 1) if scheduler is None else _Cluster.at(stack, scheduler)
        before = f"{len(trials)} trial{'s' * (len(trials) > 1)} and " if trials else ""
        say(f"{before}{len(rows)} row{'s' * (len(rows) != 1)} to train; {cluster.said}")
        stack.callback(_end_all)
        for wave in filter(None, (trials, rows)):
            cells = {cluster.client.submit(train_row, table, cell, [*arguments], pure=False): cell for cell in wave}
            for future in distributed.as_completed(list(cells)):
                code, said = future.result()
                say(said)
                if code in STOPPED:
                    raise RunError(f"{cells[future]} was ended from outside; the same command goes on with it.")
                failed += [cells[future]] if code else []
            if failed:
                break
    return failed


_running: set["subprocess.Popen[str]"] = set()


def train_row(table: str, cell: str, arguments: list[str]) -> tuple[int, str]:
    """One row in a process of its own, where this is called: its exit code, and the last line that it printed."""
    seed, _, name = cell.partition("/")
    command = [sys.executable, "-m", "pruninglab", "papers", table, "--rows", name, "--seeds", seed, *arguments]
    process = subprocess.Popen(
        command, env={**os.environ, **with_threads(1)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    _running.add(process)
    try:
        printed, _ = process.communicate()
    finally:
        _running.discard(process)
    lines = printed.strip().splitlines() or [""]
    return process.returncode, lines[-1] if not process.returncode else f"{cell} failed: {lines[-1]}"


def _end_all() -> None:
    """Ask what still runs to write its checkpoint and end."""
    for process in list(_running):
        process.terminate()

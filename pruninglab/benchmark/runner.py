"""Run the rows of a table, seed by seed. What has a record is not trained again, what was broken off goes on."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.loading import load
from ..errors import ConfigError
from ..models.building import build
from ..recipes.stages import dense_start
from ..results.record import Result
from ..storage import sparse
from ..train.run import Run
from .rows import TABLES, Cell, Row
from .verify import NETWORK

START, EPOCHS = 4, 33
SHIPPED = 1 << 16
"""A pruned network whose sparse file has at most so many bytes is kept beside its record."""


def run_table(
    table: str,
    seeds: Sequence[int],
    out: str | Path,
    work: str | Path,
    *,
    only: Sequence[str] = (),
    start: int = START,
    epochs: int = EPOCHS,
    **options: Any,
) -> Iterator[tuple[int, str, Result]]:
    """Seed, row and record of each row of `table` for each seed, as they are done.

    All rows of a seed start from one dense net of `start` epochs and take `epochs` more. `out` gets one record for each
    row, and its network where that is small; `work` has the checkpoints to go on from.
    """
    rows = chosen(table, only)
    for seed in seeds:
        given = {"seed": seed, "weight_decay": 5e-5, "progress": False, **options}
        home, made = Path(out, f"seed-{seed}"), Path(work, f"seed-{seed}")
        missing = {name: row for name, row in rows.items() if not (home / f"{name}.json").exists()}
        if not missing:
            continue
        data = load(table, seed=seed, val=1 / 12)
        dense = dense_start(build("lenet5", data, seed=seed), data, epochs=start, folder=made / "start", **given)
        cell = Cell(data, dense, epochs, made, given)
        for name, row in missing.items():
            run = row.make(replace(cell, folder=made / name))
            if run.status == "interrupted":
                return
            yield seed, name, keep(run, row, home / name)


def describe_table(table: str, only: Sequence[str] = (), start: int = START, epochs: int = EPOCHS) -> str:
    """What a table has, and what it takes."""
    rows = chosen(table, only)
    lines = [f"{table}: {len(rows)} rows, for each seed {start} + {len(rows)} x {epochs} epochs of LeNet-5"]
    for name, row in rows.items():
        beside = "; ".join(f"{paper}, Table {number}: {line}" for paper, number, line in row.printed)
        lines.append(f"  {name:<18}{row.method:<22}{row.sparsity:>7.2%}  {beside}".rstrip())
    return "\n".join(lines)


def keep(run: Run, row: Row, path: Path) -> Result:
    """The record with its tags; the network as a sparse file where that is small."""
    run.result.tags |= {"method": row.method, "asked": row.sparsity, **row.tags}
    if run.result.size["sparse_bytes"] <= SHIPPED:
        path.parent.mkdir(parents=True, exist_ok=True)
        sparse.save(run, path.with_suffix(NETWORK))
    run.save(path.with_suffix(".json"))
    return run.result


def chosen(table: str, only: Sequence[str]) -> dict[str, Row]:
    if table not in TABLES:
        raise ConfigError(f"there are no rows for {table!r}; expected one of {', '.join(TABLES)}.")
    rows = TABLES[table]
    if unknown := set(only) - set(rows):
        raise ConfigError(f"{table} has no row {', '.join(sorted(unknown))}; expected some of {', '.join(rows)}.")
    return {name: row for name, row in rows.items() if not only or name in only}

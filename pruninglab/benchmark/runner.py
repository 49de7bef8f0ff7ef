"""Run the rows of a table, seed by seed. What has a record is not trained again, what was broken off goes on."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..data.loading import load
from ..errors import ConfigError
from ..models.building import build
from ..recipes.stages import dense_start
from ..results.record import Result
from ..storage import sparse
from ..storage.files import check_writable
from ..train.fit import fit
from ..train.options import Options, refuse_unknown
from ..train.run import Run
from ..typed import Count, CountFromZero, checked
from .rows import Cell, Row, Table
from .tables import TABLES
from .verify import NETWORK

Budget = Literal["full", "quick"]
Protocol = Literal["holdout", "paper"]
SHIPPED = 1 << 16
"""A pruned network whose sparse file has at most so many bytes is kept beside its record."""
TRIED = 3
"""Steps by which a table is estimated, after one that is not counted."""


@checked
def run_table(
    table: str,
    seeds: Sequence[CountFromZero],
    out: str | Path,
    work: str | Path,
    *,
    only: Sequence[str] = (),
    data: str = "",
    weights: str | Path | None = None,
    start: CountFromZero | None = None,
    epochs: Count | None = None,
    budget: Budget = "full",
    protocol: Protocol = "holdout",
    **options: Any,
) -> Iterator[tuple[int, str, Result]]:
    """Seed, row and record of each row of `table` for each seed, as they are done.

    All rows of a seed start from one dense network of `start` epochs and take `epochs` more. Both are the table's by
    default, or a third of that with `budget="quick"`. `protocol="paper"` holds no images out and chooses on the test
    images, as some papers do; its records say so. A table of ImageNet takes `data="folder:PATH"`, and starts from
    `weights`, a checkpoint of torchvision. `out` gets one record for each row, and its network where that is small;
    `work` has the checkpoints to go on from.
    """
    refuse_unknown(options, "run_table")
    asked, rows = _within(known(table), budget), chosen(table, only)
    lengths = {"start": asked.start if start is None else start, "epochs": epochs or asked.epochs}
    val = "test" if protocol == "paper" else asked.val
    asked = replace(asked, **lengths, val=val, data=_data(table, data), options={**asked.options, **options})
    return _run(asked, rows, seeds, Path(out), Path(work), _weights(table, weights))


def _run(
    asked: Table, rows: dict[str, Row], seeds: Sequence[int], out: Path, work: Path, weights: str | Path | None
) -> Iterator[tuple[int, str, Result]]:
    for seed in seeds:
        given = {"seed": seed, "progress": False, **asked.options}
        home, made = out / f"seed-{seed}", work / f"seed-{seed}"
        missing = {name: row for name, row in rows.items() if not (home / f"{name}.json").exists()}
        if not missing:
            continue
        images = load(asked.data, seed=seed, val=asked.val)
        model = build(asked.model, images, seed=seed, weights=weights)
        dense = dense_start(model, images, epochs=asked.start, folder=made / "start", **given)
        cell = Cell(images, dense, asked.epochs, made, given)
        for name, row in missing.items():
            run = row.make(replace(cell, folder=made / name))
            if run.status == "interrupted":
                return
            yield seed, name, keep(run, row, home / name)


@checked
def describe_table(table: str, only: Sequence[str] = ()) -> str:
    """What a table has, and what it takes."""
    asked, rows = known(table), chosen(table, only)
    begins = f"the weights in {asked.checkpoint}" if asked.checkpoint else f"{asked.start} epochs"
    lines = [
        f"{table}: {len(rows)} rows of {asked.model}, for each seed {begins} and {len(rows)} x {asked.epochs} epochs"
    ]
    for name, row in rows.items():
        beside = "; ".join(f"{paper}, Table {number}: {line}" for paper, number, line in row.printed)
        lines.append(f"  {name:<22}{row.method:<28}{row.sparsity:>7.2%}  {beside}".rstrip())
    return "\n".join(lines)


@checked
def estimate(table: str, only: Sequence[str] = (), data: str = "", **options: Any) -> str:
    """How long a seed takes on this machine, by a few steps of the dense net.

    Methods cost up to a few times more than their steps. The time is that of one process.
    """
    asked, rows = known(table), chosen(table, only)
    given: dict[str, Any] = {**asked.options, **options}
    images = load(_data(table, data), val=asked.val)
    size = min(given.get("batch_size", Options(epochs=1).batch_size), len(images.train))
    moments: list[float] = []

    def note(run: Run) -> None:
        moments.append(time.perf_counter())
        if len(moments) > TRIED:
            run.interrupt()

    given |= {"batch_size": size, "progress": note}
    fit(build(asked.model, images), images, epochs=1, **given)
    each = (moments[-1] - moments[0]) / max(len(moments) - 1, 1)
    steps = len(images.train) // size * (asked.start + len(rows) * asked.epochs)
    return f"{each:.3g} s a step of {size} images, {steps:,} steps a seed: about {each * steps / 3600:,.1f} hours."


def keep(run: Run, row: Row, path: Path) -> Result:
    """The record with its tags; the network as a sparse file where that is small."""
    run.result.tags |= {"method": row.method, "asked": row.sparsity, **row.tags}
    if run.result.size["sparse_bytes"] <= SHIPPED:
        check_writable(path, "out")
        sparse.save(run, path.with_suffix(NETWORK))
    run.save(path.with_suffix(".json"))
    return run.result


def known(table: str) -> Table:
    if table not in TABLES:
        raise ConfigError(f"there is no table {table!r}; expected one of {', '.join(TABLES)}.")
    return TABLES[table]


def chosen(table: str, only: Sequence[str]) -> dict[str, Row]:
    rows = known(table).rows
    if unknown := set(only) - set(rows):
        raise ConfigError(f"{table} has no row {', '.join(sorted(unknown))}; expected some of {', '.join(rows)}.")
    return {name: row for name, row in rows.items() if not only or name in only}


def _within(table: Table, budget: Budget) -> Table:
    return table if budget == "full" else replace(table, start=-(-table.start // 3), epochs=table.epochs // 3)


def _data(table: str, given: str) -> str:
    if not (name := given or TABLES[table].data):
        raise ConfigError(
            f"{table} is measured on ImageNet, which has to be at hand: give data='folder:PATH' (--data folder:PATH) "
            "for PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg."
        )
    return name


def _weights(table: str, given: str | Path | None) -> str | Path | None:
    if given is None and (name := TABLES[table].checkpoint):
        raise ConfigError(
            f"the rows of {table} start from a trained network: give weights= (--weights), say torchvision's {name}."
        )
    return given

"""Run the rows of a table, seed by seed. What has a record is not trained again, what was broken off goes on."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

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
TRIAL_SEED = 9
"""Of all trials, and of no row that they choose for."""


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
    asked = _within(known(table), budget)
    lengths = {"start": asked.start if start is None else start, "epochs": epochs or asked.epochs}
    val = "test" if protocol == "paper" else asked.val
    asked = replace(asked, **lengths, val=val, data=_data(table, data), options={**asked.options, **options})
    out = Path(out)
    _refuse_trial_seed(table, chosen(table, only), seeds)
    return _run(asked, table, left(table, seeds, out, only), out, Path(work), _weights(table, weights))


def _run(
    asked: Table,
    table: str,
    missing: Iterator[tuple[int, dict[str, Row]]],
    out: Path,
    work: Path,
    weights: str | Path | None,
) -> Iterator[tuple[int, str, Result]]:
    for seed, rows in missing:
        given = {"seed": seed, "progress": False, **asked.options}
        made = work / f"seed-{seed}"
        images = load(asked.data, seed=seed, val=asked.val, augment=asked.augment)
        model = build(asked.model, images, seed=seed, weights=weights)
        if asked.prepare:
            asked.prepare(model, images)
        dense = dense_start(model, images, epochs=asked.start, folder=made / "start", **given)
        for name, row in rows.items():
            setting = _setting(table, name, row, out)
            cell = Cell(images, dense, asked.epochs * row.length, made / name, given, model, setting)
            run = row.make(cell)
            if run.status == "interrupted":
                return
            tags = {f"chosen_{key}": value for key, value in setting.items()}
            tags |= {key: measure(cell, run) for key, measure in asked.measures.items()}
            yield seed, name, keep(run, row, out / f"seed-{seed}" / name, **tags)


def left(table: str, seeds: Sequence[int], out: Path, only: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Row]]]:
    """Each seed with the rows that have no record in `out`; before them the trials on which these rows wait."""
    rows = chosen(table, only)
    _refuse_trial_seed(table, rows, seeds)
    missing = {seed: _missing(rows, out, seed) for seed in seeds}
    waiting = {name: row for of in missing.values() for name, row in of.items()}
    if trials := _missing(_trials_of(table, waiting), out, TRIAL_SEED):
        yield TRIAL_SEED, trials
    yield from ((seed, of) for seed, of in missing.items() if of)


@checked
def describe_table(table: str, only: Sequence[str] = ()) -> str:
    """What a table has, and what it takes."""
    asked, rows = known(table), chosen(table, only)
    begins = f"the weights in {asked.checkpoint}" if asked.checkpoint else f"{asked.start} epochs"
    total = asked.epochs * sum(row.length for row in rows.values())
    lines = [f"{table}: {len(rows)} rows of {asked.model}, for each seed {begins} and {total:,} epochs of the rows"]
    for name, row in rows.items():
        beside = "; ".join(f"{paper}, Table {number}: {line}" for paper, number, line in row.printed)
        lines.append(f"  {name:<23}{row.method:<36}{row.sparsity:>7.2%}  {beside}".rstrip())
    if trials := _trials_of(table, rows):
        tried = len(trials) // len({_tried(name) for name in trials})
        lines.append(
            f"  {len(trials)} trials with seed {TRIAL_SEED}, {tried} for each method; validation accuracy chooses"
        )
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
    steps, before = (
        len(images.train) // size * (asked.start + asked.epochs * sum(row.length for row in of.values()))
        for of in (rows, _trials_of(table, rows))
    )
    said = f"{each:.3g} s a step of {size} images, {steps:,} steps a seed: about {each * steps / 3600:,.1f} hours."
    if before > len(images.train) // size * asked.start:
        said += f" The trials take {before:,} steps once: about {each * before / 3600:,.1f} hours."
    return said


def keep(run: Run, row: Row, path: Path, **tags: float | str) -> Result:
    """The record with its tags; the network as a sparse file where that is small and no trial's."""
    run.result.tags |= {"method": row.method, "asked": row.sparsity, **row.tags, **tags}
    if run.result.size["sparse_bytes"] <= SHIPPED and "trial" not in row.tags:
        check_writable(path, "out")
        sparse.save(run, path.with_suffix(NETWORK))
    run.save(path.with_suffix(".json"))
    return run.result


def known(table: str) -> Table:
    if table not in TABLES:
        raise ConfigError(f"there is no table {table!r}; expected one of {', '.join(TABLES)}.")
    return TABLES[table]


def _refuse_trial_seed(table: str, rows: Mapping[str, Row], seeds: Sequence[int]) -> None:
    if TRIAL_SEED in seeds and _trials_of(table, rows):
        raise ConfigError(f"seed {TRIAL_SEED} is that of the trials of {table}; give other seeds.")


def home(table: str) -> str:
    """The folder of its records: tables that share rows share it."""
    return known(table).home or table


def chosen(table: str, only: Sequence[str]) -> dict[str, Row]:
    rows, trials = known(table).rows, known(table).trials
    if unknown := set(only) - set(rows) - set(trials):
        raise ConfigError(f"{table} has no row {', '.join(sorted(unknown))}; expected some of {', '.join(rows)}.")
    return {name: row for name, row in (rows | trials).items() if name in (only or rows)}


def _trials_of(table: str, rows: Mapping[str, Row]) -> dict[str, Row]:
    waiting = {row.tuned or name for name, row in rows.items()}
    return {name: row for name, row in known(table).trials.items() if _tried(name) in waiting}


def _tried(trial: str) -> str:
    """The row that a trial is of."""
    return trial.rpartition("-trial-")[0]


def _missing(rows: Mapping[str, Row], out: Path, seed: int) -> dict[str, Row]:
    return {name: row for name, row in rows.items() if not Path(out, f"seed-{seed}", f"{name}.json").exists()}


def _setting(table: str, name: str, row: Row, out: Path) -> Mapping[str, Any]:
    """A trial's own setting; of a row's trials, that of the highest validation accuracy, the first of equal ones."""
    if not row.settings or name in known(table).trials:
        return dict(*row.settings)
    trials = _trials_of(table, {name: row})
    scores = {trial: Result.read(out / f"seed-{TRIAL_SEED}" / f"{trial}.json").val for trial in trials}
    best = max(scores, key=lambda trial: np.nan_to_num(scores[trial], nan=-1.0))
    return dict(*trials[best].settings)


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

"""Records read back as one table."""

import glob
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd

from ..errors import DataError
from ..storage.files import load_json
from ..storage.sparse import sizes
from ..typed import Filled, checked
from . import index
from .index import Columns, Index, Stamp, columns_of, joined, read_index, series, stamp
from .record import COLUMNS, Result, percent

CELL_SCHEMA = 2


@checked
def load(pattern: str | Path) -> pd.DataFrame:
    """All records that a pattern finds (`"runs/**"`, a folder, a file), one row each, with `path`.

    A relative pattern that finds nothing from the working folder is looked for in `notebooks/` of this folder and of
    those above, where the committed results of a checkout lie. Runs of a sweep's cell have its parameters in columns
    `param_…`; cells that failed are in `frame.attrs["failed"]`. Files that are no records are left out and listed in
    `frame.attrs["skipped"]`. `frame.to_csv("all.csv")` writes the table out, and with pyarrow installed
    `frame.to_parquet("all.parquet")`. A folder with a thousand records or more gets a file `.records`, from which their
    rows are read the next time.

    >>> path = run.save(folder / 'run.json')
    >>> len(lab.results.load(folder))
    1
    """
    here = Path.cwd()
    places = ["", *(above / "notebooks" for above in (here, *here.parents))]
    found = (_found(Path(place, pattern)) for place in places)
    paths, folder = next(filter(lambda one: one[0], found), ([], None))
    columns, paths, skipped = _read(paths, folder)
    values, codes = columns.pop(_CELL, ([], np.full(len(paths), -1)))
    cells = {os.path.dirname(path): values[code] for path, code in zip(paths, codes, strict=True) if code >= 0}
    frame = _frame(columns, paths, codes < 0, cells)
    frame.attrs["skipped"] = skipped
    frame.attrs["failed"] = {cell["name"]: cell["error"] for cell in cells.values() if cell["status"] != "done"}
    return frame


_CELL, _NAMES = "\0cell", "\0names"
"""Columns of the index that no table shows: the record of a cell, and the names of a row's columns in their order."""


def _read(paths: Sequence[str], folder: str | None) -> tuple[Columns, list[str], dict[str, str]]:
    """What these files hold, in columns; which files have a row there; and why the others have none."""
    began, start = time.time_ns(), len(os.path.join(folder, "")) if folder else 0
    known = read_index(folder) if folder else Index()
    places: dict[str, int] = {}
    stamps: dict[str, Stamp | None] = {}
    skipped: dict[str, str] = {}
    fresh: list[dict[str, Any]] = []
    for path in paths:
        name, found = path[start:], stamp(path)
        place, before = known.rows.get(name, (0, None))
        if not found or found != before:
            try:
                fresh.append(_row(path))
            except (DataError, KeyError, TypeError, AttributeError) as error:
                skipped[path] = str(error)
                continue
            place = len(known.rows) + len(fresh) - 1
        places[path], stamps[name] = place, found
    tables = [(known.columns, len(known.rows)), (columns_of(fresh), len(fresh))]
    columns = joined(tables, list(places.values()))
    if folder and len(fresh) >= index.LEAST:
        index.write_index(folder, columns, stamps, began)
    return columns, list(places), skipped


def _row(path: str) -> dict[str, Any]:
    if os.path.basename(path) == "cell.json":
        cell = read_cell(path)
        return {_CELL: {name: cell[name] for name in ("name", "parameters", "status", "error")}}
    row = Result.read_with_row(path)[1]
    return row | {_NAMES: list(row)}


def _frame(columns: Columns, paths: Sequence[str], is_run: np.ndarray, cells: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each run; those of a cell that failed are left out."""
    of = [_cell_of(path, cells) for path in paths] if cells else [_NO_CELL] * len(paths)
    rows = is_run & np.array([cell["status"] == "done" for cell in of], dtype=bool)
    if not rows.any():
        return pd.DataFrame([], columns=pd.Index(sorted(COLUMNS)))
    more = [
        {"path": path} | {f"param_{name}": value for name, value in cell["parameters"].items()}
        for path, cell, shown in zip(paths, of, rows, strict=True)
        if shown
    ]
    names, order = columns.pop(_NAMES)
    shapes = dict.fromkeys(zip(order[rows].tolist(), map(tuple, more), strict=True))
    shown = {name: (values, codes[rows]) for name, (values, codes) in columns.items()} | columns_of(more)
    ordered = dict.fromkeys(name for code, others in shapes for name in (*names[code], *others))
    return pd.DataFrame({name: series(name, *shown[name]) for name in ordered})


def _found(pattern: Path) -> tuple[list[str], str | None]:
    """The files, and the folder that they all lie in if the pattern is one."""
    text = str(pattern)
    folder = text.removesuffix("**").rstrip(os.sep) or text
    if not os.path.isdir(folder):
        folder = None
    else:
        text = os.path.join(glob.escape(folder), "**")
    if text.endswith("**"):
        text = os.path.join(text, "*.json")
    return sorted(glob.glob(text, recursive=True)), folder


def read_cell(path: str | Path) -> dict[str, Any]:
    """The record of a sweep's cell."""
    record = load_json(path, since=("sweep", CELL_SCHEMA))
    kinds = {"name": str, "parameters": dict, "status": str, "error": str, "seconds": int | float}
    if any(not isinstance(record.get(name), kind) for name, kind in kinds.items()):
        raise DataError(f"{path} is no whole record of a cell; run it again.")
    return record


def _cell_of(path: str, cells: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The cell in whose folder this is, or one that stands for none."""
    while path != (above := os.path.dirname(path)):
        if above in cells:
            return cells[above]
        path = above
    return _NO_CELL


_NO_CELL: dict[str, Any] = {"status": "done", "parameters": {}}


@checked
def table(runs: Annotated[Mapping[str, Any], Filled()], *, compressed: bool = False) -> pd.DataFrame:
    """Runs or results side by side, by the names given: accuracy, what is zero and of what, and size.

    With `compressed` also the size of the dense file after bzip2, which takes minutes for large networks.

    >>> lab.results.table({'dense': dense, 'gradual': run}).shape[0]
    2
    """
    rows = {name: getattr(run, "result", run).row() for name, run in runs.items()}
    for name, run in runs.items() if compressed else ():
        if rows[name]["bzip2_bytes"] is None and hasattr(run, "model"):
            rows[name]["bzip2_bytes"] = sizes(run.model, compressed=True)["bzip2_bytes"]
    return _shown(pd.DataFrame.from_dict(rows, orient="index"))


@checked
def compare_text(frame: pd.DataFrame) -> str:
    """Loaded records as a plain table for a terminal, best last."""
    paths = [Path(p) for p in frame["path"]]
    stems = [p.stem.replace("-", " ") for p in paths]
    names = stems if len(set(stems)) == len(stems) else [str(p) for p in paths]
    return _shown(frame.set_index(pd.Index(names))).to_string()


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns that a reader compares, under headings that say what a share is of."""
    kilobytes = {"bytes": "dense file, KB", "bzip2_bytes": "after bzip2, KB"}
    shown = pd.DataFrame(
        {
            "status": frame["status"] + frame["collapsed_layers"].map(_emptied),
            "test accuracy": [percent({"accuracy": a}) for a in frame["test_accuracy"]],
            "zero, of weights": frame["sparsity_weights"].map("{:.2%}".format),
            "zero, of all parameters": frame["sparsity_all"].map("{:.2%}".format),
            "in scope, of all parameters": frame["in_scope"].map("{:.1%}".format),
            "non-zero parameters": frame["nonzero"].map("{:,}".format),
        }
    )
    for column, heading in kilobytes.items():
        known = frame[column].astype(float)
        if not all(known.isna()):
            shown[heading] = (known / 1000).map("{:,.1f}".format)
    shown["steps"] = frame["steps_before"] + frame["steps"]
    shown["GFLOPs of this run"] = (frame["flops_training"] / 1e9).map("{:,.0f}".format)
    shown["seconds of it"] = frame["seconds"].astype(float).map("{:,.0f}".format)
    return shown


def _emptied(layers: int) -> str:
    return f", {layers} layer{'s' if layers > 1 else ''} emptied" if layers else ""

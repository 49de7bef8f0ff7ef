"""Records read back as one table."""

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pandas as pd

from ..errors import DataError
from ..storage.files import load_json
from ..storage.sparse import sizes
from ..typed import Filled, checked
from .record import COLUMNS, Result, percent

CELL_SCHEMA = 2


@checked
def load(pattern: str | Path) -> pd.DataFrame:
    """All records that a pattern finds (`"runs/**"`, a folder, a file), one row each, with `path`.

    A relative pattern that finds nothing from the working folder is looked for in `notebooks/` of this folder and of
    those above, where the committed results of a checkout lie. Runs of a sweep's cell have its parameters in columns
    `param_…`; cells that failed are in `frame.attrs["failed"]`. Files that are no records are left out and listed in
    `frame.attrs["skipped"]`. `frame.to_csv("all.csv")` writes the table out, and with pyarrow installed
    `frame.to_parquet("all.parquet")`.

    >>> path = run.save(folder / 'run.json')
    >>> len(lab.results.load(folder))
    1
    """
    rows, skipped, cells = [], {}, {}
    here = Path.cwd()
    places = ["", *(above / "notebooks" for above in (here, *here.parents))]
    for path in next(filter(None, (_found(Path(place, pattern)) for place in places)), []):
        try:
            if os.path.basename(path) == "cell.json":
                cells[str(Path(path).parent)] = read_cell(path)
                continue
            rows.append({**Result.read(path).row(), "path": path})
        except (DataError, KeyError, TypeError, AttributeError) as error:
            skipped[path] = str(error)
    if cells:
        pairs = [(row, _cell_of(row["path"], cells)) for row in rows]
        rows = [
            row | {f"param_{name}": value for name, value in cell["parameters"].items()}
            for row, cell in pairs
            if cell["status"] == "done"
        ]
    frame = pd.DataFrame(rows, columns=None if rows else pd.Index(sorted(COLUMNS)))
    frame.attrs["skipped"] = skipped
    frame.attrs["failed"] = {cell["name"]: cell["error"] for cell in cells.values() if cell["status"] != "done"}
    return frame


def _found(pattern: Path) -> list[str]:
    text = str(pattern)
    if os.path.isdir(text):
        text = os.path.join(glob.escape(text), "**")
    if text.endswith("**"):
        text = os.path.join(text, "*.json")
    return sorted(glob.glob(text, recursive=True))


def read_cell(path: str | Path) -> dict[str, Any]:
    """The record of a sweep's cell."""
    record = load_json(path, since=("sweep", CELL_SCHEMA))
    kinds = {"name": str, "parameters": dict, "status": str, "error": str, "seconds": int | float}
    if any(not isinstance(record.get(name), kind) for name, kind in kinds.items()):
        raise DataError(f"{path} is no whole record of a cell; run it again.")
    return record


def _cell_of(path: str, cells: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The cell in whose folder this is, or one that stands for none."""
    found = (cells[str(folder)] for folder in Path(path).parents if str(folder) in cells)
    return next(found, {"status": "done", "parameters": {}})


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

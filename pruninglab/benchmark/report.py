"""What the papers print, and beside it what was measured here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..analysis import papers
from ..analysis.statistics import NEAR, interval
from ..errors import DataError
from ..results.tables import load
from ..typed import checked
from .rows import Row
from .runner import chosen, known

CODED = ("admm", 6)
"""The table whose rows are sizes and not accuracies."""
COLUMNS = ("row", "printed", "table", "paper_accuracy", "n", "accuracy", "low", "high", "sparsity", "verdict")


@checked
def beside(folder: str | Path, table: str) -> pd.DataFrame:
    """One line for each printed row that has records in `folder`, those of `pruninglab papers TABLE`.

    `accuracy` is the mean of the test accuracies with its 95 % interval over seeds. `gradual`, `random` and `dense` are
    the means of the controls: the same number of weights (but for `dense`), and equal steps. The verdict is "reached"
    where the mean, rounded as the paper rounds, is no lower than what is printed.
    """
    rows, measured = chosen(table, ()), _some(folder, table)
    lines = [
        _line(name, row, printed, measured) | _controls(row, rows, measured)
        for name, row in rows.items()
        if name in measured
        for printed in row.printed
        if printed[:2] != CODED
    ]
    return pd.DataFrame(lines, columns=pd.Index([*COLUMNS, "gradual", "random", "dense"]))


@checked
def coded(folder: str | Path, table: str = "MNIST") -> pd.DataFrame:
    """One line for each row of the ADMM paper's Table 6 that has records: what its weights take in bytes.

    `data` are the bytes of values and code books, `with_index` those with the positions of the weights, `file` those of
    the whole sparse file. The paper's own are beside them. `lost` are points of test accuracy below the dense net of
    the same seed. All are means over seeds.
    """
    found, printed = _some(folder, table), papers.table(*CODED).set_index("Method")
    dense = found["dense"].set_index("seed")["test_accuracy"] if "dense" in found else pd.Series(dtype=float)
    lines = []
    for name, row in chosen(table, ()).items():
        for told in (printed.loc[label] for *where, label in row.printed if tuple(where) == CODED and name in found):
            of = found[name].set_index("seed")
            lost = 100 * (dense - of["test_accuracy"])
            line = {"row": name, "n": len(of), "lost": lost.mean(), "lost_printed": told["Acc. Loss"]}
            for column, bits in {"data": ["data_bits"], "with_index": ["data_bits", "index_bits"]}.items():
                line[column] = of[bits].sum(axis=1).mean() / 8
            line |= {"data_printed": told["Total data size"], "with_index_printed": told["Total size w. index"]}
            lines.append(line | {"file": of["sparse_bytes"].mean()})
    order = ["row", "n", "lost", "lost_printed", "data", "data_printed", "with_index", "with_index_printed", "file"]
    return pd.DataFrame(lines, columns=pd.Index(order))


@checked
def measured(folder: str | Path, table: str) -> pd.DataFrame:
    """The records of the rows of `table` in `folder`, with their column `row`; none of its trials."""
    found = _measured(folder, table)
    return pd.concat(found.values(), ignore_index=True) if found else pd.DataFrame()


@checked
def overview(folder: str | Path, table: str) -> pd.DataFrame:
    """One line for each row of `table`, whether it has records or not.

    `n` counts its seeds. `accuracy` is the mean of the test accuracies with its 95 % interval over seeds. The columns
    after that are means of what else the table measures.
    """
    found, more = _measured(folder, table), known(table).measures
    lines = []
    for name, row in chosen(table, ()).items():
        line: dict[str, Any] = {"row": name, "method": row.method, "sparsity": row.sparsity, "n": 0}
        if name in found:
            low, mean, high = interval(found[name]["test_accuracy"].to_numpy(float))
            line |= {"n": len(found[name]), "accuracy": mean, "low": low, "high": high}
            line |= {column: found[name][column].mean() for column in more}
        lines.append(line)
    return pd.DataFrame(lines, columns=pd.Index([*lines[0], "accuracy", "low", "high", *more]).unique())


def unmeasured_in_words(folder: str | Path, table: str) -> Iterator[str]:
    """One sentence for each method with rows that have no record yet, and the command that trains them."""
    lines: Any = overview(folder, table)
    left = lines[lines["n"] == 0]
    for method, of in left.groupby("method", sort=False):
        of_all = " in any of its rows" if len(of) == int((lines["method"] == method).sum()) else ""
        at = ", ".join(f"{1 - sparsity:.2%}" for sparsity in sorted(of["sparsity"])) if not of_all else ""
        yield f"{method}: no record yet{of_all}{f' at {at} of the weights' if at else ''}."
    if len(left):
        yield f"{len(left)} of {len(lines)} rows have no record yet: pruninglab papers {table} --out {folder}"
    else:
        yield f"All {len(lines)} rows have records, with {lines['n'].min()} seeds or more."


def in_words(found: pd.DataFrame) -> Iterator[str]:
    """One sentence for each printed row that was measured, and one for all."""
    for row in found.to_dict("records"):
        spread = f", 95 % interval {row['low']:.2%} to {row['high']:.2%}" if row["n"] > 1 else ""
        control = "" if np.isnan(row["gradual"]) else f" Gradual magnitude reaches {row['gradual']:.2%} at equal steps."
        yield (
            f"{row['printed']} ({row['table']}) prints {row['paper_accuracy']:.2%}. Measured: {row['accuracy']:.2%} at "
            f"{row['sparsity']:.2%} zeros, n = {row['n']}{spread}: {row['verdict']}.{control}"
        )
    reached = int(found["verdict"].str.startswith("reached").sum())
    yield f"{reached} of {len(found)} printed rows are reached. The fewest seeds of a row are {found['n'].min()}."


def _some(folder: str | Path, table: str) -> dict[str, Any]:
    if not (found := _measured(folder, table)):
        raise DataError(f"no records found in {folder}; run: pruninglab papers {table} --out {folder}.")
    return found


def _measured(folder: str | Path, table: str) -> dict[str, Any]:
    """The records of each row."""
    rows, frame = chosen(table, ()), load(folder)
    if frame.empty:
        return {}
    frame = frame.assign(row=[Path(path).stem for path in frame["path"]])
    found = {str(name): of for name, of in frame.groupby("row", sort=False)}
    return {name: found[name] for name in rows if name in found}


def _line(name: str, row: Row, printed: tuple[str, int, str], measured: dict[str, Any]) -> dict[str, Any]:
    paper, number, label = printed
    told, digits = _accuracy(paper, number, label)
    of, top5 = measured[name], any(t.metric == "top-5" for t in papers.TABLES if (t.paper, t.number) == (paper, number))
    low, mean, high = interval(of["test_top5" if top5 else "test_accuracy"].to_numpy(float))
    missed = told - round(mean, digits)
    counted = "sparsity_weights_and_biases" if paper == "bonetta" else "sparsity_weights"
    return {
        "row": name,
        "printed": label,
        "table": f"{paper} {number}",
        "paper_accuracy": told,
        "n": len(of),
        "accuracy": mean,
        "low": low,
        "high": high,
        "sparsity": float(of[counted].mean()),
        "verdict": _verdict(missed, set(of["status"])),
    }


def _verdict(missed: float, statuses: set[str]) -> str:
    said = "reached" if missed < 1e-9 else f"missed by {100 * missed:.2f} points"
    return said + (", at a lower sparsity than asked" if "target_missed" in statuses else "")


def _controls(row: Row, rows: dict[str, Row], measured: dict[str, Any]) -> dict[str, float]:
    """The mean accuracy of each control; NaN where it has not been run."""
    density = 1 - row.sparsity
    found = {"gradual": np.nan, "random": np.nan, "dense": np.nan}
    kinds = {"gradual magnitude": "gradual", "random mask": "random", "dense": "dense"}
    for name, other in rows.items():
        kind = kinds.get(other.method)
        near = kind == "dense" or abs((1 - other.sparsity) / density - 1) < NEAR
        if kind and near and name in measured:
            found[kind] = float(measured[name]["test_accuracy"].mean())
    return found


def _accuracy(paper: str, number: int, label: str) -> tuple[float, int]:
    """As a fraction, and how many of its digits are printed."""
    printed: Any = papers.table(paper, number)
    first = printed.iloc[:, 0]
    named = (first == label) | (first + " " + printed["Rate"] == label if "Rate" in printed else False)
    (text,) = printed.loc[named, [c for c in printed if "Acc" in str(c)]].iloc[0]
    digits = text.rstrip("%")
    return float(digits) / 100, len(digits.partition(".")[2]) + 2

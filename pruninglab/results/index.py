"""Rows of records in one file beside them, since a hundred thousand small files take a minute to read.

A file is known by its path in the folder, its size and its times. What the index does not know, or has changed since,
is read itself, so that a table is the same with the index and without.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from .. import identity
from ..errors import DataError
from ..layers import names
from ..storage.files import load_state, save_state
from ..version import __version__

NAME = ".records"
LEAST = 1000
"""So many records that were read one by one are worth writing the index anew."""
SETTLED = 2 * 10**9
"""Nanoseconds without a change after which another change shows in the times of a file."""
Columns = dict[str, tuple[list[Any], np.ndarray]]
"""Of each column the values, and which of them each row has; -1 where a row has none."""
Stamp = list[int]


@dataclass
class Index:
    """What is known of the records of a folder."""

    columns: Columns = field(default_factory=dict)
    rows: dict[str, tuple[int, Stamp]] = field(default_factory=dict)
    """By path: the place in the columns, and the stamp of the file when it was read."""


def stamp(path: str) -> Stamp | None:
    with suppress(OSError):
        found = os.stat(path)
        return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    return None


def read_index(folder: str) -> Index:
    """What the index of a folder says; nothing where it is missing, altered, or of other code."""
    with suppress(DataError, LookupError, TypeError, ValueError, AttributeError):
        state = load_state(f"{folder}/{NAME}")
        if state["made_by"] == _made_by():
            said, stamps = json.loads(state["said"]), state["stamps"].tolist()
            columns = dict(zip(said["columns"], zip(said["values"], state["codes"].numpy(), strict=True), strict=True))
            return Index(columns, dict(zip(said["paths"], enumerate(stamps), strict=True)))
    return Index()


def write_index(folder: str, columns: Columns, stamps: Mapping[str, Stamp | None], began: int) -> None:
    """The rows of these files, but for those that may change unseen. Without leave to write there is no index."""
    settled = [bool(found) and max(found[1:]) + SETTLED < began for found in stamps.values()]
    known = [(path, found) for (path, found), ready in zip(stamps.items(), settled, strict=True) if ready]
    said = {
        "paths": [path for path, _ in known],
        "columns": list(columns),
        "values": [values for values, _ in columns.values()],
    }
    state = {
        "made_by": _made_by(),
        "said": json.dumps(said),
        "codes": torch.from_numpy(np.stack([codes[settled] for _, codes in columns.values()])),
        "stamps": torch.tensor([found for _, found in known], dtype=torch.int64),
    }
    with suppress(OSError):
        save_state(f"{folder}/{NAME}", state)


@functools.cache
def _made_by() -> str:
    """A hash of the code that makes a row of a record."""
    sources = [*sorted(Path(__file__).parent.glob("*.py")), Path(identity.__file__), Path(names.__file__)]
    content = b"".join(path.read_bytes() for path in sources if path.is_file())
    return f"{__version__} {hashlib.sha256(content).hexdigest()}"


def columns_of(rows: Sequence[Mapping[str, Any]]) -> Columns:
    found: Columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        places: dict[str, tuple[int, Any]] = {}  # by repr, which tells 1 from True and 0.0 from -0.0
        codes = [places.setdefault(repr(row[name]), (len(places), row[name]))[0] if name in row else -1 for row in rows]
        found[name] = [value for _, value in places.values()], np.array(codes, dtype=np.int32)
    return found


def joined(tables: Sequence[tuple[Columns, int]], rows: Sequence[int]) -> Columns:
    """These rows of tables of known length, by their places where one table stands below the other."""
    both: Columns = {}
    chosen = np.array(rows, dtype=np.int64)
    for name in dict.fromkeys(name for columns, _ in tables for name in columns):
        values: list[Any] = []
        parts: list[np.ndarray] = []
        for columns, length in tables:
            own, codes = columns.get(name, ([], np.full(length, -1, dtype=np.int32)))
            parts.append(np.where(codes < 0, -1, codes + len(values)).astype(np.int32))
            values = values + own
        codes = np.concatenate(parts)[chosen]
        if (codes >= 0).any():
            both[name] = values, codes
    return both


def series(name: str, values: Sequence[Any], codes: np.ndarray) -> pd.Series:
    """A column as pandas makes it of these rows: its type follows from the values that occur."""
    used = np.zeros(len(values) + 1, dtype=bool)  # the last one stands for rows without a value
    used[codes] = True
    each: list[dict[str, Any]] = [{name: value} for value, occurs in zip(values, used, strict=False) if occurs]
    small = pd.Series(pd.DataFrame(each + [{}] * bool(used[-1]))[name])
    return small.take((np.cumsum(used) - 1)[codes]).set_axis(pd.RangeIndex(len(codes)))

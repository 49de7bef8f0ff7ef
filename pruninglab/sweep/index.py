"""The records of finished cells in one file beside them: a hundred thousand small files take seconds to read."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..storage.files import write_atomic
from .cell import RECORD, _record

Entry = list[Any]
"""When a record was written and how long it is, in bytes; and the record."""


def read_records(out: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Of each of these cells that is finished. What the index does not know, or has changed since, is read itself."""
    here = set(os.listdir(out)) if out.is_dir() else set[str]()
    known = _known(out) if here else {}
    found = {name: _current(known.get(name), f"{out}/{name}") for name in names if name in here}
    return {name: record for name, record in found.items() if record}


def write_index(out: Path, records: Mapping[str, dict[str, Any]]) -> None:
    """These records, beside those of other grids in this folder."""
    here = set(os.listdir(out))
    entries = {name: [*_stamp(f"{out}/{name}"), record] for name, record in records.items()}
    content = json.dumps({name: entry for name, entry in (_known(out) | entries).items() if name in here}).encode()
    write_atomic(_path(out), hashlib.sha256(content).digest() + content)


def _current(entry: Entry | None, folder: str) -> dict[str, Any] | None:
    with suppress(OSError):
        if entry and entry[:2] == _stamp(folder):
            return entry[2]
    return _record(folder)


def _known(out: Path) -> dict[str, Entry]:
    """What the index says; nothing where it is missing or was altered."""
    with suppress(OSError, ValueError):
        content = _path(out).read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return json.loads(content[32:])
    return {}


def _stamp(folder: str) -> list[int]:
    found = os.stat(f"{folder}/{RECORD}")
    return [found.st_mtime_ns, found.st_size]


def _path(out: Path) -> Path:
    return out / ".work" / "records"

"""A table of records is the same with an index beside them and without, whatever happened to the files."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from torch import nn

import pruninglab as lab
from pruninglab.results import index
from pruninglab.storage.files import save_json

VALUES: tuple[Any, ...] = (None, True, 0, 1, -3, 2**70, 0.0, -0.0, 0.5, 1e300, "", "1", "ü")


@pytest.fixture(scope="module")
def result(blobs: lab.Data) -> lab.Result:
    return lab.fit(nn.Linear(10, 4), blobs, epochs=1, progress=False).result


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every load writes the index, with files that were written a moment ago."""
    monkeypatch.setattr(index, "LEAST", 1)
    monkeypatch.setattr(index, "SETTLED", -(10**10))


def plain(folder: Path) -> pd.DataFrame:
    """Of a pattern that is no folder, each file is read."""
    return lab.results.load(f"{folder}/**/*.json")


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert found.attrs == expected.attrs
    assert found.dtypes.to_dict() == expected.dtypes.to_dict()
    assert [*found.columns] == [*expected.columns]
    assert repr(found.to_dict("list")) == repr(expected.to_dict("list"))


class Records:
    """A folder to which anything happens."""

    def __init__(self, folder: Path, result: lab.Result, seed: int) -> None:
        self.folder, self.result, self.draw = folder, result, random.Random(seed)

    def __call__(self) -> None:
        does: list[Callable[[], object]] = [self.add, self.add, self.add, self.change, self.change_unseen, self.delete]
        does += [self.halve, self.move, self.cell, self.break_index, self.index_of_another]
        self.draw.choice(does)()

    def any(self) -> Path | None:
        found = sorted(self.folder.rglob("*.json"))
        return self.draw.choice(found) if found else None

    def save(self, path: Path) -> None:
        tags = {f"tag{self.draw.randrange(4)}": self.draw.choice(VALUES) for _ in range(self.draw.randrange(3))}
        accuracy = {**self.result.accuracy, "test": {"accuracy": self.draw.choice([None, 0.5, 1])}}
        replace(self.result, tags=tags, accuracy=accuracy).save(path)

    def add(self) -> None:
        self.save(self.folder / self.draw.choice("ab") / f"{self.draw.randrange(30)}.json")

    def change(self) -> None:
        if path := self.any():
            self.save(path)

    def change_unseen(self) -> None:
        """To another record of the same length and the same time of change."""
        if (path := self.any()) and b'"seed": 0' in (content := path.read_bytes()):
            before = path.stat()
            time.sleep(0.02)
            path.write_bytes(content.replace(b'"seed": 0', b'"seed": 7'))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def delete(self) -> None:
        if path := self.any():
            path.unlink()

    def halve(self) -> None:
        if path := self.any():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def move(self) -> None:
        if path := self.any():
            path.replace(path.with_name("moved.json"))

    def cell(self) -> None:
        """`a` becomes a cell of a sweep."""
        status = self.draw.choice(["done", "failed"])
        said = {"sweep": 2, "name": "a", "parameters": {"x": self.draw.choice(VALUES)}, "status": status}
        (self.folder / "a").mkdir(exist_ok=True)
        save_json(self.folder / "a/cell.json", said | {"error": "", "seconds": 1.0})

    def break_index(self) -> None:
        path = self.folder / index.NAME
        if path.exists():
            content = path.read_bytes()
            at = self.draw.randrange(len(content))
            path.write_bytes(self.draw.choice([content[:at], content[:at] + b"?" + content[at + 1 :], b""]))

    def index_of_another(self) -> None:
        if (self.folder / index.NAME).exists():
            (self.folder / "b").mkdir(exist_ok=True)
            shutil.copy(self.folder / index.NAME, self.folder / "b")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_the_table_is_the_same_whatever_happened_to_the_files(result: lab.Result, tmp_path: Path, seed: int) -> None:
    happens = Records(tmp_path, result, seed)
    for _ in range(8 if seed == 0 else 40):
        happens()
        same(lab.results.load(tmp_path), plain(tmp_path))
    same(lab.results.load(tmp_path / "b"), plain(tmp_path / "b"))


def test_what_the_index_knows_is_not_read_again(result: lab.Result, tmp_path: Path, monkeypatch: Any) -> None:
    happens = Records(tmp_path, result, 0)
    for _ in range(5):
        happens.add()
    expected = lab.results.load(tmp_path)
    monkeypatch.setattr(lab.Result, "read_with_row", lambda path: pytest.fail(f"{path} was read"))
    same(lab.results.load(tmp_path), expected)
    monkeypatch.undo()
    monkeypatch.setattr(index, "_made_by", lambda: "other code")
    assert index.read_index(str(tmp_path)).rows == {}


def test_what_may_change_unseen_is_not_in_the_index(result: lab.Result, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(index, "SETTLED", 10**12)
    Records(tmp_path, result, 0).add()
    same(lab.results.load(tmp_path), plain(tmp_path))
    assert index.read_index(str(tmp_path)).rows == {}


def test_a_few_records_get_no_index_and_neither_does_a_folder_that_takes_none(
    result: lab.Result, tmp_path: Path, monkeypatch: Any
) -> None:
    Records(tmp_path, result, 0).add()
    (tmp_path / index.NAME).mkdir()
    same(lab.results.load(tmp_path), plain(tmp_path))
    (tmp_path / index.NAME).rmdir()
    monkeypatch.setattr(index, "LEAST", 2)
    assert len(lab.results.load(tmp_path)) == 1
    assert not (tmp_path / index.NAME).exists()


def test_several_threads_read_and_write_one_index(result: lab.Result, tmp_path: Path) -> None:
    happens = Records(tmp_path, result, 0)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            happens.add()
            found = [pool.submit(lab.results.load, tmp_path) for _ in range(2)]
            expected = plain(tmp_path)
            for one in found:
                same(one.result(), expected)


READ = """
import sys, time, pruninglab as lab
from pruninglab.results import index
index.LEAST, index.SETTLED = 1, -10**10
until = time.time() + 3
while time.time() < until:
    frame = lab.results.load(sys.argv[1])
    assert not frame.attrs["skipped"] and len(frame) >= 1
"""


@pytest.mark.slow
def test_two_processes_read_and_write_one_index(result: lab.Result, tmp_path: Path) -> None:
    happens = Records(tmp_path, result, 0)
    happens.add()
    both = [subprocess.Popen([sys.executable, "-c", READ, str(tmp_path)]) for _ in range(2)]
    while any(one.poll() is None for one in both):
        happens.add()
        time.sleep(0.01)
    assert [one.returncode for one in both] == [0, 0]
    same(lab.results.load(tmp_path), plain(tmp_path))


def test_all_that_a_row_can_hold_comes_back_from_the_index() -> None:
    """Numbers, texts and nothing, each as it was: 1 is not True, and 0.0 is not -0.0."""
    rows = [{"a": value} | ({"b": VALUES[i // 2]} if i % 3 else {}) for i, value in enumerate(VALUES * 2)]
    columns = index.columns_of(rows)
    again = json.loads(json.dumps([values for values, _ in columns.values()]))
    assert list(map(repr, again)) == [repr(values) for values, _ in columns.values()]
    for name, (values, codes) in columns.items():
        same(
            index.series(name, values, codes).to_frame(),
            pd.DataFrame([{k: v for k, v in row.items() if k == name} for row in rows]),
        )

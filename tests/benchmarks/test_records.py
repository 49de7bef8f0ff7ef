"""How long it takes to read what a large study and a large sweep leave behind."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.history import measured

import pruninglab as lab
from pruninglab import sweep
from pruninglab.results import index as index_of_records
from pruninglab.sweep import cell, index

RECORDS = 100_000


def test_a_hundred_thousand_records_load_in_three_seconds(tmp_path: Path) -> None:
    """By the index that the first reading leaves; that one takes half a millisecond for each."""
    data = lab.load("digits", train=200, test=60, size=28)
    run = lab.fit(lab.build("lenet5", data), data, lab.methods.Gradual(lab.Cubic(0.9)), epochs=15, progress=False)
    record = b""
    for i in range(RECORDS // 100):
        record = replace(run.result, tags={"i": i}).save(tmp_path / f"{i}.json").read_bytes()
        for copy in range(1, 100):
            (tmp_path / f"{i}-{copy}.json").write_bytes(record)
    time.sleep(index_of_records.SETTLED / 1e9)
    for known in ("one by one", "by the index"):
        began, worked = time.perf_counter(), time.process_time()
        frame = lab.results.load(tmp_path)
        wall, work = time.perf_counter() - began, time.process_time() - worked
        print(f"\n{RECORDS:,} records of {len(record):,} bytes {known}: {wall:.1f} s, {work:.1f} s of the processor")
        assert len(frame) == RECORDS
        measured(f"{RECORDS:,} records {known}, seconds", work)
        assert work < (3 if known == "by the index" else RECORDS / 2_000)  # five seconds for ten thousand


CELLS = 100_000


def test_a_hundred_thousand_cells_are_listed_in_two_seconds(notebook: Callable[..., Path], tmp_path: Path) -> None:
    source = notebook('x: int = 1  # a number\nmethod: str = "a"  # one of a or b', "print(x)")
    planned = sweep.plan(source, {"x": range(CELLS // 2), "method": ["a", "b"]}, tmp_path / "out")
    name, parameters = next(iter(planned.cells.items()))
    planned.finish(name, cell._made(name, parameters, "done", "", 1.0) | {"reached": {"test_accuracy": 0.9}}, {})
    record = (planned.out / name / "cell.json").read_bytes()
    for other in [*planned.cells][1:]:
        (planned.out / other).mkdir()
        (planned.out / other / "cell.json").write_bytes(record)
    (planned.out / ".work").mkdir(exist_ok=True)
    for known in ("one by one", "by the index"):
        began, worked = time.perf_counter(), time.process_time()
        found = planned.records()
        wall, work = time.perf_counter() - began, time.process_time() - worked
        print(f"\n{CELLS:,} cells {known}: {wall:.1f} s, {work:.1f} s of the processor")
        assert len(found) == CELLS
        measured(f"{CELLS:,} cells {known}, seconds", work)
        index.write_index(planned.out, found)
    assert work < 2

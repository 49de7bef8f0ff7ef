"""How long it takes to read what a large study leaves behind."""

import time
from pathlib import Path

import pruninglab as lab

RECORDS = 10_000


def test_ten_thousand_records_load_in_five_seconds(tmp_path: Path) -> None:
    data = lab.load("digits", train=200, test=60, size=28)
    run = lab.fit(lab.build("lenet5", data), data, lab.methods.Gradual(lab.Cubic(0.9)), epochs=15, progress=False)
    record = run.save(tmp_path / "0.json").read_bytes()
    for i in range(1, RECORDS):
        (tmp_path / f"{i}.json").write_bytes(record)
    began, worked = time.perf_counter(), time.process_time()
    frame = lab.results.load(tmp_path)
    wall, work = time.perf_counter() - began, time.process_time() - worked
    print(f"\n{RECORDS:,} records of {len(record):,} bytes: {wall:.1f} s, {work:.1f} s of the processor")
    assert len(frame) == RECORDS
    assert work < 5

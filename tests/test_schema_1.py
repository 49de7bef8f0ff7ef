"""Records of schema 1: each column has the values that it had, and old and new runs of one method have one name."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import pruninglab as lab
from pruninglab import identity, results

RECORDS = Path(__file__).parent.parent / "notebooks" / "results"
COLUMNS: dict[str, str] = {
    word.partition(":")[0]: word.partition(":")[2]
    for word in """
    batch_size:b4b9fffd8c81c9ab bytes:b710fe3c7095e3c7 bzip2_bytes:67b67dd7d4679bd4 chosen_on:8c169b8b8b6b9b56
    collapsed_layers:9aaa0856abaac541 commit:061dbd4a96552a2e control:2a50b5649b5e6577 data:0159ebfbd0bd6ffb
    dense_hash:45846d4df0ce63c4 device:90179e3097df1337 flops_dense:e18b3fdd92b96c2b
    flops_sparse:fb9621073ebd2e6d flops_training:4dc9c9608eda6e1a form:43d455b8356b59d6
    init_seed:fbd4b248b90203a2 method:c41691e61a61545b methods:62783a7d3848899f metric:0deec7190bea1b42
    model:015c4a0d4c70bd00 nonzero:79fda01141ab4d97 parameters:7506cc9291822941 path:cdcdfa3598620b3f
    payload_bytes:03dd4192dcf89199 seconds:cb90a19451e035e4 seed:fbd4b248b90203a2 settings:898299385d67050b
    sparse_bytes:2dbfcd136f421609 sparsity_all:ea547cb8fcbfe14c sparsity_weights:c942c37c8ebe3b27
    sparsity_weights_and_biases:1ebba1310e4fe09c split:53efdc3a1b44a9cf start:73ef14cc5358fe17
    start_hash:385db5c2a3ed1c3d status:82e0e53e112428dd steps:a4dfc1997db51194 steps_before:8fa4bcfe3076cf9e
    target:0b5d2aeabea6b353 test_accuracy:5fd229e6f3d9bfd6 test_images:9ba99b81e36193c0
    test_top5:27e74e7088cf248d total_steps:70857547ffa15875 val_accuracy:0ee249c1744b397b
    """.split()
}
"""A hash of each column as it was read before the schema was raised, in today's words. Biases are no layers."""


@pytest.fixture(scope="module")
def first() -> dict[str, lab.Result]:
    """All committed records of the first schema, by their path."""
    read = {}
    for path in sorted(RECORDS.rglob("*.json")):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.get("schema") == 1:
            read[path.relative_to(RECORDS).as_posix()] = lab.Result.read(path)
    return dict(sorted(read.items()))


def test_every_column_has_the_values_that_it_had(first):
    rows = [{**dataclasses.replace(result, tags={}).row(), "path": path} for path, result in first.items()]
    frame = pd.DataFrame(rows)
    assert len(frame) == 449
    assert set(COLUMNS) <= set(frame.columns)
    for name, expected in COLUMNS.items():
        values = [None if value != value else value for value in frame[name].tolist()]
        assert hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16] == expected, name


def made(described: Any) -> Any:
    """A described setting as the object that it describes."""
    if isinstance(described, list):
        return tuple(made(item) for item in described)
    if not isinstance(described, dict):
        return described
    inner = {name: made(value) for name, value in described.items() if name != "type"}
    if "type" not in described:
        return inner
    kind: Any = getattr(lab.methods, described["type"], None) or getattr(lab, described["type"])
    return kind(**inner)


def test_an_old_record_names_its_method_as_a_new_one_would(first):
    seen = {json.dumps(m): m for result in first.values() for m in result.config["methods"]}
    assert len(seen) > 20
    for described in seen.values():
        method = made(described)
        assert isinstance(method, lab.Method)
        assert [f.name for f in dataclasses.fields(method) if f.init] == [n for n in described if n != "type"]  # pyright: ignore[reportArgumentType]
        assert identity.text(identity.describe(method)) == identity.text(described)
    rates = {json.dumps(result.config["lr_schedule"]): result.config["lr_schedule"] for result in first.values()}
    assert all(identity.describe(made(rate)) == rate for rate in rates.values())


def test_an_old_record_saved_anew_is_the_same(first, tmp_path):
    for path in list(first)[::40]:
        first[path].save(tmp_path / "new.json")
        assert lab.Result.read(tmp_path / "new.json") == first[path]


def test_what_an_old_record_cannot_know_is_empty(first):
    result = first[next(iter(first))]
    assert (result.warnings, result.scope["left_out"]) == ([], {})
    assert 0.9 < result.in_scope < 1
    assert "of all parameters in scope" in repr(result).splitlines()[0]


def test_old_records_have_tags_that_tell_them_apart(first):
    """Within a study no two runs of a seed have the same tags, so that nobody reads file names."""
    for study in {path.partition("/")[0] for path in first}:
        mine = {
            path: (*result.tags.items(), result.config["seed"])
            for path, result in first.items()
            if path.startswith(f"{study}/")
        }
        assert all(result.tags for path, result in first.items() if path in mine)
        assert len(set(mine.values())) == len(mine), study


def test_a_damaged_old_record_is_a_data_error_and_is_left_out(tmp_path):
    whole = json.loads(next(RECORDS.rglob("s0.json"), next(RECORDS.rglob("*.json"))).read_text())
    for name in whole:
        if name not in ("schema", "tags"):
            (tmp_path / f"no-{name}.json").write_text(json.dumps({k: v for k, v in whole.items() if k != name}))
            (tmp_path / f"bad-{name}.json").write_text(json.dumps(whole | {name: 3}))
    frame = results.load(tmp_path)
    lacking = {p for p in frame.attrs["skipped"] if Path(p).name.startswith("no-")}
    assert len(lacking) == len(whole) - 2
    for path in lacking:
        with pytest.raises(lab.DataError, match="damaged record"):
            lab.Result.read(path)

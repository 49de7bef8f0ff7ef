"""The rows of the papers' tables: each is trained by its own method, and what has a record is left alone."""

import json

import pytest

import pruninglab as lab
from pruninglab.analysis import papers
from pruninglab.benchmark import TABLES, run_table, runner

ROWS = [(table, name) for table, rows in TABLES.items() for name in rows]
FAST = ["dense", "gradual-167", "random-12", "direct-71"]


@pytest.fixture
def digits(monkeypatch):
    """The rows on a data set that is always there."""
    monkeypatch.setattr(runner, "load", lambda name, **options: lab.load("digits", train=100, test=100, **options))


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_what_is_printed_is_there(table, name):
    for paper, number, line in TABLES[table][name].printed:
        printed = papers.table(paper, number)
        assert line in set(printed.iloc[:, 0])


@pytest.mark.parametrize("table", TABLES)
def test_every_method_has_its_controls_at_its_sparsity(table):
    rows = TABLES[table].values()
    at = {kind: {row.sparsity for row in rows if row.method == kind} for kind in ("gradual magnitude", "random mask")}
    assert {row.sparsity for row in rows if row.printed} <= at["gradual magnitude"] & at["random mask"]
    assert any(row.method == "dense" for row in rows)


def test_rows_take_equal_steps_from_one_start(digits, tmp_path):
    found = {
        name: result
        for _, name, result in run_table(
            "MNIST", [0], tmp_path / "out", tmp_path / "work", only=FAST, start=1, epochs=13
        )
    }
    assert set(found) == set(FAST)
    assert len({result.row()["total_steps"] for result in found.values()}) == 1
    assert len({result.row()["dense_hash"] for name, result in found.items() if name != "dense"}) == 1
    records = {path.stem for path in (tmp_path / "out").rglob("*.json")}
    assert records == set(FAST)
    assert {path.stem for path in (tmp_path / "out").rglob("*.sparse")} == set(FAST) - {"dense", "random-12"}
    frame = lab.results.load(tmp_path / "out")
    assert set(frame["method"]) == {TABLES["MNIST"][name].method for name in FAST}
    kept = lab.storage.load(tmp_path / "out/seed-0/direct-71.sparse", lab.build("lenet5", lab.load("digits"), seed=5))
    assert sum(int((p != 0).sum()) for p in kept.parameters()) == found["direct-71"].size["nonzero"]


def test_what_has_a_record_is_not_trained_again(digits, tmp_path, monkeypatch):
    each = {"only": ["dense"], "start": 1, "epochs": 1}
    assert len(list(run_table("MNIST", [0], tmp_path / "out", tmp_path / "work", **each))) == 1
    monkeypatch.setattr(runner, "load", None)
    assert list(run_table("MNIST", [0], tmp_path / "out", tmp_path / "work", **each)) == []
    record = json.loads((tmp_path / "out/seed-0/dense.json").read_text())
    assert record["accuracy"]["answers"]["classes"] == 10


@pytest.mark.parametrize(("table", "only"), [("CIFAR", ()), ("MNIST", ["magic"])])
def test_what_there_is_not_is_refused_by_name(table, only, tmp_path):
    with pytest.raises(lab.ConfigError, match="expected"):
        next(run_table(table, [0], tmp_path, tmp_path, only=only))

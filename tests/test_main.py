"""The command line: what it prints, what it leaves, and how it fails."""

import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

import pruninglab as lab
from pruninglab.__main__ import main
from pruninglab.sweep import headless
from pruninglab.terminal import Bar

COMMITTED = Path(__file__).parent.parent / "notebooks" / "results" / "start"


def test_data_lists_what_can_be_loaded_now(capsys):
    assert main(["data"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("digits")] == ["ready"]
    assert "CIFAR10" in shown


def test_results_prints_a_table_or_writes_csv(tmp_path, capsys):
    data = lab.load("digits", train=200, test=60, size=8)
    lab.fit(lab.build("lenet300", data), data, epochs=1, progress=False, record=tmp_path / "my-run.json")
    (tmp_path / "foreign.json").write_text("{}")
    assert main(["results", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "my run" in shown.out
    assert "test accuracy" in shown.out
    assert "left out" in shown.err
    assert main(["results", str(tmp_path), "--csv", str(tmp_path / "all.csv")]) == 0
    assert "sparsity_all" in (tmp_path / "all.csv").read_text().splitlines()[0]


def test_demo_leaves_a_notebook_a_page_records_and_a_table(tmp_path, capsys, monkeypatch):
    """With other parameters than those of the notebook, which is run with its own as all notebooks are."""
    monkeypatch.chdir(tmp_path)
    others = {"model_name": "lenet300", "sparsity": 0.8, "dense_epochs": 1, "epochs": 1, "seed": 3}
    execute = headless.execute
    monkeypatch.setattr(headless, "execute", lambda a, b, given, **o: execute(a, b, given | others, **o))
    assert main(["demo", "--out", "out"]) == 0
    shown = capsys.readouterr().out
    for name in ("dense", "random mask", "layer magnitude", "global magnitude", "gradual magnitude"):
        assert name in shown
    assert "make lab" in shown
    executed: Any = nbformat.read(tmp_path / "out" / "00_start.ipynb", as_version=4)
    assert executed.metadata.papermill.exception is None
    injected = next(cell for cell in executed.cells if "injected-parameters" in cell.metadata.tags)
    assert all(f"{name} = " in injected.source for name in [*others, "out"])
    assert "<img" in (tmp_path / "out" / "00_start.html").read_text()
    frame = lab.results.load(tmp_path / "out")
    assert frame["status"].tolist() == ["done"] * 5
    assert len(set(frame["steps"])) == len(set(frame["start_hash"])) == 1
    assert (tmp_path / "out" / "curves.png").exists()


@pytest.mark.slow
def test_report_is_one_page_of_a_folder(tmp_path, capsys):
    page = tmp_path / "sub" / "page.html"
    assert main(["report", str(COMMITTED), "--out", str(page)]) == 0
    content = page.read_text()
    assert "Controls that are missing" not in content
    assert "one pair, so nothing can be said" in content
    assert "data:image/png;base64," in content
    assert "lab.compare.compare(" not in content  # what was asked, not how
    assert main(["report", str(tmp_path / "nothing"), "--out", str(page)]) == 2
    assert "no records found" in capsys.readouterr().err


def test_errors_are_one_line_and_a_status(tmp_path, capsys):
    assert main(["results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("pruninglab: no records found")
    with pytest.raises(SystemExit):
        main(["prune"])


def test_progress_in_a_log_is_lines_without_control_characters(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    bar = Bar(100, "Dense")
    bar.mininterval = 0.0
    for _ in range(100):
        bar.update()
    bar.finish("10 epochs, 100 steps")
    shown = capsys.readouterr().err
    assert "\r" not in shown
    assert "\x1b" not in shown
    assert "Dense:  50%" in shown
    assert shown.splitlines()[-1] == "10 epochs, 100 steps"


def test_progress_can_be_off(capsys):
    bar = Bar(3, "Dense", enabled=False)
    bar.update()
    bar.finish("done")
    assert capsys.readouterr().err == ""

"""The workbench, driven as its buttons do; `test_browser.py` presses the real ones."""

import json
import threading
import time
from typing import Any

import pytest

import pruninglab as lab
from pruninglab import identity, methods, typed
from pruninglab.widgets import forms, live
from pruninglab.widgets.choice import Choice
from pruninglab.widgets.job import Job

NEED_A_CHOICE = ("PruneWhileAccurate", "DynamicSurgery")
QUICK: Any = {"batch_size": 500}


@pytest.fixture(scope="module")
def small() -> Any:
    """What `lab.load("digits")` gives in these tests: 200 images."""
    patch = pytest.MonkeyPatch()
    load = lab.load
    patch.setattr("pruninglab.widgets.choice.load", lambda name, seed: load(name, seed=seed, train=200, test=100))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def bench(small, tmp_path_factory) -> lab.Workbench:
    """Five runs: dense and gradual for two seeds, and one that is refused by its method."""
    bench = lab.Workbench(epochs=2, folder=tmp_path_factory.mktemp("runs"))
    for seed in (0, 1):
        bench.submit(Choice("digits", "lenet300", "Dense", {}, 2, seed, QUICK))
        bench.submit(Choice("digits", "lenet300", "Gradual", {"schedule": lab.Cubic(0.9), "cuts": 3}, 2, seed, QUICK))
    bench.submit(Choice("digits", "lenet300", "N2NSkip", {"sparsity": 0.9}, 2, 0, QUICK))
    bench.wait(120)
    return bench


def test_a_queue_is_worked_off_and_stands_in_the_table(bench):
    rows = bench._table.rows
    assert [row["cells"][1] for row in rows] == ["Dense", "Gradual", "Dense", "Gradual", "N2NSkip"]
    assert [row["cells"][6] for row in rows] == ["done"] * 4 + ["refused"]
    assert "n2nskip" in rows[4]["words"]
    assert all(row["over"] for row in rows)
    assert len(list(bench.folder.glob("*.json"))) == 4
    json.dumps(rows)  # what a browser can read


def test_what_is_copied_as_code_makes_the_same_run(small, bench, monkeypatch):
    load = lab.load
    monkeypatch.setattr(lab, "load", lambda name, seed: load(name, seed=seed, train=200, test=100))
    cell: dict[str, Any] = {}
    exec(bench.code("4"), cell)
    mine, copied = bench._job("4").run, cell["run"]
    assert identity.tensor_hash(mine.model.state_dict()) == identity.tensor_hash(copied.model.state_dict())
    assert mine.result.config == copied.result.config
    assert mine.result.accuracy == copied.result.accuracy


@pytest.mark.parametrize("name", live.OFFERED)
def test_the_code_of_every_form_makes_the_method_of_that_form(name):
    """As it is offered, or the form refuses it in words."""
    chosen = live.Chooser("digits", "lenet5", name, 1, 0).choice()
    if name in NEED_A_CHOICE:
        with pytest.raises(lab.ConfigError, match=r"bound|threshold|sparsity|crate"):
            chosen.made()
        return
    made = chosen.made()
    line = next(line for line in chosen.code().splitlines() if line.startswith("method ="))
    cell: dict[str, Any] = {"lab": lab}
    exec(line, cell)
    assert repr(cell["method"]) == repr(made)


@pytest.mark.parametrize("name", live.OFFERED)
def test_every_field_has_a_line_of_help(name):
    kind = getattr(methods, name)
    helped = {field: forms.help_of(kind, field, hint) for field, hint in typed.hints(kind).items()}
    assert [
        field for field, said in helped.items() if len(said) < 18 or said == typed.expected(typed.hints(kind)[field])
    ] == []
    rows = forms.Form(kind).box.children
    assert [row.value.count(">") for row in rows[1::2]] == [2] * len(helped)


def test_picked_runs_are_drawn_compared_and_opened(bench):
    bench.pick("1", "2", "3", "4")
    for view in ("curves", "layers", "verdict", "frontier", "record"):
        bench.show(view)
        assert "color:#c33" not in bench._seen.children[0].value, view
    bench.show("verdict")
    verdict = [line for line in bench.compare().words() if "Gradual" in line]
    assert verdict
    assert all(line[:30] in bench._seen.children[0].value for line in verdict)
    bench.pick("1", "2")
    for view in ("masks", "truth meter"):
        bench.show(view)
        assert bench._seen.children[0].children
    bench.show("code")
    assert bench._code.text == bench.code("1") + "\n\n" + bench.code("2")


def test_what_cannot_be_shown_is_said(bench):
    bench.pick("1", "2", "3")
    bench.show("truth meter")
    assert "needs two runs" in bench._seen.children[0].value
    with pytest.raises(lab.ConfigError, match="left nothing to look at"):
        bench.pick("5")
    with pytest.raises(lab.ConfigError, match="no run '9'"):
        bench.code("9")
    with pytest.raises(lab.ConfigError, match="expected one of 'curves"):
        bench.show("everything")


def test_the_runs_of_a_folder_stand_in_the_table_of_another_session(bench):
    other = lab.Workbench(folder=bench.folder)
    names = [row["id"] for row in other._table.past]
    assert len(names) == 4
    other.pick(*names)
    other.show("verdict")
    assert "Gradual" in other._seen.children[0].value
    other.show("masks")
    assert "holds no weights" in other._seen.children[0].value
    other._table._handle_custom_msg({"do": "pick", "turn": 9, "ids": names[:1]}, [])
    assert (other.picked, other._table.picked) == (names[:1], {"turn": 9, "ids": names[:1]})


def test_a_queue_can_be_paused_stepped_stopped_and_cancelled(small, monkeypatch):
    bench, standing = lab.Workbench(), threading.Event()
    told = Job._say

    def say(job, state, words):
        told(job, state, words)
        if words.startswith("paused"):
            standing.set()

    monkeypatch.setattr(Job, "_say", say)
    first, second = (bench.submit(Choice("digits", "lenet300", "Dense", {}, 5000, 0, QUICK)) for _ in range(2))
    while first.state == "waiting":
        time.sleep(0.01)
    bench.pause()
    assert standing.wait(60)
    assert (first.state, second.state) == ("paused", "waiting")
    assert [b.disabled for b in bench._buttons.values()] == [False, False, False, False]
    bench.cancel("2")
    assert second.words == "cancelled"
    standing.clear()
    before = first.words
    bench.step()
    assert standing.wait(60)
    assert first.words != before
    bench.stop()
    bench.wait(60)
    assert first.run is not None
    assert (first.run.status, second.run) == ("interrupted", None)
    assert bench._table.rows[0]["cells"][6] == "interrupted"


def test_a_wrong_form_is_refused_in_words_before_it_waits():
    bench = lab.Workbench(method="PruneWhileAccurate")
    bench._buttons["Run"].click()
    assert "needs one bound" in bench._said.value
    assert bench.jobs == []
    bench._chooser.method.value = "WeightMom"
    bench._chooser.form.controls["beta"].value = "7 or 8"
    bench._buttons["Run"].click()
    assert "neither a number nor a name" in bench._said.value


def test_the_form_s_options_go_into_the_choice():
    bench = lab.Workbench(seed=4)
    assert bench.choice().options == {}
    bench._options.controls["lr"].value = 0.01
    bench._options.controls["optimizer"].value = "sgd"
    bench._options.controls["collapse"].value = "allow"
    bench._chooser.form.controls["cuts"].value = 7
    chosen = bench.choice()
    assert chosen.options == {"optimizer": "sgd", "lr": 0.01, "collapse": "allow"}
    assert "seed=4, optimizer='sgd', lr=0.01, collapse='allow')" in chosen.code()
    assert "lab.methods.Gradual(schedule=lab.Cubic(0.9), cuts=7)" in chosen.code()


def test_send_to_sweep_gives_a_grid_that_the_sweep_takes(bench, tmp_path):
    command = bench.to_sweep("4", tmp_path / "study.ipynb")
    assert "-p sparsity=0.6,0.8,0.9 -p seed=1:4" in command
    values = dict(part.split("=", 1) for part in command.split() if "=" in part)
    planned = lab.sweep.plan(tmp_path / "study.ipynb", values, tmp_path / "out")
    assert len(planned.cells) == 9


def test_without_widgets_the_workbench_is_its_words_and_then_its_curves(bench):
    data, _ = lab.Workbench()._repr_mimebundle_()
    assert data["text/plain"].startswith("Workbench: 0 runs")
    bench.pick("1", "2")
    data, _ = bench._repr_mimebundle_()
    assert "data:image/png" in data["text/html"]
    assert "1 Dense" in data["text/plain"]

"""What `make bench` says of its own history."""

from pathlib import Path

import pytest
from benchmarks import history

from pruninglab.plots.figure import touching


def run(commit: str, cpu: str = "a processor", threads: int = 2, **costs: float) -> history.Entry:
    return {"commit": commit, "cpu": cpu, "instructions": "AVX2", "threads": threads, "costs": costs}


def test_what_became_slower_on_one_machine_is_said() -> None:
    before, other = run("a", step=1.0, cut=0.2), run("b", cpu="another", step=9.0)
    assert history.slower([before, run("b", step=1.1, cut=0.1)]) == []
    assert history.slower([before, run("b", step=1.21, cut=0.2)]) == [
        "step: 1.21 times slower at b than at a (1 to 1.21, a processor)"
    ]
    assert history.slower([before, other, run("c", threads=1, step=9.0)]) == []
    assert history.slower([before, run("a", step=9.0)]) == []  # noise: the code is the same
    assert history.slower([before, other, run("c", cut=0.2), run("d", step=2.0)]) == [
        "step: 2.00 times slower at d than at a (1 to 2, a processor)"
    ]
    assert history.slower([]) == []


def test_the_history_grows_by_a_line_for_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_measured", {})
    path = tmp_path / "new" / "history.jsonl"
    assert history.read(path) == []
    history.measured("step", 1.23456)
    new = history.entry()
    history.add(new, path)
    history.add({**new, "commit": "next"}, path)
    assert [one["costs"] for one in history.read(path)] == [{"step": 1.2346}] * 2
    assert new.keys() >= {"date", "commit", "cpu", "instructions", "threads", "torch", "load"}


def test_the_figure_shows_all_costs_of_the_last_machine() -> None:
    figure = history.drawn([run("a", step=1.0, cut=0.2), run("b", cpu="another", step=9.0), run("c", cut=0.3)])
    assert figure.alt == "Costs in 2 runs on a processor. The last run: cut 0.3."
    assert figure.get_suptitle() == "What does each part cost, run by run? 1 became slower"
    assert touching(figure) == []


@pytest.mark.skipif(not history.HISTORY.exists(), reason="no run was kept yet")
def test_the_kept_history_can_be_read_and_drawn() -> None:
    runs = history.read()
    assert all({"date", "commit", "torch", "load"} <= one.keys() and one["costs"] for one in runs)
    assert not [one["commit"] for one in runs if one["commit"].endswith("+")]
    assert touching(history.drawn(runs)) == []

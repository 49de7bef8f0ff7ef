"""What a run reports to, and that reporting changes nothing of it."""

import csv
import shutil
from typing import Any

import pytest
import torch
from torch import nn

import pruninglab as lab
from pruninglab.methods.cuts.gradual import Gradual
from pruninglab.train import CSVLog, TensorBoard, Tracker

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
DATA = lab.wrap((X, (X[:, 0] > 0).long()), (X, (X[:, 0] > 0).long()))
FIT: dict[str, Any] = {"epochs": 3, "batch_size": 10, "progress": False, "collapse": "allow", "device": "cpu"}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def test_observers_get_every_epoch_and_change_nothing(tmp_path):
    plain = lab.fit(net(), DATA, Gradual(lab.Cubic(0.5)), **FIT)
    sent: list[tuple[dict[str, float], int]] = []
    watchers = [CSVLog(tmp_path / "run.csv"), Tracker(lambda found, step: sent.append((found, step)))]
    run = lab.fit(net(), DATA, Gradual(lab.Cubic(0.5)), *watchers, **FIT)
    with (tmp_path / "run.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [float(row["loss"]) for row in rows] == [entry["loss"] for entry in run.history]
    assert [step for _, step in sent] == [entry["step"] for entry in run.history]
    assert sent[-1][0]["sparsity"] == run.history[-1]["sparsity"]
    assert (run.key, run.result.accuracy) == (plain.key, plain.result.accuracy)


def test_a_resumed_run_writes_the_epochs_before_it_too(tmp_path):
    def stop(run: lab.Run) -> None:
        if run.epoch == 2:
            run.interrupt()

    stopping: dict[str, Any] = {**FIT, "progress": stop}
    lab.fit(net(), DATA, CSVLog(tmp_path / "run.csv"), checkpoint=tmp_path / "kept", **stopping)
    (tmp_path / "run.csv").unlink()
    lab.fit(net(), DATA, CSVLog(tmp_path / "run.csv"), checkpoint=tmp_path / "kept", **FIT)
    with (tmp_path / "run.csv").open(encoding="utf-8") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [1, 2, 3]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_what_a_run_wrote(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = lab.fit(net(), DATA, TensorBoard(tmp_path), **FIT)
    found: dict[int, float] = {}
    for path in tmp_path.iterdir():
        events = reading.EventAccumulator(str(path))
        events.Reload()
        found |= {event.step: event.value for event in events.Scalars("loss")}
    assert [found[entry["step"]] for entry in run.history] == pytest.approx([e["loss"] for e in run.history])


def test_a_tracker_that_cannot_be_called_is_refused():
    with pytest.raises(lab.ConfigError, match=r"expected a function, of \(numbers, step=…\)"):
        Tracker("mlflow")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("watcher", [CSVLog, TensorBoard])
def test_a_log_that_cannot_be_written_ends_no_training(tmp_path, watcher):
    folder = tmp_path / "logs"
    folder.mkdir()

    def lose(run: lab.Run) -> None:
        if run.step == 5:
            shutil.rmtree(folder)
            folder.write_text("a file where the folder was")

    options: dict[str, Any] = FIT | {"progress": lose}
    with pytest.warns(RuntimeWarning, match=r"logs.* could not be written"):
        run = lab.fit(net(), DATA, watcher(folder / "run"), **options)
    assert (run.status, len(run.history), len(run.result.warnings)) == ("done", 3, 1)

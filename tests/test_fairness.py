"""The protocol of a record, and the law that a comparison refuses or shows whatever differs in it."""

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import pruninglab as lab
from pruninglab.analysis import fairness
from pruninglab.results.protocol import ENTRIES
from pruninglab.train.options import Options

RECORDS = Path(__file__).parent.parent / "notebooks" / "results"
STUDIES = (
    *("admm", "bytes", "gates", "grid", "regrowth", "regrowth/adam", "regrowth/sgd", "relevance", "relevance/MNIST"),
    *("relevance/MNIST-sparser", "relevance/FashionMNIST", "relevance/trials", "select", "start", "tickets"),
    *("weightmom", "weightmom/CIFAR10-16", "weightmom/textures-16", "papers/MNIST"),
)
QUIET: dict[str, Any] = {"epochs": 1, "progress": False}
DISTILL = {"type": "Distill", "teacher": "LeNet 0123", "temperature": 4.0, "weight": 0.9}
VARIED: dict[str, tuple[str, Any]] = {
    "data": ("config.data.name", "MNIST"),
    "model": ("config.model.name", "vgg16"),
    "form": ("config.model.form", "f" * 16),
    "chosen_on": ("config.data.val_is_test", True),
    "metric": ("accuracy.metric", "whole"),
    "split": ("config.data.fingerprint", "f" * 16),
    "start": ("origin.weights", "0" * 16),
    "steps": ("steps.own", 77),
    "augmentation": ("config.data.augment", [{"type": "Flip"}]),
    "normalisation": ("config.data.mean", [0.5]),
    "loss": ("config.loss", DISTILL | {"teacher": None}),
    "teacher": ("config.loss", DISTILL),
    "optimizer": ("config.optimizer", "adamw"),
    "lr": ("config.lr", 0.01),
    "weight_decay": ("config.weight_decay", 5e-4),
    "lr_schedule": ("config.lr_schedule", {"type": "ConstantLR"}),
    "batch_size": ("config.batch_size", 50),
    "precision": ("config.precision", "bf16"),
    "keep": ("config.keep", "best"),
    "patience": ("config.patience", 3),
    "scope": ("config.skip", ["1.weight"]),
    "scope_size": ("scope.weights", 40),
    "torch": ("environment.torch", "2.12.0"),
    "device_type": ("config.device", "cuda"),
}
"""By the word that allows it, or the column: the place in a record, and another value."""
SHOWN_OTHERWISE = {"start", "loss", "teacher"}
Records = list[lab.Result]


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.fixture(scope="module")
def records(blobs) -> Records:
    """Two seeds of the dense net and of two methods, from new weights, with SGD so that all options count."""
    methods = {
        "dense": lab.methods.Dense(),
        "random": lab.methods.OneShot(0.5, "random"),
        "cut": lab.methods.OneShot(0.5),
    }
    return [
        lab.fit(net(seed), blobs, method, optimizer="sgd", seed=seed, tags={"method": name}, **QUIET).result
        for name, method in methods.items()
        for seed in range(2)
    ]


def varied(records: Records, changes: dict[str, Any], which: Callable[[lab.Result], bool]) -> Records:
    """Copies of the records, some of them with other values at `a.b.c`."""
    changed = copy.deepcopy(records)
    for result in filter(which, changed):
        for path, value in changes.items():
            first, *inner, last = path.split(".")
            place = getattr(result, first)
            for name in inner:
                place = place[name]
            place[last] = value
    return changed


def word_of(column: str) -> str:
    return fairness.WORDS.get(column, column)


def of_cut(result: lab.Result) -> bool:
    return result.tags["method"] == "cut"


def of_one_seed(result: lab.Result) -> bool:
    return of_cut(result) and result.config["seed"] == 1


def refused(records: Records, *allow: str) -> str:
    with pytest.raises(lab.ConfigError) as error:
        lab.compare(records, "method", allow=allow)
    return str(error.value)


def test_the_records_as_they_are_compare(records):
    assert lab.compare(records, "method").notes == lab.compare(records, "method").differing == ()


def test_every_word_is_varied():
    assert {*map(word_of, VARIED), "seeds"} == set(fairness.ALLOWED)


def test_every_option_of_fit_is_in_the_protocol_or_cannot_matter(records):
    elsewhere = {"seed", "metric", "eval_batch_size"}
    for option in {f.name for f in fields(Options)} - elsewhere:
        (other,) = varied(records[:1], {f"config.{option}": "another"}, lambda _: True)
        assert other.protocol != records[0].protocol, option


@pytest.mark.parametrize("which", [of_cut, pytest.param(of_one_seed, marks=pytest.mark.slow)])
@pytest.mark.parametrize("column", VARIED)
def test_what_differs_in_an_entry_is_refused_by_its_name_and_shown_when_allowed(records, column, which):
    frame, word = varied(records, dict([VARIED[column]]), which), word_of(column)
    allow = ("loss", "teacher") if word == "teacher" else (word,)
    assert all(f"'{name}'" in refused(frame) for name in allow)
    more = "keep" if word == "lr" else "lr"
    assert f"'{more}'" in refused(varied(frame, dict([VARIED[more]]), of_cut), *allow)
    found = lab.compare(frame, "method", allow=allow)
    assert f" {fairness.heading(column)} " in f" {repr(found).splitlines()[1]} "
    assert any(line.startswith("Not fair, but asked for") for line in found.words())
    table = found.table().set_index("method")
    for column in found.differing:
        assert len(set(table[column])) > 1


@settings(max_examples=6)
@given(st.lists(st.sampled_from(sorted(VARIED)), min_size=2, max_size=3, unique=True), st.booleans())
def test_of_several_entries_each_has_to_be_allowed(records, columns, everywhere):
    words = [*map(word_of, columns)]
    frame = varied(records, dict(VARIED[column] for column in columns), of_cut if everywhere else of_one_seed)
    said = refused(frame)
    asked = {word for word in fairness.ALLOWED if f"'{word}'" in said}
    assert set(words) <= asked | SHOWN_OTHERWISE
    assert asked <= {*words, "loss"}
    for word in asked:
        assert f"'{word}'" in refused(frame, *(asked - {word}))
    found = lab.compare(frame, "method", allow=tuple(asked))
    shown = [fairness.heading(column) for column in found.differing if column not in fairness.SHOWN]
    assert set(shown) == {word.replace("_", " ") for word in asked}
    assert set(found.differing) <= set(found.table().columns)


def test_the_protocol_is_one_word_of_the_record(records):
    words = {result.row()["protocol"] for result in records}
    assert len(words) == 1
    (other,) = varied(records[:1], {"config.lr": 7.0}, lambda _: True)
    assert other.row()["protocol"] not in words
    assert records[0].protocol.keys() == ENTRIES.keys()


def test_own_epochs_are_a_column_where_the_steps_in_all_are_equal(blobs):
    more = []
    for seed in range(2):
        first = lab.fit(net(seed), blobs, epochs=1, optimizer="sgd", seed=seed, progress=False)
        for name, method in {"at once": lab.methods.OneShot(0.5), "dense": lab.methods.Dense()}.items():
            tags = {"method": name}
            more.append(lab.fit(first, blobs, method, optimizer="sgd", seed=seed, tags=tags, **QUIET).result)
        long = {**QUIET, "epochs": 2, "optimizer": "sgd", "seed": seed, "tags": {"method": "from new weights"}}
        more.append(lab.fit(net(seed), blobs, lab.methods.OneShot(0.5), **long).result)
    found = lab.compare(more, "method")
    assert found.differing == ("epochs",)
    assert found.table().set_index("method")["epochs"].to_dict() == {
        "at once": "1",
        "dense": "1",
        "from new weights": "2",
    }


@pytest.mark.parametrize(
    ("word", "first", "said"),
    [
        ("lr", {"lr": 0.02}, "0.001, then 0.02, then 0.001"),
        ("weight_decay", {"weight_decay": 0.1}, "0.0, then 0.1, then 0.0"),
        ("keep", {"keep": "best"}, "last, then best, then last"),
        ("scope", {"norms": True}, "weights, then weights and norms, then weights"),
        ("batch_size", {"batch_size": 40}, "100, then 40, then 100"),
    ],
)
def test_what_an_earlier_training_did_otherwise_counts(blobs, tmp_path, word, first, said):
    """Of two chains with one dense start, one has a stage of another kind in its middle."""
    runs = []
    for seed in range(2):
        same: dict[str, Any] = {**QUIET, "seed": seed}
        dense = lab.fit(net(seed), blobs, **same)
        for name, how in {"plain": {}, "other": first}.items():
            pruned = lab.fit(dense, blobs, lab.methods.OneShot(0.5), **same, **how)
            last = lab.fit(pruned, blobs, **same, tags={"method": name}, record=tmp_path / f"{name}{seed}.json")
            assert "earlier" not in last.config["origin"]  # a checkpoint goes on whatever is noted there
            runs.append(last)
    with pytest.raises(lab.ConfigError, match=f"'{word}'"):
        lab.compare(tmp_path, "method")
    table = lab.compare(tmp_path, "method", allow=[word, "steps"]).table().set_index("method")
    assert table.loc["other", word] == said


def test_the_training_of_a_teacher_counts(blobs):
    dense = lab.fit(net(0), blobs, epochs=3, progress=False)
    for taught, before in (
        (lab.fit(net(1), blobs, loss=lab.train.Distill(dense), **QUIET), dense.step),
        (lab.fit(dense, blobs, loss=lab.train.Distill(dense), **QUIET), dense.step),
        (lab.fit(net(1), blobs, loss=lab.train.Distill(dense.model), **QUIET), 0),
    ):
        assert taught.result.row()["steps_before"] == before
        assert taught.result.row()["total_steps"] == before + taught.step - taught.first_step
    row = lab.fit(net(1), blobs, loss=lab.train.Distill(dense), **QUIET).result.row()
    assert row["search_steps"] == dense.step
    assert row["teacher"].startswith("Sequential ")
    assert row["teacher"] not in row["loss"]


def copies(records: Records, seeds: int) -> Records:
    """One run of each method, entered under several seeds."""
    found = []
    for result in records[::2]:
        for seed in range(seeds):
            found += varied([result], {"config.seed": seed, "config.data.seed": seed}, lambda _: True)
    return found


def test_one_run_under_several_seeds_is_refused(records):
    assert "one run under several seeds" in refused(copies(records, 5))
    by_split = [
        replace(r, config=r.config | {"data": r.config["data"] | {"fingerprint": str(r.config["seed"])}})
        for r in copies(records, 5)
    ]
    assert "one run under several seeds" in refused(by_split, *fairness.ALLOWED)
    moved = [replace(r, accuracy=r.accuracy | {"test": {"accuracy": 0.5 + i / 100}}) for i, r in enumerate(by_split)]
    assert "one run under several seeds" in refused(moved)  # the losses of the epochs are the same still
    for result in moved:
        result.history = []
    assert "one run under several seeds" in refused(moved)  # and so are the weights at the end
    one = varied(records, {"accuracy.weights": "0" * 16}, of_cut)
    assert "seed 0 and seed 1 of cut" in refused(one)
    old = [replace(r, accuracy={k: v for k, v in r.accuracy.items() if k != "weights"}) for r in copies(records, 3)]
    assert "one run under several seeds" in refused(old)


@pytest.mark.parametrize("place", ["accuracy.test.accuracy", "accuracy.val.accuracy", "accuracy.test.top5"])
@pytest.mark.parametrize("value", [1.7, 1.0001, -0.1, float("nan"), None, float("inf"), -float("inf")])
def test_an_impossible_accuracy_is_refused(records, value, place):
    frame = varied(records, {place: value}, of_one_seed)
    if (value is None or value != value) and place != "accuracy.test.accuracy":
        assert len(lab.compare(frame, "method").runs) == len(records)  # no number, and none that is compared
    else:
        assert "which cannot be" in refused(frame, *fairness.ALLOWED)


@pytest.mark.parametrize("value", [1.2, -0.1, float("nan")])
def test_an_impossible_sparsity_is_refused(records, value):
    assert "which cannot be" in refused(varied(records, {"sparsity.weights": value}, of_one_seed), *fairness.ALLOWED)


def test_other_hardware_is_shown(records):
    found = lab.compare(varied(records, {"environment.cpu": "another"}, of_cut), "method")
    assert found.differing == ("processor",)
    assert "They differ in hardware." in found.notes


def test_a_metric_of_ones_own_may_lie_beyond_one(records):
    frame = varied(records, {"accuracy.test.accuracy": -3.5, "accuracy.metric": "minus_error 0123"}, lambda _: True)
    frame = varied(frame, {"accuracy.test.accuracy": -2.5}, of_one_seed)
    assert lab.compare(frame, "method").table()["accuracy"].tolist() == [-3.5, -3.5, -3.0]


def test_a_run_that_diverged_may_have_no_number(records):
    frame = varied(records, {"accuracy.test.accuracy": None}, of_one_seed)
    for result in filter(of_one_seed, frame):
        result.status = "diverged"
        result.steps["planned"] = result.steps["own"]
    assert any("1 diverged: cut" in note for note in lab.compare(frame, "method").notes)


def test_another_scope_under_the_same_percentage_is_refused(blobs):
    runs = [
        lab.fit(net(seed), blobs, lab.methods.OneShot(0.5, scope="layer"), seed=seed, skip=skip, **QUIET).result
        for seed in range(2)
        for skip in ((), "2.*")
    ]
    assert len({round(r.sparsity["weights"], 2) for r in runs}) == 1
    with pytest.raises(lab.ConfigError, match="'scope', 'scope_size'"):
        lab.compare(runs)


def test_several_runs_of_one_method_and_seed_are_told_apart_by_what_was_allowed(records):
    other = varied(records, {"config.lr": 0.5}, lambda _: True)
    for i, result in enumerate(other):
        result.accuracy["weights"], result.history = f"{i}", []
        result.accuracy["test"] |= {"loss": 7.0 + i}
    found = lab.compare(records + other, "method", allow="lr")
    assert found.methods == [f"{name}, lr {lr}" for lr in ("0.001", "0.5") for name in ("dense", "random", "cut")]
    assert set(found.table()["n"]) == {2}


def test_one_run_under_two_names_is_said(records):
    copied = [replace(result, tags={"method": "new"}) for result in records if of_cut(result)]
    notes = lab.compare(records + copied, "method").notes
    assert notes == ("cut and new are one and the same run at seed 0.",)


def test_other_settings_under_one_name_are_said(records):
    other = [{"type": "OneShot", "sparsity": 0.5, "criterion": "magnitude", "scope": "layer", "unit": "weight"}]
    found = lab.compare(varied(records, {"config.methods": other}, of_one_seed), "method")
    assert found.notes == ("cut has other settings with some seeds than with others.",)


def table(columns: str, *rows: str) -> pd.DataFrame:
    return pd.DataFrame([dict(zip(columns.split(), row.split(), strict=True)) for row in rows])


def test_of_a_recipe_the_ends_are_compared():
    """Of dense, two rounds, the last without a step, and a trial: the rounds, and what somebody trained on from one."""
    made = table(
        "stage control start_hash end_hash chosen",
        "dense dense new trained yes",
        "round-1 global trained first yes",
        "round-2 global first first yes",
        "trial global trained other no",
        "mine global first mine yes",
    ).assign(recipe=["iterative"] * 4 + [None])
    made["chosen"] = made["chosen"] == "yes"
    ends, said = fairness.ends_of_recipes(made, stages=False)
    assert ends[["stage", "control"]].to_numpy().tolist() == [["round-1", ""], ["round-2", ""], ["mine", "global"]]
    assert said == [
        "1 records are stages that a recipe went on from, and are not compared.",
        "1 records are trials that a recipe did not choose, and are not compared.",
    ]
    every, said = fairness.ends_of_recipes(made, stages=True)
    assert (len(every), said) == (5, [])


def test_several_runs_of_one_pair_are_told_apart_by_their_stage_or_by_what_differs():
    runs = table(
        "method stage lr",
        "ticket round-1 0.1",
        "ticket round-2 0.2",
        "dense dense 0.1",
        "mine none 0.1",
        "mine all 0.1",
    ).assign(pair="seed 0", level=0.9, recipe=["tickets"] * 3 + [None] * 2)
    assert fairness.named_by_stage(runs)["method"].tolist() == [
        *("ticket: round-1", "ticket: round-2", "dense", "mine", "mine"),
    ]
    assert fairness.named_apart(runs, ["lr"])["method"].tolist() == [
        *("ticket, lr 0.1", "ticket, lr 0.2", "dense", "mine", "mine"),
    ]


@pytest.mark.parametrize("values", [4, 5])
def test_a_refusal_gives_four_examples_in_their_order(records, values):
    other = copy.deepcopy(records)
    for i, result in enumerate(other):
        result.config["lr"] = 0.5 - 0.1 * min(i, values - 1)
    said = re.search(r"learning rate differs \((.*?)\)", refused(other))
    assert said
    assert said[1].startswith("0.5 of dense; 0.4 of dense; 0.3 of random; 0.2 of random")
    assert said[1].endswith(" and others") == (values == 5)


def test_values_are_shown_alike_where_they_are_equal():
    values = [1000, 1000.0, 0.1 + 0.2, True, None, float("nan"), "adam"]
    assert [fairness.shown(value) for value in values] == ["1,000", "1,000", "0.3", "True", "none", "none", "adam"]


@pytest.mark.parametrize("lacking", [8, 9])
def test_a_table_that_lacks_columns_names_eight_of_them(lacking):
    needed = [f"column{i}" for i in range(lacking)]
    with pytest.raises(
        lab.ConfigError, match=rf"lacks column0, .*column7{' and others' * (lacking > 8)}; it has other\."
    ):
        fairness.check_columns(pd.DataFrame({"other": [1]}), needed)


# -- studies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("study", STUDIES)
def test_every_committed_study_compares_as_it_is(study):
    found = lab.compare(RECORDS / study)
    frame = lab.results.load(RECORDS / study)
    assert len(found.runs) == len(frame)
    assert "other settings with some seeds" not in " ".join(found.notes)
    if found.differing not in ((), ("epochs",)):
        assert any(note.startswith("The study says: ") for note in found.notes)


def test_the_studies_are_all_that_are_committed():
    assert {path.name for path in RECORDS.iterdir() if any(path.rglob("*.json"))} == {
        study.partition("/")[0] for study in STUDIES
    }


def changed_copies(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.rglob("*.json")):
        yield path, json.loads(path.read_text())


def test_a_study_allows_what_it_names_and_nothing_else(tmp_path):
    folder = tmp_path / "gates"
    shutil.copytree(RECORDS / "gates", folder)
    found = lab.compare(folder)
    assert found.methods == ["dense", "retrained", "variational dropout"]
    assert found._repr_html_().count("<tr>") == 1 + len(found.table())
    for path, record in changed_copies(folder):
        if path.stem == "retrained":
            record["config"]["lr"] = 0.5
            path.write_text(json.dumps(record))
    with pytest.raises(lab.ConfigError, match=r"learning rate.*allow=\['steps', 'lr'\]"):
        lab.compare(folder)
    assert lab.compare(folder, allow="lr").differing == ("lr", "total_steps", "epochs")
    (folder / "study.toml").unlink()
    with pytest.raises(lab.ConfigError, match="'steps'"):
        lab.compare(folder, allow="lr")


@pytest.mark.parametrize("content", ["[", "why = ", "allow = 3", 'methods = "stage"', "methods = 3", 'reason = "x"'])
def test_a_damaged_study_is_a_data_error(tmp_path, records, content):
    records[0].save(tmp_path / "a.json")
    (tmp_path / "study.toml").write_text(content)
    with pytest.raises(lab.DataError, match="is no study"):
        lab.compare(tmp_path)


def test_a_study_cannot_allow_what_nobody_knows(tmp_path, records):
    records[0].save(tmp_path / "a.json")
    (tmp_path / "study.toml").write_text('allow = ["everything"]')
    with pytest.raises(lab.ConfigError, match="allow='everything'; expected one of"):
        lab.compare(tmp_path)


def test_records_of_two_studies_are_of_none(tmp_path):
    for name in ("gates", "admm"):
        shutil.copytree(RECORDS / name, tmp_path / name)
    with pytest.raises(lab.ConfigError, match="'steps'"):
        lab.compare(tmp_path)


def test_a_record_keeps_its_protocol_on_disk(records, tmp_path):
    path = records[0].save(tmp_path / "a.json")
    assert lab.Result.read(path).protocol == records[0].protocol
    assert asdict(lab.Result.read(path))["accuracy"]["weights"] == records[0].accuracy["weights"]


def test_masks_that_came_without_their_search_are_said(records, blobs):
    more = []
    for seed in range(2):
        pruned = lab.fit(net(seed), blobs, lab.methods.OneShot(0.5), optimizer="sgd", seed=seed, **QUIET)
        how: dict[str, Any] = {"optimizer": "sgd", "seed": seed, "tags": {"method": "ticket"}, **QUIET}
        more.append(lab.fit(net(seed), blobs, masks=pruned.masks, **how).result)
        told = lab.fit(net(seed), blobs, masks=pruned.masks, found_by=[pruned], **how).result
        assert (more[-1].row()["search_steps"], told.row()["search_steps"]) == (None, pruned.step)
    notes = lab.compare(records + more, "method").notes
    assert "What the search for their masks took is not known, and not counted: ticket." in notes

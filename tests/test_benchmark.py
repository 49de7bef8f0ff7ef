"""The rows of the papers' tables: each is trained by its own method, and what has a record is left alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import pruninglab as lab
from pruninglab.__main__ import main
from pruninglab.analysis import papers
from pruninglab.benchmark import TABLES, Row, Table, beside, coded, measured, overview, run_table, runner, verify
from pruninglab.benchmark.report import unmeasured_in_words

ROWS = [(name, row) for name, table in TABLES.items() for row in table.rows]
FAST = ["dense", "gradual-167", "random-12", "direct-71"]


@pytest.fixture
def digits(monkeypatch):
    """The rows on a data set that is always there."""
    monkeypatch.setattr(runner, "load", lambda name, **options: lab.load("digits", train=100, test=100, **options))


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_what_is_printed_is_there(table, name):
    for paper, number, line in TABLES[table].rows[name].printed:
        printed = papers.table(paper, number)
        rates = printed.iloc[:, 0] + " " + printed["Rate"] if "Rate" in printed else printed.iloc[:, 0]
        assert [*printed.iloc[:, 0], *rates].count(line) >= 1
        if printed.iloc[:, 0].tolist().count(line) != 1:
            assert rates.tolist().count(line) == 1


def near(sparsity, others):
    """Within a hundredth of its density, as comparisons have it."""
    return any(abs((1 - other) / (1 - sparsity) - 1) < 0.01 for other in others)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("control", ["gradual magnitude", "random mask"])
def test_every_method_has_its_controls_at_its_sparsity(table, control):
    rows = TABLES[table].rows.values()
    for length in {row.length for row in rows if row.method != "random mask" or control == "random mask"}:
        at = {row.sparsity for row in rows if row.method == control and row.length in (length, 1)}
        assert all(near(row.sparsity, at) for row in rows if row.sparsity and row.length == length)
        assert any(row.method == "dense" and row.length == length for row in rows)


def test_tables_that_share_a_folder_share_their_dense_net_and_rows():
    """Otherwise the record of one would be taken for that of the other."""
    folders = {}
    for name, table in TABLES.items():
        folders.setdefault(runner.home(name), []).append(table)
    assert all("." not in row for table in TABLES.values() for row in table.rows | table.trials)
    for first, *others in folders.values():
        for other in others:
            for what in ("data", "model", "start", "epochs", "val", "options", "augment"):
                assert getattr(first, what) == getattr(other, what)
            assert all(row is first.rows.get(name, row) for name, row in other.rows.items())


def test_a_command_without_folders_keeps_tables_apart(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "pruninglab.benchmark.run_table", lambda table, seeds, out, work, **more: asked.append(out) or []
    )
    for table in ("MNIST", "FashionMNIST", "MNIST-rates"):
        assert main(["papers", table]) == 0
    assert [path.name for path in asked] == ["MNIST", "FashionMNIST", "MNIST"]


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
    assert set(frame["method"]) == {TABLES["MNIST"].rows[name].method for name in FAST}
    kept = lab.storage.load(tmp_path / "out/seed-0/direct-71.sparse", lab.build("lenet5", lab.load("digits"), seed=5))
    assert sum(int((p != 0).sum()) for p in kept.parameters()) == found["direct-71"].size["nonzero"]


def test_coded_rows_stand_beside_table_6(digits, tmp_path):
    names = ["dense", "iterative-12-coded", "progressive-167-coded"]
    rows = run_table("MNIST", [0], tmp_path / "out", tmp_path / "work", only=names, start=1, epochs=9)
    results = {name: result for _, name, result in rows}
    assert len({result.row()["total_steps"] for result in results.values()}) == 1
    table = coded(tmp_path / "out").set_index("row")
    assert list(table.index) == names[1:]
    ours = results["progressive-167-coded"]
    line = table.loc["progressive-167-coded"]
    assert line["lost"] == pytest.approx(100 * (results["dense"].test - ours.test))
    assert line["with_index"] == pytest.approx((ours.size["data_bits"] + ours.size["index_bits"]) / 8)
    assert line["data"] < line["with_index"] < line["file"]
    assert (line["data_printed"], line["with_index_printed"]) == ("0.89KB", "2.73KB")
    weights = lab.storage.load(tmp_path / "out/seed-0/progressive-167-coded.sparse")
    levels = {name: w[w != 0].unique().numel() for name, w in weights.items() if w.ndim > 1}
    assert {name: n <= (4 if name == "fc1.weight" else 8) for name, n in levels.items()} == dict.fromkeys(levels, True)
    assert "Table 6" not in str(beside(tmp_path / "out", "MNIST"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A record with its network."""
    folder, data = tmp_path_factory.mktemp("kept"), lab.load("digits", val=0.25, seed=3)
    run = lab.fit(lab.build("lenet300", data, seed=3), data, lab.methods.OneShot(0.95), epochs=2, seed=3)
    runner.keep(run, TABLES["MNIST"].rows["gradual-12"], folder / "a")
    return folder


def altered(kept, folder, change):
    """A copy of the record and its network, changed."""
    for path in kept.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    change(folder)
    return verify(folder).iloc[0]


def another_network(folder):
    data = lab.load("digits")
    model, _ = lab.prune(lab.build("lenet300", data, seed=4), 0.95, collapse="allow")
    lab.storage.save(model, folder / "a.sparse")


def one_weight_less(folder):
    model = lab.storage.load(folder / "a.sparse", lab.build("lenet300", lab.load("digits")))
    weight = next(iter(lab.prunable(model).values()))
    with torch.no_grad():
        weight.view(-1)[weight.flatten().nonzero()[0]] = 0
    lab.storage.save(model, folder / "a.sparse")


def other_data(folder):
    record = lab.results.Result.read(folder / "a.json")
    record.config["data"]["fingerprint"] = "0" * 16
    record.save(folder / "a.json")


def cut_off(folder):
    (folder / "a.sparse").write_bytes((folder / "a.sparse").read_bytes()[:-9])


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda folder: None, "verified"),
        (another_network, "differs"),
        (one_weight_less, "differs"),
        (other_data, "no data"),
        (cut_off, "damaged"),
        (lambda folder: (folder / "a.json").write_text("{}"), "damaged"),
        (lambda folder: (folder / "a.json").unlink(), "damaged"),
    ],
)
def test_a_network_is_measured_again(kept, tmp_path, change, verdict):
    assert altered(kept, tmp_path, change)["verdict"] == verdict


def test_the_command_says_what_differs(kept, capsys):
    assert main(["verify", str(kept)]) == 0
    assert capsys.readouterr().out.splitlines() == ["verified  a.sparse", "1 networks: 1 verified."]
    assert main(["verify", str(kept.parent / "nothing")]) == 2


def test_a_network_beside_its_record_becomes_a_c_file(kept, tmp_path, capsys):
    assert main(["export-c", str(kept / "a.sparse"), str(tmp_path / "net.c"), "--bits", "4"]) == 0
    assert "bytes of RAM" in capsys.readouterr().out
    assert "int net_class(const float *image)" in (tmp_path / "net.c").read_text()
    assert main(["export-c", str(kept / "nothing.sparse"), str(tmp_path / "net.c")]) == 2


def test_what_has_a_record_is_not_trained_again(digits, tmp_path, monkeypatch):
    each = {"only": ["dense"], "start": 1, "epochs": 1}
    assert len(list(run_table("MNIST", [0], tmp_path / "out", tmp_path / "work", **each))) == 1
    monkeypatch.setattr(runner, "load", None)
    assert list(run_table("MNIST", [0], tmp_path / "out", tmp_path / "work", **each)) == []
    record = json.loads((tmp_path / "out/seed-0/dense.json").read_text())
    assert record["accuracy"]["answers"]["classes"] == 10


def trained(cell):
    return cell.fit(lab.methods.Dense(), lr=cell.setting["lr"])


@pytest.fixture
def tuned(digits, monkeypatch):
    """A table of one method with two trials, at two sparsities."""
    tried = Row("mine", trained, 0.9, settings=({"lr": 0.0}, {"lr": 0.01}))
    rows = {"high": tried, "low": replace(tried, sparsity=0.5, tuned="high")}
    rows["untrained"] = Row("mine, untrained", lambda cell: cell.untrained(lr=0.0))
    seen = {"lr": lambda cell, run: run.options.lr}
    monkeypatch.setitem(TABLES, "tuned", Table(rows, "digits", "lenet300", start=1, epochs=3, measures=seen))
    return lambda seeds, folder, **more: list(run_table("tuned", seeds, folder / "out", folder / "work", **more))


def test_trials_choose_by_validation_with_a_seed_of_their_own(tuned, tmp_path):
    done = tuned([0], tmp_path)
    names = [(seed, name) for seed, name, _ in done]
    assert names == [(9, "high-trial-1"), (9, "high-trial-2"), (0, "high"), (0, "low"), (0, "untrained")]
    assert len({result.row()["total_steps"] for seed, _, result in done if seed == 0}) == 1
    assert [result.config["lr"] for *_, result in done] == [0.0, 0.01, 0.01, 0.01, 0.0]
    assert [result.tags["lr"] for *_, result in done] == [0.0, 0.01, 0.01, 0.01, 0.0]
    first = tmp_path / "out/seed-9/high-trial-1.json"
    better = lab.Result.read(first)
    better.accuracy["val"]["accuracy"], better.accuracy["test"]["accuracy"] = 1.0, 0.0
    better.save(first)
    assert [(seed, name, result.config["lr"]) for seed, name, result in tuned([0, 1], tmp_path, only=["low"])] == [
        (1, "low", 0.0)
    ]
    with pytest.raises(lab.ConfigError, match="seed 9 is that of the trials"):
        tuned([9], tmp_path, only=["low"])


def test_what_has_no_record_yet_is_said(tuned, tmp_path):
    records(tmp_path / "out", low=[0.9, 0.92], high_trial_1=[0.5])
    lines = overview(tmp_path / "out", "tuned").set_index("row")
    assert lines["n"].to_dict() == {"high": 0, "low": 2, "untrained": 0}
    assert lines.loc["low", "low"] < lines.loc["low", "accuracy"] < lines.loc["low", "high"]
    assert set(measured(tmp_path / "out", "tuned")["row"]) == {"low"}  # and none of the trials
    said = [*unmeasured_in_words(tmp_path / "out", "tuned")]
    assert said[:2] == [
        "mine: no record yet at 10.00% of the weights.",
        "mine, untrained: no record yet in any of its rows.",
    ]
    assert said[2].startswith("2 of 3 rows have no record yet: pruninglab papers tuned --out ")
    assert measured(tmp_path / "nothing", "tuned").empty
    records(tmp_path / "out", high=[0.9], untrained=[0.9])
    assert [*unmeasured_in_words(tmp_path / "out", "tuned")] == ["All 3 rows have records, with 1 seeds or more."]


def test_trials_are_estimated_and_listed(tuned):
    assert "2 trials with seed 9, 2 for each method" in runner.describe_table("tuned")
    assert "The trials take 7 steps once" in runner.estimate("tuned")


RISING = ["projected-333", "direct-333", "iterative-333", "progressive-333"]
ON_CIFAR = ["text-20", "formula_prune-50", "snip-50", "rigl-20", "admm-50", "random-10"]
READINGS = ["text-no-floor-200", "literal-50", "formula_prune-200", "window-15-50", "gradual-untrained-200"]


@pytest.mark.slow
@pytest.mark.parametrize(("table", "names"), [("MNIST-rates", RISING), ("WeightMom", READINGS), ("CIFAR10", ON_CIFAR)])
def test_rows_reach_their_sparsity_in_equal_steps(table, names, digits, tmp_path):
    """Those of twice the length take twice the epochs."""
    options = {"only": names, "start": 1, "epochs": 9}
    found = {
        name: result
        for seed, name, result in run_table(table, [0], tmp_path / "o", tmp_path / "w", **options)
        if not seed
    }
    assert set(found) == set(names)
    rows = TABLES[table].rows
    for name, result in found.items():
        assert result.row()["total_steps"] == 1 + 9 * rows[name].length
        assert result.sparsity["weights"] == pytest.approx(rows[name].sparsity, abs=1e-4)


@pytest.mark.parametrize(("table", "only"), [("CIFAR", ()), ("MNIST", ["magic"])])
def test_what_there_is_not_is_refused_by_name(table, only, tmp_path):
    with pytest.raises(lab.ConfigError, match="expected"):
        next(run_table(table, [0], tmp_path, tmp_path, only=only))


@pytest.mark.slow
def test_rows_on_workers(tmp_path, capsys):
    """Each in a process of its own, from one dense network, and none again that has its record."""
    command = ["papers", "MNIST", "--data", "digits", "--seeds", "0", "--budget", "quick"]
    command += ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--jobs", "2", "--rows"]
    assert main([*command, "dense", "random-12"]) == 0
    assert "2 rows to train; 2 workers of 1 thread" in capsys.readouterr().out
    found = lab.results.load(tmp_path / "out").set_index("method")
    assert len(set(found["end_hash"])) == 2
    assert len(set(found["total_steps"])) == 1
    assert main([*command, "dense", "gradual-12"]) == 0
    assert "1 row to train" in capsys.readouterr().out
    assert len(list((tmp_path / "work/seed-0/start").glob("*.safetensors"))) == 1


@pytest.fixture
def photographs(tmp_path):
    """A folder as ImageNet has it, of drawn patterns."""
    data = lab.load("textures", train=24, test=8)
    for part, split in (("train", data.train), ("val", data.test)):
        x, y = next(iter(split.batches(len(split))))
        for i, (image, label) in enumerate(zip(x, y, strict=True)):
            path = tmp_path / "images" / part / f"class-{int(label) % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (255 * (image - image.min()) / (image.max() - image.min())).permute(1, 2, 0).byte().numpy()
            Image.fromarray(pixels).resize((80, 80)).save(path)
    return f"folder:{tmp_path / 'images'}"


@pytest.mark.slow
def test_a_table_of_imagenet_runs_on_a_folder(photographs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "load", lambda name, **options: lab.load(name, size=64, workers=0, **options))
    small, weights = "torchvision:squeezenet1_1", tmp_path / "dense.pth"  # AlexNet itself would take minutes
    monkeypatch.setitem(TABLES, "AlexNet", replace(TABLES["AlexNet"], model=small))
    torch.save(lab.build(small, lab.load(photographs, size=64), seed=7).state_dict(), weights)
    asked: dict = {"only": ["direct-21", "gradual-21"], "data": photographs, "batch_size": 8}
    with pytest.raises(lab.ConfigError, match=r"--weights.*alexnet-owt-7be5be79\.pth"):
        next(run_table("AlexNet", [0], tmp_path / "out", tmp_path / "work", **asked))
    with pytest.raises(lab.ConfigError, match="--data folder:PATH"):
        next(run_table("AlexNet", [0], tmp_path / "out", tmp_path / "work", weights=weights))
    main(["papers", "AlexNet", "--data", photographs, "--rows", "dense", "--estimate"])
    assert "hours" in capsys.readouterr().out
    done = list(run_table("AlexNet", [0], tmp_path / "out", tmp_path / "work", weights=weights, epochs=3, **asked))
    assert [name for _, name, _ in done] == asked["only"]
    assert all(result.sparsity["weights"] == pytest.approx(1 - 1 / 21, abs=1e-4) for _, _, result in done)
    line = beside(tmp_path / "out", "AlexNet").iloc[0]
    assert (line["printed"], line["paper_accuracy"]) == ("ADMM Pruning (Zhang et al., 2018b)", 0.802)
    assert not np.isnan(line["gradual"])


def records(folder, **accuracies):
    """A record of each row with this accuracy, of one short run."""
    data = lab.load("digits", train=100, test=100)
    run = lab.fit(lab.build("lenet300", data), data, epochs=0, progress=False)
    for name, values in accuracies.items():
        for seed, value in enumerate(values):
            run.result.accuracy["test"]["accuracy"] = value
            run.save(folder / f"seed-{seed}" / f"{name.replace('_', '-')}.json")


def test_measured_beside_printed(tmp_path):
    records(tmp_path, progressive_167=[0.9894, 0.9898], gradual_167=[0.985], dense=[0.99], surgeon_111=[0.97])
    found = beside(tmp_path, "MNIST").set_index("row")
    progressive = found.loc["progressive-167"]
    assert (progressive["n"], progressive["paper_accuracy"]) == (2, 0.99)
    assert progressive["verdict"] == "reached"  # 98.96 % is 99.0 % with as many digits as are printed
    assert (progressive["gradual"], progressive["dense"]) == (0.985, 0.99)
    assert np.isnan(progressive["random"])
    assert found.loc["surgeon-111", "verdict"] == "missed by 1.30 points"
    assert np.isnan(found.loc["surgeon-111", "gradual"])


def test_a_folder_without_records_says_what_to_run(tmp_path):
    with pytest.raises(lab.DataError, match="pruninglab papers MNIST"):
        beside(tmp_path, "MNIST")

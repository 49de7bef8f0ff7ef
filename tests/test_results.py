"""The record: complete, read back as one table, and every number in it by hand."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

import pruninglab as lab
from pruninglab import identity, layers, results
from pruninglab.methods import OneShot
from pruninglab.results import environment, record


@pytest.fixture(scope="module")
def run() -> lab.Run:
    data = lab.load("digits", train=200, test=60, size=28)
    return lab.fit(lab.build("lenet5", data, seed=3), data, OneShot(0.9), epochs=2, seed=4, progress=False)


def test_a_record_makes_the_round_trip(run, tmp_path):
    path = run.save(tmp_path / "sub" / "a.json")
    content = json.loads(path.read_text())
    assert len(content.pop("sha256")) == 16
    assert content.pop("protocol") == {"hash": run.result.row()["protocol"], **run.result.protocol}
    assert lab.Result.read(path) == lab.Result(**content)
    assert json.loads(path.read_text())["schema"] == 2
    assert path.stat().st_mode & 0o444 == 0o444  # others may read it


def test_a_record_says_what_is_needed_to_repeat_it(run):
    config, environment = run.result.config, run.result.environment
    assert config["model"]["name"] == "lenet5"
    assert config["model"]["seed"] == 3
    assert (config["seed"], config["data"]["seed"], config["epochs"]) == (4, 0, 2)
    assert config["methods"][0] == {
        "type": "OneShot",
        "sparsity": 0.9,
        "criterion": "magnitude",
        "scope": "global",
        "unit": "weight",
    }
    assert environment["torch"] == torch.__version__
    assert environment["cpu"]
    assert run.result.steps["own"] == run.step == 4
    assert len(run.origin["weights"]) == 16


def test_sparsity_says_of_what(run):
    cut = round(0.9 * 430_500)
    assert run.result.sparsity["weights"] == pytest.approx(cut / 430_500)
    assert run.result.sparsity["weights_and_biases"] == pytest.approx(cut / 431_080)
    assert run.result.sparsity["all"] == pytest.approx(cut / 431_080)
    assert run.result.size["parameters"] == 431_080
    assert run.result.size["nonzero"] == 431_080 - cut


def test_flops_by_hand(run):
    """Two operations a multiply-add: 24·24·20·25, 8·8·50·500, 400,000 and 5,000 of them."""
    macs = {"conv1.weight": 288_000, "conv2.weight": 1_600_000, "fc1.weight": 400_000, "fc2.weight": 5_000}
    assert run.result.flops["dense"] == 2 * sum(macs.values())
    sparse = sum(2 * m * int(run.masks[n].sum()) / run.masks[n].numel() for n, m in macs.items())
    assert run.result.flops["sparse"] == pytest.approx(sparse, abs=0.1)
    assert run.result.flops["training"] == pytest.approx(3 * 2 * sum(macs.values()) * 180 * 2)


def test_layers_are_kept_and_total(run):
    layers = {x["layer"]: (x["kept"], x["total"]) for x in run.result.layers}
    assert layers["fc1.weight"] == (int(run.masks["fc1.weight"].sum()), 400_000)
    assert sum(kept for kept, _ in layers.values()) == run.masks.kept


def test_records_become_one_table_and_what_is_none_is_left_out(run, tmp_path):
    run.save(tmp_path / "a" / "one.json")
    run.save(tmp_path / "two.json")
    (tmp_path / "foreign.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text('{"schema": 1, "status"')
    (tmp_path / "old.json").write_text('{"schema": 0}')
    (tmp_path / "lacking.json").write_text('{"schema": 1}')
    for where in (tmp_path, f"{tmp_path}/**"):
        frame = results.load(where)
        assert [Path(p).name for p in frame["path"]] == ["one.json", "two.json"]
        assert {Path(p).name for p in frame.attrs["skipped"]} == {
            "foreign.json",
            "broken.json",
            "old.json",
            "lacking.json",
        }
    assert len(results.load(tmp_path / "two.json")) == 1
    assert frame["test_accuracy"].tolist() == [run.result.accuracy["test"]["accuracy"]] * 2
    assert frame["methods"].tolist() == ["OneShot"] * 2
    assert results.load(tmp_path / "nothing").empty


def test_a_diverged_run_is_recorded_with_null_for_what_is_no_number(tmp_path):
    data = lab.load("digits", train=200, test=60, size=8)
    run = lab.fit(lab.build("lenet300", data), data, epochs=1, optimizer="sgd", lr=1e20, progress=False)
    assert run.status == "diverged"
    text = run.save(tmp_path / "d.json").read_text()
    assert "NaN" not in text.replace("the loss is NaN", "").replace("NaN or Inf", "")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert results.load(tmp_path)["status"].tolist() == ["diverged"]


def test_settings_are_described_by_content():
    @dataclass(frozen=True)
    class Inner:
        x: float = 1.0

    assert identity.describe({"a": (1, None), "b": Inner(2.0)}) == {"a": [1, None], "b": {"type": "Inner", "x": 2.0}}
    assert identity.describe(torch.ones(2)) == identity.describe(torch.ones(2)) != identity.describe(torch.zeros(2))
    assert identity.describe(nn.functional.cross_entropy) == "cross_entropy"
    assert identity.describe(partial(math.pow, 2)) == identity.describe(partial(math.pow, 2))
    assert identity.text(identity.describe(Inner())) == "Inner(x=1.0)"
    assert record.finite({"a": [math.nan, 1.0], "b": -math.inf}) == {"a": [None, 1.0], "b": None}


def test_own_functions_are_told_apart_by_what_they_do():
    def scaled(by):
        return lambda x: by * x

    assert identity.describe(scaled(1)) == identity.describe(scaled(1))
    assert identity.describe(scaled(1)) != identity.describe(scaled(2))
    assert identity.describe(lambda x: x) != identity.describe(lambda x: 2 * x)
    smooth, plain = nn.CrossEntropyLoss(label_smoothing=0.3), nn.CrossEntropyLoss()
    assert identity.describe(smooth) != identity.describe(plain)


def flops(model: nn.Module, x: torch.Tensor, masks: lab.Masks | None = None) -> tuple[float, float]:
    counted = layers.count(model.eval(), x)
    return counted.dense, counted.sparse(masks or lab.Masks())


def test_flops_of_attention_and_of_tied_weights():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    projections = 2 * 5 * (3 * 64 + 64 + 2 * 8 * 16)
    products = 2 * 2 * 5 * 5 * 8  # queries with keys, weights with values: no mask makes these fewer
    assert flops(encoder, torch.zeros(1, 5, 8))[0] == projections + products
    masks = lab.keep_top({n: torch.rand(w.shape) for n, w in lab.prunable(encoder).items()}, 0.5, scope="layer")
    assert flops(encoder, torch.zeros(1, 5, 8), masks)[1] == pytest.approx(projections / 2 + products)

    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    half = lab.keep_top({"0.weight": torch.rand(4, 4)}, 0.5)
    assert flops(tied, torch.zeros(1, 4), half) == (64, 32)


def test_a_folder_may_have_any_name(run, tmp_path):
    run.save(tmp_path / "runs[1]" / "a.json")
    assert len(results.load(tmp_path / "runs[1]")) == 1


def test_equal_names_in_two_folders_are_told_apart(run, tmp_path):
    for folder in ("s0", "s1"):
        run.save(tmp_path / folder / "a.json")
    shown = results.compare_text(results.load(tmp_path))
    assert "s0/a.json" in shown
    assert "s1/a.json" in shown


def test_only_what_was_pruned_counts_as_sparsity():
    data = lab.load("digits", train=200, test=60, size=8)
    model = lab.build("resnet20", data, width=0.25)  # its BatchNorm shifts start at 0
    run = lab.fit(model, data, epochs=0, progress=False)
    assert run.result.sparsity == {"weights": 0.0, "weights_and_biases": 0.0, "all": 0.0}


def test_what_a_run_shows_is_complete_and_the_same_each_time(run):
    html, plain = run._repr_html_(), repr(run)
    for shown in (html, plain):
        assert "fc1.weight" in shown
        assert "90.00% of weights" in shown
        assert "done" in shown
    slower = replace(run.result, times={"seconds": 12345.0})
    assert (slower._repr_html_(), repr(slower)) == (html, plain)
    table = results.table({"one": run})
    assert table.loc["one", "zero, of weights"] == "90.00%"


def test_a_collapsed_layer_is_said():
    data = lab.load("digits", train=200, test=60, size=8)
    masks = lab.Masks.full(lab.prunable(lab.build("lenet300", data)))
    masks["fc2.weight"][:] = False
    run = lab.fit(lab.build("lenet300", data), data, masks=masks, epochs=0, collapse="allow", progress=False)
    assert run.result.row()["collapsed_layers"] == 1
    assert "nothing is left of fc2.weight" in repr(run)
    assert "nothing is left of fc2.weight" in run._repr_html_()


def test_the_committed_records_can_be_read_and_say_which_code_gave_them():
    frame = results.load(Path(__file__).parent.parent / "notebooks" / "results")
    assert frame.attrs["skipped"] == {}
    assert len(frame) >= 5
    for path in frame["path"]:
        commit = lab.Result.read(path).environment["commit"]
        assert commit
        assert not commit.endswith("+"), f"{path} comes from code that was never committed"


def test_tags_are_columns_and_may_name_the_method(blobs):
    run = lab.fit(nn.Linear(10, 4), blobs, epochs=0, progress=False, tags={"method": "ticket", "density": 0.1})
    row = run.result.row()
    assert (row["method"], row["density"], row["methods"]) == ("ticket", 0.1, "Dense")
    assert run.result.method == "Dense"
    assert run.result.row().keys() - run.tags.keys() == record.COLUMNS.keys() - {"method"}
    options: Any = {"epochs": 0, "progress": False}
    for name in ("seed", "path", "param_density", "", 3, *record.COLUMNS.keys() - {"method"}):
        with pytest.raises(lab.ConfigError, match="tags"):
            lab.fit(nn.Linear(10, 4), blobs, **options, tags=cast(Any, {name: 3}))
    for value in ([1], math.nan, math.inf, {"a": 1}, torch.ones(1)):
        with pytest.raises(lab.ConfigError, match="tags"):
            lab.fit(nn.Linear(10, 4), blobs, **options, tags=cast(Any, {"density": value}))


def test_tags_come_back_as_columns(blobs, tmp_path):
    for density in (0.1, None):
        tags = {"density": density, "series": "a", "late": True} if density else {}
        options: Any = {"epochs": 0, "progress": False, "tags": tags, "record": tmp_path / f"{density}.json"}
        lab.fit(nn.Linear(10, 4), blobs, **options)
    frame = results.load(tmp_path)
    assert frame["density"].tolist()[0] == 0.1
    assert math.isnan(frame["density"].tolist()[1])
    assert frame["late"].tolist()[0] is True


def test_a_run_is_no_list_and_has_no_accuracy_before_its_end(blobs):
    run = lab.fit(nn.Linear(10, 4), blobs, OneShot(0.5), epochs=0, progress=False)
    for wrong in (0, "OneShot", OneShot(0.5), lab.methods.ADMM):
        with pytest.raises(lab.ConfigError, match="its methods are OneShot"):
            run[wrong]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="not iterable"):
        list(run)  # pyright: ignore[reportArgumentType]
    assert isinstance(run.val, float)

    @dataclass
    class Asks(lab.Method):
        def on_start(self, run: lab.Run) -> None:
            run.val  # noqa: B018

    with pytest.raises(lab.RunError, match="measured when it is over"):
        lab.fit(nn.Linear(10, 4), blobs, Asks(), epochs=0, progress=False)


class Wordy(nn.Module):
    """Almost all of its parameters are in layers that a run leaves alone by default."""

    def __init__(self, width: int = 200):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(100, width))
        self.norm = nn.LayerNorm(10)
        self.fc = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(x)) + self.table.mean()


def test_a_run_that_may_prune_almost_nothing_says_so(blobs, tmp_path):
    run = lab.fit(Wordy(), blobs, OneShot(0.5), epochs=0, progress=False, record=tmp_path / "r.json")
    assert run.result.scope["weights"] == 40
    assert run.result.scope["parameters"] == 20_064
    assert run.result.scope["left_out"] == {
        "Wordy": 20_000,
        "LayerNorm": 10,
        "LayerNorm (bias)": 10,
        "Linear (bias)": 4,
    }
    assert run.result.in_scope == run.result.row()["in_scope"] == 40 / 20_064
    for shown in (repr(run), run._repr_html_()):
        assert "0.2% of all parameters in scope" in shown.splitlines()[0]
        assert "Left out: Wordy 20,000" in shown
        assert "norms=True" in shown
    assert lab.Result.read(tmp_path / "r.json").warnings == run.warnings + run.result.warnings != []
    assert results.table({"a": run}).loc["a", "in scope, of all parameters"] == "0.2%"
    assert lab.fit(Wordy(), blobs, epochs=0, progress=False).result.warnings == []  # nothing is to be pruned
    assert lab.fit(Wordy(1), blobs, OneShot(0.5), epochs=0, progress=False).result.warnings == []


def test_compressed_sizes_are_in_a_table_that_asks_for_them(run):
    assert "bzip2_bytes" not in run.result.size
    assert run.result.row()["bzip2_bytes"] is None
    assert "after bzip2, KB" not in results.table({"a": run})
    asked = results.table({"a": run}, compressed=True)
    assert float(asked.loc["a", "after bzip2, KB"].replace(",", "")) > 10


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("study.py", "study.py"),
        ("--out=runs", "--out=runs"),
        (str(Path.cwd() / "notebooks/x.ipynb"), "notebooks/x.ipynb"),
        (str(Path("/", "elsewhere", "study.py")), "study.py"),
        (str(Path("/", "elsewhere", "pruninglab", "__main__.py")), "pruninglab"),
    ],
)
def test_a_record_does_not_tell_the_folders_of_a_machine(word, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", [word])
    assert environment.environment("cpu")["command"] == [expected]


def test_a_process_that_is_started_has_its_threads_and_lets_them_sleep_while_they_wait():
    ask = "import torch, os; print(torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])"
    started = {**os.environ, **environment.with_threads(2)}
    done = subprocess.run([sys.executable, "-c", ask], env=started, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", os.environ.get("OMP_WAIT_POLICY", "PASSIVE")]


def test_the_machine_is_described(run):
    made = run.result.environment
    assert made["command"][1:] == sys.argv[1:]
    assert made["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert made["threads"] == torch.get_num_threads()
    assert made["threads_between_operations"] == torch.get_num_interop_threads()
    assert made["libraries"]["oneDNN"] in torch.__config__.show()


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize(
    ("where", "project", "known"),
    [
        ("pruninglab", "pruninglab", True),
        ("venv/site-packages/pruninglab", "pruninglab", False),
        ("venv/site-packages/pruninglab", "other", False),
        ("pruninglab", "other", False),
        ("pruninglab", None, False),
        ("pruninglab", "pruninglab-tools", False),
    ],
)
def test_the_commit_is_that_of_the_projects_own_repository(tmp_path, monkeypatch, where, project, known):
    top, foreign = tmp_path / "top", tmp_path / "foreign"
    package = top / where
    (package / "results").mkdir(parents=True)
    (package / "results" / "environment.py").write_text("")
    if project:
        (top / "pyproject.toml").write_text(f'[project]\nname = "{project}"\ndependencies = ["pruninglab"]\n')
    for folder in (top, foreign):
        folder.mkdir(exist_ok=True)
        git(folder, "init", "-q")
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    monkeypatch.setattr(environment, "__file__", str(package / "results" / "environment.py"))
    monkeypatch.setenv("GIT_DIR", str(foreign / ".git"))  # as inside a hook of another repository
    found = environment._commit.__wrapped__()
    monkeypatch.delenv("GIT_DIR")
    assert found == (git(top, "rev-parse", "--short", "HEAD") if known else None)


def test_what_is_asked_most_is_short(blobs):
    run = lab.fit(nn.Linear(10, 4), blobs, OneShot(0.5), epochs=1, progress=False)
    assert (run.val, run.test) == tuple(run.result.accuracy[split]["accuracy"] for split in ("val", "test"))
    assert run[OneShot] is run.methods[0]
    with pytest.raises(lab.ConfigError, match="no Gradual; its methods are OneShot"):
        run[lab.methods.Gradual]


def test_records_of_the_first_schema_are_read_in_today_s_words():
    frame = lab.results.load(Path(__file__).parent.parent / "notebooks" / "results")
    old = frame["path"].map(lambda path: '"schema": 1' in Path(path).read_text(encoding="utf-8"))
    assert (old.sum(), frame.attrs["skipped"]) == (449, {})
    frame = frame[old]
    settings = " ".join(frame["settings"])
    assert not re.search(r"GatedPruning|CosineRate|share=|eval_interval=|[( ]every=|[( ]rate=", settings)
    assert "prune_fraction=" in settings


def test_committed_results_are_found_from_any_folder_of_the_checkout(monkeypatch):
    root = Path(__file__).parent.parent
    monkeypatch.chdir(root / "notebooks")
    there = results.load("results/grid")
    assert len(there)
    for folder in (root, root / "tests", root / "notebooks" / "results"):
        monkeypatch.chdir(folder)
        assert results.load("results/grid").drop(columns="path").equals(there.drop(columns="path"))


def test_what_is_not_there_is_a_table_without_rows(tmp_path, monkeypatch):
    """Whoever asks it for a column gets an empty one, and a comparison says that nothing is there."""
    monkeypatch.chdir(tmp_path)
    nothing = results.load("results/nothing")
    assert nothing.empty
    assert not len(nothing["model"] + nothing["data"])
    with pytest.raises(lab.ConfigError, match="no records to compare"):
        lab.compare(nothing)

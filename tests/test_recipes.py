"""What trains more than once: rounds, budgets, and going on from a folder."""

import importlib
import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any, Unpack, get_type_hints

import nbformat
import pytest
import torch
from torch import nn

import pruninglab as lab
from pruninglab import identity, recipes
from pruninglab.recipes import iterative, tickets
from pruninglab.train.options import TrainingOptions
from pruninglab.typed import choices

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
fitting = importlib.import_module("pruninglab.train.fit")


def mlp(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 4))


def test_each_round_cuts_the_same_share_of_the_survivors(blobs):
    runs = iterative(mlp(), blobs, 0.9, rounds=4, epochs=2, finetune=1, progress=False).runs
    kept = [run.masks.kept for run in runs]
    assert kept == [448, *(448 - int(448 * (1 - 0.1 ** (r / 4)) + 0.5) for r in range(1, 5))]
    assert [run.result.steps["before"] for run in runs] == [
        0,
        *(runs[0].step + r * runs[1].step for r in range(4)),
    ]
    assert {run.origin["dense"] for run in runs[1:]} == {runs[1].origin["weights"]}
    assert runs[1].result.config["lr"] == pytest.approx(1e-4)


def test_the_default_criterion_is_a_quality_factor(blobs):
    """One threshold on |w| / deviation: what is kept of each layer lies above the same multiple of its deviation."""
    dense, pruned = iterative(mlp(), blobs, 0.5, rounds=1, epochs=1, finetune=1, finetune_lr=0.0, progress=False).runs
    factors = []
    for name, weight in lab.prunable(dense.model).items():
        normed = weight.detach().abs() / weight.detach().std(correction=0)
        kept = pruned.masks[name]
        factors.append((normed[~kept].max().item(), normed[kept].min().item()))
    assert max(low for low, _ in factors) <= min(high for _, high in factors) + 1e-6


def test_dropout_shrinks_with_the_connections_it_acts_on(blobs):
    runs = iterative(mlp(dropout=0.4), blobs, 0.75, rounds=3, epochs=1, progress=False).runs
    shares = [int(run.masks["3.weight"].sum()) / 128 for run in runs]
    assert [run.model.get_submodule("2").p for run in runs] == pytest.approx([0.4 * share**0.5 for share in shares])
    assert runs[0].model.get_submodule("2").p == 0.4


def test_a_folder_is_gone_on_from(blobs, tmp_path):
    def go(rounds: int) -> list[lab.Run]:
        schedule = lab.Linear(0.8)
        return iterative(mlp(), blobs, schedule, rounds=rounds, epochs=1, folder=tmp_path, progress=False).runs

    first = go(2)
    assert sorted(p.name for p in tmp_path.glob("*.json")) == ["round-00.json", "round-01.json", "round-02.json"]
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    second = go(2)
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}  # nothing was trained
    assert identity.tensor_hash(first[-1].model.state_dict()) == identity.tensor_hash(second[-1].model.state_dict())


def test_a_break_in_the_last_step_ends_the_recipe_and_a_finished_run_is_gone_on_from(blobs):
    """The training is whole then, but the person at the keys wants no further one."""

    def in_the_last_step(run: lab.Run) -> None:
        if run.step == run.steps:
            run.interrupt()

    (dense,) = iterative(mlp(), blobs, 0.5, rounds=2, epochs=1, progress=in_the_last_step).runs
    assert dense.status == "done"
    assert len(iterative(dense, blobs, 0.5, rounds=2, epochs=1, progress=False)) == 3
    assert len(recipes.admm(dense, blobs, 0.5, epochs=1, progress=in_the_last_step)) == 2


def test_a_sparse_start_and_no_retraining_are_taken_as_they_are(blobs):
    sparse = lab.fit(mlp(), blobs, lab.methods.OneShot(0.8), epochs=1, collapse="allow", progress=False)
    runs = iterative(sparse, blobs, 0.9, rounds=3, epochs=2, finetune=0, collapse="allow", progress=False).runs
    assert [run.masks.sparsity for run in runs] == pytest.approx([0.8, 0.8, 0.8, 0.9], abs=0.003)
    assert [run.step for run in runs[1:]] == [0, 0, 0]
    with pytest.raises(lab.ConfigError, match="sets masks by itself"):
        iterative(sparse, blobs, 0.9, epochs=1, masks=sparse.masks)  # pyright: ignore[reportCallIssue]


def test_a_finished_run_is_the_dense_start(blobs):
    dense = lab.fit(mlp(), blobs, epochs=3, progress=False)
    runs = iterative(dense, blobs, 0.5, rounds=1, epochs=2, progress=False).runs
    assert runs[0] is dense
    assert runs[1].result.steps["before"] == dense.step
    with pytest.raises(lab.ConfigError, match="rounds=0"):
        iterative(dense, blobs, 0.5, rounds=0, epochs=1)


# -- one signature --------------------------------------------------------------------------------------------------

NAMES = [name for name in recipes.__all__ if not isinstance(getattr(recipes, name), type)]
GATE = lab.methods.PruneWhileAccurate(0.0, prune_fraction=0.4, every_steps=1)
AMOUNTS: dict[str, Any] = {"progressive": [2, 4], "quantize": 2, "prune_while_accurate": GATE, "search": GATE}
NEEDED: dict[str, dict[str, Any]] = {
    "progressive": {"select": "chain"},
    "scratch": {"finetune": 1},
    "slimming": {"finetune": 1},
    "prune_while_accurate": {"finetune": 1, "dense": 1},
    "search": {"finetune": 1, "dense": 1, "regularizer": lab.methods.L2(), "at_least": 0.0},
    "bonetta": {"finetune": 1, "pruning": GATE},
}


def call(name: str, model: Any, data: Any, **options: Any) -> Any:
    """A recipe with what it needs at least."""
    given: dict[str, Any] = {"epochs": 1, "progress": False, "collapse": "allow"} | NEEDED.get(name, {}) | options
    function = getattr(recipes, name)
    if name == "bonetta":
        return function(model=model, data=data, **given)
    return function(model, data, *([] if name == "dense_start" else [AMOUNTS.get(name, 0.5)]), **given)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_the_one_signature(name):
    *first, rest = inspect.signature(getattr(recipes, name)).parameters.values()
    by_name = {p.name: p for p in first}
    assert rest.kind is rest.VAR_KEYWORD
    assert rest.annotation == Unpack[TrainingOptions]
    assert {"model", "data", "epochs", "folder"} <= by_name.keys()
    positional = [p.name for p in first if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert len(positional) <= 3
    assert name == "bonetta" or positional[:2] == ["model", "data"]
    assert {"finetune", "finetune_lr"} <= by_name.keys() or name in ("dense_start", "enhanced", "tickets")
    assert not by_name.keys() & TrainingOptions.__annotations__.keys()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bach_size": 10}, "has no option 'bach_size'. Did you mean batch_size"),
        ({"epoch": 2}, "has no option 'epoch'. Did you mean epochs"),
        ({"foldr": "x"}, "Did you mean folder"),
        ({"optimiser": "sgd"}, "Did you mean optimizer"),
        ({"epochs": "2"}, "epochs='2'; expected a whole number of at least 0"),
        ({"epochs": 1.5}, "epochs=1.5; expected a whole number"),
        ({"folder": 3}, "folder=3; expected"),
        ({"masks": {}}, "sets masks by itself"),
        ({"inplace": True}, "sets inplace by itself"),
    ],
)
def test_a_misspelt_or_wrong_option_is_refused_by_name_before_training(name, options, said, blobs, monkeypatch):
    monkeypatch.setattr(fitting, "_train", never)
    with pytest.raises(lab.ConfigError, match=said):
        call(name, mlp(), blobs, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_or_surplus_argument_is_refused_by_name(name, blobs):
    function = getattr(recipes, name)
    with pytest.raises(lab.ConfigError, match=f"recipes.{name}: (missing|too many)"):
        function(*([mlp(), blobs, 0.5, 7] if name != "dense_start" else [mlp(), blobs, 7]))
    if name not in ("dense_start", "bonetta"):
        with pytest.raises(lab.ConfigError, match=r"missing a required argument: '(epochs|regularizer)'"):
            function(mlp(), blobs, AMOUNTS.get(name, 0.5))


WORDS = [
    (name, parameter, choices(hint))
    for name in NAMES
    for parameter, hint in get_type_hints(getattr(recipes, name), include_extras=True).items()
    if choices(hint)
]


@pytest.mark.parametrize(("name", "parameter", "words"), WORDS, ids=str)
def test_words_come_from_the_types(name, parameter, words, blobs, monkeypatch):
    monkeypatch.setattr(fitting, "_train", never)
    with pytest.raises(lab.ConfigError, match=f"{parameter}=.*; expected.*{words[0]!r}"):
        call(name, mlp(), blobs, **{parameter: ["nothing"] if parameter == "controls" else "nothing"})


def never(*_: Any) -> None:
    raise AssertionError("something was trained before this was refused")


@pytest.mark.parametrize("name", [n for n in NAMES if n != "dense_start"])
def test_every_recipe_returns_trials_whose_costs_add_up(name, blobs):
    """Each training is there once, and is charged with others that are there."""
    if name == "slimming":
        return  # it needs batch norms; the contract has it
    made = call(name, mlp(), blobs)
    assert isinstance(made, recipes.Trials)
    assert made.last is made.runs[-1]
    assert len({id(run) for run in made.runs}) == len(made) == len(made.table())
    table = made.table()
    assert {trial.method for trial in made} == set(made.methods) == set(table["method"])
    known = {run.key: run.cost["steps"] for run in made.runs}
    for trial, row in zip(made, table.to_dict("records"), strict=True):
        before = trial.run.before.keys()
        assert before <= known.keys()
        assert row["steps_in_all"] == row["steps"] + sum(known[key] for key in before)
        record = trial.run.result
        assert (record.steps["before"], record.row()["total_steps"]) == (
            row["steps_in_all"] - row["steps"],
            row["steps_in_all"],
        )
    costs: Any = made.costs()
    assert costs["steps"].sum() == sum(run.step - run.first_step for run in made.runs)
    with pytest.raises(lab.ConfigError, match="Did you mean"):
        made[made.methods[-1] + "x"]


# -- the search counts ----------------------------------------------------------------------------------------------


def test_what_found_the_masks_counts_once_however_it_is_handed_on(blobs):
    each: dict[str, Any] = {"epochs": 1, "progress": False, "collapse": "allow"}
    model = mlp()
    dense = lab.fit(model, blobs, **each)
    pruned = lab.fit(dense, blobs, lab.methods.OneShot(0.5), **each)
    ticket = lab.fit(model, blobs, masks=pruned.masks, found_by=[pruned], **each)
    assert ticket.before.keys() == {dense.key, pruned.key}
    assert (ticket.spent, ticket.origin["search"]) == (3 * dense.step, 2 * dense.step)
    twice = lab.fit(model, blobs, masks=pruned.masks, found_by=[pruned, dense, ticket, pruned], **each)
    assert twice.origin["steps"] == 3 * dense.step
    onward = lab.fit(ticket, blobs, **each)  # goes on from it, and owes what it owed
    assert (onward.origin["steps"], "search" in onward.origin) == (3 * dense.step, False)
    again: dict[str, Any] = {"epochs": 2, "progress": False, "collapse": "allow", "found_by": [pruned]}
    rewound = lab.fit(model, blobs, start=ticket.snapshot(), masks=pruned.masks, **again)
    assert (rewound.origin["steps"], rewound.origin["search"]) == (3 * dense.step, 0)
    flops = dense.result.flops["training"]
    assert ticket.result.flops["before"] == pytest.approx(2 * flops)
    assert ticket.result.times["seconds_before"] == pytest.approx(dense.seconds + pruned.seconds, abs=0.01)
    row = ticket.result.row()
    assert (row["steps_before"], row["search_steps"]) == (2 * dense.step, 2 * dense.step)
    with pytest.raises(lab.ConfigError, match="found_by"):
        lab.fit(model, blobs, found_by=[model], **each)


def test_a_snapshot_from_disk_remembers_what_it_cost(blobs, tmp_path):
    run = lab.fit(mlp(), blobs, epochs=1, progress=False)
    run.snapshot().save(tmp_path / "a.safetensors")
    again = lab.Snapshot.load(tmp_path / "a.safetensors")
    assert again.past.keys() == {run.key}
    assert lab.fit(mlp(), blobs, start=again, epochs=2, progress=False).spent == 2 * run.step


def test_compare_sees_the_search(blobs):
    runs = []
    for seed in range(2):
        model = lab.build(lambda shape, classes: mlp(), blobs, seed=seed)
        made = tickets(model, blobs, 0.5, epochs=1, rounds=2, controls=["random mask"], seed=seed, progress=False)
        runs += [made["ticket"], made["random mask"]]
    table = lab.results.table({str(i): run for i, run in enumerate(runs)})
    assert table["steps"].tolist() == [3 * runs[0].step, runs[0].step] * 2
    with pytest.raises(lab.ConfigError, match="steps"):
        lab.compare(runs)


# -- one dense network ----------------------------------------------------------------------------------------------


def dense_trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Of every training of a dense network that made a step: its key, and the step that it began at."""
    seen: list[tuple[str, int]] = []
    train = fitting._train

    def counting(run: lab.Run, *rest: Any) -> None:
        began = run.step
        train(run, *rest)
        if run.name == "Dense" and not run.sparsity and run.step > began and run.origin["kind"] == "model":
            seen.append((run.key, began))

    monkeypatch.setattr(fitting, "_train", counting)
    return seen


def test_recipes_of_a_sweep_train_their_dense_network_once(blobs, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNINGLAB_STARTS", str(tmp_path / "starts"))
    seen = dense_trainings(monkeypatch)
    named = ("dense_start", "admm", "iterative", "deep_compression", "progressive", "tickets", "scratch")
    for number, name in enumerate(named):
        more = {"step": 1} if name == "tickets" else {"compute": "epochs"} if name == "scratch" else {}
        folder = {"folder": tmp_path / str(number)} if number % 2 else {}
        # what says nothing new asks for the same: defaults written out, tags, how often a checkpoint is written
        said = (
            {"lr": 1e-3, "lr_schedule": lab.CosineLR(), "tags": {"a": number}, "every_steps": 1} if number % 3 else {}
        )
        call(name, mlp(), blobs, **more, **folder, **said)
    assert len(list((tmp_path / "starts").glob("*.safetensors"))) == 1
    assert len(seen) == 1


def test_what_trains_differently_is_no_shared_start(blobs, tmp_path):
    """Frozen weights, the mode of a layer, other options: each has a dense network of its own."""
    frozen, quiet = mlp(0.5), mlp(0.5)
    next(frozen.parameters()).requires_grad_(False)
    quiet[2].eval()
    plain: list[tuple[Any, dict[str, Any]]] = [(model, {}) for model in (mlp(0.5), frozen, quiet)]
    plain += [(mlp(0.5), {"seed": 1}), (mlp(0.5), {"lr": 2e-3})]
    for model, options in plain:
        recipes.dense_start(model, blobs, epochs=1, folder=tmp_path, progress=False, **options)
    assert len(list(tmp_path.glob("*.safetensors"))) == 5


SMALL = {
    "04_relevance": ({"dense_epochs": 1, "epochs": 1, "final": 1, "acting": 1.0}, {"target": 0.9}),
    "05_admm": ({"dense_epochs": 1, "epochs": 2, "retrain": 1}, {"rho": 0.1}),
    "06_tickets": ({"epochs": 1, "rounds": 1, "late": 2}, {"sparsity": 0.9}),
}
"""Short trainings, and what another cell of the sweep has."""


@pytest.mark.parametrize("name", SMALL)
def test_a_sweep_of_a_notebook_trains_each_dense_network_once(name, tmp_path, monkeypatch):
    """Two cells of the sweep, with other parameters for what comes after the dense training."""
    cells = [c.source for c in nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells if c.cell_type == "code"]
    trained = [s for s in cells if ("lab." in s or "import" in s) and not re.search(r"plots|past|paper|tried|print", s)]
    monkeypatch.setenv("PRUNINGLAB_STARTS", str(tmp_path))
    monkeypatch.setattr(lab, "load", partial(lab.load, train=400, test=40, size=16))
    seen = dense_trainings(monkeypatch)
    short, other = SMALL[name]
    for change in (short, short | other):
        space: dict[str, Any] = {}
        exec(cells[0], space)
        space |= change
        for source in trained:
            exec(source, space)
    assert seen
    assert len(set(seen)) == len(seen), "a dense network was trained again"


# -- compared -------------------------------------------------------------------------------------------------------

UNEQUAL = {"scratch": "learning rate differs.*steps in all differs", "slimming": "form", "tickets": "steps in all"}
"""What has several results of each seed, and in what their trainings differ."""


@pytest.mark.parametrize("name", [n for n in NAMES if n != "dense_start"])
def test_a_folder_compares_by_the_ends_of_its_recipe_or_is_refused_in_words(name, blobs, tmp_path):
    model = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    made = [call(name, model, blobs, folder=tmp_path / str(seed), seed=seed) for seed in range(2)]
    records = lab.results.load(tmp_path)
    assert set(records["recipe"]) == set(records["method"]) == {name}
    assert set(records["stage"]) <= set(made[0].methods)
    if name in UNEQUAL:
        with pytest.raises(lab.ConfigError, match=UNEQUAL[name]):
            lab.compare(tmp_path)
        return
    found = lab.compare(tmp_path)
    assert (found.methods, len(found.runs)) == ([name], 2)
    assert set(found.runs["end_hash"]) == {one.last.result.accuracy["weights"] for one in made}
    assert name == "enhanced" or "stages that a recipe went on from" in found.notes[0]


def test_recipes_compare_with_each_other_and_with_runs_of_equal_steps(blobs, tmp_path):
    """The user's name for a method stands; the stage is added where a recipe has several results."""
    each: dict[str, Any] = {"lr_schedule": "constant", "progress": False, "collapse": "allow"}
    for seed in range(2):
        recipes.admm(mlp(), blobs, 0.5, epochs=1, folder=tmp_path / f"admm-{seed}", seed=seed, **each)
        named: dict[str, Any] = {"tags": {"method": "mine"}, "finetune_lr": 1e-3, "rounds": 2} | each
        recipes.iterative(mlp(), blobs, 0.5, epochs=1, folder=tmp_path / f"iterative-{seed}", seed=seed, **named)
        lab.fit(mlp(), blobs, epochs=3, seed=seed, record=tmp_path / f"dense-{seed}.json", **each)
    found = lab.compare(tmp_path)
    assert sorted(found.methods) == ["admm", "dense", "mine"]
    assert set(found.runs["total_steps"]) == {6}
    assert {"admm: admm", "admm: fine-tuned"} <= set(lab.compare(tmp_path, allow="steps").methods)


def test_records_say_which_trials_were_chosen(blobs, tmp_path):
    strengths = {"strengths": [1e-4, 1e-2], "folder": tmp_path}
    made = call("search", mlp(), blobs, **strengths)
    tags = lab.results.load(tmp_path)
    ends = tags[tags["stage"] == "fine-tuned"]
    assert sorted(ends["strength"]) == [1e-4, 1e-2]
    (chosen,) = ends.loc[ends["chosen"] == True, "strength"]  # noqa: E712 (missing for the dense start)
    assert chosen == next(trial.columns["strength"] for trial in made if trial.columns.get("chosen"))
    assert len(lab.compare(tmp_path).runs) == 1
    assert any("did not choose" in note for note in lab.compare(tmp_path).notes)


def test_tags_that_are_none_are_refused_before_training(blobs, monkeypatch):
    monkeypatch.setattr(fitting, "_train", never)
    with pytest.raises(lab.ConfigError, match="tags=3"):
        recipes.admm(mlp(), blobs, 0.5, epochs=1, tags=3)  # pyright: ignore[reportArgumentType]

"""What every method and every recipe has to keep, whatever it does, on three kinds of networks.

`METHODS` names all of the package's own methods, `RECIPES` all of its recipes, and `NETS` the networks: convolutions
and linear layers, BatchNorm with residual ways, and attention, whose samples have a label at each place.
"""

import copy
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import pruninglab as lab
from pruninglab import criteria, identity, methods, recipes
from pruninglab.models.resnet import BasicBlock

METHODS: dict[str, list[lab.Method]] = {
    "Dense": [methods.Dense()],
    "OneShot": [methods.OneShot(0.9)],
    "OneShot-random": [methods.OneShot(0.9, "random")],
    "OneShot-erk-taylor": [methods.OneShot(0.9, "taylor", scope="erk")],
    "OneShot-grasp": [methods.OneShot(0.5, "grasp")],
    "OneShot-two-of-four": [methods.OneShot(0.5, lab.criteria.NofM())],
    "OneShot-channel": [methods.OneShot(0.5, scope="layer", unit="channel")],
    "Gradual": [methods.Gradual(lab.Cubic(0.9))],
    "Gradual-layer": [methods.Gradual(lab.Linear(0.9), "gradient", scope="layer", end=1.0)],
    "Gradual-reactivate": [methods.Gradual(lab.Exponential(0.9), reactivate=True)],
    "Gradual-patterns": [methods.Gradual(lab.Narang({"*conv*": 0.5, "fc*": 0.9}))],
    "ADMM": [methods.ADMM(0.9)],
    "ADMM-global-schedule": [methods.ADMM(0.9, lab.Linear(3e-2, 1e-2), scope="global", updates=4)],
    "ADMM-channel": [methods.ADMM(0.5, unit="channel")],
    "PGD": [methods.PGD(0.9, end=0.5)],
    "PGD-global-every": [methods.PGD(0.9, scope="global", every_steps=3)],
    "Quantize": [methods.OneShot(0.5), methods.Quantize(2, snap=0.3, parts=3)],
    "Quantize-while-pruning": [
        methods.Gradual(lab.Cubic(0.5)),
        methods.Quantize({"conv": 2, "dense": 1}, "clustered", updates=4),
    ],
    "RelevanceL2": [methods.RelevanceL2(1e-2), methods.PruneWhileAccurate(0.0, prune_fraction=0.3, every_steps=2)],
    "RelevanceL2-decoupled": [
        methods.RelevanceL2(alpha=100.0, decay="exponential", coupled=False, only_prunable=True),
        methods.PruneWhileAccurate(0.0, prune_fraction=0.5, every_steps=2, scope="layer", target=0.9),
    ],
    "RelevanceL2-exact": [methods.RelevanceL2(second_order="exact"), methods.OneShot(0.5)],
    "RelevanceL2-code": [methods.RelevanceL2(sign="code", second_order="literal"), methods.OneShot(0.5)],
    "L2": [methods.L2(), methods.OneShot(0.5)],
    "L1": [methods.L1(), methods.PruneWhileAccurate(0.0, every_steps=3, counting="epoch", target=0.5)],
    "L0": [methods.L0(droprate=0.9)],
    "L0-steered-channel": [methods.L0(0.3, unit="channel", droprate=0.9, end=0.7)],
    "L0-steered-schedule": [methods.L0(lab.Linear(0.9), droprate=0.8, warmup=(0.2, 0.4))],
    "LOBSTER": [
        methods.LOBSTER(),
        methods.PruneWhileAccurate(below_dense=0.4, prune_fraction=0.1, every_steps=3, patience=1),
    ],
    "LOBSTER-plateau": [methods.LOBSTER(patience=1, tolerance=0.5)],
    "Sensitivity-threshold": [methods.Sensitivity(threshold=0.01)],
    "Sensitivity": [methods.Sensitivity(), methods.OneShot(0.5)],
    "Sensitivity-unspecified": [methods.Sensitivity(kind="unspecified", only_prunable=True), methods.OneShot(0.5)],
    "GroupLasso": [methods.GroupLasso(1e-3), methods.OneShot(0.5, "filter_l2", scope="layer", unit="channel")],
    "GroupLasso-columns": [methods.GroupLasso(1e-3, "columns"), methods.GroupLasso(1e-3, "channels")],
    "SharedWeights": [methods.OneShot(0.5), methods.SharedWeights(2)],
    "Silence": [methods.OneShot(0.5, scope="layer", unit="channel"), methods.Silence()],
    "Silence-scheduled": [methods.Gradual(lab.Linear(0.5), "filter_l1", "layer", "channel"), methods.Silence()],
    "Recalibrate": [methods.Gradual(lab.Linear(0.8)), methods.Recalibrate(batches=2)],
    "Slimming": [methods.Slimming(1e-2), methods.OneShot(0.5, "norm_scale", unit="channel")],
    "SoftSharing": [methods.SoftSharing(tau=0.1)],
    "SoftSharing-three": [methods.SoftSharing(components=3, zero=0.2)],
    "TargetedDropout": [methods.TargetedDropout(0.9)],
    "TargetedDropout-units": [methods.TargetedDropout(lab.Linear(0.5), 0.9, unit="channel", end=0.5)],
    "VariationalDropout": [methods.VariationalDropout()],
    "VariationalDropout-steered": [methods.VariationalDropout(0.05, strength=0.01, sampled="*conv*", end=0.7)],
    "VariationalDropout-missed": [methods.VariationalDropout(lab.Linear(0.9), lr=0.1, warmup=(0.2, 0.4))],
    "WeightMom": [methods.WeightMom(lab.Cubic(0.9))],
    "WeightMom-window": [
        methods.WeightMom(lab.Linear(0.8), "window_max", window=16, interpretation="formula", begin=0, end=1, watch=4)
    ],
    "WeightMom-together": [
        methods.WeightMom(lab.Linear(0.9), "consecutive_below", threshold=0.01, interpretation="off")
    ],
    "N2NSkip": [methods.N2NSkip(0.9)],
    "N2NSkip-snip-channel": [methods.N2NSkip(0.8, "snip", 0.3, "channel", scope="layer")],
    "SET": [methods.SET(0.9)],
    "SET-magnitude-layer": [methods.SET(0.7, "layer", every_steps=2, end=0.8, drop="magnitude")],
    "RigL": [methods.RigL(0.9)],
    "RigL-from-snip": [methods.OneShot(0.8, "snip"), methods.RigL(0.8, drop_fraction=0.5, every_steps=2)],
    "RigL-patterns": [methods.RigL({"*conv*": 0.8}, every_steps=3, end=1.0)],
    "SparseMomentum": [methods.SparseMomentum(0.9)],
    "SparseMomentum-erk": [methods.SparseMomentum(0.8, "erk", every_steps=2, beta=0.5)],
    "DynamicSurgery": [methods.DynamicSurgery(0.9)],
    "DynamicSurgery-crate": [methods.DynamicSurgery(crate=0.5, gamma=0.5, end=1.0)],
    "GlobalSparseMomentum": [methods.GlobalSparseMomentum(0.9)],
    "GlobalSparseMomentum-beside": [methods.GlobalSparseMomentum(0.9, 0.05, coupled=False, scope="erk", end=0.5)],
    "OneShot-obd": [methods.OneShot(0.5, criteria.OBD("fisher"))],
    "OneShot-obd-hutchinson": [methods.OneShot(0.5, criteria.OBD("hutchinson", draws=2))],
    "OptimalBrainSurgeon": [methods.OptimalBrainSurgeon(0.9, rounds=2, batches=1)],
    "OptimalBrainSurgeon-erk": [methods.OptimalBrainSurgeon(0.5, scope="erk", rounds=1, batches=1, dampening=0.1)],
    "SparseGPT": [methods.SparseGPT(0.9, samples=48)],
    "SparseGPT-pattern": [methods.SparseGPT(0.5, (2, 4), block=6, samples=30, dampening=0.1)],
    "SynFlow": [methods.SynFlow(0.9, rounds=10)],
    "Wanda": [methods.Wanda(0.9, samples=48)],
    "Wanda-pattern": [methods.Wanda(0.5, (1, 2), samples=30)],
    "Wanda-layer": [methods.Wanda(0.8, scope="layer", samples=30), methods.OneShot(0.9, scope="row")],
    "two": [methods.OneShot(0.5), methods.Gradual(lab.Cubic(0.9))],
}
ELSEWHERE: dict[str, dict[str, tuple[list[lab.Method], dict[str, Any]]]] = {
    "transformer": {
        "Gradual-patterns": ([methods.Gradual(lab.Narang({"*attention*": 0.5, "fc*": 0.9}))], {}),
        "Quantize-while-pruning": (
            [methods.Gradual(lab.Cubic(0.5)), methods.Quantize({"*fc*": 1, "*attention*": 2}, "clustered", updates=4)],
            {},
        ),
        "VariationalDropout-steered": (
            [methods.VariationalDropout(0.05, strength=0.01, sampled="*attention*", end=0.7)],
            {},
        ),
        "RigL-patterns": ([methods.RigL({"*attention*": 0.8}, every_steps=3, end=1.0)], {}),
        "OptimalBrainSurgeon": (
            [methods.OptimalBrainSurgeon(0.9, "full", rounds=2, batches=1, estimate="fisher")],
            {},
        ),
        **{
            name: (METHODS[name], {"skip": ("*attention*", "embeddings")})
            for name in METHODS
            if name.startswith(("SparseGPT", "Wanda"))
        },
        "OptimalBrainSurgeon-erk": (
            [methods.OptimalBrainSurgeon(0.5, scope="erk", rounds=1, batches=1)],
            {"skip": ("*attention*", "Embedding")},
        ),
    }
}
"""Where layers have other names, or a form of a method does not know them: the methods there, and options of `fit`."""

REFUSED = {
    ("transformer", "N2NSkip"): "no skip connections",
    **{(net, name): "no batch norm" for net in ("lenet5", "transformer") for name in ("Slimming", "slimming")},
}
"""What cannot be, and the word that says why: before any training."""

GATE = methods.PruneWhileAccurate(0.0, prune_fraction=0.4, every_steps=2)
PHASES = {"dense": 1, "epochs": 2, "finetune": 1}
Call = Callable[..., Any]
RECIPES: dict[str, tuple[Call, float | None]] = {
    "admm": (lambda m, d, **o: recipes.admm(m, d, 0.9, epochs=1, updates=2, **o), 0.9),
    "bonetta": (lambda m, d, **o: recipes.bonetta(model=m, data=d, pruning=GATE, **PHASES, **o), None),
    "deep_compression": (lambda m, d, **o: recipes.deep_compression(m, d, 0.8, epochs=1, rounds=2, bits=2, **o), 0.8),
    "dense_start": (lambda m, d, **o: recipes.dense_start(m, d, epochs=2, **o), None),
    "enhanced": (lambda m, d, **o: recipes.enhanced(m, d, 0.7, epochs=1, **o), 0.7),
    "iterative": (lambda m, d, **o: recipes.iterative(m, d, 0.8, rounds=2, epochs=1, **o), 0.8),
    "progressive": (lambda m, d, **o: recipes.progressive(m, d, (2, 4), direct=1, epochs=1, updates=2, **o), 0.75),
    "prune_while_accurate": (
        lambda m, d, **o: recipes.prune_while_accurate(
            m, d, replace(GATE, target=0.5), regularizer=methods.L1(), **PHASES, **o
        ),
        0.5,
    ),
    "quantize": (lambda m, d, **o: recipes.quantize(m, d, 2, epochs=1, updates=2, **o), None),
    "scratch": (lambda m, d, **o: recipes.scratch(m, d, 0.5, epochs=1, finetune=1, **o), 0.5),
    "search": (
        lambda m, d, **o: recipes.search(
            m, d, GATE, regularizer=methods.L2(), at_least=0.0, strengths=(0.0, 0.1), **PHASES, **o
        ),
        None,
    ),
    "slimming": (lambda m, d, **o: recipes.slimming(m, d, 0.3, epochs=1, finetune=1, **o), None),
    "tickets": (lambda m, d, **o: recipes.tickets(m, d, 0.8, epochs=1, rounds=2, step=2, **o), 0.8),
}
"""A call of each, and the sparsity that it has to end at."""


def residual(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A ResNet of two blocks; the second halves the image and pads the way around it."""
    layers: Any = {"conv1": nn.Conv2d(shape[0], 8, 3, padding=1, bias=False), "bn1": nn.BatchNorm2d(8)}
    layers |= {"relu1": nn.ReLU(), "block1": BasicBlock(8, 8, 1, "A"), "block2": BasicBlock(8, 16, 2, "A")}
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(16, classes)}
    return nn.Sequential(OrderedDict(layers))


OWN = {"residual": residual, "transformer": lab.models.transformer}
NETS: dict[str, dict[str, Any]] = {
    "lenet5": {},
    "residual": {},
    "transformer": {"width": 8, "heads": 2},
}
ONE_OF = {name: tuple(NETS)[1:] if "-" in name else tuple(NETS) for name in METHODS}
"""Variants of a method do without the network that has nothing which the others have not."""
TURN = {name: nets[i % len(nets)] for i, (name, nets) in enumerate(ONE_OF.items())}
CASES = [
    pytest.param(kind, name, marks=[pytest.mark.slow] * (kind != TURN[name] and name not in ELSEWHERE.get(kind, {})))
    for kind in NETS
    for name in METHODS
    if kind in ONE_OF[name]
]
"""Each method on one network, and where it is told otherwise; on the others it is a long test."""
RECIPE_CASES = [
    pytest.param(kind, name, marks=[pytest.mark.slow] * ((i + j) % len(NETS) > 0))
    for i, kind in enumerate(NETS)
    for j, name in enumerate(RECIPES)
]
"""As the methods."""
Net = tuple[nn.Module, lab.Data]


@pytest.fixture(scope="module", params=NETS)
def net(request) -> Net:
    if request.param == "transformer":
        data = lab.load("sorting", train=120, test=40)
    else:
        data = lab.load("digits", train=120, test=40, size=16)
    return build(request.param, data, seed=0), data


def build(name: str, data: lab.Data, seed: int, **options: Any) -> nn.Module:
    name = name.split()[0]  # what is not the package's own is recorded with a hash
    return lab.build(OWN.get(name, name), data, seed=seed, **(options or NETS[name]))


def skipping(model: Any, data: lab.Data) -> nn.Module:
    """A network with skip connections instead of a plain one."""
    base = {"base": "lenet5"} if model.made_of["name"] == "lenet5" else {"base": "resnet20", "width": 0.25}
    return build("n2nskip", data, seed=0, **base)


@pytest.mark.parametrize("name", [name for name, made in METHODS.items() if any(m.in_training for m in made)])
def test_what_only_acts_in_training_is_refused_without_it(name, blobs):
    with pytest.raises(lab.ConfigError, match="acts in training, and epochs=0 has no step"):
        lab.fit(nn.Linear(10, 4), blobs, *METHODS[name], epochs=0, progress=False)


def train(net: Net, made: list[lab.Method], **options: Any) -> lab.Run:
    return lab.fit(*net, *made, epochs=2, batch_size=24, seed=1, collapse="allow", progress=False, **options)


def test_the_lists_name_every_method_and_every_recipe():
    assert {type(m).__name__ for made in METHODS.values() for m in made} == set(methods.__all__)
    assert set(RECIPES) == {name for name in recipes.__all__ if not isinstance(getattr(recipes, name), type)}


@pytest.mark.parametrize(("net", "name"), CASES, indirect=["net"])
def test_methods(net, name, tmp_path, monkeypatch):
    (model, data), options = net, {}
    made, kind = METHODS[name], vars(model)["made_of"]
    if why := REFUSED.get((kind["name"], name.partition("-")[0])):
        with pytest.raises(lab.ConfigError, match=why):
            train(net, made)
        return
    if "N2NSkip" in name:  # it has nothing to share with on a plain net
        model = skipping(model, data)
    made, options = ELSEWHERE.get(kind["name"], {}).get(name, (made, options))
    run = train((model, data), made, **options)
    target_is_exact_or_missed(run)
    is_plain(run, model)

    # broken off in the middle and resumed: the same masks, weights and record. The same instances serve three times,
    # and what has the same seed has the same bits
    path = tmp_path / "run.safetensors"
    broken = train((model, data), [*made, Breaks()], checkpoint=path, every_steps=3, **options)
    assert (broken.status, broken.step) == ("interrupted", Breaks.at)
    monkeypatch.setattr(Breaks, "at", -1)
    resumed = train((model, data), [*made, Breaks()], checkpoint=path, every_steps=3, **options)
    assert resumed.masks.fingerprint == run.masks.fingerprint
    assert weights(resumed) == weights(run)
    of_run, of_resumed = record(run), record(resumed)
    assert of_resumed["config"].pop("methods")[:-1] == of_run["config"].pop("methods")
    assert of_resumed.pop("methods")[:-1] == of_run.pop("methods")
    assert of_resumed == of_run


@pytest.mark.parametrize(("net", "name"), RECIPE_CASES, indirect=["net"])
def test_recipes(net, name, tmp_path):
    (model, data), (recipe, sparsity) = net, RECIPES[name]
    if why := REFUSED.get((vars(model)["made_of"]["name"], name)):
        with pytest.raises(lab.ConfigError, match=why):
            recipe(model, data, progress=never)
        return

    def go(folder: str, watch: Watch) -> list[lab.Run]:
        options: Any = {"batch_size": 36, "seed": 1, "collapse": "allow"}
        return runs_of(recipe(model, data, folder=tmp_path / folder, progress=watch, **options))

    whole = Watch()
    runs = go("whole", whole)
    for run in runs:
        target_is_exact_or_missed(run)
        is_plain(run, model)
    if sparsity is not None:
        masks = runs[-1].masks
        assert masks.kept == masks.total - lab.masks.count(masks.total, sparsity)

    # broken off in the middle of a training, then in the last step of another: no training comes after either
    middle = next(i for i in range(whole.steps // 3, whole.steps) if i not in whole.ends)
    last = next((i for i in whole.ends if i > middle), whole.ends[-1])
    for stop in (middle, last - middle):
        watch = Watch(stop)
        some = go("broken", watch)
        assert watch.steps == stop
        assert some[-1].interrupted

    # and gone on with: the same bits and records as if nothing had been, no step twice
    rest = Watch()
    resumed = go("broken", rest)
    assert rest.steps == whole.steps - last
    assert [weights(run) for run in resumed] == [weights(run) for run in runs]
    assert [record(run) for run in resumed] == [record(run) for run in runs]
    assert records(tmp_path / "broken") == records(tmp_path / "whole")


def never(run: lab.Run) -> None:
    raise AssertionError(f"{run} was trained before it was refused")


def target_is_exact_or_missed(run: lab.Run) -> None:
    """The target is reached exactly, or the record says that it was missed; what is pruned is exactly 0."""
    assert run.status in ("done", "target_missed", "stopped")
    if run.target and run.status != "stopped":
        kept, total = lab.masks.units(run.masks, run.target["unit"])
        assert (kept == run.target["kept"]) == (run.status == "done")
        assert bool(run.reason) == (run.status == "target_missed")
        assert kept < total
    assert run.masks.kept > 0
    for name, mask in run.masks.items():
        weight = run.model.get_parameter(name)
        assert not weight[~mask].any()
        assert weight[mask].all() or name.endswith("bias")  # which begins at 0


def is_plain(run: lab.Run, model: nn.Module) -> None:
    """Same keys in the same order, same modules; copied, pickled, and loaded into a fresh one it gives the same."""
    assert list(run.model.state_dict()) == list(model.state_dict())
    assert [type(m) for m in run.model.modules()] == [type(m) for m in model.modules()]
    pickled = pickle.loads(pickle.dumps(copy.deepcopy(run.model)))  # noqa: S301
    kind = vars(run.model)["made_of"]
    fresh = build(kind["name"], run.data, seed=9, **kind["options"], widths=kind.get("widths"))
    fresh.load_state_dict(run.model.state_dict())
    x, _ = next(iter(run.data.test))
    with torch.inference_mode():
        assert torch.equal(pickled(x), run.model(x))
        assert torch.equal(fresh.eval()(x), run.model(x))


def weights(run: lab.Run) -> str:
    return identity.tensor_hash(run.model.state_dict())


def record(run: lab.Run) -> dict[str, Any]:
    return asdict(run.result) | {"times": {}}


def records(folder: Path) -> dict[str, Any]:
    untimed = {"times": {}, "sha256": ""}
    return {str(path.relative_to(folder)): json.loads(path.read_text()) | untimed for path in folder.rglob("*.json")}


def runs_of(made: Any) -> list[lab.Run]:
    """All runs of what a recipe returns."""
    return [made] if isinstance(made, lab.Run) else made.runs


@dataclass
class Breaks(lab.Method):
    """Ends the run after a step, as Ctrl-C does."""

    at: ClassVar[int] = 7

    def on_step(self, run):
        if run.step == self.at:
            run.interrupt()


@dataclass
class Watch:
    """Counts the steps of all trainings together, and may break off after one of them."""

    stop: int = -1
    steps: int = 0
    ends: list[int] = field(default_factory=list)

    def __call__(self, run: lab.Run) -> None:
        self.steps += 1
        if run.step == run.steps:
            self.ends.append(self.steps)
        if self.steps == self.stop:
            run.interrupt()

"""What every method has to keep, whatever it does: the list in `METHODS` is the package's own."""

import copy
import pickle
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import pruninglab as lab
from pruninglab import methods, second_order

METHODS: dict[str, list[lab.Method]] = {
    "Dense": [methods.Dense()],
    "OneShot": [methods.OneShot(0.9)],
    "OneShot-random": [methods.OneShot(0.9, "random")],
    "OneShot-erk-taylor": [methods.OneShot(0.9, "taylor", scope="erk")],
    "OneShot-channel": [methods.OneShot(0.5, scope="layer", unit="channel")],
    "Gradual": [methods.Gradual(lab.Cubic(0.9))],
    "Gradual-layer": [methods.Gradual(lab.Linear(0.9), "gradient", scope="layer", end=1.0)],
    "Gradual-reactivate": [methods.Gradual(lab.Exponential(0.9), reactivate=True)],
    "Gradual-patterns": [methods.Gradual(lab.Narang({"*conv*": 0.5, "fc*": 0.9}))],
    "ADMM": [methods.ADMM(0.9)],
    "ADMM-global-schedule": [methods.ADMM(0.9, lab.Linear(3e-2, 1e-2), scope="global", updates=4)],
    "ADMM-channel": [methods.ADMM(0.5, unit="channel")],
    "PGD": [methods.PGD(0.9, end=0.5)],
    "PGD-global-every": [methods.PGD(0.9, scope="global", every=3)],
    "Quantize": [methods.OneShot(0.5), methods.Quantize(2, snap=0.3, parts=3)],
    "Quantize-while-pruning": [
        methods.Gradual(lab.Cubic(0.5)),
        methods.Quantize({"conv": 2, "dense": 1}, "clustered", updates=4),
    ],
    "RelevanceL2": [methods.RelevanceL2(1e-2), methods.GatedPruning(0.0, share=0.3, eval_interval=2)],
    "RelevanceL2-decoupled": [
        methods.RelevanceL2(alpha=100.0, decay="exponential", coupled=False, only_prunable=True),
        methods.GatedPruning(0.0, share=0.5, eval_interval=2, scope="layer", target=0.9),
    ],
    "RelevanceL2-exact": [methods.RelevanceL2(second_order="exact"), methods.OneShot(0.5)],
    "RelevanceL2-code": [methods.RelevanceL2(sign="code", second_order="literal"), methods.OneShot(0.5)],
    "L2": [methods.L2(), methods.OneShot(0.5)],
    "L1": [methods.L1(), methods.GatedPruning(0.0, eval_interval=3, counting="epoch", target=0.5)],
    "L0": [methods.L0(droprate=0.9)],
    "L0-steered-channel": [methods.L0(0.3, unit="channel", droprate=0.9, end=0.7)],
    "L0-steered-schedule": [methods.L0(lab.Linear(0.9), droprate=0.8, warmup=(0.2, 0.4))],
    "LOBSTER": [methods.LOBSTER(), methods.GatedPruning(below_dense=0.9, share=0.1, eval_interval=3, patience=1)],
    "Sensitivity": [methods.Sensitivity(), methods.OneShot(0.5)],
    "Sensitivity-unspecified": [methods.Sensitivity(kind="unspecified", only_prunable=True), methods.OneShot(0.5)],
    "GroupLasso": [methods.GroupLasso(1e-3), methods.OneShot(0.5, "filter_l2", scope="layer", unit="channel")],
    "GroupLasso-columns": [methods.GroupLasso(over={"columns": 1e-3, "channels": 1e-3}, size=True)],
    "SharedWeights": [methods.OneShot(0.5), methods.SharedWeights(2)],
    "Silence": [methods.OneShot(0.5, scope="layer", unit="channel"), methods.Silence()],
    "Silence-scheduled": [methods.Gradual(lab.Linear(0.5), "filter_l1", "layer", "channel"), methods.Silence()],
    "Slimming": [methods.Slimming(1e-2), methods.OneShot(0.5, "norm_scale", unit="channel")],
    "SoftSharing": [methods.SoftSharing(tau=0.1)],
    "SoftSharing-three": [methods.SoftSharing(components=3, zero=0.5)],
    "TargetedDropout": [methods.TargetedDropout(0.9)],
    "TargetedDropout-units": [methods.TargetedDropout(lab.Linear(0.5), 0.9, unit="channel", end=0.5)],
    "VariationalDropout": [methods.VariationalDropout()],
    "VariationalDropout-steered": [methods.VariationalDropout(0.05, strength=0.01, sampled="*conv*", end=0.7)],
    "VariationalDropout-missed": [methods.VariationalDropout(lab.Linear(0.9), lr=0.1, warmup=(0.2, 0.4))],
    "WeightMom": [methods.WeightMom(lab.Cubic(0.9))],
    "WeightMom-window": [
        methods.WeightMom(lab.Linear(0.8), "window_max", window=16, reading="formula", start=0, end=1, watch=4)
    ],
    "WeightMom-together": [methods.WeightMom(lab.Linear(0.9), "consecutive_below", threshold=0.01, reading="off")],
    "N2NSkip": [methods.N2NSkip(0.9)],
    "N2NSkip-snip-channel": [methods.N2NSkip(0.8, "snip", 0.3, "channel", scope="layer")],
    "SET": [methods.SET(0.9)],
    "SET-magnitude-layer": [methods.SET(0.7, "layer", every=2, end=0.8, drop="magnitude")],
    "RigL": [methods.RigL(0.9)],
    "RigL-from-snip": [methods.OneShot(0.8, "snip"), methods.RigL(0.8, share=0.5, every=2)],
    "RigL-patterns": [methods.RigL({"*conv*": 0.8}, every=3, end=1.0)],
    "SparseMomentum": [methods.SparseMomentum(0.9)],
    "SparseMomentum-erk": [methods.SparseMomentum(0.8, "erk", every=2, beta=0.5)],
    "DynamicSurgery": [methods.DynamicSurgery(0.9)],
    "DynamicSurgery-crate": [methods.DynamicSurgery(crate=0.5, gamma=0.5, end=1.0)],
    "GlobalSparseMomentum": [methods.GlobalSparseMomentum(0.9)],
    "GlobalSparseMomentum-beside": [methods.GlobalSparseMomentum(0.9, 0.05, coupled=False, scope="erk", end=0.5)],
    "OneShot-obd": [methods.OneShot(0.5, second_order.OBD("fisher"))],
    "OneShot-obd-hutchinson": [methods.OneShot(0.5, second_order.OBD("hutchinson", draws=2))],
    "OptimalBrainSurgeon": [methods.OptimalBrainSurgeon(0.9, rounds=2, batches=1)],
    "OptimalBrainSurgeon-erk": [methods.OptimalBrainSurgeon(0.5, scope="erk", rounds=1, batches=1, dampening=0.1)],
    "SynFlow": [methods.SynFlow(0.9, rounds=10)],
    "two": [methods.OneShot(0.5), methods.Gradual(lab.Cubic(0.9))],
}
NETS = {"lenet5": {}, "resnet20": {"width": 0.25}}


@pytest.fixture(scope="module")
def data() -> lab.Data:
    return lab.load("digits", train=200, test=60, size=16)


@pytest.fixture(scope="module", params=NETS)
def model(request, data) -> nn.Module:
    return lab.build(request.param, data, seed=0, **NETS[request.param])


def train(model, data, made, **options):
    return lab.fit(model, data, *made, epochs=2, batch_size=40, progress=False, **options)


def test_the_list_names_every_method():
    assert {type(m).__name__ for made in METHODS.values() for m in made} == set(methods.__all__)


@pytest.mark.parametrize("made", METHODS.values(), ids=METHODS)
def test_contract(model, data, made, tmp_path, monkeypatch):
    if any("fc*" in str(m) for m in made) and not hasattr(model, "fc1"):
        made = [methods.Gradual(lab.Narang({"*conv*": 0.5}))]
    if any(isinstance(m, methods.Slimming) for m in made) and not any(
        "bn" in name for name, _ in model.named_modules()
    ):
        model = lab.build("vgg16", data, seed=0, width=0.0625)  # it needs scales to slim
    if any(isinstance(m, methods.N2NSkip) for m in made):  # it has nothing to share with on a plain net
        built = vars(model)["_pruninglab"]
        model = lab.build("n2nskip", data, seed=0, base=built["name"], **built["options"])
    run = train(model, data, made, seed=1)

    # the target is reached exactly, or the record says that it was missed
    assert run.status in ("done", "target_missed")
    if run.target:
        kept, total = lab.masks.units(run.masks, run.target["unit"])
        assert (kept == run.target["kept"]) == (run.status == "done")
        assert 0 < kept < total

    # pruned entries are exactly 0, the others are left alone
    for name, mask in run.masks.items():
        weight = run.model.get_parameter(name)
        assert not weight[~mask].any()
        assert weight[mask].all()

    # the model is plain: same keys in the same order, copied, pickled, loaded
    assert list(run.model.state_dict()) == list(model.state_dict())
    assert [type(m) for m in run.model.modules()] == [type(m) for m in model.modules()]
    pickled = pickle.loads(pickle.dumps(copy.deepcopy(run.model)))  # noqa: S301
    made_of = vars(model)["_pruninglab"]
    fresh = lab.build(made_of["name"], data, seed=9, **made_of["options"])
    fresh.load_state_dict(run.model.state_dict())
    x, _ = next(iter(data.test))
    with torch.inference_mode():
        assert torch.equal(pickled(x), run.model(x))
        assert torch.equal(fresh.eval()(x), run.model(x))

    # same seed, same masks and weights; the same instances serve twice
    again = train(model, data, made, seed=1)
    assert again.masks.fingerprint == run.masks.fingerprint
    assert weights(again) == weights(run)

    # broken off in the middle and resumed: the same bits, in the record too
    path = tmp_path / "run.safetensors"
    train(model, data, [*made, Breaks()], seed=1, checkpoint=path, every=3)
    monkeypatch.setattr(Breaks, "at", -1)
    resumed = train(model, data, [*made, Breaks()], seed=1, checkpoint=path, every=3)
    assert resumed.step == run.step
    assert weights(resumed) == weights(run)
    assert resumed.masks.fingerprint == run.masks.fingerprint
    assert resumed.history == run.history
    assert resumed.cuts == run.cuts


def weights(run: lab.Run) -> str:
    return lab.results.tensor_hash(run.model.state_dict())


@dataclass
class Breaks(lab.Method):
    """Ends the run after a step, as Ctrl-C does."""

    at: ClassVar[int] = 7

    def on_step(self, run):
        if run.step == self.at:
            run.interrupt()

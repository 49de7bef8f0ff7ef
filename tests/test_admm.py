"""ADMM, projections and the recipes around them: arithmetic by hand, exact counts, what is chosen and resumed."""

import copy
import importlib
import math
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab import identity, randomness
from pruninglab.analysis import allocate
from pruninglab.masks import keeping, largest, largest_per_channel, n_of_m, project
from pruninglab.methods import ADMM, PGD, OneShot
from pruninglab.recipes import Trial, Trials, admm, progressive

QUIET: dict[str, Any] = {"progress": False, "collapse": "allow", "seed": 0}
PLAIN: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr_schedule": "constant", **QUIET}


@pytest.fixture(scope="module")
def dense(blobs) -> lab.Run:
    return lab.fit(mlp(), blobs, epochs=3, lr=0.01, **QUIET)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))


def four_weights(gradient: list[float], method: lab.Method, steps: int, lr: float) -> tuple[lab.Run, Any]:
    """Weights 2, -3, 1.5, 1 under a loss whose gradient is always `gradient`, by plain gradient steps."""
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[2.0, -3.0, 1.5, 1.0]])
    x = torch.tensor([gradient]).repeat(4, 1)
    data = lab.wrap(TensorDataset(x, torch.zeros(4).long()), TensorDataset(x, torch.zeros(4).long()), val=0.5)
    run = lab.fit(model, data, method, epochs=steps, lr=lr, loss=lambda logits, y: logits.mean(), **PLAIN)
    return run, run.methods[0]


def row(tensors: dict[str, Tensor]) -> list[float]:
    return tensors["weight"].flatten().tolist()


# -- ADMM -----------------------------------------------------------------------------------------------------------


def test_two_iterations_equal_the_numbers_worked_by_hand():
    """Two of four are kept, ρ = 1/2, one step of size 1 for each update, data gradient g = (1, 0, 0, -1).

    W0 = (2, -3, 1.5, 1)    Z0 = Π(W0) = (2, -3, 0, 0)    U0 = 0

    W1 = W0 - g - (W0 - Z0 + U0)/2 = W0 - (1, 0, 0, -1) - (0, 0, 0.75, 0.5) = (1, -3, 0.75, 1.5)
    Z1 = Π(W1 + U0) = (0, -3, 0, 1.5)
    U1 = U0 + W1 - Z1 = (1, 0, 0.75, 0)                 |W1 - Z1| = 1.25     |Z1 - Z0| = |(-2, 0, 0, 1.5)| = 2.5

    W2 = W1 - g - (W1 - Z1 + U1)/2 = W1 - (1, 0, 0, -1) - (1, 0, 0.75, 0) = (-1, -3, 0, 2.5)
    Z2 = Π(W2 + U1) = Π((0, -3, 0.75, 2.5)) = (0, -3, 0, 2.5)
    U2 = U1 + W2 - Z2 = (0, 0, 0.75, 0)                 |W2 - Z2| = 1        |Z2 - Z1| = 1
    """
    run, method = four_weights([1.0, 0.0, 0.0, -1.0], ADMM(0.5, rho=0.5, updates=2), steps=2, lr=1.0)
    assert row(method.z) == [0, -3, 0, 2.5]
    assert row(method.u) == [0, 0, 0.75, 0]
    assert method.residuals == [
        {"step": 1, "layer": "weight", "rho": 0.5, "primal": 1.25, "dual": 2.5},
        {"step": 2, "layer": "weight", "rho": 0.5, "primal": 1.0, "dual": 1.0},
    ]
    assert row(dict(run.model.named_parameters())) == [0, -3, 0, 2.5]  # W2, cut to its two largest
    assert run.status == "done"
    assert method.settled


def test_with_a_large_penalty_both_converge_to_the_projection():
    """The gradient of -1 on a weight that is to go is held by the multiplier, ρ·u = 1, not by the weight."""
    method = ADMM(0.5, rho=100.0, updates=50)
    _, method = four_weights([0.0, 0.0, 0.0, -1.0], method, steps=50, lr=5e-3)
    assert row(method.z) == pytest.approx([2, -3, 0, 0], abs=1e-5)
    assert row(method.u) == pytest.approx([0, 0, 0, 0.01], abs=1e-5)
    assert method.residuals[-1]["primal"] < 1e-5


def test_the_multiplier_stays_when_the_penalty_changes():
    """W stands still. At ρ = 0.5: Z1 = (2, -3, 0, 0), U1 = (0, 0, 1.5, 1), and ρ·U1 = (0, 0, 0.75, 0.5).

    With ρ = 1, U1 = (0, 0, 0.75, 0.5), so Z2 = Π((2, -3, 2.25, 1.5)) = (0, -3, 2.25, 0) and U2 = (2, 0, 0, 1.5).
    """
    rising = lambda progress: 0.5 if progress < 0.5 else 1.0  # noqa: E731
    _, method = four_weights([1.0, 0.0, 0.0, -1.0], ADMM(0.5, rho=rising, updates=2), steps=2, lr=0.0)
    assert row(method.z) == [0, -3, 2.25, 0]
    assert row(method.u) == [2, 0, 0, 1.5]
    assert [r["rho"] for r in method.residuals] == [0.5, 1.0]


def test_the_gradient_is_that_of_the_augmented_lagrangian():
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 3).double(), torch.randn(7, 5).double(), torch.arange(7) % 3
    method = ADMM(0.5)
    weight = model.weight
    method.z, method.u = {"weight": torch.randn(3, 5).double()}, {"weight": torch.randn(3, 5).double()}
    method.rhos = {"weight": 0.3}

    def lagrangian() -> Tensor:
        gap = weight - method.z["weight"] + method.u["weight"]
        return F.cross_entropy(model(x), y) + 0.3 / 2 * gap.square().sum()

    F.cross_entropy(model(x), y).backward()
    method.on_grad(SimpleNamespace(weights={"weight": weight}))  # pyright: ignore[reportArgumentType]
    assert weight.grad is not None
    for i in range(15):
        sides = []
        for shift in (1e-6, -1e-6):
            weight.data.view(-1)[i] += shift
            sides.append(lagrangian().item())
            weight.data.view(-1)[i] -= shift
        assert weight.grad.view(-1)[i].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-7)


def test_layers_that_lose_nothing_feel_nothing(blobs):
    @dataclass
    class See(lab.Method):
        grads: list[dict[str, Tensor]] = field(init=False)

        def on_start(self, run):
            self.grads = []

        def on_grad(self, run):
            self.grads.append({n: w.grad.clone() for n, w in run.weights.items() if w.grad is not None})

    half = lab.fit(mlp(), blobs, OneShot(0.5, scope="layer"), epochs=1, **QUIET)
    target = {"0.weight": 0.9, "2.weight": 0.5}
    run = lab.fit(half, blobs, See(), ADMM(target, rho=0.1), See(), epochs=2, **QUIET)
    before, method, after = (run.methods[i] for i in range(3))
    assert isinstance(before, See)
    assert isinstance(method, ADMM)
    assert isinstance(after, See)
    assert method.rhos == {"0.weight": 0.1, "2.weight": 0.0}
    assert {r["layer"] for r in method.residuals} == {"0.weight"}
    for one, two in zip(before.grads, after.grads, strict=True):
        assert torch.equal(one["2.weight"], two["2.weight"])
        assert not torch.equal(one["0.weight"], two["0.weight"])
    # what was pruned before stays so, and has no multiplier
    assert not (run.masks["0.weight"] & ~half.masks["0.weight"]).any()
    assert torch.equal(run.masks["2.weight"], half.masks["2.weight"])
    assert not method.u["0.weight"][~half.masks["0.weight"]].any()


@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
def test_counts_are_exact_and_only_the_cut_state_counts(blobs, scope):
    run = lab.fit(mlp(), blobs, ADMM(0.9, scope=scope, updates=3), epochs=2, **QUIET)
    assert run.masks.kept == 45
    assert [c.after for c in run.cuts] == [45]
    assert run.best is not None
    assert run.best.masks.kept == 45
    steps = sorted({r["step"] for r in run.methods[0].residuals})
    assert steps == [math.ceil(run.steps * k / 3) for k in (1, 2, 3)]


def test_less_is_lost_by_the_cut_than_without_the_pull(blobs, dense):
    pulled = lab.fit(dense, blobs, ADMM(0.9, rho=0.05), epochs=20, lr=0.01, **QUIET)
    control = lab.fit(dense, blobs, epochs=20, lr=0.01, **QUIET)
    cut = lab.fit(control, blobs, OneShot(0.9, scope="layer"), epochs=0, **QUIET)
    assert pulled.masks.kept_by_layer == cut.masks.kept_by_layer
    assert pulled.evaluate("val")["loss"] < cut.evaluate("val")["loss"] - 0.1


def test_a_penalty_by_layer_and_what_is_refused(blobs):
    run = lab.fit(mlp(), blobs, ADMM(0.5, {"*": 1e-3, "2.*": lab.Linear(0.4, 0.2)}), epochs=1, **QUIET)
    assert run.methods[0].rhos == {"0.weight": 1e-3, "2.weight": 0.4}
    for match, method, epochs in (
        ("'fc' matches no prunable layer", ADMM(0.5, {"fc": 1.0}), 1),
        ("epochs=0 has no step", ADMM(0.5), 0),
        ("epochs=0 has no step", PGD(0.5), 0),
    ):
        with pytest.raises(lab.ConfigError, match=match):
            lab.fit(mlp(), blobs, method, epochs=epochs, **QUIET)
    for match, make in (
        ("rho=-1", lambda: ADMM(0.5, -1.0)),
        ("updates=0", lambda: ADMM(0.5, updates=0)),
        ("every_steps=0", lambda: PGD(0.5, every_steps=0)),
        ("above 0 and at most 1", lambda: PGD(0.5, end=0.0)),
    ):
        with pytest.raises(lab.ConfigError, match=match):
            make()


def test_a_run_that_diverges_is_recorded_as_that(blobs):
    @dataclass
    class Poison(lab.Method):
        def on_grad(self, run):
            if run.step == 2:
                run.weights["0.weight"].grad = torch.full((32, 10), float("inf"))

    run = lab.fit(mlp(), blobs, Poison(), ADMM(0.9), epochs=4, **PLAIN)
    assert run.status == "diverged"
    assert run.sparsity == 0


# -- projections ----------------------------------------------------------------------------------------------------


def test_the_largest_are_kept_exactly():
    weights = {"a": torch.tensor([[3.0, -1.0, 2.0, 0.5]]), "b": torch.tensor([[0.1, -0.4], [0.2, 0.2]])}
    assert project(weights, largest(weights, 0.5))["a"].tolist() == [[3, 0, 2, 0]]
    assert largest(weights, 0.5)["b"].tolist() == [[False, True], [True, False]]  # of two equal ones the first
    assert largest(weights, 0.5, scope="global").kept_by_layer == {"a": 4, "b": 0}
    assert largest(weights, {"b": 0.75}).kept_by_layer == {"a": 4, "b": 1}
    assert largest(weights, keeping(weights, {"a": 3, "b": 1})).kept_by_layer == {"a": 3, "b": 1}
    assert largest_per_channel(weights, 0.5)["b"].tolist() == [[False, True], [True, False]]
    within = {"a": torch.tensor([[False, True, True, True]]), "b": torch.ones(2, 2, dtype=torch.bool)}
    assert largest(weights, {"a": 0.75}, masks=within)["a"].tolist() == [[False, False, True, False]]


def test_channels_go_by_their_sum_of_squares():
    """9 + 0 is more than 4 + 4, though 3 + 0 is less than 2 + 2; and 16 times 0.81 is more than either."""
    weights = {"a": torch.tensor([[3.0, 0.0], [2.0, 2.0]]), "b": torch.full((1, 16), 0.9)}
    assert largest({"a": weights["a"]}, 0.5, unit="channel")["a"].tolist() == [[True, True], [False, False]]
    assert largest(weights, 1 / 3, scope="global", unit="channel").kept_by_layer == {"a": 2, "b": 16}


def test_counts_survive_the_way_through_a_sparsity():
    weights = {str(n): torch.empty(n) for n in (3, 10, 500, 25_000, 400_000)}
    for counts in (dict.fromkeys(weights, 1), {n: int(n) - 1 for n in weights}, {n: int(n) // 3 for n in weights}):
        flat = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        assert largest(flat, keeping(weights, counts)).kept_by_layer == counts
    with pytest.raises(lab.ConfigError, match="cannot keep 4"):
        keeping(weights, {"3": 4})
    with pytest.raises(lab.ConfigError, match="'x' is no prunable layer"):
        keeping(weights, {"x": 4})


def test_n_of_m_by_hand():
    linear = torch.tensor([[5.0, -1.0, 2.0, 3.0, 4.0, 4.0, 4.0, -9.0, 0.1, 0.2]])
    kept = [True, False, False, True, True, False, False, True, True, True]  # a last group of two keeps both
    conv = torch.tensor([1.0, 8, 2, 7, 3, 6, 4, 5]).view(1, 4, 1, 2)  # input channels 1 2 3 4 at the first position
    masks = n_of_m({"linear": linear, "conv": conv, "bias": torch.ones(3)})
    assert masks["linear"].tolist() == [kept]
    assert masks["conv"][0, :, 0].tolist() == [[False, True], [False, True], [True, False], [True, False]]
    assert masks["bias"].all()
    assert n_of_m({"linear": linear}, 1, 5)["linear"].sum() == 2
    for n, said in ((0, "n=0; expected a whole number of at least 1"), (5, "5:4 cannot be")):
        with pytest.raises(lab.ConfigError, match=said):
            n_of_m({"linear": linear}, n, 4)


# -- projected gradient descent -------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
def test_projected_descent_against_a_slow_reference(blobs, every):
    """Eight epochs of four steps; the mask is frozen after half of them. Some weights come back before that."""
    run = lab.fit(mlp(), blobs, PGD(0.8, every_steps=every, end=0.5), epochs=8, batch_size=40, lr=0.3, **PLAIN)
    model, step, supports = mlp(), 0, []
    weights = {name: w for name, w in model.named_parameters() if w.ndim == 2}
    for epoch in range(8):
        order = torch.randperm(160, generator=randomness.generator(0, "order", epoch))
        for x, y in blobs.train.batches(order.split(40)):
            grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
            for p, grad in zip(model.parameters(), grads, strict=True):
                p.data -= 0.3 * grad
            step += 1
            if step <= 16 and (step % every == 0 or step == 16):
                supports.append({})
                for name, w in weights.items():
                    keep = sorted(range(w.numel()), key=lambda i, w=w: -abs(w.view(-1)[i].item()))
                    supports[-1][name] = set(keep[: 64 if w.numel() == 320 else 26])
            if step > 16 or step % every == 0 or step == 16:
                for name, w in weights.items():
                    outside = set(range(w.numel())) - supports[-1][name]
                    w.data.view(-1)[list(outside)] = 0
    assert any(late[n] - early[n] for n in weights for early, late in pairwise(supports))
    for ours, theirs in zip(run.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert run.masks.kept == 90
    assert [c.step for c in run.cuts] == [16]


# -- recipes --------------------------------------------------------------------------------------------------------


def test_the_recipe_trains_pulls_cuts_and_retrains(blobs, tmp_path):
    def go() -> list[lab.Run]:
        return admm(mlp(), blobs, 0.9, epochs=3, finetune=2, rho=0.01, folder=tmp_path, **QUIET).runs

    first = go()
    assert [run.masks.kept for run in first] == [448, 45, 45]
    assert [run.epoch for run in first] == [3, 3, 2]
    assert [run.options.lr_schedule for run in first] == [lab.CosineLR(), lab.ConstantLR(), lab.CosineLR()]
    assert [run.result.steps["before"] for run in first] == [0, 6, 12]
    assert first[2].masks.fingerprint == first[1].masks.fingerprint
    assert first[2].result.accuracy["val"]["accuracy"] >= first[1].result.accuracy["val"]["accuracy"]
    assert sorted(p.stem for p in tmp_path.glob("*.json")) == ["admm", "dense", "fine-tuned"]
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    second = go()
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}  # nothing was trained
    assert equal(first[-1], second[-1])
    assert second[1].methods[0].residuals == first[1].methods[0].residuals


@pytest.mark.parametrize("by", ["magnitude", "layer_magnitude", "taylor", "sensitivity"])
def test_budgets_keep_what_the_rate_says_and_empty_no_layer(dense, by):
    before = copy.deepcopy(dense.model)
    for rate, kept in ((4, 112), (50, 9), (200, 2)):
        shares = allocate(dense, rate, by)
        counts = [round((1 - shares[name]) * mask.numel()) for name, mask in dense.masks.items()]
        assert sum(counts) == kept
        assert min(counts) >= 1
    assert all(torch.equal(p, q) for p, q in zip(before.parameters(), dense.model.parameters(), strict=True))


def test_a_chain_goes_through_its_rates_and_is_gone_on_from(blobs, dense, tmp_path):
    def go(*rates: float | dict[str, float]):
        settings: dict[str, Any] = {"allocation": "layer_magnitude", "select": "chain", "folder": tmp_path}
        return progressive(dense, blobs, rates, epochs=1, finetune=1, **settings, **QUIET)

    last = keeping(dense.weights, {"0.weight": 12, "2.weight": 8})
    go(4, 8)
    trained = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    assert len(trained) == 4
    made = go(4, 8, last)
    assert {p: p.stat().st_mtime_ns for p in trained} == trained  # the first two rounds were not trained again
    assert [run.masks.kept for run in made.chosen] == [448, 112, 56, 20]
    assert made.last.masks.kept_by_layer == {"0.weight": 12, "2.weight": 8}
    for earlier, later in pairwise(made.chosen):
        assert later.masks.kept == (later.masks & earlier.masks).kept
    assert made.table()["from"].tolist() == [1, 1, 1, 4, 4, 8, 8]
    assert made.costs("round")["steps"].tolist() == [6, 4, 4, 4]
    assert made.last.result.steps["before"] + 2 == 6 + 12
    assert "chosen" in made._repr_html_()


@pytest.mark.parametrize(
    ("select", "tried", "chosen"),
    [
        # the paper's Fig. 2: from the 1st of the three, then the 2nd, then from the newest but one
        ("child", [[0], [0], [0], [1, 2, 3], [4, 2, 3], [4, 5, 3]], [0, 0, 0, 1, 2, 4]),
        ("parent", [[0], [0], [0], [2], [4], [5]], [0, 0, 0, 2, 4, 5]),
        ("chain", [[0], [1], [2], [3], [4], [5]], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_who_starts_a_round_and_who_is_replaced(dense, blobs, monkeypatch, select, tried, chosen):
    """Six rates; the accuracy of a child is written down here by its round and by the round of its parent."""
    scores = {(4, 1): 0.9, (5, 2): 0.9, (6, 4): 0.9, (2, 0): 0.8, (4, 2): 0.85, (5, 4): 0.86}
    rates, calls = [15, 18, 21, 24, 27, 30], []
    rounds = {round(dense.masks.total / rate): number for number, rate in enumerate(rates, 1)}
    module = importlib.import_module("pruninglab.recipes.progressive")

    def fake(start, data, target, **settings):
        child = copy.copy(start)
        child.masks = largest(start.weights, target, masks=start.masks)
        number, parent = rounds[child.masks.kept], rounds.get(start.masks.kept, 0)
        calls.append((number, parent))
        accuracy = {"accuracy": scores.get((number, parent), 0.5)}
        child.result = copy.copy(start.result)
        child.result.accuracy = {"val": accuracy, "test": {"accuracy": 1.0 - accuracy["accuracy"]}}
        child.status = "done"
        return Trials([Trial("dense", start), Trial("fine-tuned", child)])

    monkeypatch.setattr(module, "admm", fake)
    start = copy.copy(dense)
    start.model = copy.deepcopy(dense.model)
    start.find_weights()
    made = progressive(start, blobs, rates, epochs=1, select=select, **QUIET)
    assert [[parent for number, parent in calls if number == n] for n in range(1, 7)] == tried
    table = made.table()
    starts = [rounds.get(round(448 / before), 0) for before in table["from"][table["chosen"]]]
    assert starts[1:] == chosen
    assert [run.masks.kept for run in made.chosen] == [448, *rounds]


def test_fewer_direct_rates_fill_the_pool_by_themselves(dense, blobs):
    made = progressive(dense, blobs, [2, 4, 8], epochs=1, finetune=1, direct=1, **QUIET)
    table = made.table()
    assert made.costs("round")["steps"].tolist() == [6, 4, 4, 8]
    tuned: Any = table[table["method"] == "fine-tuned"]
    assert tuned["round"].tolist() == [1, 2, 3, 3]
    assert tuned["from"].tolist() == [1, 2, 2, 4]
    assert tuned["chosen"].tolist()[:2] == [True, True]
    assert tuned["chosen"].tolist().count(True) == 3
    assert tuned.iloc[2:].sort_values("val_accuracy", kind="stable", ascending=False)["chosen"].iloc[0]
    assert made["fine-tuned"] is made.chosen[-1]


def test_an_interruption_ends_the_pool_and_is_gone_on_from(dense, blobs, tmp_path, monkeypatch):
    def go() -> Any:
        settings: dict[str, Any] = {"epochs": 2, "finetune": 1, "direct": 1, "folder": tmp_path}
        return progressive(dense, blobs, [2, 4], **settings, **QUIET)

    update = ADMM.on_step

    def interrupts(method: ADMM, run: lab.Run) -> None:
        update(method, run)
        if run.step == 3 and run.sparsity > 0:
            run.status = "interrupted"

    monkeypatch.setattr(ADMM, "on_step", interrupts)
    broken = go()
    assert [run.status for run in broken.runs] == ["done", "done", "done", "interrupted"]
    monkeypatch.setattr(ADMM, "on_step", update)
    assert [run.masks.kept for run in go().chosen] == [448, 224, 112]


def test_rates_that_cannot_be_are_refused_before_training(dense, blobs):
    def refuses(match: str, rates: list, **settings: Any) -> None:
        with pytest.raises(lab.ConfigError, match=match):
            progressive(dense, blobs, rates, epochs=1, **settings, **QUIET)

    refuses("nothing would be progressive", [2, 4, 8])
    refuses("select='best'; expected one of 'child', 'parent', 'chain'", [2, 4, 8, 16], select="best")
    refuses("direct=4; expected a whole number from 1 to 3", [2, 4, 8, 16], direct=4)
    refuses("compressions have to rise: 2 keeps 224", [4, 2], select="chain")
    refuses("compressions=.0.9.; expected a list of a number above 1", [0.9], select="chain")
    refuses("sets record by itself", [4, 8], select="chain", record="x.json")
    refuses("2.weight: sparsity 0.5", [{"*": 0.6}, {"0.*": 0.9, "2.*": 0.5}], select="chain")


def equal(a: lab.Run, b: lab.Run) -> bool:
    return identity.tensor_hash(a.model.state_dict()) == identity.tensor_hash(b.model.state_dict())

"""Regularizers by hand and against autograd, and the gate: what it cuts, when it ends, what it hands on."""

import importlib
import math
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab import identity
from pruninglab.methods import L1, L2, LOBSTER, PruneWhileAccurate, RelevanceL2, Sensitivity
from pruninglab.methods.penalties.plain import at_least, largest_threshold
from pruninglab.methods.penalties.relevance import EDGES
from pruninglab.recipes import bonetta, prune_while_accurate, search

QUIET: dict[str, Any] = {"progress": False, "collapse": "allow", "seed": 0}
PLAIN: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr_schedule": "constant", **QUIET}
WEIGHTS = (2.0, -3.0, 1.5, 1.0)


@pytest.fixture(scope="module")
def dense(blobs) -> lab.Run:
    return lab.fit(mlp(), blobs, epochs=5, lr=0.01, **QUIET)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))


def four_weights(gradient: list[float], *methods: lab.Method, steps: int = 1, lr: float = 0.1) -> lab.Run:
    """Weights 2, -3, 1.5, 1 under a loss whose gradient is always `gradient`, by plain gradient steps, one an epoch."""
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([WEIGHTS])
    x = torch.tensor([gradient]).repeat(4, 1)
    data = lab.wrap(TensorDataset(x, torch.zeros(4).long()), TensorDataset(x, torch.zeros(4).long()), val=0.5)
    return lab.fit(model, data, *methods, epochs=steps, lr=lr, loss=lambda logits, y: logits.mean(), **PLAIN)


def row(run: lab.Run) -> list[float]:
    return run.model.get_parameter("weight").flatten().tolist()


@dataclass
class Collect(lab.Method):
    """Everything that a step's gradient is made of, last in the list of methods."""

    seen: list[dict[str, Any]] = field(init=False)

    def on_start(self, run: Any):
        self.seen = []

    def on_loss(self, run):
        values = {name: w.detach().clone() for name, w in run.model.named_parameters()}
        self.seen.append({"x": run.x, "y": run.y, "w": values})

    def on_grad(self, run: Any):
        self.seen[-1]["g"] = {name: p.grad.clone() for name, p in run.model.named_parameters()}


@dataclass
class CutAt(lab.Method):
    """Takes the smallest of four weights after a step."""

    step: int

    def on_step(self, run):
        if run.step == self.step:
            run.cut("magnitude", 0.25)


def seen_on_images(*methods: lab.Method) -> tuple[nn.Module, dict[str, Any]]:
    """One step in double precision of a net with convolution and dense layers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 5)).double()
    x, y = torch.randn(20, 1, 8, 8).double(), torch.arange(20) % 5
    data = lab.wrap(TensorDataset(x[:12], y[:12]), TensorDataset(x[12:], y[12:]), val=0.2)
    run = lab.fit(net, data, *methods, Collect(), epochs=1, **PLAIN)
    collected: Any = run.methods[-1]
    return net, collected.seen[0]


def by_autograd(
    net: nn.Module, seen: dict[str, Any], strength: float, alpha: float, constant: bool
) -> dict[str, Tensor]:
    """The gradient of the whole regularized loss, C a constant or not."""
    w = {name: value.clone().requires_grad_() for name, value in seen["w"].items()}
    loss = F.cross_entropy(torch.func.functional_call(net, w, (seen["x"],)), seen["y"])
    g = torch.autograd.grad(loss, list(w.values()), create_graph=True)
    c = [1 / (1 + alpha * (each.detach() if constant else each).abs()) for each in g]
    whole = loss + strength * sum((each * p**2).sum() for each, p in zip(c, w.values(), strict=True))
    return dict(zip(w, torch.autograd.grad(whole, list(w.values())), strict=True))


def relative(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[n] - b[n]).norm() / b[n].norm()) for n in b)


# -- relevance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 1.0, 300.0])
def test_closed_form_is_double_backward(alpha):
    net, seen = seen_on_images(RelevanceL2(0.1, alpha))
    assert relative(seen["g"], by_autograd(net, seen, 0.1, alpha, constant=True)) < 1e-6


def test_exact_is_the_gradient_of_the_whole_loss_and_the_closed_form_is_not():
    net, seen = seen_on_images(RelevanceL2(0.1, 30.0, second_order="exact"))
    whole = by_autograd(net, seen, 0.1, 30.0, constant=False)
    assert relative(seen["g"], whole) < 1e-6
    assert relative(by_autograd(net, seen, 0.1, 30.0, constant=True), whole) > 1e-3


def test_one_step_by_hand():
    """Gradients 0, 1, -3, 0: C = 1, 1/2, 1/4, 1."""
    run = four_weights([0.0, 1.0, -3.0, 0.0], RelevanceL2(0.5))
    assert row(run) == pytest.approx([2 - 0.2, -3 - 0.1 + 0.15, 1.5 + 0.3 - 0.0375, 1 - 0.1])


def test_the_sign_of_the_code_by_hand():
    """C = 1/(1 - |g|) = 1, 2, -1/2, 4/3: more on relevant weights, and the other way beyond the pole."""
    run = four_weights([0.0, 0.5, -3.0, 0.25], RelevanceL2(0.5, sign="code"))
    assert row(run) == pytest.approx([2 - 0.2, -3 - 0.05 + 0.6, 1.5 + 0.3 + 0.075, 1 - 0.025 - 0.4 / 3])
    assert RelevanceL2(sign="code").relevance(torch.tensor([0.5])).item() == 2


def test_the_third_term_of_equation_1_by_hand():
    """λ·w²/(1 + |g|)²: 0 where there is no gradient, else 0.5·(9/4, 2.25/16)."""
    plain, literal = (
        row(four_weights([0.0, 1.0, -3.0, 0.0], RelevanceL2(0.5, second_order=kind))) for kind in ("none", "literal")
    )
    assert [p - w for p, w in zip(plain, literal, strict=True)] == pytest.approx(
        [0, 0.1 * 0.5 * 9 / 4, 0.1 * 0.5 * 2.25 / 16, 0], abs=1e-6
    )


def test_alpha_0_is_plain_l2_and_weight_decay(blobs):
    models = [
        lab.fit(mlp(), blobs, *made, epochs=2, weight_decay=decay, **QUIET).model
        for made, decay in (([RelevanceL2(0.01, 0.0, decay="none")], 0.0), ([L2(0.01)], 0.0), ([], 0.02))
    ]
    for name, weight in models[0].named_parameters():
        assert torch.allclose(weight, models[1].get_parameter(name), atol=1e-6)
        assert torch.allclose(weight, models[2].get_parameter(name), atol=1e-6)


def test_l1_by_hand():
    assert row(four_weights([0.0, 1.0, 0.0, 0.0], L1(0.5))) == pytest.approx([1.95, -3 - 0.1 + 0.05, 1.45, 0.95])


@pytest.mark.parametrize("order", ["none", "exact"])
def test_what_was_felt_is_kept_each_epoch(order):
    """Gradients 0, 0.5, -3, 0.25, once 1 is cut without it: bins from 10^-9 on, four to a decade."""
    run = four_weights([0.0, 0.5, -3.0, 0.25], RelevanceL2(0.0, second_order=order), CutAt(1), steps=2)
    of_method: Any = run.methods[0]
    assert [(f["step"], f["layer"], f["largest"]) for f in of_method.felt] == [(1, "weight", 3.0), (2, "weight", 3.0)]
    assert [f["median"] for f in of_method.felt] == [0.25, 0.5]
    filled = [{i: n for i, n in enumerate(f["counts"]) if n} for f in of_method.felt]
    assert filled == [{0: 1, 34: 1, 35: 1, 38: 1}, {0: 1, 35: 1, 38: 1}]
    assert EDGES[33] < 0.25 <= EDGES[34] < 0.5 <= EDGES[35]


def test_decoupled_by_hand():
    """Under plain gradient steps it is the same as coupled."""
    gradient = [0.0, 1.0, -3.0, 0.0]
    one, two = (row(four_weights(gradient, RelevanceL2(0.5, coupled=c), steps=3)) for c in (True, False))
    assert one == pytest.approx(two)


def test_decoupled_goes_past_adam(blobs):
    """With all gradients scaled away, coupled L2 moves each weight by the learning rate, decoupled by lr·2λ·w."""
    free, pulled = (
        lab.fit(mlp(), blobs, *made, epochs=1, batch_size=200, lr=0.01, lr_schedule="constant", **QUIET).model
        for made in ([], [RelevanceL2(2.0, alpha=0.0, coupled=False)])
    )
    for name, start in mlp().named_parameters():
        taken = free.get_parameter(name) - pulled.get_parameter(name)
        assert torch.allclose(taken, 0.01 * 2 * 2.0 * start, atol=1e-6)


def factors(method: lab.Method, cut: int, steps: int = 6) -> list[float]:
    """By what share the largest weight shrinks each step, in units of 2·λ·lr; two steps are an epoch."""
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([WEIGHTS])
    x = torch.zeros(8, 4)
    data = lab.wrap(TensorDataset(x, torch.zeros(8).long()), TensorDataset(x, torch.zeros(8).long()), val=0.5)
    options: dict[str, Any] = {"batch_size": 2, "loss": lambda logits, y: logits.mean(), **PLAIN}
    run = lab.fit(model, data, method, CutAt(cut), Collect(), epochs=steps // 2, lr=0.1, **options)
    collected: Any = run.methods[-1]
    assert run.steps_per_epoch == 2
    return [float(s["g"]["weight"][0, 1] / s["w"]["weight"][0, 1]) for s in collected.seen]


def test_decay_by_hand_and_again_after_a_cut():
    assert factors(RelevanceL2(0.5, decay="linear"), cut=3) == pytest.approx([1, 0.5, 0, 1, 0.5, 0])
    e = math.exp(-0.5)
    assert factors(RelevanceL2(0.5, decay="exponential"), cut=3) == pytest.approx([1, e, e**2, 1, e, e**2])
    assert factors(RelevanceL2(0.5, decay="none"), cut=3) == pytest.approx([1] * 6)
    assert RelevanceL2(0.5).strength_after(0.5) == 0.25


@pytest.mark.parametrize("method", [RelevanceL2, L2, L1, LOBSTER, Sensitivity])
def test_biases_in_or_out(method):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.zeros(8, 3), torch.arange(8) % 2
    x[0] = 1e-30  # items that are all the same are refused
    data = lab.wrap(TensorDataset(x, y), TensorDataset(x, y), val=0.5)
    moved = {}
    for only in (False, True):
        options: dict[str, Any] = {"epochs": 1, "lr": 1e-3, **PLAIN}
        run = lab.fit(net, data, method(0.5, only_prunable=only), **options)
        plain = lab.fit(net, data, **options)
        moved[only] = {n for n, p in run.model.named_parameters() if not torch.equal(p, plain.model.get_parameter(n))}
    assert moved[True] == {"0.weight", "2.weight"}
    assert moved[False] == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_exact_goes_through_attention():
    data = lab.load("sorting", train=60, test=20)
    net = lab.build(lab.models.transformer, data, width=8, layers=1, heads=2)
    run = lab.fit(net, data, RelevanceL2(0.1, 30.0, second_order="exact"), Collect(), epochs=1, **PLAIN)
    collected: Any = run.methods[-1]
    with sdpa_kernel(SDPBackend.MATH):
        whole = by_autograd(net, collected.seen[0], 0.1, 30.0, constant=False)
    felt = {name: g for name, g in whole.items() if g.norm() > 1e-6}
    assert "blocks.0.attention.in_proj_weight" in felt
    assert relative(collected.seen[0]["g"], felt) < 1e-4


def test_lobster_by_hand():
    """1 - |g| = 1, 1/2, below 0, 3/4; the learning rate has no say in it."""
    run = four_weights([0.0, 0.5, -3.0, 0.25], LOBSTER(0.1), lr=0.0)
    assert row(run) == pytest.approx([2 * 0.9, -3 * 0.95, 1.5, 1 - 0.075])


@pytest.mark.parametrize("kind", ["specified", "unspecified"])
def test_sensitivity_by_hand(kind):
    """Two outputs of x = (1, 0.5), all true classes 0: the outputs feel x of their own row."""
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[2.0, -3.0], [1.5, 1.0]])
    x = torch.tensor([[1.0, 0.5]]).repeat(4, 1)
    data = lab.wrap(TensorDataset(x, torch.zeros(4).long()), TensorDataset(x, torch.zeros(4).long()), val=0.5)
    run = lab.fit(model, data, Sensitivity(0.1, kind), epochs=1, lr=0.0, **PLAIN)
    by_kind = {
        "specified": [2.0, -3 * 0.95, 1.5 * 0.9, 1 * 0.9],  # S = 1, 1/2, 0, 0
        "unspecified": [2 * 0.95, -3 * 0.925, 1.5 * 0.95, 1 * 0.925],  # S = 1/2, 1/4, 1/2, 1/4
    }
    assert run.model.get_parameter("weight").flatten().tolist() == pytest.approx(by_kind[kind])


@pytest.mark.parametrize("kind", ["specified", "unspecified"])
def test_sensitivity_of_sequences(kind):
    """Of the mean over all places of all sequences, true class by true class or class by class."""
    data = lab.load("sorting", train=60, test=20)
    net = lab.build(lab.models.transformer, data, width=4, layers=1, heads=2)
    made = [Sensitivity(0.1, kind, only_prunable=True), Collect()]
    run = lab.fit(net, data, *made, epochs=1, lr=0.0, batch_size=60, **PLAIN)
    collected: Any = run.methods[-1]
    seen = collected.seen[0]
    w = {name: value.clone().requires_grad_() for name, value in seen["w"].items()}
    logits = torch.func.functional_call(net, w, (seen["x"],)).movedim(1, 2).flatten(0, 1)
    true = F.one_hot(seen["y"].flatten(), 16)
    outputs = [(logits * true).sum(1).mean()] if kind == "specified" else [column.mean() for column in logits.T]
    for name in lab.prunable(net):
        felt = [torch.autograd.grad(output, w[name], retain_graph=True)[0].abs() for output in outputs]
        expected = w[name] * (1 - 0.1 * (1 - torch.stack(felt).mean(0)).clamp(min=0))
        assert torch.allclose(run.model.get_parameter(name), expected, rtol=1e-5)


def test_sensitivity_says_what_it_expects(blobs):
    wide = nn.Sequential(mlp(), nn.Unflatten(1, (4, 1)))
    odd: dict[str, Any] = {"loss": lambda logits, y: logits.mean(), "metric": lambda logits, y: logits[:, 0, 0]}
    with pytest.raises(lab.ConfigError, match=r"labels are \(100,\) and outputs \(100, 4, 1\)"):
        lab.fit(wide, blobs, Sensitivity(), epochs=1, **odd, **PLAIN)


def test_a_broken_step_shrinks_nothing(blobs):
    def loss(logits, y):
        return F.cross_entropy(logits, y) * (float("nan") if torch.is_grad_enabled() else 1.0)

    for made in (LOBSTER(0.1), RelevanceL2(0.1, coupled=False), Sensitivity(0.1)):
        run = lab.fit(mlp(), blobs, made, epochs=1, loss=loss, **QUIET)
        assert run.status == "diverged"
        assert all(bool(torch.isfinite(p).all()) for p in run.model.parameters())


# -- the gate -------------------------------------------------------------------------------------------------------


@dataclass
class Say(lab.Method):
    """Puts these accuracies, one a step, in place of the measured ones."""

    accuracies: tuple[float, ...]

    def on_start(self, run: Any):
        measure = run.evaluate
        run.evaluate = lambda split="val": measure(split) | {"accuracy": self.accuracies[max(run.step - 1, 0)]}


def said(gate: PruneWhileAccurate, *accuracies: float, biases: bool = False) -> tuple[lab.Run, Any]:
    """Weights 1 to 100 under a gate; each step is an epoch."""
    model = nn.Linear(100, 1)
    model.weight.data = torch.arange(1.0, 101.0)[None]
    model.bias.data.zero_()
    x = torch.zeros(4, 100)
    data = lab.wrap(TensorDataset(x, torch.zeros(4).long()), TensorDataset(x, torch.zeros(4).long()), val=0.5)
    options: dict[str, Any] = {"loss": lambda logits, y: logits.mean(), "biases": biases, **PLAIN}
    run = lab.fit(model, data, Say(accuracies), gate, epochs=len(accuracies), lr=0.0, **options)
    return run, run.methods[1]


def test_the_share_of_the_survivors_is_cut_above_the_bound_and_not_otherwise():
    run, gate = said(PruneWhileAccurate(0.9, prune_fraction=0.2, every_steps=1), 0.95, 0.9, 0.91, 0.5, 0.99)
    assert [e["kept"] for e in gate.evaluations] == [80, 80, 64, 64, 51]  # 64 - 13
    assert [e["accepted"] for e in gate.evaluations] == [True, False, True, False, True]
    assert [(c.step, c.after) for c in run.cuts] == [(1, 80), (3, 64), (5, 51)]
    assert run.masks["weight"].flatten().tolist() == [False] * 49 + [True] * 51
    assert (run.status, gate.accepted) == ("done", 3)


def test_shares_are_chained(blobs, dense):
    run = lab.fit(dense, blobs, PruneWhileAccurate(0.0, prune_fraction=0.1, every_steps=1), epochs=5, **QUIET)
    cuts = run.steps
    assert cuts == 10
    assert run.masks.kept == pytest.approx(448 * 0.9**cuts, abs=cuts / 2)


def test_the_last_weights_go_one_by_one_and_one_stays():
    run, gate = said(PruneWhileAccurate(0.0, prune_fraction=0.45, every_steps=1), *[0.5] * 12)
    assert [e["kept"] for e in gate.evaluations] == [55, 30, 16, 9, 5, 3, 2, 1]
    assert gate.settled
    assert run.status == "done"


def test_biases_are_in_scope_when_the_run_says_so():
    run, _ = said(PruneWhileAccurate(0.0, prune_fraction=0.01, every_steps=1), 0.5, biases=True)
    assert run.masks.kept_by_layer == {"weight": 100, "bias": 0}


def test_target_is_met_exactly_and_ends_the_cutting():
    run, gate = said(PruneWhileAccurate(0.0, prune_fraction=0.2, every_steps=1, target=0.3), *[0.5] * 4)
    assert [e["kept"] for e in gate.evaluations] == [80, 70]
    assert (run.status, run.masks.kept) == ("done", 70)


def test_a_bound_never_reached_is_said():
    for target, asked in ((None, ""), (0.5, "sparsity 0.0000 was reached, 0.5 was asked for; ")):
        run, _ = said(PruneWhileAccurate(0.9, every_steps=1, target=target), 0.7, 0.8, 0.75)
        assert run.status == run.result.status == "target_missed"
        assert run.reason == asked + "0 of 3 evaluations were above 0.9000; the best was 0.8000"


def test_a_target_missed_on_the_way_is_said():
    run, _ = said(PruneWhileAccurate(0.9, prune_fraction=0.2, every_steps=1, target=0.5), 0.95, 0.8, 0.75)
    assert run.status == "target_missed"
    assert "0.2000 was reached, 0.5 was asked for; 1 of 3 evaluations were above 0.9000; the best since was 0.8" in (
        run.reason
    )


def test_plateau():
    """Two evaluations after the best since the cut, whatever came before the cut."""
    accuracies = (0.95, 0.5, 0.6, 0.55, 0.58, 0.99, 0.99)
    _, gate = said(PruneWhileAccurate(0.9, prune_fraction=0.2, every_steps=1, patience=2), *accuracies)
    assert [e["step"] for e in gate.evaluations] == [1, 2, 3, 4, 5]
    _, gate = said(PruneWhileAccurate(0.9, prune_fraction=0.2, every_steps=1, patience=None), *accuracies)
    assert gate.accepted == 3


def test_the_bound_below_the_dense_accuracy(blobs, dense):
    run = lab.fit(dense, blobs, PruneWhileAccurate(below_dense=0.05, every_steps=1), epochs=1, **QUIET)
    gate: Any = run.methods[0]
    assert gate.bound == pytest.approx(dense.result.accuracy["val"]["accuracy"] - 0.05)


@pytest.mark.parametrize(("counting", "steps"), [("global", [3, 6, 9, 12]), ("epoch", [3, 7, 11])])
def test_when_it_evaluates(blobs, counting, steps):
    gate = PruneWhileAccurate(0.99999, every_steps=3, counting=counting)
    run = lab.fit(mlp(), blobs, gate, epochs=3, batch_size=40, **QUIET)
    made: Any = run.methods[0]
    assert run.steps_per_epoch == 4
    assert [e["step"] for e in made.evaluations] == steps


def test_only_the_pruned_net_is_evaluated(blobs, dense):
    """The momentum of Adam moves what is pruned; the gate measures without it."""

    @dataclass
    class Watch(lab.Method):
        nonzero: list[int] = field(init=False)

        def on_start(self, run: Any):
            self.nonzero, measure = [], run.evaluate

            def evaluate(split="val"):
                self.nonzero.append(sum(int(w[~run.masks[name]].count_nonzero()) for name, w in run.weights.items()))
                return measure(split)

            run.evaluate = evaluate

    gate = PruneWhileAccurate(0.0, prune_fraction=0.5, every_steps=1)
    run = lab.fit(dense, blobs, Watch(), gate, epochs=2, batch_size=80, lr=0.05, **QUIET)
    watch: Any = run.methods[0]
    assert len(watch.nonzero) >= 4
    assert not any(watch.nonzero)


def test_a_failed_evaluation_goes_back_to_the_best_state_at_the_mask():
    """Weights 1 to 100 fall by 0.1 a step; the best since the cut is that of step 2, which step 4 begins from."""
    accuracies = (0.95, 0.8, 0.5, 0.6, 0.85, 0.99)
    model, x, y = nn.Linear(100, 1, bias=False), torch.ones(24, 100), torch.zeros(24).long()
    data = lab.wrap(TensorDataset(x, y), TensorDataset(x, y), val=0.5)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 2, "lr": 0.1, "loss": lambda logits, y: logits.mean()}
    largest, momenta = {}, {}

    @dataclass
    class Watch(lab.Method):
        def on_grad(self, run):
            largest[run.options.momentum, run.step] = float(run.weights["weight"].detach().max())
            state = run.optimizer.state[run.weights["weight"]]
            momenta[run.options.momentum, run.step] = state["momentum_buffer"].clone() if state else None

    for momentum in (0.0, 0.9):
        model.weight.data = torch.arange(1.0, 101.0)[None]
        gate = PruneWhileAccurate(0.9, prune_fraction=0.2, every_steps=1, restore=True)
        settings: dict[str, Any] = {**PLAIN, **options, "momentum": momentum}
        lab.fit(model, data, Say(accuracies), gate, Watch(), **settings)
    # after steps 0 to 5: cut, remembered, 0.5 and 0.6 are taken back, 0.85 is better and stays
    assert [largest[0.0, s] for s in range(6)] == pytest.approx([100, 99.9, 99.8, 99.8, 99.8, 99.7])
    assert torch.equal(momenta[0.9, 3], momenta[0.9, 2])
    assert torch.equal(momenta[0.9, 4], momenta[0.9, 2])


def test_wrong_settings_are_refused(blobs):
    def refuses(match: str, made: type[lab.Method], **settings: Any) -> None:
        with pytest.raises(lab.ConfigError, match=match):
            lab.fit(mlp(), blobs, made(**settings), epochs=1, **QUIET)

    refuses("one bound", PruneWhileAccurate)
    refuses("one bound", PruneWhileAccurate, lower_bound=0.9, below_dense=0.1)
    refuses("prune_fraction=0.0; expected a number above 0", PruneWhileAccurate, lower_bound=0.9, prune_fraction=0.0)
    refuses("Did you mean 0.04", PruneWhileAccurate, lower_bound=0.9, prune_fraction=4.0)
    refuses("'global', 'epoch'", PruneWhileAccurate, lower_bound=0.9, counting="steps")
    refuses("Did you mean 0.987", PruneWhileAccurate, lower_bound=98.7, every_steps=1)
    refuses("half a point is 0.005", PruneWhileAccurate, below_dense=0.5, every_steps=1)
    refuses("has only 2 steps", PruneWhileAccurate, lower_bound=0.9)
    refuses("'paper', 'code'", RelevanceL2, sign="both")
    refuses("strength=-1.0", RelevanceL2, strength=-1.0)
    refuses("needs coupled=True", RelevanceL2, coupled=False, second_order="exact")
    refuses("'specified', 'unspecified'", Sensitivity, kind="both")
    with pytest.raises(lab.ConfigError, match="prune_while_accurate sets keep"):
        prune_while_accurate(mlp(), blobs, PruneWhileAccurate(0.5), epochs=1, finetune=1, keep="last")


# -- the recipe -----------------------------------------------------------------------------------------------------


def test_final_phase_starts_from_the_best_state_at_the_final_mask(blobs, tmp_path):
    def go():
        gate = PruneWhileAccurate(0.8, prune_fraction=0.2, every_steps=2, target=0.8)
        options: dict[str, Any] = {"batch_size": 40, "lr": 0.02, "biases": True, "folder": tmp_path, **QUIET}
        how: dict[str, Any] = {"regularizer": RelevanceL2(1e-3), "epochs": 12, "finetune": 2}
        return prune_while_accurate(mlp(), blobs, gate, **how, **options).runs

    pruned, final = go()
    gate: Any = pruned.methods[1]
    at_mask = [e["accuracy"] for e in gate.evaluations[1:] if e["step"] > pruned.cuts[-1].step]
    at_mask += [h["val_accuracy"] for h in pruned.history if h["step"] > pruned.cuts[-1].step]
    assert pruned.status == "done"
    assert pruned.result.accuracy["val"]["accuracy"] == max(at_mask)
    assert pruned.result.accuracy["state"] == "best"
    assert final.origin["weights"] == identity.tensor_hash(pruned.model.state_dict())
    assert final.masks.fingerprint == pruned.masks.fingerprint
    assert not final.methods
    assert final.result.steps["before"] == pruned.step
    again = go()
    assert identity.tensor_hash(again[1].model.state_dict()) == identity.tensor_hash(final.model.state_dict())


@pytest.mark.parametrize(("bound", "target"), [(0.99, 0.8), (1 - 1e-9, None)])
def test_a_target_missed_by_the_gate_is_missed_at_the_end(blobs, bound, target, tmp_path):
    gate = PruneWhileAccurate(bound, prune_fraction=0.5, every_steps=1, target=target, patience=None)
    how: dict[str, Any] = {"epochs": 1, "finetune": 1, "lr": 1e-4, "folder": tmp_path}
    pruned, final = prune_while_accurate(mlp(), blobs, gate, regularizer=L2(), **how, **QUIET).runs
    assert pruned.status == final.status == "target_missed"
    assert final.reason == pruned.reason
    record = lab.Result.read(tmp_path / "fine-tuned.json")
    assert (record.status, record.reason) == (final.status, final.reason)
    assert record.row()["target"] == target


def test_any_criterion_ranks_in_the_gate_also_one_that_needs_gradients(blobs):
    def felt(model: nn.Module, batches: Any) -> dict[str, Tensor]:
        weights = lab.prunable(model)
        x, y = next(iter(batches))
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(weights.values()))
        return {name: g.abs() for name, g in zip(weights, gradients, strict=True)}

    def cut(criterion: Any) -> lab.Run:
        gate = PruneWhileAccurate(0.0, prune_fraction=0.5, every_steps=1, target=0.5, criterion=criterion)
        return lab.fit(mlp(), blobs, gate, epochs=1, lr=1e-9, **PLAIN)

    assert cut(felt).masks.kept == cut("magnitude").masks.kept
    assert cut(felt).masks.fingerprint != cut("magnitude").masks.fingerprint


def test_the_best_state_counts_though_cutting_never_ended(blobs):
    """No target and no plateau: which cut was the last is known only at the end."""
    gate = PruneWhileAccurate(0.9, prune_fraction=0.6, every_steps=2, patience=None)
    how: dict[str, Any] = {"epochs": 10, "finetune": 0, "batch_size": 40, "lr": 0.02}
    pruned, _ = prune_while_accurate(mlp(), blobs, gate, regularizer=[L1(1e-4)], **how, **QUIET).runs
    made: Any = pruned.methods[1]
    last = pruned.cuts[-1].step
    assert not made.settled
    assert pruned.best is not None
    assert last <= pruned.best.step
    assert pruned.best.masks.fingerprint == pruned.masks.fingerprint
    scores = [e["accuracy"] for e in made.evaluations if e["step"] > last]
    scores += [h["val_accuracy"] for h in pruned.history if h["step"] >= last]
    assert pruned.best.score is not None
    assert pruned.best.score >= max(scores[:-1], default=0.0)


def test_a_dense_phase_before_the_gate(blobs, tmp_path):
    gate = PruneWhileAccurate(below_dense=0.1, prune_fraction=0.2, every_steps=1, target=0.5)
    options: dict[str, Any] = {"lr": 0.02, "folder": tmp_path, **QUIET}
    options |= {"dense": 4, "epochs": 6, "finetune": 1}
    first, pruned, final = prune_while_accurate(mlp(), blobs, gate, regularizer=L2(), **options).runs
    of_gate: Any = pruned.methods[1]
    assert (first.masks.sparsity, pruned.origin["dense"]) == (0, pruned.origin["weights"])
    assert of_gate.bound == pytest.approx(first.result.accuracy["val"]["accuracy"] - 0.1)
    assert final.result.steps["before"] == first.step + pruned.step
    assert {p.name for p in tmp_path.glob("*.json")} == {"dense.json", "pruned.json", "fine-tuned.json"}


def test_the_published_settings(monkeypatch, blobs):
    """Table 2 as printed, and the text of section 3."""
    asked: dict[str, Any] = {}
    module = importlib.import_module("pruninglab.recipes.prune_while_accurate")
    monkeypatch.setattr(module, "load", lambda name, **how: asked.update(how) or lab.load("digits", train=20, test=10))
    monkeypatch.setattr(module, "prune_while_accurate", lambda model, data, **how: asked.update(how))
    for task, row, val in (
        ("MNIST", (0, 120, 5, 100, 1e-3, "adam", 1e-3, 0.987, 0.04, 250), "test"),
        ("FashionMNIST", (24, 81, 50, 100, 1e-3, "adam", 1e-3, 0.897, 0.04, 250), 1 / 12),
        ("ImageNet", (0, 30, 30, 100, 1e-4, "sgd", 1e-4, 0.685, 0.01, 2500), None),
    ):
        asked.clear()
        own: dict[str, Any] = {"data": blobs, "model": mlp()} if task == "ImageNet" else {}
        bonetta(cast(Any, task), "paper", seed=3, **own)
        gate, pull = asked["pruning"], asked["regularizer"]
        phases = [asked[name] for name in ("dense", "epochs", "finetune", "batch_size", "lr", "optimizer")]
        assert (*phases, pull.strength, gate.lower_bound, gate.prune_fraction, gate.every_steps) == row
        assert (pull.alpha, pull.sign, gate.counting, gate.patience) == (1, "paper", "epoch", 25)
        assert (asked.get("val"), asked["seed"], asked["biases"]) == (val, 3, True)
        assert (asked["pruning_lr_schedule"], asked["lr_schedule"]) == ("constant", "constant")
    bonetta("MNIST", epochs=7)
    assert (asked["val"], asked["epochs"], asked["finetune"]) == (1 / 12, 7, 5)


def test_the_published_recipe_runs(tmp_path):
    data = lab.load("digits", train=200, test=60, size=14, val="test")
    gate = PruneWhileAccurate(0.2, prune_fraction=0.3, every_steps=2, target=0.9)
    short: dict[str, Any] = {
        "pruning": gate,
        "epochs": 12,
        "finetune": 2,
        "batch_size": 40,
        "progress": False,
        "collapse": "allow",
    }
    pruned, final = bonetta("MNIST", data=data, folder=tmp_path, **short).runs
    assert (pruned.status, pruned.options.lr, pruned.options.lr_factor(0.9)) == ("done", 1e-3, 1.0)
    assert final.masks.kept == pruned.masks.total - round(0.9 * pruned.masks.total)
    assert "conv1.bias" in final.masks
    assert final.result.row()["chosen_on"] == "test"
    assert "on the test images" in repr(final)


def test_what_the_paper_has_not_is_refused():
    for match, task, protocol in (
        ("one of 'MNIST', 'FashionMNIST'", "CIFAR10", "paper"),
        ("one of 'holdout', 'paper'", "MNIST", "test"),
        ("give data=", "ImageNet", "paper"),
    ):
        with pytest.raises(lab.ConfigError, match=match):
            bonetta(cast(Any, task), cast(Any, protocol))


def test_search_chooses_by_validation(blobs, tmp_path):
    def go(**how: Any):
        gate = PruneWhileAccurate(0.5, prune_fraction=0.5, every_steps=1)
        options: dict[str, Any] = {
            "epochs": 3,
            "finetune": 1,
            "batch_size": 160,
            "lr": 1e-3,
            "folder": tmp_path,
            **QUIET,
        }
        return search(mlp(), blobs, gate, regularizer=L2(1e-3), **how, **options)

    found = go(bounds=[0.0, 0.99], prune_fractions=[0.2, 0.9], at_least=0.0)
    table = found.table().query("method == 'fine-tuned'")
    cells = list(zip(table["lower_bound"], table["prune_fraction"], strict=True))
    assert cells == [(0.0, 0.2), (0.0, 0.9), (0.99, 0.2), (0.99, 0.9)]
    assert table["status"].tolist() == ["done", "done", "target_missed", "target_missed"]
    assert found.chosen == [found["fine-tuned"]] == [found.runs[3]]  # the sparsest, after "pruned" of its cell
    assert {p.parent.name for p in tmp_path.glob("*/fine-tuned.json")} == {
        f"strength-0.001,lower_bound-{bound},prune_fraction-{share}" for bound, share in cells
    }
    by_strength = go(strengths=[1e-4, 3.0], at_least=0.0).runs[1::2]
    weak, strong = (run.model.get_parameter("0.weight") for run in by_strength)
    assert weak.norm() > strong.norm()
    table = go(bounds=[0.0], prune_fractions=[0.2, 0.9], at_least=1.1).table().query("method == 'fine-tuned'")
    assert table["val_accuracy"][table["chosen"]].tolist() == [table["val_accuracy"].max()]


# -- whole algorithms ----------------------------------------------------------------------------------------------


def test_the_rate_of_the_exponential_decay_is_a_setting():
    assert RelevanceL2(0.5, decay="exponential", decay_rate=2.0).strength_after(1.5) == pytest.approx(
        0.5 * math.exp(-3)
    )


def test_exact_takes_its_loss_in_single_precision(blobs):
    seen: list[torch.dtype] = []

    def loss(logits, y):
        seen.append(logits.dtype)
        return F.cross_entropy(logits, y)

    lab.fit(mlp(), blobs, RelevanceL2(second_order="exact"), epochs=1, loss=loss, precision="bf16", **QUIET)
    trained = [kind for kind in seen if kind == torch.float32]
    assert len(trained) >= 1


def test_the_largest_threshold_by_hand():
    assert largest_threshold(lambda t: t**2, 4.0, 10.0, 30) == pytest.approx(2.0)
    assert largest_threshold(lambda t: 1.0, 0.5, 10.0) == 0
    weights = {"w": torch.tensor([2.0, -3.0, 1.5, 1.0])}
    kept = at_least(weights, lab.Masks(w=torch.tensor([True, True, True, False])), 2.0)
    assert kept["w"].tolist() == [True, True, False, False]


def test_sensitivity_cuts_below_its_threshold():
    run = four_weights([0.0] * 4, Sensitivity(0.1, threshold=1.4), lr=0.0)  # 1.8, -2.7, 1.35, 0.9
    assert row(run) == pytest.approx([1.8, -2.7, 0, 0])
    assert run.masks.kept == 2


def test_sensitivity_of_each_sample_does_not_cancel():
    """Two samples, x = 1 and x = -1: their mean gradient is 0, the mean of its size is 1."""
    x, y = torch.tensor([[1.0], [-1.0]]).repeat(2, 1), torch.zeros(4).long()
    data = lab.wrap(TensorDataset(x, y), TensorDataset(x, y), val=TensorDataset(x, y))
    left = {}
    for per_sample in (False, True):
        model = nn.Linear(1, 1, bias=False)
        model.weight.data = torch.tensor([[2.0]])
        made = Sensitivity(0.1, per_sample=per_sample)
        left[per_sample] = row(lab.fit(model, data, made, epochs=1, lr=0.0, **PLAIN))[0]
    assert left == {False: pytest.approx(1.8), True: pytest.approx(2.0)}


def test_lobster_cuts_at_a_plateau_what_the_validation_loss_can_spare():
    """The loss is Σ w·x with x = (1, 0, 0, -1)/10 on all images: w = 2, -3, 1.5, 1 gives 0.1; w4 = 0 would give 0.2."""
    x, y = torch.tensor([[0.1, 0.0, 0.0, -0.1]]).repeat(4, 1), torch.zeros(4).long()
    data = lab.wrap(TensorDataset(x, y), TensorDataset(x, y), val=0.5)

    def fitted(tolerance: float) -> tuple[lab.Run, LOBSTER]:
        model = nn.Linear(4, 1, bias=False)
        model.weight.data = torch.tensor([[2.0, -3.0, 0.5, 1.0]])
        made = LOBSTER(0.0, patience=2, tolerance=tolerance)
        run = lab.fit(model, data, made, epochs=3, lr=0.0, loss=lambda logits, y: logits.mean(), **PLAIN)
        return run, run[LOBSTER]

    run, method = fitted(0.05)
    assert run.masks["weight"].tolist() == [[True, True, False, True]]
    assert [entry["threshold"] for entry in method.thresholds] == pytest.approx([1.0], rel=1e-4)
    assert run.status == "done"
    assert not run.masks["weight"][0, 2]
    run, _ = fitted(1.5)  # without w4 the loss is 0.2, which is twice 0.1; without w1 too it is 0
    assert run.masks.kept == 1
    run, _ = fitted(0.0)
    assert row(run) == pytest.approx([2, -3, 0, 1])
    assert LOBSTER().patience is None

"""Regrowth by hand on four numbers, exact counts at every step, and what comes back: at 0, with nothing remembered."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab import methods
from pruninglab.methods import SET, DynamicSurgery, GlobalSparseMomentum, OneShot, RigL, SparseMomentum
from pruninglab.methods.regrowth import dynamic_surgery, turnover
from pruninglab.methods.regrowth.set import without_closest

QUIET: dict[str, Any] = {"progress": False, "collapse": "allow", "seed": 0}
PLAIN: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr_schedule": "constant", **QUIET}
FAMILY: list[Any] = [
    RigL(0.9, every_steps=2),
    SET(0.9, every_steps=2),
    SparseMomentum(0.9, every_steps=2),
    RigL(0.9, "layer", every_steps=3),
]


@dataclass
class Probe(lab.Method):
    """Counts after each step; at each update what has come back, as it is before the step and after it."""

    kept: list[int] = field(init=False)
    by_layer: list[dict[str, int]] = field(init=False)
    seen: list[dict[str, Tensor]] = field(init=False)
    new: list[dict[str, Tensor]] = field(init=False)
    before: list[Tensor] = field(init=False)
    after: list[Tensor] = field(init=False)

    def on_start(self, run: Any):
        self.kept, self.by_layer, self.new, self.before, self.after = [], [], [], [], []
        self.seen = [run.masks.clone()]

    def on_grad(self, run: Any):
        self.new.append({n: m & ~self.seen[-1][n] for n, m in run.masks.items()})
        self.seen.append(run.masks.clone())
        for name, grown in self.new[-1].items():
            weight = run.weights[name]
            states = [s for s in run.optimizer.state[weight].values() if s.shape == weight.shape]
            self.before += [part[grown].clone() for part in (weight.detach(), *states)]

    def on_step(self, run: Any):
        self.kept.append(run.masks.kept)
        self.by_layer.append(run.masks.kept_by_layer)
        self.after += [run.weights[name].detach()[grown] for name, grown in self.new[-1].items()]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 4))


OPTIMIZERS = [("adam", {}), ("adamw", {"weight_decay": 0.01}), ("sgd", {"momentum": 0.9}), ("sgd", {"momentum": 0.0})]


@pytest.mark.parametrize("method", FAMILY, ids=str)
@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
def test_the_count_is_exact_at_every_step_and_new_weights_begin_anew(blobs, method, optimizer, options):
    run = lab.fit(mlp(), blobs, method, Probe(), epochs=4, batch_size=20, optimizer=optimizer, **options, **QUIET)
    moved: Any = run.methods[0]
    probe: Any = run.methods[1]
    assert run.status == "done"
    assert set(probe.kept) == {98}  # a tenth of 980
    assert sum(change["grown"] for change in moved.turnover.changes) > 20
    assert not torch.cat(probe.before).any()  # neither the weight nor what the optimizer remembers of it
    assert torch.cat(probe.after).all()  # the gradient that chose it has moved it already
    assert all(cut.before == cut.after for cut in run.cuts[1:])
    ever = {name: torch.stack([seen[name] for seen in probe.seen]).any(0) for name in run.masks}
    assert moved.turnover.explored == sum(int(e.sum()) for e in ever.values()) > 98
    assert moved.turnover.original == sum(int((m & probe.seen[0][n]).sum()) for n, m in run.masks.items()) < 98


def test_rigl_and_set_keep_the_shares_of_erk_in_every_layer(blobs):
    net = mlp()
    flat = {name: torch.zeros_like(w) for name, w in lab.prunable(net).items()}
    erk = lab.keep_top(flat, 0.8, scope="erk").kept_by_layer
    for method in (RigL(0.8, every_steps=1), SET(0.8, every_steps=1)):
        probe: Any = lab.fit(net, blobs, method, Probe(), epochs=2, batch_size=20, **QUIET).methods[1]
        assert all(kept == erk for kept in probe.by_layer)
    assert erk["0.weight"] / 300 < erk["4.weight"] / 80  # the smaller layer is the denser


# Four weights in one layer, inputs x, and the sum of outputs as the loss: the gradient is the mean of x.


ONE_UPDATE = RigL(0.5, drop_fraction=0.7, every_steps=3, end=1.0)


def four(weights: list[float], x: list[float], *made: lab.Method, steps: int = 2, **options: Any) -> lab.Run:
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([weights])
    rows, y = torch.tensor([x] * 4).float(), torch.zeros(4).long()
    data = lab.wrap(TensorDataset(rows, y), TensorDataset(rows, y), val=0.5)
    masks = {"weight": model.weight.detach() != 0}
    loss = lambda logits, y: logits.sum(1).mean()  # noqa: E731
    settings: dict[str, Any] = {"lr": 0.0, "loss": loss, **PLAIN, **options}
    return lab.fit(model, data, *made, epochs=steps, masks=masks, **settings)


def kept(run: lab.Run) -> list[int]:
    return run.masks["weight"].int()[0].tolist()


def weights(run: lab.Run) -> list[float]:
    return [round(w, 6) for w in run.model.get_parameter("weight")[0].tolist()]


def test_rigl_by_hand():
    """0.1 is the smaller of two, and the last of the missing has the largest gradient. After 3 of 10 steps 0.56 of two
    weights is one, and later none.
    """
    run = four([0.4, 0.1, 0, 0], [1, 2, 3, -4], ONE_UPDATE, steps=10, lr=0.01)
    assert kept(run) == [1, 0, 0, 1]
    assert weights(run) == [0.3, 0.0, 0.0, 0.28]  # ten steps for the one, seven for the other
    moved: Any = run.methods[0]
    assert moved.turnover.changes[0] == {
        "step": 3,
        "layer": "weight",
        "dropped": 1,
        "grown": 1,
        "kept": 2,
        "original": 1,
    }
    assert [change["grown"] for change in moved.turnover.changes] == [1, 0, 0]


def test_what_is_dropped_and_has_the_largest_gradient_stays_as_it_was():
    run = four([0.4, 0.1, 0, 0], [1, 9, 3, -4], ONE_UPDATE, steps=10)
    assert kept(run) == [1, 1, 0, 0]
    assert weights(run) == [0.4, 0.1, 0.0, 0.0]
    assert run.cuts == []


def test_a_layer_drops_no_more_than_it_could_grow():
    """Nothing is felt where the input is 0, and a full layer has nothing to grow."""
    method = SET(0.5, drop_fraction=0.9, every_steps=1, drop="magnitude")
    assert kept(four([0.4, 0.1, 0, 0], [1, 1, 0, 0], method, steps=4)) == [1, 1, 0, 0]
    assert kept(four([0.4, 0.1, 0, 0], [1, 1, 0, 1], method, steps=2)) == [1, 0, 0, 1]
    assert kept(four([0.4, 0.1, 0.3, 0.2], [1, 2, 3, 4], RigL(0.0, drop_fraction=0.9, every_steps=1))) == [1, 1, 1, 1]


def test_set_drops_of_both_signs():
    weights = {"w": torch.tensor([0.1, 0.15, -0.2, -0.8])}
    masks, two = lab.Masks.full(weights), {"w": 2}
    assert without_closest(weights, masks, two)["w"].tolist() == [False, True, False, True]
    assert turnover.without_smallest(weights, masks, two)["w"].tolist() == [False, False, True, True]


def test_set_grows_at_random_but_the_same_for_a_seed(blobs):
    net = mlp()
    runs = [lab.fit(net, blobs, SET(0.9), epochs=3, seed=seed, progress=False) for seed in (0, 0, 1)]
    prints = [run.masks.fingerprint for run in runs]
    assert prints[0] == prints[1] != prints[2]
    interval: Any = runs[0].methods[0]
    assert interval.turnover.every_steps == runs[0].steps_per_epoch


class Two(nn.Module):
    """Two layers on the same input; the second's output counts seven times."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)
        self.a.weight.data = self.b.weight.data = torch.tensor([[0.1, 0.4, 0.0, 0.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + 7 * self.b(x)


def test_sparse_momentum_moves_weights_to_where_momentum_is_large():
    """Each layer drops one, 1 : 7 of the momentum is in them, so both grow in the second, where |x| is largest."""
    model = Two()
    x, y = torch.tensor([[1.0, 1.0, 2.0, -3.0]] * 4), torch.zeros(4).long()
    data = lab.wrap(TensorDataset(x, y), TensorDataset(x, y), val=0.5)
    masks = {f"{name}.weight": torch.tensor([[True, True, False, False]]) for name in "ab"}
    method = SparseMomentum(0.5, drop_fraction=0.9, every_steps=3, beta=0.5)
    loss = lambda logits, y: logits.sum(1).mean()  # noqa: E731
    run = lab.fit(model, data, method, epochs=8, masks=masks, lr=0.0, loss=loss, **PLAIN)
    assert run.masks["a.weight"].tolist() == [[False, True, False, False]]
    assert run.masks["b.weight"].tolist() == [[False, True, True, True]]
    momentum: Any = run.methods[0]
    assert momentum.momentum["b.weight"].tolist() == [[7 * (1 - 0.5**7) * x for x in (1, 1, 2, -3)]]


def test_sparse_momentum_sees_the_past_and_not_one_batch():
    """A missing weight with a lasting small gradient wins over one with a large gradient that changes its sign."""
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[0.4, 0.1, 0.0, 0.0]])
    x = torch.tensor([[1.0, 0.5, 1.0, 2.0], [1.0, 0.5, 1.0, -2.0]] * 40)
    y = torch.zeros(len(x)).long()
    data = lab.wrap(TensorDataset(x, y), TensorDataset(x, y), val=0.5)
    masks = {"weight": model.weight.detach() != 0}
    loss = lambda logits, y: logits.sum(1).mean()  # noqa: E731
    for method, last in ((SparseMomentum(0.5, drop_fraction=0.9, beta=0.99), [1, 0, 1, 0]), (ONE_UPDATE, [1, 0, 0, 1])):
        run = lab.fit(model, data, method, epochs=4, batch_size=1, masks=masks, lr=0.0, loss=loss, **PLAIN)
        assert kept(run) == last


@pytest.mark.parametrize(
    "method", [RigL(0.9, drop_fraction=0.5, every_steps=4), SparseMomentum(0.9, every_steps=4, end=0.75)], ids=str
)
def test_the_share_falls_along_half_a_cosine_and_nothing_moves_after_the_end(blobs, method: Any):
    run = lab.fit(mlp(), blobs, method, Probe(), epochs=10, batch_size=20, **QUIET)  # 80 steps, nothing from 60 on
    moved: Any = run.methods[0]
    steps = sorted({change["step"] for change in moved.turnover.changes})
    assert steps == list(range(4, 60, 4))
    assert run.cuts[-1].step < 60
    assert moved.settled
    assert run.best is not None
    run.step = 30
    assert turnover.annealed(moved.drop_fraction, run.step, moved.turnover.last) == pytest.approx(
        method.drop_fraction / 2
    )
    run.step = 15
    assert turnover.annealed(moved.drop_fraction, run.step, moved.turnover.last) == pytest.approx(
        method.drop_fraction * (1 + math.sqrt(0.5)) / 2
    )


@pytest.mark.parametrize(("epochs", "interval"), [(4, 6), (10, 10), (40, 24), (100, 60), (2000, 100)])
def test_rigl_updates_every_hundred_steps_or_ten_times(blobs, epochs, interval):
    """8 steps an epoch, three quarters of them; but not in less than 10 steps, or 4 times."""
    method: Any = RigL(0.9)
    stop: Any = Stops()
    run = lab.fit(mlp(), blobs, method, stop, epochs=epochs, batch_size=20, **QUIET)
    started: Any = run.methods[0]
    assert started.turnover.every_steps == interval


@dataclass
class Stops(lab.Method):
    def on_step(self, run: Any):
        run.stop("enough")


def test_it_goes_on_from_the_masks_that_are_there(blobs):
    run = lab.fit(
        mlp(), blobs, OneShot(0.9, "snip"), RigL(0.9, every_steps=2), Probe(), epochs=2, batch_size=20, **QUIET
    )
    snip = lab.fit(mlp(), blobs, OneShot(0.9, "snip"), epochs=0, batch_size=20, **QUIET)
    moved: Any = run.methods[1]
    assert moved.turnover.first.fingerprint == snip.masks.fingerprint
    assert moved.turnover.original < run.masks.kept == 98


@pytest.mark.parametrize("method", [RigL(0.98, every_steps=2), SparseMomentum(0.98, every_steps=8)], ids=str)
def test_growth_finds_the_inputs_that_matter(method):
    """Two of 200 inputs tell the class. The random mask has none of them; growth finds them, at the same count."""
    source = torch.Generator().manual_seed(1)
    x = torch.randn(400, 200, generator=source)
    y = (x[:, 7] - x[:, 31] > 0).long()
    data = lab.wrap(TensorDataset(x[:300], y[:300]), TensorDataset(x[300:], y[300:]))
    torch.manual_seed(0)
    net = nn.Linear(200, 2)
    random, grown = (
        lab.fit(net, data, made, epochs=12, batch_size=30, lr=0.01, **QUIET)
        for made in (OneShot(0.98, "random"), method)
    )
    assert random.masks.kept == grown.masks.kept == 8
    assert not random.masks["weight"][:, [7, 31]].any()
    assert grown.masks["weight"][:, [7, 31]].any(0).all()
    assert random.result.accuracy["test"]["accuracy"] < 0.7 < 0.9 < grown.result.accuracy["test"]["accuracy"]


def test_a_run_that_breaks_is_diverged_and_no_error(blobs):
    for method in (*FAMILY, DynamicSurgery(0.9), GlobalSparseMomentum(0.9)):
        run = lab.fit(mlp(), blobs, method, epochs=2, batch_size=20, loss=broken, **QUIET)
        assert run.status == "diverged"


def broken(logits: Tensor, y: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(logits, y)
    return loss * (torch.nan if logits.requires_grad else 1.0)


@pytest.mark.parametrize(
    ("match", "make", "epochs"),
    [
        ("drop_fraction=1", lambda: RigL(0.9, drop_fraction=1.0), 1),
        ("every_steps=0", lambda: SET(0.9, every_steps=0), 1),
        ("above 0 and at most 1", lambda: SparseMomentum(0.9, end=0.0), 1),
        ("beta=1", lambda: SparseMomentum(0.9, beta=1.0), 1),
        ("drop='both'", lambda: SET(0.9, drop="both"), 1),  # pyright: ignore[reportArgumentType]
        ("every 100 steps, and none from step 24", lambda: RigL(0.9, every_steps=100), 4),
        ("epochs=0 has no step", lambda: RigL(0.9), 0),
        ("either sparsity=0.9 or crate", lambda: DynamicSurgery(), 1),
        ("either sparsity=0.9 or crate", lambda: DynamicSurgery(0.9, crate=1.0), 1),
        ("above 0 and at most 1", lambda: DynamicSurgery(0.9, low=1.2), 1),
        ("epochs=0 has no step", lambda: DynamicSurgery(0.9), 0),
        ("decay=0", lambda: GlobalSparseMomentum(0.9, decay=0.0), 1),
        ("below 1 if not coupled", lambda: GlobalSparseMomentum(0.9, decay=1.0, coupled=False), 1),
        ("epochs=0 has no step", lambda: GlobalSparseMomentum(0.9), 0),
    ],
)
def test_wrong_settings_are_refused(blobs, match, make, epochs):
    with pytest.raises(lab.ConfigError, match=match):
        lab.fit(mlp(), blobs, make(), epochs=epochs, batch_size=20, **QUIET)


# Dynamic network surgery


def test_what_is_cut_is_trained_on_and_comes_back_with_its_value():
    """Thresholds at crate 0 are the mean, 0.55. 0.1 is cut, grows by 0.3 a step, and is above 1.1 * 0.55 after two."""
    method = DynamicSurgery(crate=0.0, gamma=0.0, end=1.0)
    x = [0.0, 0.0, 0.0, -1.0]
    sparse = [four([1.0, 0.5, 0.6, 0.1], x, method, Probe(), steps=n, lr=0.3) for n in (1, 2, 3, 4)]
    surgery: Any = sparse[0].methods[0]
    assert surgery.levels["weight"].item() == pytest.approx(0.55)
    one, two, three = ([m["weight"].int()[0].tolist() for m in run.methods[1].seen] for run in sparse[1:])
    assert one[1:] == [[1, 1, 1, 1], [1, 1, 1, 0]]  # 0.4 is below 0.9 * 0.55, and 0.5 is above
    assert two[1:] == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]  # 0.7
    assert three == [*two, [1, 1, 1, 1]]
    assert weights(sparse[3]) == [1.0, 0.5, 0.6, 1.3]  # as if nothing had been cut
    assert [run.methods[0].spliced for run in sparse] == [0, 0, 1, 1]


def test_surgery_keeps_what_the_optimizer_remembers(blobs):
    """With thresholds that cut and splice often, momentum is that of one training: no step begins anew."""
    plain: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.9, "lr": 0.05, "lr_schedule": "constant", **QUIET}
    x = [0.0, 0.0, 0.0, -1.0]
    cut = four([1.0, 0.5, 0.6, 0.1], x, DynamicSurgery(crate=0.0, gamma=0.0, end=1.0), steps=8, **plain)
    never = four([1.0, 0.5, 0.6, 0.1], x, methods.Dense(), steps=8, **plain)
    spliced: Any = cut.methods[0]
    assert spliced.spliced == 1
    assert weights(cut) == weights(never)


def test_surgery_keeps_its_sparsity_and_stops_at_the_end(blobs):
    run = lab.fit(mlp(), blobs, DynamicSurgery(0.8, gamma=0.1), Probe(), epochs=8, batch_size=20, lr=0.01, **QUIET)
    surgery: Any = run.methods[0]
    probe: Any = run.methods[1]
    assert run.status == "done"
    assert set(probe.kept) == {196}
    assert surgery.spliced > 0
    assert surgery.aside == {}
    assert run.cuts[-1].step <= 48  # of 64 steps three quarters


def test_what_was_cut_needs_more_to_come_back_than_what_is_kept_to_stay():
    """All are 1 or so; with a margin of 0.9 and 1.1 only the last has become large enough to take a place."""
    kept, allowed = torch.tensor([True, True, False, False]), torch.ones(4, dtype=torch.bool)
    for last, best in ((1.4, [3, 1]), (1.2, [1, 0])):
        scores = dynamic_surgery.deviations(torch.tensor([1.0, 1.1, 1.2, last]), kept, allowed, 0.9, 1.1)
        assert scores.topk(2).indices.tolist() == best


def test_surgery_becomes_rare(blobs):
    often, rare = (
        lab.fit(mlp(), blobs, DynamicSurgery(0.8, gamma=g), epochs=20, batch_size=20, lr=0.02, **QUIET)
        for g in (0.0, 1.0)
    )
    assert len(rare.cuts) < len(often.cuts) / 4
    assert dynamic_surgery.probability(3, gamma=1.0, power=2.0) == pytest.approx(1 / 16)


def test_surgery_brings_back_nothing_that_was_pruned_before(blobs):
    first = lab.fit(mlp(), blobs, OneShot(0.5, "random"), epochs=1, **QUIET)
    run = lab.fit(first, blobs, DynamicSurgery(0.8), Probe(), epochs=4, batch_size=20, lr=0.02, **QUIET)
    probe: Any = run.methods[1]
    assert not any(bool((seen[n] & ~m).any()) for seen in probe.seen for n, m in first.masks.items())


# Global sparse momentum


def test_only_the_top_weights_by_product_move_and_the_others_decay():
    """|w·g| is 0.4, 0.2, 1.2, 0.4: of two the third is first, and the first wins the tie by its place."""
    run = four([0.4, 0.1, 0.4, 0.1], [1, 2, 3, 4], GlobalSparseMomentum(0.5, decay=0.5), Probe(), steps=1, lr=0.1)
    moved = [0.4 - 0.1 * (1 + 0.2), 0.1 - 0.1 * 0.05, 0.4 - 0.1 * (3 + 0.2), 0.1 - 0.1 * 0.05]
    lost = (moved[2] ** 2 + moved[1] ** 2) / sum(w * w for w in moved)  # ties go to the first
    assert weights(run) == [round(moved[0], 6), round(moved[1], 6), 0.0, 0.0]
    assert run.methods[0].lost == pytest.approx(lost, rel=1e-5)


def test_decay_beside_the_optimizer_is_a_share_of_what_is_passive():
    """The products are 4, 0.09, 8, 0.01: the second and the fourth lose a quarter of themselves, twice."""
    method = GlobalSparseMomentum(0.5, decay=0.25, coupled=False)
    run = four([0.4, 0.9, 0.8, 0.1], [10, 0.1, 10, 0.1], method, steps=2, lr=0.0)
    assert weights(run) == [0.0, pytest.approx(0.9 * 0.75**2), 0.8, 0.0]
    run = four([0.4, 0.9, 0.8, 0.1], [10, 0.1, 10, 0.1], method, steps=2, lr=0.0, lr_schedule=lab.StepLR((0.5,), 0.0))
    assert weights(run) == [0.0, pytest.approx(0.9 * 0.75), 0.8, 0.0]  # it falls with the learning rate


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_what_is_passive_vanishes_and_the_cut_costs_nothing(blobs, optimizer):
    method = GlobalSparseMomentum(0.8, decay=0.03, coupled=False)
    run = lab.fit(mlp(), blobs, method, epochs=60, batch_size=20, optimizer=optimizer, lr=0.01, **QUIET)
    cut: Any = run.methods[0]
    assert (run.status, run.masks.kept) == ("done", 196)
    assert cut.lost < 0.02
    assert run.result.accuracy["test"]["accuracy"] > 0.9


def test_exchange_is_one_change_and_can_bring_values(blobs):
    @dataclass
    class Swap(lab.Method):
        def on_step(self, run: Any):
            if run.step == 2:
                wanted = ~run.masks
                values = {name: torch.full_like(w, 0.5) for name, w in run.weights.items()}
                remembered = {n: run.optimizer.state[w]["exp_avg"].clone() for n, w in run.weights.items()}
                assert run.exchange(wanted, values) == wanted.kept
                for name, w in run.weights.items():
                    assert torch.equal(w, wanted[name] * 0.5)
                    assert torch.equal(run.optimizer.state[w]["exp_avg"], remembered[name])

    run = lab.fit(mlp(), blobs, OneShot(0.9, "random"), Swap(), epochs=1, **QUIET)
    last = run.last_cut
    assert last is not None
    assert (last.before, last.after, last.revived) == (98, 882, 882)

"""Levels, code books and what they cost: by hand on few numbers, and exact at the end of every run."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab.methods import Gradual, OneShot, Quantize, SharedWeights
from pruninglab.recipes import deep_compression, quantize
from pruninglab.storage import levels

QUIET: dict[str, Any] = {"progress": False, "collapse": "allow", "seed": 0, "batch_size": 20}
PLAIN: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr_schedule": "constant", **QUIET}
BITS = {"0.*": 3, "3.*": 2}


@pytest.fixture(scope="module")
def pruned(blobs) -> lab.Run:
    return lab.fit(mlp(), blobs, Gradual(lab.Cubic(0.8), scope="layer"), epochs=6, lr=0.01, **QUIET)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))


def method(run: lab.Run, number: int = 0) -> Any:
    return run.methods[number]


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def error(values: Tensor, book: Tensor) -> float:
    return float((values - book[levels.nearest(values, book)]).square().sum())


# -- level sets -----------------------------------------------------------------------------------------------------


def test_equal_levels_are_multiples_on_both_sides_without_zero():
    assert levels.equal(1, 0.5).tolist() == [-0.5, 0.5]
    assert levels.equal(3, 0.5).tolist() == [-2, -1.5, -1, -0.5, 0.5, 1, 1.5, 2]


def test_projection_by_hand():
    book = levels.equal(2, 1.0)
    weight = numbers(0.1, -0.2, 1.4, -9.0)
    assert levels.project(weight, torch.tensor([True, True, True, True]), book).tolist() == [1, -1, 1, -2]
    assert levels.project(weight, torch.tensor([False, True, False, True]), book).tolist() == [0, -1, 0, -2]
    assert levels.nearest(numbers(-2, -1.5, 0, 1.5), book).tolist() == [0, 0, 1, 2]  # halfway is the lower
    assert levels.project(weight, torch.zeros(4, dtype=torch.bool), levels.fit(weight[:0], 2)).tolist() == [0] * 4


def test_best_interval_by_hand():
    assert levels.best_interval(numbers(1, -2, 3, 2), 1) == pytest.approx(2)  # one level a side: the mean magnitude
    assert levels.best_interval(numbers(1, 2, -2, 1), 2) == pytest.approx(1)
    # multiples 1, 1, 2, 2: (1 + 1.2 + 2·2 + 2·2.2) / (1 + 1 + 4 + 4)
    assert levels.best_interval(numbers(1, -1.2, 2, 2.2), 2) == pytest.approx(10.6 / 10)
    assert levels.best_interval(numbers(0.1, 0.1, 1, 1), 1) == pytest.approx(0.55)
    assert levels.best_interval(numbers(0.1, 0.1, 1, 1), 1, zero=True) == pytest.approx(1)


@given(
    values=st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=9).filter(any),
    bits=st.integers(1, 4),
    zero=st.booleans(),
)
def test_no_interval_is_better_than_the_best(values, bits, zero):
    values = numbers(*values)

    def of(interval: float) -> float:
        book = levels.equal(bits, interval)
        return error(values, torch.cat((book, torch.zeros(1))).sort().values if zero else book)

    assert of(levels.best_interval(values, bits, zero)) <= min(of(i / 100) for i in range(1, 420)) + 1e-4


@given(st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=7), st.integers(1, 7))
def test_no_clusters_are_better_than_kmeans(values, count):
    values = numbers(*values).double()
    ordered, count = values.sort().values, min(count, len(values.unique()))
    best = min(
        sum(float((part - part.mean()).square().sum()) for part in ordered.tensor_split(list(cuts)))
        for cuts in itertools.combinations(range(1, len(ordered)), count - 1)
    )
    centres = levels.kmeans(values, count)
    assert len(centres) == count
    assert error(values, centres) == pytest.approx(best, abs=1e-9)


def test_lloyd_from_linear_centres_by_hand():
    values = numbers(0, 1, 9, 10)
    assert levels.linear(values, 2).tolist() == [0, 10]
    assert levels.lloyd(values, levels.linear(values, 2)).tolist() == [0.5, 9.5]
    assert levels.lloyd(values, numbers(0, 5, 10)).tolist() == [0.5, 5, 9.5]  # nothing is near to 5


def test_many_weights_are_summed_up_in_groups():
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    assert error(values, levels.fit(values, 3, "clustered")) / len(values) == pytest.approx(0.0345, abs=0.0005)
    assert levels.best_interval(torch.cat([values] * 25), 8) == pytest.approx(levels.best_interval(values, 8), rel=1e-3)


def test_no_level_is_zero_and_few_values_are_kept_as_they_are():
    assert levels.fit(numbers(-1, 0, 1), 2, "clustered").tolist() == pytest.approx([-1, 1e-6, 1])
    assert levels.fit(numbers(0, 0), 2).tolist() == pytest.approx([-2e-6, -1e-6, 1e-6, 2e-6])
    assert levels.fit(numbers(0.1, 0.3, 0.1, 0.7), 2, "linear").tolist() == numbers(0.1, 0.3, 0.7).tolist()


def test_bits_by_layer():
    weights = {
        "conv1.weight": torch.ones(2, 1, 3, 3),
        "fc1.weight": torch.ones(4, 4),
        "fc2.weight": torch.ones(2, 4),
    }
    assert levels.by_layer(weights, 3) == dict.fromkeys(weights, 3)
    assert levels.by_layer(weights, {"conv": 3, "dense": 2, "fc2*": 3}) == dict(zip(weights, (3, 2, 3), strict=True))
    assert levels.by_layer(weights, {"fc1.weight": 8}) == {"fc1.weight": 8}
    for wrong in (0, 9, True, 2.5, {"fc*": 0}):
        with pytest.raises(lab.ConfigError, match="whole number from 1 to 8"):
            levels.by_layer(weights, wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(lab.ConfigError, match="'fc3' matches no prunable layer; the model has conv1"):
        levels.by_layer(weights, {"fc3": 2})


# -- what it costs --------------------------------------------------------------------------------------------------


def test_huffman_of_the_textbook():
    """Cormen, Leiserson, Rivest and Stein: a:45 b:13 c:12 d:16 e:9 f:5 takes 224 bits."""
    assert levels.huffman_bits([45, 13, 12, 16, 9, 5]) == 224
    assert levels.huffman_bits([7]) == 7
    assert levels.huffman_bits([0, 3, 0, 2]) == 5
    assert levels.huffman_bits([]) == 0


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=40))
def test_huffman_is_within_a_bit_of_the_entropy(counts):
    total = sum(counts)
    entropy = sum(c * math.log2(total / c) for c in counts)
    assert entropy - 1e-6 <= levels.huffman_bits(counts) < entropy + total


def test_cost_by_hand():
    weight = torch.zeros(1, 16)
    weight[0, [0, 5, 6, 14]] = numbers(1, 2, 1, 1)  # gaps 0, 4, 0, 7
    table = levels.cost({"a": weight}, {"a": weight != 0}).set_index("layer")
    row = table.loc["a"]
    assert (row["kept"], row["levels"], row["values"], row["book"]) == (4, 2, 4, 64)
    assert row["positions"] == 2 * (4 + 1 + 2)  # 2 bits: 0, skip 3 and 1, 0, twice skip 3 and 1
    assert table.loc["all"].to_list() == row.to_list()
    few = levels.cost({"a": numbers(1, 2, 3, 4)[None]}, {"a": torch.ones(1, 4, dtype=torch.bool)}).iloc[0]
    assert few[["values", "book"]].to_list() == [128, 0]  # a code book would not pay
    plain = levels.cost({"a": torch.randn(20, 20)}, {"a": torch.ones(20, 20, dtype=torch.bool)}).iloc[0]
    assert plain[["values", "positions", "book", "huffman", "tables"]].to_list() == [12800, 0, 0, 12800, 0]


# -- ADMM quantization ----------------------------------------------------------------------------------------------


def four_weights(quantize: Quantize, steps: int, lr: float, gradient: tuple[float, ...] = (0, 0, 0, 0)) -> lab.Run:
    """Weights 1, -1.2, 2 and 2.2 under a loss whose gradient is always `gradient`, by plain gradient steps."""
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = numbers(1, -1.2, 2, 2.2)[None]
    x = numbers(*gradient).repeat(4, 1)
    data = lab.wrap(TensorDataset(x, torch.zeros(4).long()), TensorDataset(x, torch.zeros(4).long()), val=0.5)
    return lab.fit(model, data, quantize, epochs=steps, lr=lr, loss=lambda logits, y: logits.mean(), **PLAIN)


def test_z_and_u_of_two_updates_by_hand():
    """The weights stand still. Z = Π(W) has q = 1.06; then U = W - Z = -0.06, -0.14, -0.12, 0.08, and W + U is
    0.94, -1.34, 1.88, 2.28 with q = (0.94 + 1.34 + 2·1.88 + 2·2.28) / 10 = 1.06 again: U doubles."""
    run = four_weights(Quantize(2, updates=4, snap=1.0, end=1.0), 3, lr=0.0)
    assert [r["primal"] for r in method(run).residuals] == pytest.approx([0.0440**0.5] * 2, rel=1e-5)
    one = four_weights(Quantize(2, updates=1, snap=1.0, end=1.0), 1, lr=0.0)
    assert method(one).books["weight"].tolist() == pytest.approx([-2.12, -1.06, 1.06, 2.12])

    seen: list[list[list[float]]] = []
    update = Quantize._update

    def look(self: Quantize, run: lab.Run) -> None:
        update(self, run)
        seen.append([self.z["weight"].flatten().tolist(), self.u["weight"].flatten().tolist()])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Quantize, "_update", look)
        four_weights(Quantize(2, updates=3, snap=1.0, end=1.0), 3, lr=0.0)
    (z1, u1), (z2, u2) = seen
    assert z1 == pytest.approx([1.06, -1.06, 2.12, 2.12])
    assert u1 == pytest.approx([-0.06, -0.14, -0.12, 0.08], abs=1e-6)
    assert z2 == pytest.approx([1.06, -1.06, 2.12, 2.12])
    assert u2 == pytest.approx([-0.12, -0.28, -0.24, 0.16], abs=1e-6)


def test_the_pull_is_added_to_the_gradient():
    """One step of w ← w - lr·(g + ρ·(W - Z)), from Z = Π(W) and U = 0, seen before the weights are snapped."""
    at = []

    def look(self: Quantize, run: lab.Run) -> None:
        at.append(run.weights["weight"].detach().flatten().tolist())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Quantize, "on_step", look)
        four_weights(Quantize(2, rho=0.5), 1, lr=0.1, gradient=(1, 0, 0, 0))
    assert at[0] == pytest.approx([1 - 0.1 * (1 - 0.5 * 0.06), -1.2 + 0.007, 2 + 0.006, 2.2 - 0.004])


def test_a_strong_pull_brings_the_weights_to_their_levels():
    run = four_weights(Quantize(2, rho=1.0, updates=9, snap=0.9, end=0.9), 200, lr=0.1)
    primal = [r["primal"] for r in method(run).residuals]
    assert primal[-1] < 1e-3 < primal[0]


def is_quantized(weights, masks, bits: dict[str, int]) -> bool:
    few = all(len(weights[n][m].unique()) <= 2 ** bits[n] for n, m in masks.items())
    return few and all(torch.equal(weights[n] != 0, m) for n, m in masks.items())


@pytest.mark.parametrize("kind", ["equal", "clustered"])
@pytest.mark.parametrize("settings", [{}, {"parts": 1}, {"snap": 0.0, "end": 0.3}, {"snap": 1.0, "end": 1.0}])
def test_every_kept_weight_is_a_level_in_the_result_and_in_the_best_state(blobs, pruned, kind, settings):
    run = lab.fit(pruned, blobs, Quantize(BITS, kind, **settings), epochs=10, lr=0.01, **QUIET)
    bits = {"0.weight": 3, "3.weight": 2}
    assert run.masks.fingerprint == pruned.masks.fingerprint
    assert run.best is not None
    for weights in (dict(run.model.named_parameters()), run.best.weights):
        assert is_quantized(weights, run.masks, bits)
        for name, book in method(run).books.items():
            assert torch.isin(weights[name][run.masks[name]], book).all()
            if kind == "equal":
                assert torch.allclose(book, levels.equal(bits[name], float(book[2 ** (bits[name] - 1)])))
    assert run.result.accuracy["test"]["accuracy"] > 0.8


def test_the_best_state_is_kept_only_once_all_weights_are_snapped(blobs, pruned):
    settings: dict[str, Any] = {"epochs": 10, "lr": 0.01, "keep": "best", **QUIET}
    run = lab.fit(pruned, blobs, Quantize(BITS, snap=0.5, end=0.8), **settings)
    assert run.best is not None
    assert run.best.step >= 0.8 * run.steps
    assert run.best.score == max(h["val_accuracy"] for h in run.history if h["step"] >= 0.8 * run.steps)
    assert is_quantized(dict(run.model.named_parameters()), run.masks, {"0.weight": 3, "3.weight": 2})


def test_the_nearest_half_is_snapped_first_and_stands_while_the_rest_trains(blobs, pruned):
    seen: list[tuple[int, dict[str, Tensor], dict[str, Tensor]]] = []
    snap = Quantize._snap

    def look(self: Quantize, run: lab.Run, due: int) -> None:
        before = {n: w.detach().clone() for n, w in run.weights.items()}
        snap(self, run, due)
        seen.append((self.snapped, before, {n: m.clone() for n, m in self.frozen.items()}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Quantize, "_snap", look)
        run = lab.fit(pruned, blobs, Quantize(BITS, parts=3), epochs=10, lr=0.01, **QUIET)
    first = next(s for s in seen if s[0] == 1)
    for name, book in method(run).books.items():
        kept, frozen = run.masks[name], first[2][name]
        assert int(frozen.sum()) == -(-int(kept.sum()) // 2)
        gap = (first[1][name] - book[levels.nearest(first[1][name], book)]).abs()
        assert gap[frozen].max() <= gap[kept & ~frozen].min()
        assert torch.equal(run.model.get_parameter(name)[frozen], levels.project(first[1][name], kept, book)[frozen])
    assert {s[0] for s in seen} == {1, 2, 3}
    assert torch.equal(seen[-1][2]["0.weight"], run.masks["0.weight"])


def test_biases_and_norms_train_on_after_the_snap(blobs, pruned):
    run = lab.fit(pruned, blobs, Quantize(BITS, snap=0.0, end=0.0), epochs=4, lr=0.01, **QUIET)
    snapped = lab.fit(pruned, blobs, Quantize(BITS), epochs=0, **QUIET)
    assert is_quantized(dict(snapped.model.named_parameters()), snapped.masks, {"0.weight": 3, "3.weight": 2})
    assert not torch.equal(run.model.get_parameter("1.weight"), snapped.model.get_parameter("1.weight"))
    assert not torch.equal(run.model.get_parameter("3.bias"), snapped.model.get_parameter("3.bias"))


@pytest.mark.parametrize("last", [0.75, 1.0])
@pytest.mark.parametrize("reactivate", [False, True])
@pytest.mark.parametrize("quantize_first", [False, True])
def test_while_another_method_prunes_nothing_is_snapped(blobs, last, reactivate, quantize_first):
    made = [Gradual(lab.Cubic(0.8), end=last, reactivate=reactivate), Quantize(BITS, "clustered", snap=0.2, end=0.8)]
    snap = Quantize._snap

    def look(self: Quantize, run: lab.Run, due: int) -> None:
        assert all(m.settled for m in run.methods if m is not self)
        snap(self, run, due)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Quantize, "_snap", look)
        run = lab.fit(mlp(), blobs, *(made[::-1] if quantize_first else made), epochs=12, lr=0.01, **QUIET)
    assert run.status == "done"
    assert run.best is not None
    for weights in (dict(run.model.named_parameters()), run.best.weights):
        assert is_quantized(weights, run.masks, {"0.weight": 3, "3.weight": 2})
    assert run.best.masks.kept == run.masks.kept == 90


def test_layers_that_no_pattern_names_stay_as_they_are(blobs, pruned):
    run = lab.fit(pruned, blobs, Quantize({"0.*": 2}), epochs=2, **QUIET)
    assert len(run.weights["0.weight"][run.masks["0.weight"]].unique()) <= 4
    assert len(run.weights["3.weight"][run.masks["3.weight"]].unique()) == run.masks.kept_by_layer["3.weight"]


def test_wrong_settings_are_refused(blobs, pruned):
    def refuses(match: str, made: lab.Method) -> None:
        with pytest.raises(lab.ConfigError, match=match):
            lab.fit(pruned, blobs, made, epochs=1, **QUIET)

    kept = pruned.masks.kept_by_layer["3.weight"]
    refuses("matches no prunable layer", Quantize({"conv": 3}))
    refuses(f"3.weight has {kept} weights left, fewer than the 256 levels", Quantize({"3.*": 8}))
    for made in (lambda: Quantize(0), lambda: SharedWeights(9)):
        with pytest.raises(lab.ConfigError, match="whole number from 1 to 8"):
            made()
    for wrong, match in [
        ({"levels": "log"}, "'equal', 'clustered'"),
        ({"snap": 0.9, "end": 0.5}, "snap=0.9 has to come before"),
        ({"updates": 0}, "updates=0; expected a whole number of at least 1"),
        ({"rho": math.inf}, "rho=inf"),
    ]:
        with pytest.raises(lab.ConfigError, match=match):
            Quantize(3, **wrong)
    with pytest.raises(lab.ConfigError, match="'linear', 'best'"):
        SharedWeights(3, "random")  # pyright: ignore[reportArgumentType]
    with pytest.raises(lab.ConfigError, match="a sparsity to prune to, or a pruned Run"):
        deep_compression(mlp(), blobs, epochs=1)


# -- shared weights -------------------------------------------------------------------------------------------------


def test_summed_gradients_are_those_of_the_code_book(blobs, pruned):
    """Against autograd through book[codes]."""

    @torch.enable_grad()
    def loss_with(run: lab.Run, books: dict[str, Tensor], codes: dict[str, Tensor]) -> Tensor:
        gathered = {n: book[codes[n]] * run.masks[n] for n, book in books.items()}
        return F.cross_entropy(functional_call(run.model, gathered, (run.x,)), run.y)

    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    on_grad = SharedWeights.on_grad

    def look(self: SharedWeights, run: lab.Run) -> None:
        on_grad(self, run)
        books = {n: b.clone().requires_grad_() for n, b in self.books.items()}
        found = torch.autograd.grad(loss_with(run, books, self.codes), list(books.values()))
        ours = {n: w.grad.clone() for n, w in run.weights.items() if w.grad is not None}
        theirs = {n: g[self.codes[n]] for n, g in zip(books, found, strict=True)}
        seen.append((ours, theirs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedWeights, "on_grad", look)
        lab.fit(pruned, blobs, SharedWeights(BITS), epochs=1, **QUIET)
    assert len(seen) == 8
    for ours, theirs in seen:
        for name in theirs:
            assert torch.allclose(ours[name], theirs[name], atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_clusters_stay_tied_and_train(blobs, pruned, optimizer):
    drift = []
    on_step = SharedWeights.on_step

    def look(self: SharedWeights, run: lab.Run) -> None:
        for name, codes in self.codes.items():
            kept = run.masks[name]
            parts = [run.weights[name].detach()[kept & (codes == k)] for k in range(len(self.books[name]))]
            drift.append(max(float(part.max() - part.min()) for part in parts if len(part)))
        on_step(self, run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedWeights, "on_step", look)
        run = lab.fit(
            pruned, blobs, SharedWeights(BITS), epochs=5, lr=0.01, optimizer=optimizer, weight_decay=1e-3, **QUIET
        )
    assert max(drift) < 1e-6  # even before they are tied again
    start = lab.fit(pruned, blobs, SharedWeights(BITS), epochs=0, **QUIET)
    assert run.best is not None
    for weights in (dict(run.model.named_parameters()), run.best.weights):
        assert is_quantized(weights, run.masks, {"0.weight": 3, "3.weight": 2})
    for name, codes in method(run).codes.items():
        assert torch.equal(codes, method(start).codes[name])
        assert torch.equal(run.weights[name][run.masks[name]], method(run).books[name][codes[run.masks[name]]])
        assert not torch.equal(run.weights[name], start.weights[name])
    assert run.history[-1]["loss"] < run.history[0]["loss"]


def test_shared_weights_survive_a_cut(blobs, pruned):
    run = lab.fit(pruned, blobs, SharedWeights(2), OneShot(0.85), Gradual(lab.Linear(0.9)), epochs=4, **QUIET)
    assert is_quantized(dict(run.model.named_parameters()), run.masks, {"0.weight": 2, "3.weight": 2})
    assert run.masks.kept == 45


# -- recipes --------------------------------------------------------------------------------------------------------


def test_quantize_then_train_the_levels(blobs, pruned, tmp_path):
    def go(**options: Any) -> list[lab.Run]:
        return quantize(pruned, blobs, BITS, epochs=3, lr=0.01, folder=tmp_path, **options, **QUIET).runs

    snapped, tuned = go()
    for name, mask in pruned.masks.items():
        before, after = snapped.weights[name], tuned.weights[name]
        assert not torch.equal(before, after)
        for value in before[mask].unique():  # who was together is together
            assert len(after[mask & (before == value)].unique()) == 1
    assert tuned.result.steps["before"] == pruned.step + snapped.step
    assert sorted(p.name for p in tmp_path.glob("*.json")) == ["fine-tuned.json", "quantized.json"]
    assert equal(go()[1].model, tuned.model)
    assert len(quantize(pruned, blobs, BITS, epochs=1, levels="equal", **QUIET)) == 1
    assert len(quantize(pruned, blobs, BITS, epochs=1, finetune=0, **QUIET)) == 1


def test_deep_compression_prunes_shares_and_is_counted(blobs, pruned):
    *before, run = deep_compression(mlp(), blobs, 0.5, rounds=2, epochs=2, bits={"dense": 3}, **QUIET).runs
    assert [r.masks.kept for r in before] == [448, 317, 224]
    assert is_quantized(dict(run.model.named_parameters()), run.masks, {"0.weight": 3, "3.weight": 3})
    table = levels.cost(run.weights, run.masks).set_index("layer")
    assert table.loc["all", "values"] == 3 * 224
    assert table.loc["all", "kept"] == 224
    only, shared = deep_compression(pruned, blobs, epochs=1, bits=2, **QUIET).runs
    assert only is pruned
    assert shared.masks.fingerprint == pruned.masks.fingerprint


@pytest.mark.parametrize("bits", [None, 8, {"0.*": 8, "3.*": 3}])
def test_deep_compression_gives_small_layers_the_bits_that_they_can_fill(blobs, bits):
    """10 % of 448 weights: neither layer could fill the 256 levels of 8 bits."""
    made = deep_compression(mlp(), blobs, 0.9, rounds=1, epochs=1, bits=bits, **QUIET)
    run, books = made["shared"], made["shared"].methods[0]
    assert run.status == "done"
    for name, kept in run.masks.kept_by_layer.items():
        asked = 5 if bits is None else 8 if bits == 8 or name.startswith("0.") else 3
        assert len(books.books[name]) == 2 ** min(asked, kept.bit_length() - 1) <= kept


def test_deep_compression_refuses_bits_of_no_layer_before_training(blobs):
    with pytest.raises(lab.ConfigError, match="'conv' matches no prunable layer"):
        deep_compression(mlp(), blobs, 0.5, epochs=1, bits={"conv": 4}, progress=stops)


def stops(run: lab.Run) -> None:
    raise AssertionError("this was trained before it was refused")


def test_quantize_gives_small_layers_the_bits_that_they_can_fill(blobs):
    pruned = lab.fit(mlp(), blobs, OneShot({"0.*": 0.997, "3.*": 0.9}), epochs=1, **QUIET)
    assert pruned.masks.kept_by_layer == {"0.weight": 1, "3.weight": 13}
    run = quantize(pruned, blobs, 4, epochs=1, **QUIET).last
    assert run.masks.kept_by_layer == pruned.masks.kept_by_layer
    assert len(run.weights["3.weight"][run.masks["3.weight"]].unique()) <= 8

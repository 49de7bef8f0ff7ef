"""Laws that hold for every combination of features: unit, scope, criterion, masks, moment."""

import copy
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab.criteria import BY_NAME
from pruninglab.masks import units
from pruninglab.masks.masks import Unit

UNITS = ("weight", "channel", "kernel")
SCOPES = ("global", "layer", "erk", "row")
QUIET: dict[str, Any] = {"progress": False, "collapse": "allow", "seed": 0, "batch_size": 8}


@pytest.fixture(scope="module")
def photos() -> lab.Data:
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(48, 2, 6, 6, generator=source), torch.arange(48) % 3
    return lab.wrap(TensorDataset(x[:32], y[:32]), TensorDataset(x[32:], y[32:]), val=0.25, name="photos")


def convs() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


SHAPES = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4)


def why_refused(masks: lab.Masks, share: float, scope: str, unit: Unit, by_pattern: bool) -> str:
    """What the refusal says, if so few units are left that there is one."""
    if scope == "row" and unit == "channel":
        return "take another"
    sizes = [units({name: mask}, unit) for name, mask in masks.items()]
    alive, total = units(masks, unit)
    if any(int(size * share + 0.5) == size for size in ([n for _, n in sizes] if by_pattern else [total])):
        return "would cut all"
    keep = min(alive, total - int(total * share + 0.5))
    layers = sum(left > 0 for left, _ in sizes)
    return "cannot be spread" if not by_pattern and scope != "global" and keep < layers else ""


def test_what_is_chosen_lies_within_the_masks_and_the_count_of_units_is_exact():
    answers: Counter[str] = Counter()

    @settings(max_examples=150)
    @given(
        shapes=SHAPES,
        share=st.floats(0, 0.95),
        levels=st.integers(1, 6),
        kept=st.floats(0.05, 1),
        unit=st.sampled_from(UNITS),
        scope=st.sampled_from(SCOPES),
        by_pattern=st.booleans(),
        special=st.sampled_from([0.0, float("inf"), float("-inf"), -3.0]),
        seed=st.integers(0, 10**6),
    )
    def law(shapes, share, levels, kept, unit, scope, by_pattern, special, seed):
        source = torch.Generator().manual_seed(seed)
        scores = {f"l{i}": torch.randint(levels, shape, generator=source).float() for i, shape in enumerate(shapes)}
        scores["l0"].view(-1)[0] = special
        masks = lab.Masks({name: torch.rand(s.shape, generator=source) < kept for name, s in scores.items()})
        sparsity: Any = {"*": share} if by_pattern else share
        refusal = why_refused(masks, share, scope, unit, by_pattern)
        answers[refusal] += 1
        with pytest.raises(lab.ConfigError, match=refusal) if refusal else nullcontext():
            chosen = lab.keep_top(scores, sparsity, scope=scope, unit=unit, masks=masks, clamp=True)
        if refusal:
            return
        assert (chosen & ~masks).kept == 0
        alive, total = units(masks, unit)
        if not by_pattern:
            assert units(chosen, unit)[0] == min(alive, total - int(total * share + 0.5))
        again = lab.keep_top(scores, sparsity, scope=scope, unit=unit, masks=chosen, clamp=True)
        assert again.fingerprint == chosen.fingerprint

    law()
    assert answers.keys() == {"", "would cut all", "cannot be spread", "take another"}
    assert answers[""] > answers.total() / 2  # otherwise little was held


@pytest.mark.parametrize(
    ("unit", "scope", "criterion"),
    [case for case in product(UNITS, SCOPES, ["magnitude", "filter_l1", "taylor"]) if case[:2] != ("channel", "row")],
)
def test_a_pruned_run_stays_within_its_masks_whatever_prunes_it_next(photos, unit, scope, criterion):
    pruned = lab.fit(convs(), photos, lab.methods.OneShot(0.8), epochs=1, **QUIET)
    alive, total = units(pruned.masks, unit)
    sparsity = 1 - alive / total / 2  # what is pruned already cannot be asked for again
    _, masks = lab.prune(pruned, sparsity, criterion, unit=unit, scope=scope, data=photos, collapse="allow")
    assert (masks & ~pruned.masks).kept == 0
    for method in (
        lab.methods.OneShot(sparsity, criterion, scope=scope, unit=unit),
        lab.methods.Gradual(lab.Cubic(sparsity), criterion, scope, unit, cuts=2, end=1.0),
        lab.methods.Gradual(lab.Cubic(sparsity), criterion, scope, unit, cuts=2, end=1.0, reactivate=True),
    ):
        again = lab.fit(pruned, photos, method, epochs=1, **QUIET)
        assert (again.masks & ~pruned.masks).kept == 0
        assert all(bool((w[~again.masks[n]] == 0).all()) for n, w in again.weights.items())


@dataclass
class Looks(lab.Method):
    """Scores and evaluates at every moment, after a cut and a step that moved the pruned weights."""

    criterion: str
    moments: list[str] = field(init=False)

    def on_start(self, run: lab.Run) -> None:
        self.moments = []
        run.cut("magnitude", 0.7)

    def on_grad(self, run: lab.Run) -> None:
        self.look(run, "grad")

    def on_step(self, run: lab.Run) -> None:
        self.look(run, "step")

    def on_epoch(self, run: lab.Run) -> None:
        self.look(run, "epoch")

    def look(self, run: lab.Run, moment: str) -> None:
        if moment in self.moments:
            return
        self.moments.append(moment)
        dense = {name: weight.detach().clone() for name, weight in run.weights.items()}
        seen = run.score(self.criterion), run.evaluate("val")
        assert all(torch.equal(weight, dense[name]) for name, weight in run.weights.items())  # looking changes nothing
        run.masks.apply_({name: weight.data for name, weight in run.weights.items()})
        masked = run.score(self.criterion), run.evaluate("val")
        for name, weight in run.weights.items():
            weight.data.copy_(dense[name])
        assert all(torch.equal(seen[0][name], masked[0][name]) for name in seen[0])
        assert seen[1] == masked[1]


@pytest.mark.parametrize("criterion", [name for name in BY_NAME if name not in ("obd", "random")])
def test_whatever_scores_or_evaluates_sees_the_masked_network(photos, criterion):
    looked = lab.fit(convs(), photos, Looks(criterion), epochs=1, lr=0.05, **QUIET)[Looks]
    assert looked.moments == ["grad", "step", "epoch"]


@pytest.mark.parametrize("criterion", ["taylor", "snip", "synflow"])
def test_lab_prune_scores_the_masked_network(photos, criterion):
    model = convs()
    masks = lab.prune(model, 0.6, "random", seed=1)[1]
    masked = copy.deepcopy(model)
    masks.apply_({name: w.data for name, w in lab.prunable(masked).items()})
    by_masks = lab.prune(model, 0.8, criterion, data=photos, masks=masks)[1]
    assert by_masks.fingerprint == lab.prune(masked, 0.8, criterion, data=photos, masks=masks)[1].fingerprint


KINDS: dict[str, tuple[nn.Module, str]] = {
    "linear": (nn.Linear(6, 5), "weight"),
    "conv": (nn.Conv2d(3, 4, 3, groups=1), "weight"),
    "transposed": (nn.ConvTranspose2d(3, 4, 3), "weight"),
    "norm": (nn.BatchNorm1d(6), "weight"),
    "recurrent": (nn.GRU(4, 3), "weight_hh_l0"),
    "bias": (nn.Linear(6, 5), "bias"),
}


class Holder(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.other = inner, nn.Linear(6, 6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [True, False])
def test_masks_go_through_torch_s_own_pruning_and_back(kind, whole):
    inner, name = KINDS[kind]
    model = Holder(copy.deepcopy(inner))
    pruned = copy.deepcopy(model)
    torch_prune.random_unstructured(pruned.inner, name, amount=0.5)
    if whole:
        torch_prune.l1_unstructured(pruned.other, "weight", amount=0.3)
    state = {k: v.clone() for k, v in pruned.state_dict().items()}
    plain, masks = lab.Masks.from_torch(state)
    assert masks.keys() == {f"inner.{name}"} | ({"other.weight"} if whole else set())
    assert plain.keys() == model.state_dict().keys()
    loaded = copy.deepcopy(model)
    loaded.load_state_dict(plain)
    again = masks.to_torch(copy.deepcopy(loaded))
    for held in (again, pruned):
        torch_prune.remove(held.inner, name)
        if whole:
            torch_prune.remove(held.other, "weight")
    theirs = pruned.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in again.state_dict().items())
    assert all(torch.equal(plain[key], tensor) for key, tensor in theirs.items())


def test_a_checkpoint_in_which_one_layer_is_pruned_trains_on(photos):
    model = convs()
    torch_prune.l1_unstructured(model[0], "weight", amount=0.5)
    plain, masks = lab.Masks.from_torch(model.state_dict())
    fresh = convs()
    fresh.load_state_dict(plain)
    run = lab.fit(fresh, photos, epochs=1, masks=masks, **QUIET)
    assert torch.equal(run.masks["0.weight"], masks["0.weight"])
    assert run.masks["6.weight"].all()
    exported: Any = run.masks.to_torch(run.model)
    torch_prune.remove(exported[0], "weight")
    assert bool((exported[0].weight[~masks["0.weight"]] == 0).all())
    with pytest.raises(lab.ConfigError, match=r"name 0\.weights"):
        lab.fit(fresh, photos, epochs=0, masks={"0.weights": masks["0.weight"]}, **QUIET)


def test_names_that_end_alike_are_no_masks():
    state = {"a.gamma": torch.ones(2), "a.weig_orig": torch.ones(2), "a.weig_mask": torch.tensor([1.0, 0.0])}
    plain, masks = lab.Masks.from_torch(state)
    assert (plain.keys(), masks.keys()) == ({"a.gamma", "a.weig"}, {"a.weig"})
    with pytest.raises(lab.ConfigError, match="0 and 1"):
        lab.Masks.from_torch({"w_orig": torch.ones(2), "w_mask": torch.tensor([1.0, 0.5])})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_numbers_of_any_precision_are_ranked_right(dtype):
    weight = torch.tensor([[300.0, 300.0], [299.0, 299.0], [1.0, 2.0]]).to(dtype)
    kept = lab.masks.largest({"w": weight}, 0.6, unit="channel")["w"]
    assert kept.any(1).tolist() == [True, False, False]


def test_a_channel_of_both_infinities_is_refused_and_not_chosen_by_chance():
    scores = {"w": torch.tensor([[float("inf"), float("-inf")], [1.0, 2.0]])}
    with pytest.raises(lab.ConfigError, match="NaN for w"):
        lab.keep_top(scores, 0.5, unit="channel")


def test_masks_of_some_layers_hold_in_prune_as_they_do_in_fit(photos):
    model = convs()
    masks = lab.Masks({"0.weight": torch.rand(6, 2, 3, 3) < 0.5})
    pruned, chosen = lab.prune(model, 0.6, masks=masks)
    assert chosen.keys() == lab.prunable(model).keys()
    assert (lab.Masks({"0.weight": chosen["0.weight"]}) & ~masks).kept == 0
    assert chosen.kept == lab.prune(model, 0.6)[1].kept
    assert bool((lab.prunable(pruned)["0.weight"][~masks["0.weight"]] == 0).all())
    foreign = {"0.bias": torch.zeros(6, dtype=torch.bool)}
    for call in (lambda: lab.prune(model, 0.6, masks=foreign), lambda: lab.fit(model, photos, epochs=0, masks=foreign)):
        with pytest.raises(lab.ConfigError, match=r"name 0\.bias"):
            call()


@pytest.mark.parametrize("sparsity", [Fraction(1, 2), {"*": Fraction(1, 2)}, Fraction(9, 10)])
def test_a_sparsity_may_be_an_exact_fraction(sparsity):
    scores = {"w": torch.arange(10.0)}
    assert lab.keep_top(scores, sparsity).kept == (1 if sparsity == Fraction(9, 10) else 5)
    with pytest.raises(lab.ConfigError, match=r"sparsity 0\.[59] asks to keep"):
        lab.keep_top(scores, sparsity, masks=lab.Masks({"w": torch.zeros(10, dtype=torch.bool)}))
    with pytest.raises(lab.ConfigError, match=r"sparsity 0\.[59] would cut all 1"):
        lab.keep_top({"w": torch.ones(1)}, sparsity)
    with pytest.raises(lab.ConfigError, match=r"initial=0\.95 is above"):
        lab.Cubic(sparsity, Fraction(19, 20))  # pyright: ignore[reportArgumentType]
    assert lab.Cubic(sparsity)._repr_html_()


def test_a_bias_in_scope_has_noise_and_a_variance_of_its_own(photos):
    method = lab.methods.VariationalDropout(initial=-2.0)
    run = lab.fit(convs(), photos, method, epochs=1, biases=True, lr=0.05, **QUIET)
    learned = run[lab.methods.VariationalDropout].log_variances["0.bias"]
    assert learned.shape == (6,)
    assert len(learned.unique()) > 1


@pytest.mark.parametrize(
    "method", [lab.methods.SynFlow(0.5, rounds=2), *(lab.methods.OneShot(0.5, c) for c in BY_NAME)]
)
def test_a_frozen_weight_is_scored_or_named(photos, method):
    model = convs()
    model[0].requires_grad_(False)
    try:
        run = lab.fit(model, photos, method, epochs=1, **QUIET)
    except lab.ConfigError as error:
        assert "no score for 0.weight" in str(error)  # noqa: PT017 (both answers are right)
    else:
        assert run.masks.kept == run.masks.total - run.masks.total // 2
    skipped = lab.fit(model, photos, method, epochs=1, skip="0.weight", **QUIET)
    assert skipped.masks.kept_by_layer.keys() == {"3.weight", "6.weight"}


@pytest.mark.parametrize("method", [lab.methods.DynamicSurgery(0.9), lab.methods.DynamicSurgery(crate=0.5)])
def test_a_layer_that_collapsed_before_stays_so_under_surgery(photos, method):
    masks = {"3.weight": torch.zeros(4, 3, 3, 3, dtype=torch.bool)}
    run = lab.fit(convs(), photos, method, epochs=2, masks=masks, **QUIET)
    assert run.masks.collapsed == ["3.weight"]
    assert run.masks["0.weight"].any()

"""Exact counts, ties by position, nothing revived: four-number cases worked by hand, invariants on random scores."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab.masks import count, spread


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def bits(mask: torch.Tensor) -> list[int]:
    return mask.int().flatten().tolist()


def test_global_ranks_all_layers_together():
    masks = lab.keep_top({"a": t(1, 9, 2, 8), "b": t(3, 4)}, 0.5)
    assert bits(masks["a"]) == [0, 1, 0, 1]
    assert bits(masks["b"]) == [0, 1]


def test_layer_scope_gives_every_layer_the_same_share():
    masks = lab.keep_top({"a": t(1, 9, 2, 8), "b": t(30, 40)}, 0.5, scope="layer")
    assert bits(masks["a"]) == [0, 1, 0, 1]
    assert bits(masks["b"]) == [0, 1]


def test_ties_are_broken_by_position():
    assert bits(lab.keep_top({"a": t(5, 5, 5, 5)}, 0.5)["a"]) == [1, 1, 0, 0]
    assert bits(lab.keep_top({"a": t(5, 7, 5, 5)}, 0.5)["a"]) == [1, 1, 0, 0]
    both = lab.keep_top({"a": t(1, 1), "b": t(1, 1)}, 0.25)
    assert (bits(both["a"]), bits(both["b"])) == ([1, 1], [1, 0])


def test_ties_do_not_depend_on_the_memory_format():
    score = torch.randint(3, (4, 3, 2, 2), generator=torch.Generator().manual_seed(0)).float()
    plain = lab.keep_top({"a": score}, 0.37)
    last = lab.keep_top({"a": score.to(memory_format=torch.channels_last)}, 0.37)
    assert torch.equal(plain["a"], last["a"])


def test_erk_by_hand():
    # (4, 4) and (2, 8): sums of dimensions 8 and 10, so 16 kept weights are split 7.11 to 8.89 -> 7 and 9
    scores = {"a": torch.arange(16.0).view(4, 4), "b": torch.arange(16.0).view(2, 8)}
    assert lab.keep_top(scores, 0.5, scope="erk").kept_by_layer == {"a": 7, "b": 9}


def test_erk_gives_a_full_layer_no_more_than_it_has():
    scores = {"small": torch.rand(2, 2), "large": torch.rand(100, 100)}
    kept = lab.keep_top(scores, 0.5, scope="erk").kept_by_layer
    assert kept == {"small": 4, "large": 10004 - 5002 - 4}


def test_targets_by_pattern_leave_the_rest_dense():
    scores = {"conv1.weight": torch.rand(10), "conv2.weight": torch.rand(10), "fc.weight": torch.rand(10)}
    kept = lab.keep_top(scores, {"conv*": 0.5, "conv2.weight": 0.8}).kept_by_layer
    assert kept == {"conv1.weight": 5, "conv2.weight": 2, "fc.weight": 10}


def test_channels_and_kernels_are_cut_whole():
    score = torch.rand(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    channels = lab.keep_top({"a": score}, 0.5, unit="channel")["a"]
    assert channels.flatten(1).float().mean(1).tolist().count(1.0) == 3
    best = set(score.mean((1, 2, 3)).topk(3).indices.tolist())
    assert {i for i in range(6) if channels[i].all()} == best
    kernels = lab.keep_top({"a": score}, 0.5, unit="kernel")["a"].flatten(2)
    assert (kernels.all(-1) == kernels.any(-1)).all()
    assert int(kernels.all(-1).sum()) == 12


def test_a_cut_never_revives():
    first = lab.keep_top({"a": t(1, 2, 3, 4)}, 0.5)
    second = lab.keep_top({"a": t(9, 8, 1, 2)}, 0.75, masks=first)
    assert bits(second["a"]) == [0, 0, 0, 1]
    with pytest.raises(lab.ConfigError, match="never revived"):
        lab.keep_top({"a": t(1, 2, 3, 4)}, 0.25, masks=first)


def test_grow_brings_back_the_best_of_the_dead():
    masks = lab.Masks(a=torch.tensor([True, False, False, False]), b=torch.tensor([False, True]))
    grown = lab.grow(masks, {"a": t(9, 1, 5, 2), "b": t(4, 9)}, 2)
    assert (bits(grown["a"]), bits(grown["b"])) == ([1, 0, 1, 0], [1, 1])
    assert bits(lab.grow(masks, {"a": t(9, 1, 5, 2), "b": t(4, 9)}, {"a": 1})["a"]) == [1, 0, 1, 0]
    with pytest.raises(lab.ConfigError, match="between 0 and 4"):
        lab.grow(masks, {"a": t(9, 1, 5, 2), "b": t(4, 9)}, 5)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    share=st.floats(0, 0.999),
    levels=st.integers(1, 5),
    scope=st.sampled_from(["global", "layer", "erk", "row"]),
    seed=st.integers(0, 10**6),
)
def test_the_count_is_exact_and_masks_only_shrink(sizes, share, levels, scope, seed):
    source = torch.Generator().manual_seed(seed)
    scores = {f"l{i}": torch.randint(levels, (n, 2), generator=source).float() for i, n in enumerate(sizes)}
    total = 2 * sum(sizes)
    keep = total - int(total * share + 0.5)
    if keep < (len(sizes) if scope != "global" else 1):
        with pytest.raises(lab.ConfigError):
            lab.keep_top(scores, share, scope=scope)
        return
    masks = lab.keep_top(scores, share, scope=scope)
    assert masks.kept == keep
    for name, mask in masks.items():
        if mask.any() and not mask.all() and scope == "layer":
            assert scores[name][mask].min() >= scores[name][~mask].max()
    tighter = share + (1 - share) * 0.5
    if total - int(total * tighter + 0.5) >= len(sizes):
        again = lab.keep_top(scores, tighter, scope=scope, masks=masks)
        assert all((again[n] <= masks[n]).all() for n in masks)
        assert again.kept == total - int(total * tighter + 0.5)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_spread_keeps_sum_and_bounds(data):
    caps = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=8))
    quotas = data.draw(st.lists(st.floats(0, 100), min_size=len(caps), max_size=len(caps)))
    total = data.draw(st.integers(len(caps), sum(caps)))
    counts = spread(total, quotas, caps, least=1)
    assert sum(counts) == total
    assert all(1 <= n <= cap for n, cap in zip(counts, caps, strict=True))


def test_spread_gives_what_is_above_a_cap_to_the_others():
    assert spread(10, [8, 1, 1], [4, 10, 10]) == [4, 3, 3]


def test_count_rounds_half_up_and_refuses_what_is_no_fraction():
    assert (count(10, 0.25), count(10, 0.0), count(430_500, 1 - 1 / 167)) == (3, 0, 427_922)
    with pytest.raises(lab.ConfigError, match=r"Did you mean 0\.95"):
        count(10, 95)
    with pytest.raises(lab.ConfigError, match=r"share=1\.5; expected"):
        count(10, 1.5)
    with pytest.raises(lab.ConfigError, match="all 10"):
        count(10, 0.99)


def test_more_than_two_to_the_24_entries():
    masks = lab.keep_top({"a": torch.arange(2**24 + 9, dtype=torch.float32)}, 0.5)
    assert masks.kept == 2**24 + 9 - count(2**24 + 9, 0.5)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(4)


def test_scope_is_weights_by_default_and_ties_count_once():
    assert list(lab.prunable(Tied())) == ["a.weight"]
    assert list(lab.prunable(Tied(), biases=True)) == ["a.weight", "a.bias", "b.bias"]
    assert list(lab.prunable(Tied(), norms=True)) == ["a.weight", "norm.weight"]
    assert list(lab.prunable(Tied(), biases=True, norms=True, skip=["b.*"])) == ["a.bias", "norm.weight", "norm.bias"]


def test_a_parametrized_weight_keeps_its_name():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    parametrizations.orthogonal(model[1])
    weights = lab.prunable(model)
    assert list(weights) == ["0.weight", "1.weight"]
    assert weights["1.weight"] is dict(model.named_parameters())["1.parametrizations.weight.original"]


def test_errors_of_scope_name_what_is_there():
    with pytest.raises(lab.ConfigError, match=r"'nope\*' matches no parameter .*the model has a\.weight"):
        lab.prunable(Tied(), skip=["nope*"])
    with pytest.raises(lab.ConfigError, match="nothing to prune"):
        lab.keep_top({}, 0.5)
    with pytest.raises(lab.ConfigError, match="'conv9' matches no prunable layer"):
        lab.keep_top({"a": t(1, 2)}, {"conv9": 0.5})
    with pytest.raises(lab.ConfigError, match="scope='Global'; expected one of 'global'"):
        lab.keep_top({"a": t(1, 2)}, 0.5, scope="Global")  # pyright: ignore[reportArgumentType]
    with pytest.raises(lab.ConfigError, match="unit='filter'; expected one of 'weight'"):
        lab.keep_top({"a": t(1, 2)}, 0.5, unit="filter")  # pyright: ignore[reportArgumentType]
    with pytest.raises(lab.ConfigError, match="NaN for a"):
        lab.keep_top({"a": t(1, float("nan"))}, 0.5)


def test_masks_of_another_model_are_refused():
    weights = lab.prunable(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(lab.ConfigError, match=r"name 1\.weight"):
        lab.Masks({"1.weight": torch.ones(2, 3, dtype=torch.bool)}).check(weights)
    with pytest.raises(lab.ConfigError, match=r"lack 0\.weight"):
        lab.Masks().check(weights)
    with pytest.raises(lab.ConfigError, match=r"\(3, 2\); expected torch.bool \(2, 3\)"):
        lab.Masks({"0.weight": torch.ones(3, 2, dtype=torch.bool)}).check(weights)


def test_apply_leaves_clean_zeros_even_where_a_weight_is_infinite():
    weight = t(-1, float("inf"), 3)
    lab.Masks(a=torch.tensor([False, False, True])).apply_({"a": weight})
    assert weight.view(torch.int32).tolist()[:2] == [0, 0]  # +0, not -0 or NaN
    assert weight[2] == 3


def test_the_way_through_torch_prune_and_back():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    pruned, masks = lab.prune(model, 0.5)
    theirs = masks.to_torch(copy.deepcopy(model))
    state = theirs.state_dict()
    assert {"0.weight_orig", "0.weight_mask"} <= state.keys()
    plain, again = lab.Masks.from_torch(state)
    assert all(torch.equal(again[n], masks[n]) for n in masks)
    back = copy.deepcopy(model)
    back.load_state_dict(plain)
    x = torch.rand(3, 6)
    assert torch.equal(back(x), theirs(x))
    assert torch.equal(back(x), pruned(x))
    with pytest.raises(lab.ConfigError, match="from_torch"):
        lab.prunable(theirs)
    with pytest.raises(lab.ConfigError, match="not saved under torch"):
        lab.Masks.from_torch(model.state_dict())


def test_torch_prune_itself_cuts_the_same_weights():
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
    ours = lab.prune(model, 0.6)[1]
    theirs = copy.deepcopy(model)
    layers = [(theirs[0], "weight"), (theirs[1], "weight")]
    torch_prune.global_unstructured(layers, pruning_method=torch_prune.L1Unstructured, amount=0.6)
    for i in (0, 1):
        assert torch.equal(ours[f"{i}.weight"], theirs.get_buffer(f"{i}.weight_mask").bool())


def test_prune_leaves_the_model_and_takes_what_keep_top_takes():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    before = copy.deepcopy(model.state_dict())
    pruned, masks = lab.prune(model, 0.5, "random", scope="layer", skip="2.*", seed=3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert list(masks) == ["0.weight"]
    assert int((pruned.get_parameter("0.weight") == 0).sum()) == 18
    assert (
        lab.prune(model, 0.5, "random", seed=3)[1].fingerprint == lab.prune(model, 0.5, "random", seed=3)[1].fingerprint
    )
    assert (
        lab.prune(model, 0.5, "random", seed=3)[1].fingerprint != lab.prune(model, 0.5, "random", seed=4)[1].fingerprint
    )


def test_prune_goes_on_from_a_run_and_shuffles_what_gradients_are_taken_on():
    source = torch.Generator().manual_seed(0)
    y = torch.arange(300) // 150  # sorted by class
    x = torch.randn(300, 6, generator=source) + y[:, None]
    data = lab.wrap(TensorDataset(x, y), TensorDataset(x[::7], y[::7]), val=0.2)
    run = lab.fit(nn.Sequential(nn.Linear(6, 2)), data, lab.methods.OneShot(0.5), epochs=1, progress=False)
    classes = []

    def spy(model, batches):
        classes.extend(next(iter(batches))[1].tolist())
        return lab.criteria.magnitude(model)

    _, masks = lab.prune(run, 0.75, spy, data=data)
    assert set(classes) == {0, 1}
    assert (masks["0.weight"] <= run.masks["0.weight"]).all()
    assert masks.kept == 3
    with pytest.raises(lab.ConfigError, match=r"gave no score for 0\.weight"):
        lab.prune(run.model, 0.5, lambda model, batches: {})


def test_the_layer_table_counts_by_hand():
    masks = lab.Masks(a=torch.tensor([[True, False], [False, False]]), b=torch.tensor([False, False]))
    table = masks.table()
    assert table["kept"].tolist() == [1, 0, 1]
    assert table["total"].tolist() == [4, 2, 6]
    assert masks.collapsed == ["b"]
    assert masks.sparsity == pytest.approx(5 / 6)
    assert "83.33%" in masks._repr_html_()
    assert "1 of 6 kept" in repr(masks)

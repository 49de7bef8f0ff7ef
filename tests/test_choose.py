"""The choice of weights beside slow and plain references: sorting, and shares found by bisection."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import recount
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pruninglab as lab
from pruninglab.masks import (
    choose,
    count,
    grow,
    keep_top,
    keeping,
    largest,
    largest_per_channel,
    n_of_m,
    project,
    scattered,
    spread,
    threshold,
    units,
)

NUMBERS = st.sampled_from([0.0, 1.0, 2.0, -1.0, 0.5, math.inf, -math.inf])


@given(scored=st.lists(st.tuples(NUMBERS, st.booleans()), min_size=1, max_size=12), keep=st.integers(0, 13))
def test_the_highest_of_the_alive_are_those_of_a_stable_sort(scored, keep):
    scores, alive = torch.tensor([s for s, _ in scored]), torch.tensor([a for _, a in scored])
    assert torch.equal(choose.keep_highest(scores, alive, keep), recount.highest(scores, alive, keep))


@given(
    rows=st.lists(st.lists(st.tuples(NUMBERS, st.booleans()), min_size=3, max_size=3), min_size=1, max_size=5),
    share=st.floats(0, 1),
)
def test_rows_keep_equally_many_as_far_as_they_have_them(rows, share):
    scores = torch.tensor([[s for s, _ in row] for row in rows])
    alive = torch.tensor([[a for _, a in row] for row in rows])
    keep = round(share * int(alive.sum()))
    found = choose.keep_in_rows(scores.flatten(), alive.flatten(), keep, len(rows)).view(alive.shape)
    counts = found.sum(1).tolist()
    caps, wanted = alive.sum(1).tolist(), [0] * len(rows)
    while sum(wanted) < keep:  # one more of each row that has one, in turn
        for i, cap in enumerate(caps):
            wanted[i] += wanted[i] < cap and sum(wanted) < keep
    assert counts == wanted
    for row, own, mask, n in zip(scores, alive, found, counts, strict=True):
        assert torch.equal(mask, recount.highest(row, own, n))


def test_rows_by_hand():
    scores = {"a": torch.tensor([[1.0, 2, 3, 4], [40, 30, 20, 10]]), "b": torch.tensor([5.0, 6])}
    kept = keep_top(scores, 0.5, scope="row")
    assert kept["a"].tolist() == [[False, False, True, True], [True, True, False, False]]
    assert kept["b"].tolist() == [False, True]
    assert keep_top(scores, {"a": 0.625}, scope="row")["a"].sum(1).tolist() == [2, 1]
    with pytest.raises(lab.ConfigError, match="compares within a channel"):
        keep_top(scores, 0.5, scope="row", unit="channel")


@pytest.mark.parametrize("kind", ["normal", "few values", "mostly 0", "all alike", "striped", "infinite"])
@pytest.mark.parametrize("part", ["all", "some", "few"])
def test_the_highest_of_many_are_those_of_a_stable_sort(kind, part, monkeypatch):
    """Above the sizes at which scores are bracketed by a sample, taken chunk by chunk, and left in their layers."""
    for name, size in {"FEW": 500, "CHUNK": 1000, "JOINED": 2000}.items():
        monkeypatch.setattr(threshold, name, size)
    source = torch.Generator().manual_seed(0)
    sizes = (2999, 1, 4000, 1700)
    scores = torch.randn(sum(sizes), generator=source)
    if kind in ("few values", "mostly 0"):
        scores = scores.mul(2).round() if kind == "few values" else scores.clamp_min(1) - 1
    elif kind != "normal":
        scores = torch.zeros_like(scores) if kind == "all alike" else scores
        scores[::11] = math.inf if kind == "infinite" else 1.0
        scores[5::7] = -math.inf if kind == "infinite" else 0.0
    chance = {"all": 1.0, "some": 0.6, "few": 0.1}[part]
    alive = torch.rand(len(scores), generator=source) < chance
    held = int(alive.sum())
    for keep in (0, 1, 2, held // 100, held // 3, held // 2, held - 40, held - 1, held, held + 1):
        masks = [None] * len(sizes) if part == "all" else [*alive.split(sizes)]
        found = threshold.highest(scores.split(sizes), masks, keep)
        assert torch.equal(torch.cat(found), recount.highest(scores, alive, keep)), keep


def test_a_sample_that_misleads_costs_time_and_nothing_else(monkeypatch):
    monkeypatch.setattr(threshold, "FEW", 100)
    monkeypatch.setattr(threshold, "_bracket", lambda *_: (5.0, 6.0))
    scores, alive = torch.arange(1000.0).sin(), torch.ones(1000, dtype=torch.bool)
    assert torch.equal(choose.keep_highest(scores, alive, 333), recount.highest(scores, alive, 333))


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_a_sample_brackets_what_is_sought_and_little_else(part):
    source = torch.Generator().manual_seed(0)
    scores, alive = torch.randn(30_000, generator=source), torch.rand(30_000, generator=source) < part
    masks = [None, None] if part == 1 else [m.numpy() for m in alive.split(17_000)]
    rows = list(zip([s.numpy() for s in scores.split(17_000)], masks, strict=True))
    ordered = scores[alive].sort(descending=True).values
    for k in (1, 2, len(ordered) // 10, len(ordered) // 2, len(ordered) - 1):
        low, high = threshold._bracket(rows, k / len(ordered))
        assert threshold._between(rows, k, len(ordered)) == ordered[k - 1], k
        assert int(((low <= ordered) & (ordered <= high)).sum()) < len(ordered) / 5, k
    for k in range(1, 700):  # the bracket passes the end of the sample
        low, high = threshold._bracket(rows, k / len(ordered))
        assert low <= ordered[k - 1] <= high, k


class Elsewhere(Tensor):
    """A tensor that says it is on another device, where numpy cannot compare."""

    device = property(lambda self: torch.device("cuda", 0))  # pyright: ignore[reportAssignmentType]


def test_another_device_keeps_what_this_one_keeps():
    scores = [torch.tensor([1.0, 3.0, 2.0]), torch.tensor([3.0, 0.0, 3.0])]
    alive = [None, torch.tensor([True, True, False])]
    for keep in range(6):
        there = threshold.highest([score.as_subclass(Elsewhere) for score in scores], alive, keep)
        here = threshold.highest(scores, alive, keep)
        assert [mask.tolist() for mask in there] == [mask.tolist() for mask in here]
    assert threshold.highest([scores[0].as_subclass(Elsewhere)], [None], 1)[0].tolist() == [False, True, False]


def test_of_many_scores_a_sample_is_taken_first(monkeypatch):
    asked, between = [], threshold._between
    monkeypatch.setattr(threshold, "FEW", 100)
    monkeypatch.setattr(threshold, "_between", lambda *of: asked.append(of[2]) or between(*of))
    for size in (99, 100, 101, 150):
        assert int(choose.keep_highest(torch.rand(size), torch.ones(size, dtype=torch.bool), 40).sum()) == 40
    assert asked == [101, 150]


def by_bisection(total: int, quotas: list[float], floor: list[int], caps: list[int]) -> list[float]:
    """The shares in proportion to the quotas, held between the bounds, whose sum is the total."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        shares = [min(max(middle * q, f), c) for q, f, c in zip(quotas, floor, caps, strict=True)]
        low, high = (middle, high) if sum(shares) < total else (low, middle)
    return [min(max(high * q, f), c) for q, f, c in zip(quotas, floor, caps, strict=True)]


@settings(max_examples=200)
@given(
    layers=st.lists(st.tuples(st.sampled_from([1.0, 2.0, 3.5, 10.0]), st.integers(0, 9)), min_size=1, max_size=5),
    least=st.integers(0, 2),
    share=st.floats(0, 1),
)
def test_shares_are_proportional_between_their_bounds(layers, least, share):
    quotas, caps = [q for q, _ in layers], [c for _, c in layers]
    floor = [min(least, c) for c in caps]
    total = round(sum(floor) + share * (sum(caps) - sum(floor)))
    found = spread(total, quotas, caps, least)
    assert sum(found) == total
    assert all(f <= n <= c for f, n, c in zip(floor, found, caps, strict=True))
    assert all(abs(n - s) < 1 + 1e-6 for n, s in zip(found, by_bisection(total, quotas, floor, caps), strict=True))


@pytest.mark.parametrize(
    ("total", "quotas", "caps", "least", "expected"),
    [
        (10, [1, 1, 1], [2, 10, 10], 0, [2, 4, 4]),  # what one cannot hold goes to the others
        (10, [1, 1, 2], [9, 9, 9], 0, [3, 2, 5]),  # of equal remainders the first
        (3, [1, 1, 98], [9, 9, 9], 1, [1, 1, 1]),
        (4, [1, 1, 98], [9, 9, 9], 1, [1, 1, 2]),
        (4, [1, 1, 98], [9, 9, 9], 0, [0, 0, 4]),
        (5, [0, 0], [9, 9], 0, [3, 2]),  # without quotas as many each
        (5, [0, 1], [9, 3], 0, [2, 3]),
        (4, [0.25, 0.75], [9, 9], 0, [1, 3]),
        (7, [1, 2, 4], [0, 9, 9], 1, [0, 2, 5]),  # 2.33 and 4.67
        (39, [10, 2, 10, 2], [6, 11, 15, 27], 4, [6, 9, 15, 9]),  # a floor that a full layer makes needless
        (0, [1, 1], [3, 3], 0, [0, 0]),
        (6, [1, 1], [3, 3], 0, [3, 3]),
    ],
)
def test_shares_by_hand(total, quotas, caps, least, expected):
    assert spread(total, quotas, caps, least) == expected


@pytest.mark.parametrize(("total", "least"), [(7, 0), (1, 1)])
def test_what_cannot_be_spread_is_refused_with_the_bounds(total, least):
    with pytest.raises(
        lab.ConfigError, match=f"{total} cannot be spread over 2 layers that hold from {2 * least} to 6"
    ):
        spread(total, [1, 1], [3, 3], least)


@pytest.mark.parametrize(
    ("total", "share", "cut"), [(10, 0.25, 3), (10, 0.24, 2), (10, 0.949, 9), (1, 0.49, 0), (0, 0.5, 0), (3, 0.5, 2)]
)
def test_counts_round_halves_up(total, share, cut):
    assert count(total, share) == cut


@pytest.mark.parametrize(("total", "share"), [(10, 0.95), (1, 0.5), (2, 0.99)])
def test_a_count_that_leaves_nothing_is_refused(total, share):
    with pytest.raises(
        lab.ConfigError, match=f"would cut all {total}: the most that can be cut of them is {total - 1}"
    ):
        count(total, share)


@pytest.mark.parametrize("share", [-1e-9, 1.0, 1.5, 95, 100, math.nan, math.inf, "0.5", None, False])
def test_what_is_no_share_is_refused(share):
    hint = {1.5: r"mean 0\.015\?$", 95: r"mean 0\.95\?$"}.get(share, r"at least 0 and below 1[^?]*$")
    for asked in (share, {"*": share}):
        with pytest.raises(lab.ConfigError, match=hint):
            choose.check_sparsity(asked)


def test_a_dict_sets_each_layer_and_the_last_pattern_that_matches_counts():
    scores = {name: torch.arange(10.0) for name in ("a", "b", "c")}
    kept = keep_top(scores, {"*": 0.5, "a": 0.8, "b": 0.1}).kept_by_layer
    assert kept == {"a": 2, "b": 9, "c": 5}
    assert keep_top(scores, {"a": 0.3}).kept_by_layer == {"a": 7, "b": 10, "c": 10}
    within = lab.Masks({name: torch.arange(10) < 4 for name in scores})
    assert keep_top(scores, {"a": 0.7}, masks=within).kept_by_layer == {"a": 3, "b": 4, "c": 4}
    with pytest.raises(lab.ConfigError, match=r"^a: sparsity 0.5 asks to keep 5, but only 4 are left"):
        keep_top(scores, {"a": 0.5}, masks=within)
    assert keep_top(scores, {"a": 0.5}, masks=within, clamp=True).kept_by_layer == {"a": 4, "b": 4, "c": 4}
    with pytest.raises(lab.ConfigError, match=r"'d' matches no prunable layer; the model has a, b, c"):
        keep_top(scores, {"*": 0.5, "d": 0.5})


def test_to_keep_all_that_is_left_is_no_revival():
    scores, within = {"w": torch.arange(4.0)}, lab.Masks({"w": torch.tensor([True, True, False, False])})
    assert keep_top(scores, 0.5, masks=within).fingerprint == within.fingerprint
    with pytest.raises(lab.ConfigError, match="asks to keep 3 of 4, but only 2 are left"):
        keep_top(scores, 0.25, masks=within)
    assert keep_top(scores, 0.25, masks=within, clamp=True).fingerprint == within.fingerprint


def test_erk_counts_dimensions_for_weights_and_rows_for_channels():
    """By hand: (2 + 8) : (4 + 4) of 32 weights; rows 2 : 4 of 6 channels; a bias has its length."""
    scores = {"a": torch.rand(2, 8), "b": torch.rand(4, 4)}
    assert keep_top(scores, 0.4375, scope="erk").kept_by_layer == {"a": 10, "b": 8}
    by_channel = keep_top(scores, 0.5, scope="erk", unit="channel")
    assert by_channel.kept_by_layer == {"a": 8, "b": 8}
    with_bias = {"a": torch.rand(2, 6), "bias": torch.rand(8)}
    assert keep_top(with_bias, 0.6, scope="erk").kept_by_layer == {"a": 4, "bias": 4}
    with_scale = {"scale": torch.tensor(1.0), "bias": torch.rand(3)}
    assert keep_top(with_scale, 0.5, scope="erk").kept_by_layer == {"scale": 1, "bias": 1}


@pytest.mark.parametrize(("unit", "kept"), [("weight", 6), ("kernel", 1), ("channel", 1)])
def test_a_share_counts_units(unit, kept):
    scores = {"w": torch.arange(24.0).view(2, 3, 2, 2)}
    masks = keep_top(scores, {"weight": 0.75, "kernel": 5 / 6, "channel": 0.5}[unit], unit=unit)
    assert recount.alive(masks["w"], unit).sum() == kept
    assert masks["w"].flatten()[-1]


def test_units_are_ranked_by_their_mean_in_double_where_scores_are():
    """Channels of sums 2^24 and 2^24 + 1 differ in doubles alone; a single entry cannot outweigh the mean."""
    scores = torch.tensor([[2.0**24, 1.0], [2.0**24, 0.0]], dtype=torch.float64).flip(0)
    assert keep_top({"w": scores}, 0.5, unit="channel")["w"].tolist() == [[False, False], [True, True]]
    peak = torch.tensor([[3.0, 0.0], [2.0, 2.0]])
    assert keep_top({"w": peak}, 0.5, unit="channel")["w"].tolist() == [[False, False], [True, True]]


def test_grown_weights_are_the_highest_of_the_dead():
    masks = lab.Masks(
        {"a": torch.tensor([True, False, False, True]), "b": torch.tensor([[False, True], [False, False]])}
    )
    scores = {"a": torch.tensor([9.0, 1.0, 3.0, 9.0]), "b": torch.tensor([[2.0, 9.0], [4.0, 3.0]])}
    every = grow(masks, scores, 2)
    assert every["a"].tolist() == [True, False, True, True]  # of the two threes the first
    assert every["b"].tolist() == [[False, True], [True, False]]
    each = grow(masks, scores, {"a": 1})
    assert each["a"].tolist() == [True, False, True, True]
    assert torch.equal(each["b"], masks["b"])
    only = grow(masks, {"b": scores["b"]}, 3)
    assert torch.equal(only["a"], masks["a"])
    assert only["b"].all()
    assert grow(masks, scores, 0).fingerprint == masks.fingerprint
    for counts, most in ((6, 5), ({"a": 3}, 2)):
        with pytest.raises(lab.ConfigError, match=f"between 0 and {most} are pruned here"):
            grow(masks, scores, counts)


@pytest.mark.parametrize("unit", ["weight", "kernel", "channel"])
def test_scattered_masks_move_whole_units_and_follow_their_seed(unit):
    source = torch.Generator().manual_seed(0)
    scores = {"a": torch.rand(6, 5, 3, 3, generator=source), "b": torch.rand(8, 4, generator=source)}
    masks = keep_top(scores, 0.5, unit=unit)
    moved = scattered(masks, 3, unit)
    assert moved.kept_by_layer == masks.kept_by_layer
    for name, mask in masks.items():
        assert int(recount.alive(moved[name], unit).sum()) == int(recount.alive(mask, unit).sum())
        assert moved[name].shape == mask.shape
    prints = [scattered(masks, seed, unit).fingerprint for seed in (3, 3, 4)]
    assert prints[0] == prints[1] == moved.fingerprint != prints[2]


def test_a_choice_without_scores_or_by_unknown_words_is_refused():
    scores = {"w": torch.ones(2, 2)}
    wrong: Any
    for wrong, match in (
        ({"unit": "row"}, "unit='row'; expected one of 'weight'"),
        ({"scope": "all"}, "scope='all'; expected one of 'global'"),
    ):
        with pytest.raises(lab.ConfigError, match=match):
            keep_top(scores, 0.5, **wrong)
    with pytest.raises(lab.ConfigError, match="nothing to prune"):
        keep_top({}, 0.5)
    with pytest.raises(lab.ConfigError, match="NaN for w"):
        keep_top({"w": torch.tensor([1.0, math.nan])}, 0.5)


def test_all_layers_are_ranked_in_their_order():
    scores = {name: torch.ones(2) for name in "abc"}
    kept = [keep_top(scores, share).kept_by_layer for share in (1 / 6, 0.5, 5 / 6)]
    assert [tuple(k.values()) for k in kept] == [(2, 2, 1), (2, 1, 0), (1, 0, 0)]
    assert all(a != b for a, b in itertools.pairwise(kept))


# ----------------------------------------------------------------------------------------- projections, and Masks


def test_a_projection_keeps_what_is_kept_and_nothing_else():
    weights = {"w": torch.tensor([3.0, -1.0, 2.0, math.nan], requires_grad=True)}
    masks = lab.Masks({"w": torch.tensor([True, True, False, False])})
    found = project(weights, masks)["w"]
    assert found.tolist() == [3.0, -1.0, 0.0, 0.0]
    assert not found.requires_grad


def test_the_projection_is_the_nearest_sparse_point():
    """No other choice of as many channels is nearer, in layers whose channels have other sizes."""
    source = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(3, 4, generator=source), "b": torch.randn(3, 2, 2, generator=source)}
    rows = [(name, i) for name, w in weights.items() for i in range(len(w))]

    def distance(kept):
        return sum(float(weights[name][i].square().sum()) for name, i in rows if (name, i) not in kept)

    chosen = largest(weights, 0.5, scope="global", unit="channel")
    kept = {(name, i) for name, i in rows if chosen[name][i].any()}
    assert len(kept) == 3
    assert distance(kept) == pytest.approx(min(distance(set(c)) for c in itertools.combinations(rows, 3)))
    by_kernel = largest({"b": weights["b"]}, 0.5, unit="kernel")["b"].any(-1)
    assert (
        by_kernel.flatten().tolist()
        == recount.highest(weights["b"].square().sum(-1).flatten(), torch.ones(6, dtype=torch.bool), 3).tolist()
    )


def test_the_largest_by_layer_and_within_masks():
    weights = {"a": torch.tensor([1.0, -9.0, 2.0, 3.0]), "b": torch.tensor([10.0, 20.0, 30.0, 40.0])}
    assert largest(weights, 0.5).kept_by_layer == {"a": 2, "b": 2}
    assert largest(weights, 0.5)["a"].tolist() == [False, True, False, True]
    assert largest(weights, 0.5, scope="global").kept_by_layer == {"a": 0, "b": 4}
    within = lab.Masks({"a": torch.tensor([True, False, True, False]), "b": torch.tensor([False, True, False, False])})
    held = largest(weights, 0.25, scope="global", masks=within)
    assert held.fingerprint == within.fingerprint


def test_every_output_channel_keeps_as_many():
    weights = {"w": torch.tensor([[1.0, -4.0, 2.0, 3.0], [40.0, 30.0, -20.0, 10.0]])}
    assert largest_per_channel(weights, 0.5)["w"].tolist() == [[False, True, False, True], [True, True, False, False]]


def test_n_of_m_by_hand():
    """Along the inputs, the first of equals, and n of the last few too."""
    weights = {"w": torch.tensor([[1.0, -5.0, 2.0, 2.0, 7.0, 7.0]]), "bias": torch.ones(3)}
    assert n_of_m(weights)["w"].int().tolist() == [[0, 1, 1, 0, 1, 1]]
    assert n_of_m(weights, 1, 4)["w"].int().tolist() == [[0, 1, 0, 0, 1, 0]]
    assert n_of_m(weights, 4, 4)["w"].all()
    assert n_of_m(weights)["bias"].all()
    kernels = torch.arange(16.0).view(1, 4, 2, 2)  # (out, in, k, k)
    assert n_of_m({"w": kernels})["w"].flatten(2).int().tolist() == [[[0] * 4, [0] * 4, [1] * 4, [1] * 4]]
    for n, m in ((5, 4), (9, 4)):
        with pytest.raises(lab.ConfigError, match=f"{n}:{m} cannot be"):
            n_of_m(weights, n, m)


@given(inputs=st.integers(1, 11), m=st.integers(1, 5), data=st.data())
def test_of_every_m_neighbours_the_n_largest_are_kept(inputs, m, data):
    n = data.draw(st.integers(1, m))
    row = torch.tensor(data.draw(st.lists(st.integers(-3, 3), min_size=inputs, max_size=inputs)))
    groups = [recount.highest(g.abs().float(), torch.ones(len(g), dtype=torch.bool), n) for g in row.split(m)]
    assert torch.equal(n_of_m({"w": row[None].float()}, n, m)["w"][0], torch.cat(groups))


def test_sparsities_that_leave_exactly_so_many():
    weights = {"a": torch.ones(7, 3), "b": torch.ones(1000)}
    for counts in ({"a": 1, "b": 999}, {"a": 21}, {"a": 10, "b": 1}):
        chosen = largest(weights, keeping(weights, counts)).kept_by_layer
        assert {name: chosen[name] for name in counts} == counts
    for counts, match in (
        ({"a": 0}, "whole numbers of at least 1"),
        ({"a": 22}, "between 1 and 21"),
        ({"c": 1}, "'c' is no prunable"),
    ):
        with pytest.raises(lab.ConfigError, match=match):
            keeping(weights, counts)


def test_numbers_of_masks_by_hand():
    masks = lab.Masks({"a": torch.tensor([[True, False], [False, False]]), "b": torch.tensor([False, False])})
    assert (masks.total, masks.kept, masks.kept_by_layer) == (6, 1, {"a": 1, "b": 0})
    assert (masks.density, masks.sparsity) == pytest.approx((1 / 6, 5 / 6))
    assert masks.collapsed == ["b"]
    assert (lab.Masks().density, lab.Masks().sparsity) == (1.0, 0.0)
    assert (~masks).kept_by_layer == {"a": 3, "b": 2}
    assert (masks | ~masks).kept == 6
    assert (masks & ~masks).kept == 0
    assert lab.masks.units(masks) == (1, 6)
    assert lab.masks.units(masks, "channel") == (1, 4)
    assert lab.masks.units(lab.Masks({"w": torch.eye(2, dtype=torch.bool)[:, :, None].expand(2, 2, 3)}), "kernel") == (
        2,
        4,
    )
    table = masks.table()
    assert table["layer"].tolist() == ["a", "b", "all"]
    assert table["shape"].tolist() == ["2 x 2", "2", ""]
    assert table["kept"].tolist() == [1, 0, 1]
    assert table["sparsity"].tolist() == pytest.approx([0.75, 1.0, 5 / 6])
    small = lab.Masks({"one": torch.tensor([True]), "none": torch.zeros(0, dtype=torch.bool)}).table()
    assert small["sparsity"].tolist() == [0.0, 0.0, 0.0]
    assert "Masks(2 layers, 1 of 6 kept, sparsity 0.8333)" in repr(masks)
    assert "83.33%" in masks._repr_html_()


def test_fingerprints_tell_names_and_bits_apart_but_not_the_order():
    a, b = torch.tensor([True, False]), torch.tensor([False, True])
    first = lab.Masks({"x": a, "y": b}).fingerprint
    assert len(first) == 16
    assert first == lab.Masks({"y": b, "x": a}).fingerprint
    assert first not in (lab.Masks({"x": b, "y": a}).fingerprint, lab.Masks({"x": a, "z": b}).fingerprint)
    assert lab.Masks({"x": b.flip(0)}).fingerprint == lab.Masks({"x": a}).fingerprint


def test_masks_of_another_model_are_refused_and_the_others_are_full():
    weights = {"a": torch.tensor([math.nan, 2.0, math.inf]), "b": torch.ones(2)}
    masks = lab.Masks({"a": torch.tensor([False, True, False])})
    assert masks.over(weights).kept_by_layer == {"a": 1, "b": 2}
    masks.apply_(weights)
    assert weights["a"].tolist() == [0.0, 2.0, 0.0]
    masks.over(weights).check(weights)
    for wrong, match in (
        (masks, "lack b"),
        ({**masks, "b": torch.ones(2, dtype=torch.bool), "c": torch.ones(1, dtype=torch.bool)}, "name c, which"),
        ({**masks, "b": torch.ones(3, dtype=torch.bool)}, r"the mask of b is torch.bool \(3,\)"),
        ({**masks, "b": torch.ones(2)}, r"the mask of b is torch.float32 \(2,\)"),
    ):
        with pytest.raises(lab.ConfigError, match=match):
            lab.Masks(wrong).check(weights)


def test_a_refusal_names_five_layers_and_counts_the_others():
    empty = {str(i): torch.zeros(1, dtype=torch.bool) for i in range(7)}
    for number, said in ((5, r"nothing of 0, 1, 2, 3, 4\. Take"), (7, r"nothing of 0, 1, 2, 3, 4 and 2 more\. Take")):
        masks = lab.Masks({name: empty[name] for name in list(empty)[:number]})
        with pytest.raises(lab.ConfigError, match=f"the cut leaves {said}"):
            masks.refuse_collapse("stop", "the cut leaves")
        masks.refuse_collapse("allow", "the cut leaves")
    lab.Masks({"fc.bias": empty["0"]}).refuse_collapse("stop", "the cut leaves")


def test_masks_are_copied_and_moved_as_masks():
    masks = lab.Masks({"a": torch.tensor([True, False])})
    copied = masks.clone()
    copied["a"][0] = False
    assert masks.kept == 1
    assert isinstance(masks.to("cpu"), lab.Masks)
    assert lab.Masks.full({"a": torch.zeros(3)})["a"].tolist() == [True] * 3


def test_a_state_dict_without_pairs_is_none_of_torch_s_pruning():
    for state in ({"a": torch.ones(1)}, {"a_mask": torch.ones(1)}, {"a_orig": torch.ones(1)}):
        with pytest.raises(lab.ConfigError, match="no `…_orig` and `…_mask` pairs"):
            lab.Masks.from_torch(state)
    plain, masks = lab.Masks.from_torch({"a_orig": torch.tensor([2.0, 3.0]), "a_mask": torch.tensor([0.0, 1.0])})
    assert plain["a"].tolist() == [0.0, 3.0]
    assert masks["a"].tolist() == [False, True]


@pytest.mark.parametrize("shape", [(300, 784), (40_000,), (50, 10, 9, 9), (3, 4)])
def test_the_highest_of_scores_of_any_shape(shape):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    alive = scores > 0.2
    found = choose.keep_highest(scores, alive, 5)
    assert found.shape == scores.shape
    assert sorted(scores[found].tolist()) == sorted(scores.flatten().topk(5).values.tolist())


WHOLE = {unit: {"unit": unit} for unit in ("weight", "kernel", "channel")}
OF_VALUES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    **{f"keep_top {unit}": partial(lab.keep_top, sparsity=0.5, **how) for unit, how in WHOLE.items()},
    **{f"largest {unit}": partial(largest, sparsity=0.5, **how) for unit, how in WHOLE.items()},
    **{f"units {unit}": partial(units, **how) for unit, how in WHOLE.items()},
    "keep_top row": partial(lab.keep_top, sparsity=0.5, scope="row"),
    "keep_highest": lambda values: {name: choose.keep_highest(v, v != 0, v.numel() // 2) for name, v in values.items()},
    "grow": lambda values: lab.grow(lab.Masks({name: v < 0 for name, v in values.items()}), values, 5),
    "scattered": lambda values: scattered(values, seed=0),
    "largest_per_channel": lambda values: largest_per_channel({n: v for n, v in values.items() if v.ndim > 1}, 0.5),
    "n_of_m": n_of_m,
    "project": lambda values: project(values, lab.Masks({name: v > 0 for name, v in values.items()})),
}


@pytest.mark.parametrize("name", OF_VALUES)
def test_parameters_are_read_as_the_values_that_they_hold(name):
    """Whoever trains a network has weights that ask for a gradient."""
    source = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"conv": (4, 3, 2, 2), "linear": (5, 6), "bias": (4,)}
    values = {at: torch.randn(shape, generator=source) for at, shape in shapes.items()}
    found = OF_VALUES[name]({at: nn.Parameter(v) for at, v in values.items()})
    expected = OF_VALUES[name](values)
    if isinstance(expected, dict):
        assert all(torch.equal(found[at], mask) for at, mask in expected.items())
    else:
        assert found == expected

"""Schedules by their formulas, at the ends and in between."""

import itertools
from fractions import Fraction as FractionOf
from typing import Any

import numpy as np
import pytest

import pruninglab as lab
from pruninglab.train import Options, lr_schedules

ALL = [lab.Constant(0.9), lab.Linear(0.9, 0.1), lab.Cubic(0.9, 0.1), lab.Exponential(0.9, 0.1), lab.Narang(0.9, 0.1)]


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_rises_to_exactly_the_final_sparsity(schedule):
    values = [schedule(i / 100) for i in range(101)]
    assert values[-1] == 0.9
    assert values[0] == pytest.approx(0.9 if isinstance(schedule, lab.Constant) else 0.1)
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(values))
    assert schedule(-1) == values[0]
    assert schedule(2) == 0.9


def test_the_end_is_exact_whatever_the_curve_rounds_to():
    kinds = (lab.Constant, lab.Linear, lab.Cubic, lab.Exponential, lab.Narang)
    pairs = [(i / 101, final / 97) for i in range(0, 60, 7) for final in range(60, 97)]
    assert [(kind, pair) for kind in kinds for pair in pairs if kind(pair[1], pair[0])(1.0) != pair[1]] == []


def test_values_by_hand():
    assert lab.Linear(0.8)(0.25) == pytest.approx(0.2)
    assert lab.Cubic(0.8)(0.5) == pytest.approx(0.8 * (1 - 0.5**3))
    assert lab.Exponential(0.99)(0.5) == pytest.approx(0.9)
    # slopes 1 and 2 with the knee in the middle: a third of the way there, two thirds after it
    assert lab.Narang(0.9, ramp=0.5, steepening=2)(0.5) == pytest.approx(0.3)
    # slopes 1 and 3 from a quarter on: 0.25 and 3 · 0.75 of 2.5 in all
    early = lab.Narang(0.9, 0.1, ramp=0.25, steepening=3)
    assert [early(p) for p in (0.25, 0.5, 0.75)] == pytest.approx([0.1 + 0.8 * s / 2.5 for s in (0.25, 1.0, 1.75)])
    assert lab.Narang(0.9, ramp=0.5, steepening=0.5)(0.5) == pytest.approx(0.6)  # flatter at the end
    assert lab.Cubic(0.9, 0.1)(0.5) == pytest.approx(0.9 - 0.8 / 8)
    assert lab.Exponential(0.95, 0.5)(0.5) == pytest.approx(1 - 0.5 * 0.1**0.5)
    assert lab.Linear(0.5, 0.5)(0.3) == 0.5


def test_a_dict_moves_every_layer_along_one_curve():
    schedule = lab.Linear({"conv*": 0.5, "fc*": 0.9})
    assert schedule(0.5) == {"conv*": 0.25, "fc*": 0.45}
    assert schedule(1.0) == {"conv*": 0.5, "fc*": 0.9}


@pytest.mark.parametrize("wrong", [1.5, 95, 1.0, -0.1, "0.9", True, None, {"a": 2}])
def test_what_is_no_sparsity_is_refused(wrong):
    for schedule in (lab.Constant, lab.Linear, lab.Cubic, lab.Exponential, lab.Narang):
        with pytest.raises(lab.ConfigError, match=f"{schedule.__name__}: final="):
            schedule(wrong)


def test_numbers_of_all_kinds_are_sparsities():
    half: list[Any] = [np.float32(0.5), FractionOf(1, 2)]
    assert all(lab.Cubic(number) == lab.Cubic(0.5) for number in half)


def test_a_schedule_only_rises():
    with pytest.raises(lab.ConfigError, match="only rises"):
        lab.Linear(0.2, initial=0.5)
    for wrong in ({"ramp": 1.0}, {"ramp": 0.0}, {"steepening": 0.0}):
        with pytest.raises(lab.ConfigError, match=f"Narang: {next(iter(wrong))}="):
            lab.Narang(0.9, **wrong)


def test_prints_and_draws_itself():
    assert repr(lab.Cubic(0.95)) == "Cubic(final=0.95, initial=0.0)"
    assert "<img" in lab.Cubic(0.95)._repr_html_()
    assert lab.Cubic(0.95) == lab.Cubic(0.95)


def test_rates_by_hand():
    assert [lab.CosineLR()(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert lab.CosineLR(warmup=0.2, floor=0.1)(1.0) == pytest.approx(0.1)
    assert 0 < lab.CosineLR(warmup=0.2)(0.0) < lab.CosineLR(warmup=0.2)(0.1) < 1
    assert [lab.StepLR(at=(0.5, 0.75), factor=0.1)(p) for p in (0.49, 0.5, 0.75)] == pytest.approx([1, 0.1, 0.01])
    assert lab.ConstantLR()(0.3) == 1
    assert lr_schedules.named("cosine") == lab.CosineLR()
    with pytest.raises(lab.ConfigError, match="'cosine', 'constant', 'step' or a function"):
        Options(1, lr_schedule="cosinus")  # pyright: ignore[reportArgumentType]

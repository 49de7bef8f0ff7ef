"""Fair or refused: what is compared, what is said of chance, and what is said to be missing."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import pruninglab as lab
from pruninglab import plots
from pruninglab.analysis import crossing, interval, paired, smallest
from pruninglab.analysis.compare import CONTROLS

NAMED = {
    "dense": ("Dense", "dense"),
    "random": ("OneShot(criterion=random, scope=global, unit=weight)", "random mask"),
    "layer": ("OneShot(criterion=magnitude, scope=layer, unit=weight)", "layer magnitude"),
    "global": ("OneShot(criterion=magnitude, scope=global, unit=weight)", "global magnitude"),
    "gradual": ("Gradual(schedule=Cubic(initial=0.0), end=0.75)", ""),
}
PROTOCOL: dict[str, Any] = {
    "augmentation": "none", "normalisation": "[[0.1], [0.3]]", "loss": "cross_entropy", "teacher": None,
    "optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "lr_schedule": "CosineLR(warmup=0.0)",
    "batch_size": 100, "precision": "fp32", "keep": "last", "patience": None, "scope": "weights", "scope_size": 1000,
    "torch": "2.13.0", "device_type": "cpu", "processor": "Xeon", "epochs": 5,
}  # fmt: skip


def row(way: str, seed: int, sparsity: float, accuracy: float, **changes: Any) -> dict[str, Any]:
    """A record's row, as `results.load` gives it."""
    settings, control = NAMED[way]
    return {
        "data": "digits", "holds": changes.get("data", "digits"),
        "model": "lenet5", "methods": settings.partition("(")[0], "settings": f"{settings}{sparsity}",
        "method": settings, "method_settings": settings,
        "control": control, "seed": seed, "init_seed": seed, "chosen_on": "val", "status": "done",
        "collapsed_layers": 0, "test_accuracy": accuracy, "val_accuracy": accuracy, "test_top5": None,
        "metric": "accuracy",
        "sparsity_weights": sparsity, "sparsity_weights_and_biases": sparsity, "sparsity_all": sparsity,
        "flops_dense": 100.0, "flops_sparse": 100.0 * (1 - sparsity), "sparse_bytes": 1000, "total_steps": 195,
        "search_steps": 0, "flops_before": None,
        "flops_training": 1.0, "start": "run", "start_hash": f"d{seed}", "dense_hash": f"d{seed}", "split": f"s{seed}",
        "form": "f", "test_images": 10_000, "device": "cpu", "commit": "abc", "seconds": 10.0 + seed,
        "end_hash": f"{way}{seed}{sparsity}{accuracy}", "trace_hash": f"{way}{seed}{sparsity}", **PROTOCOL,
    } | changes  # fmt: skip


def rows(**changes: Any) -> list[dict[str, Any]]:
    """Three seeds of the dense net and of three ways at two sparsities; what varies by seed varies in all alike."""
    accuracy = {"random": (0.5, 0.2), "layer": (0.95, 0.9), "global": (0.97, 0.93)}
    found = [row("dense", seed, 0.0, 0.99 + 0.001 * seed) for seed in range(3)]
    for way, by_level in accuracy.items():
        for sparsity, mean in zip((0.9, 0.95), by_level, strict=True):
            found += [row(way, seed, sparsity, mean + 0.01 * seed + 0.001 * (seed == 1)) for seed in range(3)]
    return [r | changes for r in found]


def changed(found: list[dict[str, Any]], where: dict[str, Any], **changes: Any) -> pd.DataFrame:
    return pd.DataFrame([r | changes if all(r[k] == v for k, v in where.items()) else r for r in found])


def p_value(test: Any) -> float:
    return test.pvalue


def test_a_fair_table_has_n_mean_and_interval():
    found = lab.compare(pd.DataFrame(rows()))
    table = found.table().set_index(["level", "method"])
    one = table.loc[(0.9, "global magnitude")]
    values = np.array([0.97, 0.981, 0.99])
    assert (one["n"], one["accuracy"]) == (3, pytest.approx(values.mean()))
    half = stats.t.ppf(0.975, 2) * math.sqrt((values.var(ddof=1) + 0.25 / 1e8) / 3)
    assert (one["low"], one["high"]) == (pytest.approx(values.mean() - half), pytest.approx(values.mean() + half))
    # forward and backward, 100 FLOPs an image, 195 steps of 100 images, those of the dense start among them
    assert (one["training_gflops"], one["seconds"]) == (pytest.approx(3 * 100 * 100 * 195 / 1e9), 11)
    assert one["flops_left"] == pytest.approx(0.1)
    assert found.levels == [0.9, 0.95]
    assert found.differing == ()
    assert found.table().index.tolist() == [*range(7)]
    assert found.controls == {name: name for name in CONTROLS}
    assert ", 195 steps in all" in repr(found)
    assert found._repr_html_().count("<tr>") == 1 + len(table)


@pytest.mark.parametrize(
    ("where", "changes", "word", "said"),
    [
        ({"method": NAMED["global"][0]}, {"total_steps": 260}, "steps", r"195 of dense.*260 of global magnitude"),
        ({"method": NAMED["global"][0], "seed": 1}, {"split": "x"}, "split", r"split differs at seed 1"),
        ({"method": NAMED["global"][0]}, {"dense_hash": "x"}, "start", r"dense start differs at seed 0"),
        ({"method": NAMED["random"][0]}, {"data": "MNIST"}, "data", r"data set differs \(digits.*MNIST of random mask"),
        ({"method": NAMED["random"][0]}, {"chosen_on": "test"}, "chosen_on", r"choices were made on"),
        ({"method": NAMED["random"][0]}, {"metric": "top5"}, "metric", r"metric"),
        ({"method": NAMED["random"][0]}, {"model": "vgg16"}, "model", r"model differs"),
        ({"method": NAMED["layer"][0], "seed": 2}, {"init_seed": 7}, "seeds", r"layer magnitude lacks seed 2, which"),
        (
            {"method": NAMED["layer"][0], "sparsity_weights": 0.9, "seed": 2},
            {"sparsity_weights": 0.5},
            "seeds",
            r"lacks seed 2 at 90 % zeros",
        ),
    ],
)
def test_what_differs_is_refused_and_named_and_shown_when_asked_for(where, changes, word, said):
    frame = changed(rows(), where, **changes)
    with pytest.raises(lab.ConfigError, match=said):
        lab.compare(frame)
    shown = lab.compare(frame, allow=word)
    assert ("195 to 260 steps in all" in repr(shown)) == (word == "steps")
    assert any("Not fair, but asked for" in line for line in repr(shown).splitlines())


def test_runs_from_new_weights_begin_with_the_same_ones():
    new = {"start": "model", "dense_hash": None}
    fresh = [r | new | {"start_hash": f"i{r['seed']}"} for r in rows()]
    assert lab.compare(pd.DataFrame(fresh)).notes == ()
    with pytest.raises(lab.ConfigError, match="the draw of the initial weights differs at seed 1"):
        lab.compare(changed(fresh, {"method": NAMED["random"][0], "seed": 1}, start_hash="trained elsewhere"))
    skips = changed(fresh, {"method": NAMED["random"][0]}, start_hash="of another form", form="with skip connections")
    with pytest.raises(lab.ConfigError, match="the form of the network differs"):
        lab.compare(skips)
    assert len(lab.compare(skips, allow="model").notes) == 1  # and not the draw, which cannot be the same
    mixed = [r | new | {"start_hash": "i"} if r["control"] == "random mask" else r for r in rows()]
    (note,) = lab.compare(pd.DataFrame(mixed)).notes
    assert note.startswith("They begin differently: dense from a run, random mask from a model")


def test_only_common_seeds_are_compared_when_asked_for():
    frame = pd.DataFrame([r for r in rows() if not (r["control"] == "layer magnitude" and r["seed"] == 2)])
    found = lab.compare(frame, allow="seeds")
    assert set(found.table()["n"]) == {2}
    assert set(found.runs["seed"]) == {0, 1}
    assert "one run" not in repr(found)


def test_equal_runs_count_once_and_unequal_ones_of_a_pair_are_refused():
    found = rows()
    again = [r | {"path": "elsewhere"} for r in found if r["control"] == "dense"]
    once = lab.compare(pd.DataFrame(found + again))
    assert set(once.table()["n"]) == {3}
    assert once.notes == ("3 records repeat another one and count once.",)
    other = [*found, found[-1] | {"settings": "other", "test_accuracy": 0.1}]
    with pytest.raises(lab.ConfigError, match=r"global magnitude has 2 different runs with seed 2.*settings, test_acc"):
        lab.compare(pd.DataFrame(other))


def test_paired_test_by_hand():
    """Differences 1, 2 and 3 points: mean 2, deviation 1, t = 2·sqrt(3)."""
    found = paired(np.array([0.01, 0.02, 0.03]))
    assert found["difference"] == pytest.approx(0.02)
    assert found["p"] == pytest.approx(p_value(stats.ttest_1samp([0.01, 0.02, 0.03], 0)))
    assert found["effect"] == pytest.approx(2 * math.gamma(1) / math.gamma(0.5))
    assert found["high"] - found["difference"] == pytest.approx(stats.t.ppf(0.975, 2) * 0.01 / math.sqrt(3))
    assert math.isnan(paired(np.array([0.01]))["p"])
    assert paired(np.zeros(3))["p"] == 1
    assert paired(np.full(3, 0.01))["p"] == 0
    assert [paired(np.full(2, value))["p"] for value in (0.0, 0.01)] == [1, 0]
    assert math.isnan(paired(np.array([0.01, 0.02]))["effect"])
    assert paired(np.full(3, 0.01), more=2 * 0.25 / 100**2)["p"] > 0.1  # one image of a hundred, three times
    assert interval(np.array([0.5]))[1] == 0.5
    half = stats.t.ppf(0.975, 1) * 0.1
    assert interval(np.array([0.5, 0.7])) == pytest.approx((0.6 - half, 0.6, 0.6 + half))


@pytest.mark.parametrize(("n", "level"), [(2, 0.05), (3, 0.05), (3, 0.05 / 21), (5, 0.01), (10, 0.05 / 7), (40, 0.05)])
def test_the_smallest_difference_is_found_in_four_of_five_studies(n, level):
    """By scipy's noncentral t, and by drawing studies that are tested with scipy's t-test."""
    least = smallest(0.02, n, level)
    shift, critical = least / 0.02 * math.sqrt(n), stats.t.ppf(1 - level / 2, n - 1)
    assert stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift) == pytest.approx(0.8, abs=1e-4)
    drawn = np.random.default_rng(0).normal(least, 0.02, (20_000, n))
    assert (p_value(stats.ttest_1samp(drawn, 0, axis=1)) < level).mean() == pytest.approx(0.8, abs=0.01)
    assert smallest(0.04, n, level) == pytest.approx(2 * least)
    assert smallest(0.02, n, level, power=0.5) < least
    assert math.isnan(smallest(0.02, 1, level))


def test_beside_what_is_not_distinguishable_stands_what_could_have_been():
    """Of six tests Holm's first asks for 0.05 / 6, and for more with each that is claimed."""
    noisy = changed(rows(), {"method": NAMED["layer"][0], "seed": 0}, test_accuracy=0.99)
    found = lab.compare(noisy)
    tests = found.tests().sort_values("p").to_dict("records")
    claimed = sum(test["adjusted"] < 0.05 for test in tests)
    assert 0 < claimed < len(tests)
    for place, test in enumerate(tests):
        own = 0.05 / (len(tests) - min(place, claimed))
        assert test["smallest"] == pytest.approx(smallest(test["deviation"], 3, own))
        said = re.search(r"The smallest difference that this could show is ([\d.]+) points\.$", test["verdict"])
        assert bool(said) == (place >= claimed)
        if said:
            assert float(said[1]) == pytest.approx(100 * test["smallest"], rel=0.05)
            assert said[0] in " ".join(found.words())


def test_pairs_see_what_means_alone_do_not():
    """The seeds vary by two points, in both ways alike; the ways differ by 1, 1.1 and 0.9 points."""
    base = {0: 0.90, 1: 0.92, 2: 0.94}
    frame = [row("dense", s, 0.0, 0.99) for s in base]
    frame += [row("global", s, 0.9, a) for s, a in base.items()]
    frame += [row("gradual", s, 0.9, a + d) for (s, a), d in zip(base.items(), (0.010, 0.011, 0.009), strict=True)]
    found = lab.compare(pd.DataFrame(frame))
    test = found.tests().set_index("method").loc["Gradual"]
    assert test["against"] == "global magnitude"
    assert test["difference"] == pytest.approx(0.01)
    assert test["deviation"] == pytest.approx(math.sqrt(1e-6 + 2 * 0.25 / 10_000**2))
    assert test["adjusted"] < 0.05
    assert test["verdict"].startswith("is 1.0 points above global magnitude (p = ")
    assert p_value(stats.ttest_ind([0.91, 0.931, 0.949], [0.90, 0.92, 0.94])) > 0.5


def test_the_correction_is_over_all_tests_and_what_is_not_seen_is_said():
    found = lab.compare(pd.DataFrame(rows()))
    for against, number in (("all", 12), ("dense", 6), (None, 6)):
        tests: Any = found.tests(against)
        assert len(tests) == number
        assert tests["adjusted"].min() == pytest.approx(min(1, tests["p"].min() * number))
    noisy = changed(rows(), {"method": NAMED["layer"][0], "seed": 0}, test_accuracy=0.99)
    said = lab.compare(noisy).words()
    assert any("layer magnitude is not distinguishable from global magnitude at n = 3." in line for line in said)
    with pytest.raises(lab.ConfigError, match=r"expected one of .*all"):
        found.tests("gradual")


def test_two_pairs_say_something_and_a_p_at_the_level_is_not_below_it():
    found = lab.compare(pd.DataFrame([r for r in rows() if r["seed"] < 2]))
    tests = found.tests()
    assert set(tests["n"]) == {2}
    assert not any("nothing can be said" in verdict for verdict in tests["verdict"])
    at = found.tests(level=min(tests["adjusted"].tolist()))
    assert all("not distinguishable" in verdict for verdict in at["verdict"])


def test_one_run_each_says_nothing():
    found = lab.compare(pd.DataFrame([r for r in rows() if r["seed"] == 0]))
    assert "one run" in repr(found)
    assert all("one pair, so nothing can be said" in v for v in found.tests()["verdict"])
    assert "(n = 1)" in str(plots.frontier(found).legends[0].get_texts()[0].get_text())


def test_controls_that_are_missing_are_named():
    frame = pd.DataFrame([r for r in rows() if r["control"] not in ("random mask", "dense")])
    assert lab.compare(frame).words()[-1] == "Controls that are missing: dense, random mask."


def test_what_ended_otherwise_stays_and_is_said():
    found = rows() + [
        row("gradual", s, 0.9 if s else 0.8, 0.97, status="done" if s else "target_missed") for s in range(3)
    ]
    found[3] |= {"status": "diverged", "test_accuracy": 0.1}
    shown = lab.compare(pd.DataFrame(found))
    table = shown.table().set_index(["level", "method"])
    assert table.loc[(0.9, "random mask"), "status"] == "2 done, 1 diverged"
    assert table.loc[(0.9, "Gradual"), "n"] == 2
    assert table.loc[(0.8, "Gradual"), "status"] == "target_missed"
    assert "1 diverged: random mask." in shown.notes
    assert "1 target missed: Gradual." in shown.notes


def test_sparsities_of_one_target_are_one_level():
    """A share of each layer rounds to other counts than a share of all."""
    found = lab.compare(
        changed(rows(), {"method": NAMED["layer"][0], "sparsity_weights": 0.95}, sparsity_weights=0.9501)
    )
    assert found.levels == [0.9, 0.95]
    apart = lab.compare(
        changed(rows(), {"method": NAMED["layer"][0], "sparsity_weights": 0.95}, sparsity_weights=0.951)
    )
    assert apart.levels == [0.9, 0.95, 0.951]


def test_crossing_by_hand():
    """Between densities 0.1 and 0.01, half-way down from 0.98 to 0.96: the geometric mean."""
    sparsities, scores = np.array([0.99, 0.9]), np.array([0.96, 0.98])
    assert crossing(sparsities, scores, 0.97) == pytest.approx(1 - math.sqrt(0.1 * 0.01))
    assert crossing(sparsities, scores, 0.98) == pytest.approx(0.9)
    assert crossing(sparsities, scores, 0.99) is None
    assert crossing(sparsities, scores, 0.95) == 1
    assert crossing(np.array([0.5, 0.9, 0.99]), np.array([0.97, 0.99, 0.9]), 0.98) == pytest.approx(
        1 - 0.1 * 0.1 ** (1 / 9)
    )


def test_sparsity_at_matched_accuracy():
    found = lab.compare(pd.DataFrame(rows())).at_accuracy(0.955).set_index("method")
    assert found.loc["random mask", "said"] == "at no level with 3 of 3 seeds"
    assert math.isnan(found.loc["random mask", "sparsity"])
    kept = found.loc["global magnitude"]
    assert 0.9 < kept["low"] < kept["sparsity"] < kept["high"] < 0.96
    assert kept["times"] == pytest.approx(1 / (1 - kept["sparsity"]))
    by_dense = lab.compare(pd.DataFrame(rows())).at_accuracy()
    assert by_dense["method"].tolist() == ["random mask", "layer magnitude", "global magnitude"]
    assert by_dense["accuracy"].tolist() == pytest.approx([0.991 - 0.01] * 3)


def test_a_published_row_stands_beside_the_measured_one():
    density = 1 / 167
    frame = [row("global", s, 1 - density, 0.991, data="MNIST") for s in range(3)]
    frame += [row("dense", s, 0.0, 0.993, data="MNIST") for s in range(3)]
    found = lab.compare(pd.DataFrame(frame))
    beside = found.beside_papers().set_index("published")
    theirs = beside.loc["Progressive Weight Pruning"]
    columns = ["accuracy", "method", "measured", "n", "at"]
    assert theirs[columns].tolist() == [0.99, "global magnitude", 0.991, 3, pytest.approx(1 - density)]
    assert (beside.loc["Baseline", "method"], beside.loc["Baseline", "measured"]) == ("dense", 0.993)
    assert beside.loc["Han et al., 2015 [1]", "n"] == 0
    drawn = plots.frontier(found)
    assert "Published: " in drawn.alt
    (axes,) = drawn.axes
    (theirs,) = [line for line in axes.lines if line.get_label() == "published"]
    corners = axes.transAxes.inverted().transform(axes.transData.transform(theirs.get_xydata()))
    assert ((corners > 0) & (corners < 1)).all()  # what papers print is seen, however far below
    assert lab.compare(pd.DataFrame(rows())).beside_papers().empty


def test_names_say_what_tells_ways_apart():
    ways = [f"Gradual(schedule=Cubic(initial=0.0), scope={scope}, end=0.75)" for scope in ("global", "layer")]
    frame = pd.DataFrame([row("gradual", 0, 0.9, 0.9) | {"method": way, "settings": way} for way in ways])
    assert lab.compare(frame).methods == ["Gradual(scope=global)", "Gradual(scope=layer)"]


def test_other_hardware_and_code_are_said():
    frame = changed(rows(), {"method": NAMED["global"][0]}, commit="def", processor="another")
    assert lab.compare(frame).notes == ("They differ in hardware.", "They differ in version of the code.")


def test_real_runs_from_one_dense_start_are_comparable(tmp_path: Path):
    data = lab.load("digits", train=200, test=60, size=16)
    for seed in range(2):
        dense = lab.fit(lab.build("lenet300", data, seed=seed), data, epochs=1, seed=seed, progress=False)
        for name, method in lab.controls(0.9).items():
            record = tmp_path / str(seed) / f"{name}.json"
            lab.fit(dense, data, method, epochs=1, seed=seed, record=record, progress=False)
    found = lab.compare(tmp_path)
    assert found.controls == {name: name for name in CONTROLS}
    assert set(found.table()["n"]) == {2}
    assert found.notes == ()
    dense = lab.fit(lab.build("lenet300", data), data, epochs=1, progress=False)
    longer = [lab.fit(dense, data, method, epochs=2, progress=False) for method in lab.controls(0.9).values()]
    with pytest.raises(lab.ConfigError, match="number of steps in all"):
        lab.compare([*longer[:3], lab.Result.read(tmp_path / "0" / "global magnitude.json")])


def test_a_folder_without_records_and_a_table_without_columns(tmp_path: Path):
    with pytest.raises(lab.ConfigError, match="no records to compare"):
        lab.compare(tmp_path)
    with pytest.raises(lab.ConfigError, match="lacks method, control"):
        lab.compare(pd.DataFrame({"data": ["digits"]}))
    with pytest.raises(lab.ConfigError, match="allow='budget'; expected one of"):
        lab.compare(pd.DataFrame(rows()), allow="budget")


def test_a_criterion_with_settings_is_no_control(blobs):
    """Its record holds the settings, not a name."""
    model = torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    method = lab.methods.OneShot(0.5, lab.criteria.SNIP())
    run = lab.fit(model, blobs, method, epochs=1, progress=False)
    assert run.result.control == ""
    assert "SNIP" in run.result.row()["method"]

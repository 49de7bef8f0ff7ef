"""The papers' tables: every number, checked by the arithmetic that the numbers owe each other."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
from published_curves import best as published_best
from published_curves import points, rows
from torch import nn

import pruninglab as lab
from pruninglab import analysis
from pruninglab.analysis import papers
from pruninglab.errors import ConfigError
from pruninglab.train.record import is_imagenet

LENET5 = {"Conv1": 500, "Conv2": 25_000, "FC1": 400_000, "FC2": 5_000}
VGG16 = {"Convolutional": 14_710_464, "FC": 123_633_664}


def test_every_cell_that_holds_something_is_there():
    cells = papers.values()
    assert cells.groupby(["paper", "table"]).size().to_dict() == {
        ("admm", 1): 36,
        ("admm", 2): 6,
        ("admm", 3): 21,
        ("admm", 4): 15,
        ("admm", 5): 15,
        ("admm", 6): 25,
        ("bonetta", 1): 6,
        ("bonetta", 2): 16,
        ("bonetta", 3): 37,
        ("bonetta", 4): 25,
        ("bonetta", 5): 15,
        ("gale", 3): 82,
        ("gale", 4): 73,
        ("weightmom", 1): 30,
        ("weightmom", 2): 30,
    }
    assert set(cells.loc[cells["value"].isna(), "printed"]) == {"Adam", "SGD"}
    assert all(cells["source"])


@pytest.mark.parametrize(
    ("printed", "value"),
    [
        ("80.27%", (0.8027, "share")),
        ("61.0M", (61e6, "")),
        ("6.05K", (6050, "")),
        ("1,910×", (1910, "times")),
        ("0.07 MB", (70_000, "bytes")),
        ("2.73KB", (2730, "bytes")),
        ("1e-4", (0.0001, "")),
        ("2 (3 for output layer)", (2, "")),
    ],
)
def test_what_is_printed_becomes_a_number(printed, value):
    assert papers.number(printed) == (pytest.approx(value[0]), value[1])
    assert math.isnan(papers.number("Adam")[0])


def left(row: dict[str, str], sizes: dict[str, int]) -> float:
    """Sparsity in percent, by the shares that the row gives of each layer."""
    return 100 - sum(float(row[layer]) * size for layer, size in sizes.items()) / sum(sizes.values())


def test_shares_by_layer_come_to_the_printed_sparsity_except_where_the_caveat_says_so():
    found = {}
    for number, sizes in ((3, LENET5), (4, LENET5), (5, VGG16)):
        table = papers.table("bonetta", number)
        for row in table.to_dict("records"):
            name, *_ = row.values()
            if row["Sparsity (%)"] != "–" and "-" not in row.values():
                found[number, str(name)[:13]] = left(row, sizes), float(row["Sparsity (%)"])
    odd = {key for key, (by_layer, printed) in found.items() if abs(by_layer - printed) > 0.25}
    assert odd == {(4, "Our method"), (4, "Tart. et al.,"), (5, "Tart. et al.,")}
    assert found[4, "Our method"][0] == pytest.approx(97.3, abs=0.05)
    said = analysis.published().query("counted == 'weights_and_biases'")
    assert said["caveat"].str.contains(r"sparsity, not \d").sum() == 3


def test_rates_are_those_of_the_parameter_counts_except_where_the_caveat_says_so():
    odd = []
    for number, total in ((1, 61.0e6), (3, 138e6), (4, 25.6e6), (5, 430.5e3)):
        for row in papers.table("admm", number).to_dict("records"):
            rate, counted = papers.number(row["Rate"])[0], total / papers.number(row["No. Para."])[0]
            if abs(rate / counted - 1) > 0.02:
                odd.append((number, row["Method"]))
    assert odd == [(3, "ADMM Pruning (Zhang et al., 2018b)"), (5, "Network Pruning (Han et al., 2015)")]


def test_the_copied_tables_are_the_same_and_said_to_be():
    first: Any = papers.table("weightmom", 1)
    second = papers.table("weightmom", 2)
    assert first.equals(second)
    assert first.groupby("Method")["10%"].nunique().max() == 1
    assert analysis.published("CIFAR10", "vgg16").empty  # so that no figure and no comparison takes them for a target
    rows = analysis.published("CIFAR10", "vgg16", copied=True)
    assert rows["caveat"].str.contains("no number to reproduce").all()
    assert rows["sparsity"].tolist() == [0, *[0.9, 0.95, 0.98] * 3]


def test_published_rows_stand_in_the_words_of_records():
    rows = analysis.published("MNIST", "lenet5")
    ours = rows[rows["method"] == "Our method"].iloc[0]
    assert (ours["accuracy"], ours["sparsity"], ours["counted"]) == (0.9922, 0.997, "weights_and_biases")
    assert "chosen on the test images" in ours["caveat"]
    progressive = rows[rows["method"] == "Progressive Weight Pruning"].iloc[0]
    assert (progressive["accuracy"], progressive["counted"]) == (0.99, "weights")
    assert progressive["sparsity"] == pytest.approx(1 - 1 / 167, abs=1e-6)
    assert set(analysis.published("ImageNet", "alexnet")["metric"]) == {"top-5"}
    assert analysis.published("MNIST", "vgg16").empty


def curves(data: str, model: str) -> Any:
    """Sparsity down, methods across; the paper's other tables of this network left out."""
    rows: Any = analysis.published(data, model)
    rows = rows[rows["source"].str.contains("state_of_sparsity")]
    assert set(rows["counted"]) == {"weights"}
    return rows.pivot_table(index="sparsity", columns="method", values="accuracy")


def test_the_curves_of_the_survey_fall_and_say_who_wins_low_and_who_wins_high():
    """What the survey's text says of its Figures 3 and 4."""
    transformer, resnet = curves("WMT14", "transformer"), curves("ImageNet", "resnet50")
    assert set(analysis.published("WMT14")["metric"]) == {"BLEU"}
    assert list(transformer.index) == [0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98]
    assert list(resnet.index) == [0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98]
    for found in (transformer, resnet):
        pruned = found.drop(columns="Baseline").drop(index=0.0)
        assert all(pruned[name].dropna().is_monotonic_decreasing for name in pruned)
        assert found["Baseline"].max() > pruned.max().max()
        assert (pruned["Magnitude pruning"] > pruned["Random pruning"]).all()
    best = transformer.drop(columns="Baseline").iloc[1:].idxmax(axis=1)
    assert best[[0.5, 0.6, 0.7]].tolist() == ["L0 regularization"] * 3
    assert best[[0.8, 0.9, 0.95, 0.98]].tolist() == ["Magnitude pruning"] * 4
    assert transformer["L0 regularization"].isna()[[0.0, 0.98]].all()
    assert resnet["L0 regularization"].max() < 0.01
    assert resnet.drop(columns="Baseline").loc[[0.95, 0.98]].idxmax(axis=1).tolist() == ["Variational dropout"] * 2


CSV = {
    "one score a setting": """Hparams,MOSES BLEU,Sparsity,steps
        a,20,0.49999,1
        a,19,0.501,1
        a,30,0.4999,1""",
    "a score for each threshold": """Hparams,MOSES BLEU:0.0,Sparsity:0.0,MOSES BLEU:0.5,Sparsity:0.5
        a,19,0.55,30,0.4999
        a,20,0.49999,3,0.6""",
    "accuracies": """global_sparsity,label smoothing,accuracy
        0.501,0.1,0.19
        0.5,0,0.2
        0.4999,0,0.3""",
}


@pytest.mark.parametrize("form", CSV)
def test_the_best_at_a_sparsity_is_that_of_all_networks_as_sparse(form):
    found = list(points(line.strip() for line in CSV[form].splitlines()))
    sparsity, score = published_best(found, 50) or (0, 0)
    assert (round(sparsity, 2), round(score, 9)) == (50, 20)
    assert published_best(found, 70) is None
    assert published_best([(51, 20), (52, 20)], 50) == (52, 20)


@pytest.mark.skipif("PRUNINGLAB_CURVES" not in os.environ, reason="PRUNINGLAB_CURVES names the authors' CSV files")
@pytest.mark.parametrize(("network", "number"), [("transformer", 3), ("rn50", 4)])
def test_the_curves_are_those_of_the_authors_files(network, number):
    found = next(one for one in papers.TABLES if (one.paper, one.number) == ("gale", number))
    assert list(rows(Path(os.environ["PRUNINGLAB_CURVES"]), network)) == found.body[2:]


def test_a_table_that_is_not_there():
    with pytest.raises(ConfigError, match="no table 7 of 'admm'"):
        papers.table("admm", 7)


@pytest.mark.parametrize(
    ("data", "model", "rows"),
    [
        ("folder:/data/ImageNet", "torchvision:alexnet", 18),
        ("folder:images/imagenet-1k/", "alexnet", 18),
        ("folder:/data/ILSVRC2012", "torchvision:vgg16", 11),
        ("ImageNet", "torchvision:resnet50", 30),
        ("Fashion-MNIST", "LeNet5", 5),
        ("folder:/data/ImageNet", "torchvision:vgg16_bn", 0),
        ("folder:/data/imagenet100", "torchvision:alexnet", 0),
        ("folder:/ImageNet/flowers", "torchvision:alexnet", 0),
        ("folder:/data/photos", "torchvision:alexnet", 0),
        ("MNIST", "torchvision:alexnet", 0),
    ],
)
def test_names_of_records_find_the_papers_rows(data, model, rows):
    assert len(analysis.published(data, model)) == rows


def test_every_table_is_found_by_the_names_that_a_record_would_have():
    known = analysis.published(copied=True)
    for data, model in {*zip(known["data"], known["model"], strict=True)}:
        mine = known[(known["data"] == data) & (known["model"] == model)]
        for asked in ((data, model), (f"folder:/x/{data}", f"torchvision:{model}"), (data.lower(), model.upper())):
            assert analysis.published(*asked, copied=True).equals(mine.reset_index(drop=True))


def test_a_folder_of_a_thousand_wordnet_classes_is_imagenet_whatever_its_name():
    names = [f"n{number:08}" for number in range(1000)]
    assert is_imagenet(names)
    assert not is_imagenet(names[1:])
    assert not is_imagenet([*names[1:], "tench"])


def test_a_comparison_finds_them_by_what_its_folder_holds(blobs):
    result = lab.fit(nn.Linear(10, 4), blobs, epochs=0, progress=False).result
    result.config["model"]["name"] = "torchvision:alexnet"
    assert lab.compare([result]).beside_papers().empty
    assert len(lab.compare([result]).beside_papers("ImageNet")) == 18
    result.config["data"] |= {"name": "folder:/data/photos", "holds": "ImageNet"}
    assert len(lab.compare([result]).beside_papers()) == 18
    assert "on folder:/data/photos" in repr(lab.compare([result]))

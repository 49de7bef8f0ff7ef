"""A fixed zoo of wrong values for each parameter of everything public: answered by the package, in words, at once."""

import inspect
import math
import signal
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import pruninglab as lab
from pruninglab import criteria, methods, train
from pruninglab.analysis.fairness import ALLOWED

RECORDS = Path(__file__).parent.parent / "notebooks" / "results" / "papers" / "MNIST"
OWN = (lab.ConfigError, lab.DataError, lab.RunError)
ZOO: dict[str, Any] = {
    "None": None,
    "NaN": math.nan,
    "inf": math.inf,
    "-1": -1,
    "2.5": 2.5,
    "'x'": "x",
    "[]": [],
    "{}": {},
    "object": object(),
    "huge": 10**30,
}
ROOMS = (
    *("", "masks", "criteria", "data", "models", "storage", "results", "train", "structured", "analysis", "methods"),
    *("layers", "deploy", "recipes", "plots", "widgets", "sweep", "benchmark"),
)
MADE_HERE = {  # results of the package, and words for types: nobody writes their arguments
    *("Method", "Schedule", "Masks", "Result", "Run", "Training", "Snapshot", "Cut", "Trial", "Trials", "Comparison"),
    *("Impact", "Votes", "Shrunk", "Group", "Groups", "Part", "Graph", "Parameter", "Sweep", "Figure", "Panel"),
    *("ConfigError", "DataError", "RunError", "FitOptions", "HasModel", "run_cell"),
    *(
        "Attached",
        "Engine",
        "CFile",
        "Pruner",
        "Aggregate",
        "McNemar",
        "Chart",
        "Choice",
        "layer_by_layer",
        *("Flops", "Kind", "Norm", "Reading", "Cell", "Row", "Table"),
    ),
}
WITHOUT_ARGUMENTS = {"AlternatingFlip", "ConstantLR", "Dense", "Flip", "available", "Silence"}
TAKES_ANYTHING = {"describe", "tensor_hash", "bits", "perplexity", "negative_loss", "returned_loss"}
TAKES_ANYTHING |= {"kind_of"}  # of what is no layer nothing is known


NEEDS_MORE = {"structured.semi_structured", "sweep.until_width", "benchmark.estimate", "benchmark.verify"}
"""A right call of these takes a GPU, data that has to be downloaded, or minutes."""


class World:
    """What right calls are made of: small data, small runs, and what is asked of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        torch.manual_seed(0)
        y = torch.arange(60) % 4
        x = torch.randn(60, 10) + y[:, None]
        self.sets = TensorDataset(x[:40], y[:40]), TensorDataset(x[40:], y[40:])
        self.data = lab.wrap(*self.sets, val=0.2, name="blobs")
        self.net = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 4))
        self.quick: Any = {"epochs": 1, "progress": False}
        self.run = self.fit(methods.OneShot(0.5))
        self.scores = {name: p.detach().abs() for name, p in self.run.weights.items()}
        self.images = lab.load("digits", train=40, test=20, size=8)
        self.conv = nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(4 * 16, 10)),
        )
        thin = methods.OneShot(0.5, "norm_scale", unit="channel")
        self.slim = lab.fit(self.conv, self.images, methods.Slimming(), thin, **self.quick)
        self.batches = list(self.data.train.batches(20))
        worse = lab.fit(self.conv, self.images, methods.OneShot(0.9, "random"), **self.quick)
        self.impact = lab.impact([self.slim] * 2, [worse] * 2, self.images.test)
        self.compared = lab.compare([self.run, self.fit()], by="settings", allow=ALLOWED)
        self.notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell("x: int = 1", metadata={"tags": ["parameters"]})]
        )
        (folder / "n.ipynb").write_text(nbformat.writes(self.notebook))
        (folder / "grid.yaml").write_text("x: [1, 2]")
        lab.storage.save(self.run, folder / "sparse")
        lab.storage.save_state(folder / "state", {"a": 1})
        torch.save(self.net.state_dict(), folder / "w.pt")
        self.fit(record=folder / "record.json")

    def fit(self, *made: lab.Method, **options: Any) -> lab.Run:
        return lab.fit(self.net, self.data, *made, **self.quick | options)


def right(w: World) -> dict[str, dict[str, Any]]:
    """For each public name a call that is right; `*name` stands for arguments by position."""
    trained: dict[str, Any] = {"model": w.net, "data": w.data}
    short = {"epochs": 1, "progress": False}
    finetuned = short | {"finetune": 1}
    gate = methods.PruneWhileAccurate(0.0, prune_fraction=0.3, every_steps=1)
    shape: dict[str, Any] = {"shape": (3, 32, 32), "classes": 10}
    scored: dict[str, Any] = {"model": w.net, "batches": w.batches}
    level: dict[str, Any] = {"level": 0.05, "more": 0.0}
    few = np.array([0.1, 0.2, 0.4])
    state = w.folder / "state"
    final = {"final": 0.9, "initial": 0.0}
    sparse: dict[str, Any] = {"sparsity": 0.5}
    loss = nn.functional.cross_entropy
    return {
        "Constant": final,
        "Cubic": final,
        "Exponential": final,
        "Linear": final,
        "Narang": final | {"ramp": 0.5, "steepening": 1.5},
        "CosineLR": {"warmup": 0.1, "floor": 0.0},
        "StepLR": {"at": (0.5,), "factor": 0.1},
        "Data": {f: getattr(w.data, f) for f in ("name", "classes", "class_names", "shape", "train", "val", "test")}
        | {"seed": 0},
        "build": {"name": "lenet300", "data": w.images, "seed": 0, "weights": None, "new_head": False, "widths": None},
        "compare": {
            "results": [w.run, w.fit()],
            "by": "settings",
            "score": "test_accuracy",
            "counted": "weights",
            "allow": ALLOWED,
        },
        "controls": sparse,
        "fit": trained | {"*methods": (methods.OneShot(0.5),)} | _defaults() | short,
        "grow": {"masks": w.run.masks, "scores": w.scores, "counts": 3},
        "impact": {"dense": [w.run], "pruned": [w.run], "split": w.data.test, "class_names": list("abcd")},
        "keep_top": {
            "scores": w.scores,
            **sparse,
            "scope": "global",
            "unit": "weight",
            "masks": None,
            "clamp": False,
        },
        "load": {
            "name": "strokes",
            "seed": 0,
            "root": None,
            "download": False,
            "size": 8,
            "train": 20,
            "test": 10,
            "val": 0.1,
            "augment": (),
            "workers": 0,
        },
        "prunable": {"model": w.net, "biases": False, "norms": False, "skip": (), "include": ()},
        "prune": trained
        | sparse
        | {"criterion": "magnitude", "scope": "global", "unit": "weight", "masks": None, "skip": (), "include": ()}
        | {"biases": False, "norms": False, "seed": 0},
        "Workbench": {"data": "digits", "model": "lenet5", "method": "Gradual", "epochs": 1, "seed": 0, "folder": None},
        "wrap": {
            "train": w.sets[0],
            "test": w.sets[1],
            "val": 0.1,
            "seed": 0,
            "name": "n",
            "class_names": list("abcd"),
            "augment": (),
            "resident": True,
            "workers": 0,
        },
        "masks.check_sparsity": sparse,
        "masks.count": {"total": 10, "share": 0.5},
        "masks.keep_highest": {
            "scores": torch.rand(5),
            "alive": torch.ones(5, dtype=torch.bool),
            "keep": 2,
        },
        "masks.keeping": {"weights": w.scores, "counts": dict.fromkeys(w.scores, 2)},
        "masks.largest": {"weights": w.scores, **sparse, "scope": "layer", "unit": "weight", "masks": None},
        "masks.largest_per_channel": {"weights": w.scores, **sparse},
        "masks.n_of_m": {"weights": w.scores, "n": 1, "m": 2},
        "masks.project": {"weights": w.scores, "masks": w.run.masks},
        "masks.scattered": {"masks": w.run.masks, "seed": 0, "unit": "weight"},
        "masks.spread": {"total": 4, "quotas": [1.0, 2.0], "caps": [3, 3], "least": 0},
        "masks.units": {"masks": w.run.masks, "unit": "weight"},
        "layers.Attention": {"full": nn.MultiheadAttention(4, 2), "heads": 1, "head_dim": 2},
        "layers.CausalAttention": {"width": 8, "heads": 2, "kv_heads": 1, "head_dim": None},
        "layers.PadShortcut": {"added": 1, "stride": 2},
        "layers.canonical_parameters": {"model": w.net},
        "layers.count": {"model": w.net, "x": w.batches[0][0][:1]},
        "layers.evaluating": {"model": w.net},
        "layers.exact": {"tensor": torch.ones(2)},
        "layers.exact_device": {"device": torch.device("cpu")},
        "layers.exact_dtype": {"device": "cpu"},
        "layers.hooked": {"model": w.net, "kinds": (nn.Linear,), "before": None, "after": None},
        "layers.narrow_": {"model": nn.Linear(3, 2), "widths": {"": {"in_features": 3, "out_features": 2}}},
        "layers.norms_after": {"model": w.conv, "example": next(iter(w.images.test))[0]},
        "layers.owner_of": {"model": w.net, "name": "0.weight"},
        "layers.readings": {"model": w.conv, "example": next(iter(w.images.test))[0]},
        "layers.real_names": {"model": w.net},
        "benchmark.beside": {"folder": RECORDS, "table": "MNIST"},
        "benchmark.coded": {"folder": RECORDS, "table": "MNIST"},
        "benchmark.measured": {"folder": RECORDS, "table": "MNIST"},
        "benchmark.overview": {"folder": RECORDS, "table": "MNIST"},
        "benchmark.describe_table": {"table": "MNIST", "only": ()},
        "benchmark.estimate": {"table": "MNIST", "only": (), "data": ""},
        "benchmark.run_table": {"table": "MNIST", "seeds": [0], "out": w.folder / "new", "work": w.folder / "work"}
        | {"only": (), "data": "", "weights": None, "start": None, "epochs": None}
        | {"budget": "full", "protocol": "holdout"},
        "benchmark.verify": {"folder": RECORDS},
        "criteria.OBD": {"estimate": "fisher", "batches": 1, "draws": 2, "loss": loss},
        "criteria.SNIP": {"batches": 1, "init": "own", "mode": "eval", "loss": loss},
        "criteria.Activation": {"batches": 1},
        "criteria.FilterTaylor": {"batches": 1, "loss": loss},
        "criteria.GraSP": {"batches": 1, "temperature": 1.0, "mode": "eval", "loss": loss},
        "criteria.Gradient": {"batches": 1, "loss": loss},
        "criteria.LargeQuadratic": {"weights": torch.ones(1, 1, 2), "hessian": torch.eye(2)[None]},
        "criteria.Movement": {"batches": 1, "loss": loss},
        "criteria.NofM": {"criterion": "magnitude", "n": 1, "m": 2},
        "criteria.Quadratic": {"weights": torch.ones(1, 1, 2), "hessian": torch.eye(2)[None]},
        "criteria.Wanda": {"batches": 1},
        "criteria.Taylor": {"batches": 1, "loss": loss},
        **{
            f"criteria.{name}": scored
            for name in (
                *("filter_l1", "filter_l2", "geometric_median", "layer_magnitude", "magnitude", "norm_scale", "random"),
            )
        },
        "criteria.full": scored
        | {"names": ["0.weight"], "estimate": "fisher", "number": 1, "loss": loss, "dampening": 0.1},
        "criteria.layerwise": scored | {"names": ["0.weight"], "number": 1, "dampening": 0.0},
        "criteria.resolve": {"criterion": "magnitude"},
        "data.Crop": {"padding": 2},
        "data.Cutout": {"size": 2},
        "data.Shift": {"pixels": 2},
        "data.Split": {"x": torch.rand(4, 3), "y": torch.arange(4), "mean": None, "std": None, "augment": ()},
        "data.StreamSplit": {
            f: getattr(lab.wrap(*w.sets, resident=False, workers=0).train, f)
            for f in ("items", "y", "shape", "mean", "std", "augment", "varied", "workers")
        },
        "models.alexnet": shape | {"width": 0.1, "dropout": 0.0},
        "models.lenet5": shape,
        "models.lenet300": shape,
        "models.vgg16": shape | {"width": 0.1, "dropout": 0.0},
        "models.resnet20": shape | {"width": 0.25, "shortcut": "A"},
        "models.resnet50": shape | {"width": 0.1, "shortcut": "B"},
        "models.fastnet": shape | {"width": 0.1},
        "models.whiten_": {
            "model": lab.models.fastnet((1, 8, 8), 10, width=0.1),
            "data": w.images,
            "images": 9,
            "epsilon": 0.1,
        },
        "models.n2nskip": shape | {"base": "lenet5", "skip_span": 1, "inside_activation": True, "share_bn": False},
        "models.transformer": {"shape": (5,), "classes": 5, "width": 8, "layers": 1, "heads": 2},
        "models.gpt": {
            "shape": (5,),
            "classes": 5,
            "width": 8,
            "layers": 1,
            "heads": 2,
            "kv_heads": None,
            "tied": False,
        },
        "models.continued": {
            "model": lab.models.gpt((5,), 256, width=8, layers=1, heads=2),
            "prompt": "a",
            "length": 2,
            "temperature": 1.0,
            "context": 3,
            "seed": 0,
        },
        "models.load_weights": {"model": w.net, "path": w.folder / "w.pt", "new_head": False},
        "models.read_weights": {"path": w.folder / "w.pt"},
        "attach": {"model": w.net, "optimizer": torch.optim.SGD(w.net.parameters(), 0.1)}
        | {"*methods": (methods.OneShot(0.5),), "steps": 2, "steps_per_epoch": 1, "data": w.data, "masks": None}
        | {"loss": loss, "metric": train.accuracy, "batch_size": 20, "skip": (), "include": (), "biases": False}
        | {"norms": False, "seed": 0, "tags": None},
        "train.CSVLog": {"path": w.folder / "log"},
        "train.TensorBoard": {"folder": w.folder / "log"},
        "train.Tracker": {"log": print},
        "analysis.holm": {"p": few},
        "storage.check_writable": {"path": w.folder / "new", "what": "here"},
        "storage.index_sizes": {"model": w.run},
        "storage.layer_sizes": {"model": w.run, "values": "exact", "others": "exact", "entropy": None},
        "storage.load": {"path": w.folder / "sparse", "model": None, "limit": None},
        "storage.load_state": {"path": state},
        "storage.save": {
            "model": w.run,
            "path": w.folder / "new",
            "values": "exact",
            "others": "exact",
            "entropy": None,
        },
        "storage.save_state": {"path": w.folder / "new", "state": {"a": 1}, "keep_previous": False},
        "storage.sizes": {"model": w.run, "masks": None, "compressed": False},
        "storage.state_bytes": {"model": w.net},
        "storage.write_atomic": {"path": w.folder / "new", "content": b"x", "keep_previous": False},
        "results.compare_text": {"frame": lab.results.load(str(w.folder / "record.json"))},
        "results.load": {"pattern": str(w.folder / "record.json")},
        "results.table": {"runs": {"a": w.run}, "compressed": False},
        "train.Distill": {"teacher": w.run, "temperature": 4.0, "weight": 0.9},
        "train.Options": {"epochs": 1},
        "train.publish": {"run": w.run, "folder": w.folder / "published"},
        "train.accuracy": {"logits": torch.rand(4, 3), "y": torch.zeros(4).long()},
        "train.negative_squared_error": {"outputs": torch.rand(4), "y": torch.rand(4)},
        "train.compression": {"logits": torch.rand(4, 3, 2), "y": torch.zeros(4, 2).long()},
        "train.whole": {"logits": torch.rand(4, 3, 2), "y": torch.zeros(4, 2).long()},
        "train.evaluate": {
            "net": w.net,
            "batches": w.batches,
            "loss": loss,
            "metric": train.accuracy,
            "device": "cpu",
        },
        "structured.Coupled": {
            "criterion": "filter_l1",
            "groups": lab.structured.groups(w.conv, w.images),
            "scope": "global",
        },
        "structured.groups": {"model": w.conv, "example": w.images},
        "structured.is_2_to_4": {"weight": torch.rand(4, 4)},
        "structured.prune": {
            "model": w.conv,
            "example": w.images,
            "prune_fraction": 0.5,
            "criterion": "filter_l1",
            "scope": "global",
            "skip": (),
            "groups": None,
            "seed": 0,
        },
        "structured.semi_structured": {"model": w.net},
        "structured.shrink": {"model": w.slim, "example": None, "masks": None, "groups": None},
        "structured.silence": {"model": w.slim, "example": None, "masks": None},
        "deploy.compile": {"model": w.slim, "example": None, "masks": None, "threads": 1},
        "deploy.export_c": {"model": w.slim, "path": w.folder / "n.c", "example": None, "masks": None, "bits": None},
        "deploy.export_onnx": {"model": w.slim, "path": w.folder / "n.onnx", "example": None, "masks": None},
        "deploy.export_program": {"model": w.slim, "example": None, "masks": None},
        "analysis.aggregate": {
            "runs": w.compared.runs.assign(method="a"),
            "by": "method",
            "tasks": ("data",),
            "score": "test_accuracy",
            "relative_to": None,
        },
        "analysis.mcnemar": {"first": w.run, "second": w.run},
        "analysis.nested_interval": {"first": [w.run], "second": None, "draws": 3, "level": 0.05, "seed": 0},
        "analysis.allocate": {"run": w.run, "compression": 4.0, "by": "magnitude"},
        "analysis.fitting": {"run": w.run, "bytes": 2000, "flops": None, "by": "magnitude"},
        "analysis.calibration_error": {
            "confidence": few,
            "right": np.array([True, False, True]),
            "number": 15,
        },
        "analysis.channel_graph": {"model": w.net},
        "analysis.crossing": {"sparsities": few, "scores": few[::-1], "wanted": 0.2},
        "analysis.distance": {"pruned": w.net, "reference": w.net, "t": 1.0},
        "analysis.heat": {"graph": lab.analysis.channel_graph(w.net)[0], "start": np.ones(26), "t": 1.0},
        "analysis.interval": {"values": few, **level},
        "analysis.paired": {"differences": few, **level},
        "analysis.welch": {"a": few, "b": few, **level},
        "analysis.smallest": {"deviation": 1.0, "n": 5, "level": 0.05, "power": 0.8},
        "analysis.latency": {"models": {"a": w.run}, "x": w.batches[0][0], "rounds": 6, "warm": 1},
        "analysis.truth": {"models": {"a": w.run}, "example": w.data, "batches": (1,), "rounds": 6},
        "analysis.published": {"data": None, "model": None, "copied": False},
        "analysis.sensitivity": {"run": w.run, "shares": (0.5,), "split": "val"},
        "analysis.tolerated": {"curves": lab.analysis.sensitivity(w.run, (0.5,)), "drop": 0.1},
        **{f"methods.{name}": _settings(getattr(methods, name)) for name in set(methods.__all__) - WITHOUT_ARGUMENTS},
        "methods.DynamicSurgery": _settings(methods.DynamicSurgery) | {"sparsity": 0.5},
        "recipes.admm": trained | sparse | finetuned,
        "recipes.bonetta": {
            "task": "MNIST",
            "protocol": "holdout",
            "pruning": gate,
            "regularizer": methods.L2(),
            "dense": 0,
            "finetune_lr": None,
            **trained,
            **finetuned,
        },
        "recipes.deep_compression": trained | sparse | finetuned | {"rounds": 1, "bits": 2},
        "recipes.dense_start": trained | short | {"folder": None, "name": ""},
        "recipes.enhanced": {"model": w.conv, "data": w.images} | sparse | short,
        "recipes.iterative": trained | sparse | finetuned | {"rounds": 1},
        "recipes.progressive": trained | finetuned | {"compressions": [2.0, 4.0], "direct": 1},
        "recipes.prune_while_accurate": trained | finetuned | {"pruning": gate, "dense": 1},
        "recipes.quantize": trained | finetuned | {"bits": 2},
        "recipes.scratch": trained | sparse | finetuned,
        "recipes.search": trained
        | finetuned
        | {
            "pruning": gate,
            "regularizer": methods.L2(),
            "at_least": 0.0,
            "strengths": [1e-3],
            "bounds": [],
            "prune_fractions": [],
        },
        "recipes.slimming": {"model": w.conv, "data": w.images, "prune_fraction": 0.5} | finetuned,
        "recipes.tickets": trained | sparse | short | {"rounds": 1},
        **_figures(w),
        "widgets.LivePanel": {"data": "digits", "model": "lenet5", "method": "Gradual", "epochs": 1, "seed": 0},
        "widgets.MaskExplorer": {"*runs": (w.run,), "labels": None, "layer": None},
        "widgets.PruneByHand": {"run": w.run, "images": 5},
        "widgets.TruthMeter": {"dense": w.slim, "pruned": w.slim, "batches": (1,), "rounds": 6},
        "sweep.declared": {"notebook": w.notebook},
        "sweep.grid": {"known": lab.sweep.declared(w.notebook), "given": {"x": [1, 2]}},
        "sweep.name_of": {"parameters": {"x": 1}, "source": "abc"},
        "sweep.plan": {"notebook": w.folder / "n.ipynb", "given": {"x": [1, 2]}, "out": w.folder / "new"},
        "sweep.until_width": {
            "notebook": w.folder / "n.ipynb",
            "given": {"y": [1]},
            "out": w.folder / "new",
            "width": 0.1,
            "least": 2,
            "most": 3,
            "level": 0.05,
            "say": print,
        },
        "sweep.read_grid": {"path": w.folder / "grid.yaml"},
        "sweep.source_hash": {"notebook": w.notebook},
    }


def _figures(w: World) -> dict[str, dict[str, Any]]:
    named: dict[str, Any] = {"*runs": (w.run,), "labels": None}
    wide = methods.WeightMom(lab.Cubic(0.5), watch=3, begin=0.1, end=1.0)
    admitted = methods.PruneWhileAccurate(0.0, prune_fraction=0.3, every_steps=1)
    regrown = w.fit(methods.RigL(0.5, every_steps=1), epochs=2)
    trials = lab.recipes.tickets(w.net, w.data, 0.5, epochs=1, rounds=1, progress=False)
    truth = lab.analysis.truth({"a": w.run, "b": w.run}, w.data, (1,), 6)
    gated, watched = w.fit(methods.RelevanceL2(), admitted), w.fit(wide, epochs=2)
    return {
        "plots.agreement": {"*runs": (w.run, w.run), "labels": None},
        "plots.by_method": {"trials": trials, "score": "test_accuracy"},
        "plots.bytes_by_layer": {"model": w.run},
        "plots.calibration": {"found": w.impact},
        "plots.classes": {"found": w.impact, "level": 0.05},
        "plots.comparison": {"results": w.compared.runs, "by": "settings"},
        "plots.exemplars": {"found": w.impact, "number": 2},
        "plots.filters": {"model": w.conv, "layer": "0", "masks": None},
        "plots.frontier": {"found": w.compared},
        "plots.gate": {"run": gated},
        "plots.history": named,
        "plots.importance": {"source": w.run, "interpretations": ("text",)},
        "plots.layers": named | {"reference": None},
        "plots.learned_gates": {"run": w.fit(methods.L0()), "layer": ""},
        "plots.matrices": {"sides": {"a": (w.run, w.run.masks)}, "layer": "0.weight"},
        "plots.milliseconds": {"table": truth},
        "plots.regrowth": {"run": regrown},
        "plots.relevance": {"run": gated},
        "plots.residuals": {"run": w.fit(methods.ADMM(0.5))},
        "plots.scales": {"run": w.slim, "share": 0.5},
        "plots.schedule": {"*schedules": (lab.Cubic(0.5),)},
        "plots.sensitivity": {"curves": lab.analysis.sensitivity(w.run, (0.5,)), "score": "accuracy"},
        "plots.sizes": named,
        "plots.survival": {"run": watched},
        "plots.trajectories": {"run": watched, "layer": "", "only": None},
        "plots.truth": {"table": truth},
        "plots.two_weights": {"quadratic": criteria.Quadratic(torch.ones(1, 1, 2), torch.eye(2)[None])},
        "plots.weights": {"values": torch.rand(3, 3), "kept": None, "name": ""},
        "plots.widths": {"shrunk": lab.structured.shrink(w.slim)},
    }


REQUIRED: dict[str, Any] = {"sparsity": 0.5, "schedule": lab.Cubic(0.5), "bits": 2, "lower_bound": 0.0}


def _settings(kind: type) -> dict[str, Any]:
    """A method's own defaults, and what has none."""
    parameters = inspect.signature(kind).parameters
    return {
        name: REQUIRED.get(name, p.default) if p.default is p.empty or name == "lower_bound" else p.default
        for name, p in parameters.items()
    }


def _defaults() -> dict[str, Any]:
    """Of the options of `fit`."""
    return {n: p.default for n, p in inspect.signature(lab.fit).parameters.items() if p.kind is p.KEYWORD_ONLY} | {
        "loss": nn.functional.cross_entropy,
        "metric": train.accuracy,
    }


# What is right on purpose. Beside it a value is right where it is the default itself: None, or nothing in a list.
RIGHT: dict[str, tuple[str, str]] = {
    "*:path *:checkpoint *:record *:root *:out *:folder *:pattern": ("'x'", "any text is the name of a file"),
    "*:name *:what *:source *:prompt": ("'x'", "any text is a name"),
    "published:data published:model": ("'x'", "what no table has gives an empty one"),
    "*:lr *:weight_decay *:strength *:factor *:steepening *:temperature *:t *:more *:deviation *:dampening": (
        "2.5",
        "it may be of any size",
    ),
    "*:finetune_lr *:begin *:tau *:decay *:decay_rate *:alpha *:rho *:tolerance *:threshold *:merge_below *:clip": (
        "2.5",
        "it may be of any size",
    ),
    "*:depth_exponent *:width *:compression *:low *:power *:gamma *:crate *:high *:longer": ("2.5", "a factor"),
    "crossing:wanted search:at_least *:initial *:threshold *:crate": ("-1 2.5", "a number of any size and sign"),
    "*:widths *:skip *:include *:tags *:found_by *:allow *:augment *:masks *:reference *:given *:parameters": (
        "[] {}",
        "nothing is named",
    ),
    "keeping:counts grow:counts": ("{}", "no layer is named, and no other is asked for"),
    "largest_per_channel:weights n_of_m:weights project:weights scattered:masks units:masks": (
        "{}",
        "of no layer, none",
    ),
    "index_sizes:model layer_sizes:model save:model bytes_by_layer:model": ("{}", "a state dict may hold nothing"),
    "save_state:state": ("{}", "a state may hold nothing"),
    "*:batches": ("None []", "these criteria look at the weights alone"),
    "*:at *:class_names *:shares *:strengths *:bounds *:prune_fractions *:regularizer *:sampled": (
        "[]",
        "none of them",
    ),
    "*:sampled": ("'x'", "a pattern, which is held against the layers when a run begins"),
    "Data:shape StreamSplit:shape": ("[]", "an item may be one number"),
    "run_table:out run_table:work run_table:weights run_table:data": ("'x'", "looked for when the first seed begins"),
    "run_table:seeds hooked:kinds": ("[]", "none of them"),
    "bonetta:* shrink:example silence:example L0:sparsity *:lr *:patience *:every_steps": ("None", "the usual"),
}


def is_right(name: str, parameter: str, label: str) -> bool:
    """Whether a value of the zoo is right here."""
    case = f"{name.rpartition('.')[2]}:{parameter}"
    return any(
        label in labels.split() and any(fnmatchcase(case, pattern) for pattern in patterns.split())
        for patterns, (labels, _) in RIGHT.items()
    )


def is_default(function: Callable[..., Any], parameter: str, value: Any) -> bool:
    parameters = inspect.signature(function).parameters
    default = parameters[parameter].default if parameter in parameters else ...
    return (value == [] and default == ()) or (value in (None, {}) and value == default)


class Hang(BaseException):
    pass


def answer(function: Callable[..., Any], arguments: dict[str, Any]) -> BaseException | None:
    """What a call raises; after 5 s of this process that is `Hang`."""

    def hang(*_: Any) -> None:
        raise Hang

    named = {name: value for name, value in arguments.items() if not name.startswith("*")}
    starred = next((value for name, value in arguments.items() if name.startswith("*")), ())
    form = inspect.signature(function).parameters.values() if "*methods" in arguments else ()
    first = [named.pop(p.name) for p in form if p.kind is p.POSITIONAL_OR_KEYWORD]
    before = signal.signal(signal.SIGVTALRM, hang)
    signal.setitimer(signal.ITIMER_VIRTUAL, 5)
    try:
        function(*first, *starred, **named)
    except BaseException as error:
        return error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return None


def public() -> dict[str, Any]:
    """All that is public and can be called, each once."""
    found: dict[int, tuple[str, Any]] = {}
    for room in ROOMS:
        where = import_module(f"pruninglab.{room}".rstrip("."))
        for name in where.__all__:
            value = getattr(where, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found.setdefault(id(value), (f"{room}.{name}".lstrip("."), value))
    return dict(found.values())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield right(World(folder))


def test_every_public_name_is_asked(world):
    without = MADE_HERE | WITHOUT_ARGUMENTS | TAKES_ANYTHING
    assert {name for name in public() if name.rpartition(".")[2] not in without} - {"criteria.SynFlow"} == set(world)


def refusals(world: dict[str, dict[str, Any]], room: str) -> tuple[list[str], int]:
    """What is wrong with the answers to wrong values, and how many these were."""
    wrong, seen, folder = [], public(), Path.cwd()
    before, asked = set(folder.rglob("*")), 0
    for name, arguments in world.items():
        if name.rpartition(".")[0] != room:
            continue
        for parameter in arguments:
            for label, value in ZOO.items():
                if is_default(seen[name], parameter, value) or is_right(name, parameter, label):
                    continue
                given = (value, *arguments[parameter][1:]) if parameter.startswith("*") else value
                said, asked = answer(seen[name], arguments | {parameter: given}), asked + 1
                if not isinstance(said, OWN):
                    wrong.append(f"{name}({parameter}={label}): {said!r}")
                elif not names(str(said), parameter.strip("*"), value):
                    wrong.append(f"{name}({parameter}={label}) says neither name nor value: {said}")
    return wrong + [f"{room} wrote {path}" for path in set(folder.rglob("*")) - before], asked


def names(said: str, parameter: str, value: Any) -> bool:
    """Whether a message tells what was wrong: the parameter, the value, or what the value is."""
    is_there = any(word in said for word in (parameter, repr(value)[:20], type(value).__name__))
    if isinstance(value, str):
        return is_there or f" {value}" in said or f"_{value}" in said
    return is_there or (value in ([], {}) and any(word in said for word in ("nothing", "none", "no ")))


def test_wrong_values_are_refused_in_words(world):
    answers = [refusals(world, room) for room in ROOMS]
    assert [line for wrong, _ in answers for line in wrong] == []
    assert sum(asked for _, asked in answers) > 6000


@pytest.mark.slow
def test_what_is_right_on_purpose_is_taken(world):
    """Neither a list that has grown old, nor a call that is refused for another reason than the one asked about."""
    seen = public()
    for name, arguments in world.items():
        assert answer(seen[name], arguments) is None or name in NEEDS_MORE, name

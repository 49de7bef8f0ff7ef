"""`Result`: what one run leaves on disk, as one JSON record, and all records read back as one table."""

import functools
import glob
import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from . import _html, storage
from .errors import DataError
from .masks import Masks, _named

SCHEMA = 1


@dataclass
class Result:
    """Configuration, environment, budget, history and measures of a run. Equal seeds, equal records but for `times`."""

    status: str
    reason: str
    config: dict[str, Any]
    environment: dict[str, Any]
    start: dict[str, Any]
    budget: dict[str, Any]
    target: dict[str, Any] | None
    accuracy: dict[str, Any]
    sparsity: dict[str, float]
    layers: list[dict[str, Any]]
    collapsed: list[str]
    flops: dict[str, float]
    size: dict[str, int]
    history: list[dict[str, Any]]
    cuts: list[dict[str, Any]]
    methods: list[dict[str, Any]] = field(default_factory=list)
    times: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def save(self, path: str | Path) -> Path:
        path = storage.check_writable(path, "record")
        storage.write_atomic(path, (json.dumps(finite(asdict(self)), indent=1) + "\n").encode())
        return path

    @classmethod
    def read(cls, path: str | Path) -> "Result":
        try:
            content = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no record: {error}.") from None
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            found = content.get("schema") if isinstance(content, dict) else None
            raise DataError(
                f"{path} is no record of schema {SCHEMA} (schema: {found}); run it again with this version."
            )
        if missing := {f.name for f in fields(cls)} - content.keys():
            raise DataError(f"{path} is a damaged record: it lacks {', '.join(sorted(missing))}.")
        return cls(**{f.name: content[f.name] for f in fields(cls)})

    @property
    def name(self) -> str:
        return " + ".join(m["type"] for m in self.config["methods"]) or "Dense"

    @property
    def way(self) -> str:
        """The methods and their settings, but for how much is cut: the same at every sparsity."""
        methods = [text(_without_amount(m)) for m in self.config["methods"] if m["type"] != "Dense"]
        return " + ".join(methods) or ("given masks" if self.config["masks"] else "Dense")

    @property
    def control(self) -> str:
        """Which control of a comparison this run can be, if any."""
        if self.way == "Dense" and not self.sparsity["weights"]:
            return "dense"
        weights = sum(layer["total"] for layer in self.layers)
        if len(self.config["methods"]) != 1 or not self.cuts or self.cuts[0]["before"] < weights:
            return ""
        method = self.config["methods"][0]
        if method.get("criterion") == "random":
            return "random mask"
        if method["type"] != "OneShot" or method.get("unit") != "weight" or not isinstance(method["criterion"], str):
            return ""
        return _MAGNITUDES.get((method["criterion"], method["scope"]), "")

    def row(self) -> dict[str, Any]:
        """One line of a table: what is compared, without the history."""
        config, budget = self.config, self.budget
        own = budget["steps"]
        if self.status == "diverged":  # it was given as many as the others
            own = budget["steps_planned"] - self.start.get("from_step", 0)
        return {
            "data": config["data"]["name"],
            "model": config["model"]["name"],
            "method": self.name,
            "settings": " + ".join(text(m) for m in config["methods"]),
            "way": self.way,
            "control": self.control,
            "seed": config["seed"],
            "chosen_on": "test" if self._chosen_on_test else "val",
            "status": self.status,
            "target": self.target["sparsity"] if self.target else None,
            "collapsed_layers": len(self.collapsed),
            "test_accuracy": self.accuracy["test"].get("accuracy"),
            "val_accuracy": self.accuracy["val"].get("accuracy"),
            "test_top5": self.accuracy["test"].get("top5"),
            "sparsity_weights": self.sparsity["weights"],
            "sparsity_weights_and_biases": self.sparsity["weights_and_biases"],
            "sparsity_all": self.sparsity["all"],
            "parameters": self.size["parameters"],
            "nonzero": self.size["nonzero"],
            "flops_dense": self.flops["dense"],
            "flops_sparse": self.flops["sparse"],
            "flops_training": self.flops["training"],
            "bytes": self.size["bytes"],
            "bzip2_bytes": self.size["bzip2_bytes"],
            "payload_bytes": self.size.get("payload_bytes"),
            "sparse_bytes": self.size.get("sparse_bytes"),
            "steps": budget["steps"],
            "steps_before": budget["steps_before"],
            "total_steps": budget["steps_before"] + own,
            "batch_size": config["batch_size"],
            "start": self.start["kind"],
            "start_hash": self.start["weights"],
            "dense_hash": self.start["dense"],
            "split": config["data"]["fingerprint"],
            "init_seed": config["model"].get("seed"),
            "form": config["model"]["form"],
            "metric": text(self.accuracy["metric"]),
            "test_images": config["data"]["test"],
            "device": self.environment["device"],
            "commit": self.environment["commit"],
            "seconds": self.times.get("seconds"),
        }

    def table(self) -> pd.DataFrame:
        """Kept and total of each layer."""
        return pd.DataFrame(self.layers)

    @property
    def _chosen_on_test(self) -> bool:
        return bool(self.config["data"].get("val_is_test"))

    def _summary(self) -> list[tuple[str, str]]:
        test, val, size = self.accuracy["test"], self.accuracy["val"], self.size
        weights = sum(layer["total"] for layer in self.layers)
        kept = sum(layer["kept"] for layer in self.layers)
        lines = [
            ("status", self.status + (f": {self.reason}" if self.reason else "")),
            ("accuracy", f"test {percent(test)}, val {percent(val)}"),
            ("sparsity", f"{self.sparsity['weights']:.2%} of weights ({kept:,} of {weights:,} in scope kept)"),
            ("target", _target(self.target)),
            (
                "parameters",
                f"{size['nonzero']:,} of {size['parameters']:,} are not zero ({self.sparsity['all']:.2%} zero)",
            ),
            ("size", f"{size['bytes']:,} bytes dense, {size['bzip2_bytes']:,} after bzip2"),
            ("FLOPs", f"{self.flops['dense']:,.0f} dense, {self.flops['sparse']:,.0f} of them on kept weights"),
            ("budget", f"{self.budget['steps']:,} steps after {self.budget['steps_before']:,} before"),
            ("counted", ", ".join(filter(None, map(_counted, self.methods)))),
        ]
        if self._chosen_on_test:
            lines.insert(2, ("chosen", "on the test images, so that their accuracy is not that of unseen ones"))
        if self.collapsed:
            lines.insert(1, ("collapsed", f"nothing is left of {', '.join(self.collapsed)}"))
        return [line for line in lines if line[1]]

    def __repr__(self) -> str:
        lines = [
            f"{self.name} on {self.config['data']['name']}/{self.config['model']['name']}, seed {self.config['seed']}"
        ]
        lines += [f"  {key:<10}  {value}" for key, value in self._summary()]
        width = max((len(layer["layer"]) for layer in self.layers), default=0)
        lines += [f"    {x['layer']:{width}}  {x['kept']:>9,} of {x['total']:>9,}" for x in self.layers]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        title = (
            f"{self.name} · {self.config['data']['name']} / {self.config['model']['name']} · seed {self.config['seed']}"
        )
        rows = [
            (x["layer"], f"{x['total']:,}", f"{x['kept']:,}", _html.bar(x["kept"] / x["total"])) for x in self.layers
        ]
        accuracies = [h["val_accuracy"] for h in self.history if h["val_accuracy"] is not None]
        low, high = min(accuracies, default=0.0), max(accuracies, default=1.0)
        chart = _html.curve(accuracies, low, high, f"validation accuracy by epoch, {low:.3f} to {high:.3f}")
        span = f"<div>val accuracy by epoch, {low:.3f} to {high:.3f}</div>" if accuracies else ""
        return (
            f"<b>{_html.cell(title)}</b>"
            + '<div style="display:flex;flex-wrap:wrap;gap:2em;align-items:flex-start">'
            + _html.table(("", ""), self._summary())
            + _html.table(("layer", "total", "kept", ""), rows)
            + (f"<div>{chart}{span}</div>" if accuracies else "")
            + "</div>"
        )


_MAGNITUDES = {
    ("magnitude", "global"): "global magnitude",
    ("magnitude", "layer"): "layer magnitude",
    ("layer_magnitude", "global"): "layer magnitude",
}


def _counted(method: Mapping[str, Any]) -> str:
    """What a method says of its run in numbers, by the names of its fields."""
    numbers = {k: v for k, v in method.items() if isinstance(v, int | float) and not isinstance(v, bool) and v}
    return ", ".join(f"{name} {value:{',' if isinstance(value, int) else '.4g'}}" for name, value in numbers.items())


def _without_amount(described: Any) -> Any:
    """A described method without what says how much is cut."""
    if not isinstance(described, dict):
        return described
    return {k: _without_amount(v) for k, v in described.items() if k not in ("sparsity", "final", "target")}


def load(pattern: str | Path) -> pd.DataFrame:
    """All records that a pattern finds (`"runs/**"`, a folder, a file), one row each, with `path`.

    Runs of a sweep's cell have its parameters in columns `param_…`; cells that failed are in `frame.attrs["failed"]`.
    Files that are no records are left out and listed in `frame.attrs["skipped"]`. `frame.to_csv("all.csv")` writes the
    table out, and with pyarrow installed `frame.to_parquet("all.parquet")`.
    """
    pattern = str(pattern)
    if os.path.isdir(pattern):
        pattern = os.path.join(glob.escape(pattern), "**")
    if pattern.endswith("**"):
        pattern = os.path.join(pattern, "*.json")
    rows, skipped, cells = [], {}, {}
    for path in sorted(glob.glob(pattern, recursive=True)):
        if os.path.basename(path) == "cell.json" and (cell := _cell(path)):
            cells[os.path.dirname(path)] = cell
            continue
        try:
            rows.append({**Result.read(path).row(), "path": path})
        except (DataError, KeyError, TypeError, AttributeError) as error:
            skipped[path] = str(error)
    if cells:
        rows = [row | _parameters(cell) for row in rows if (cell := _cell_of(row["path"], cells))["status"] == "done"]
    frame = pd.DataFrame(rows)
    frame.attrs["skipped"] = skipped
    frame.attrs["failed"] = {cell["name"]: cell["error"] for cell in cells.values() if cell["status"] != "done"}
    return frame


def _cell(path: str) -> dict[str, Any] | None:
    """The record of a sweep's cell."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"sweep", "parameters", "status"} <= content.keys() else None


def _cell_of(path: str, cells: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The cell in whose folder this is, or one that stands for none."""
    folder = os.path.dirname(path)
    while folder and folder not in cells and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return cells.get(folder, {"status": "done", "parameters": {}})


def _parameters(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {f"param_{name}": value for name, value in cell["parameters"].items()}


def table(runs: Mapping[str, Any]) -> pd.DataFrame:
    """Runs or results side by side, by the names given: accuracy, what is zero and of what, and size."""
    rows = {name: getattr(run, "result", run).row() for name, run in runs.items()}
    return _shown(pd.DataFrame.from_dict(rows, orient="index"))


def compare_text(frame: pd.DataFrame) -> str:
    """Loaded records as a plain table for a terminal, best last."""
    paths = [Path(p) for p in frame["path"]]
    stems = [p.stem.replace("-", " ") for p in paths]
    names = stems if len(set(stems)) == len(stems) else [str(p) for p in paths]
    return _shown(frame.set_index(pd.Index(names))).to_string()


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns that a reader compares, under headings that say what a share is of."""
    kilobytes = {"bytes": "dense file, KB", "bzip2_bytes": "after bzip2, KB"}
    shown = pd.DataFrame(
        {
            "status": frame["status"] + frame["collapsed_layers"].map(_emptied),
            "test accuracy": [percent({"accuracy": a}) for a in frame["test_accuracy"]],
            "zero, of weights": frame["sparsity_weights"].map("{:.2%}".format),
            "zero, of all parameters": frame["sparsity_all"].map("{:.2%}".format),
            "non-zero parameters": frame["nonzero"].map("{:,}".format),
        }
    )
    for column, heading in kilobytes.items():
        shown[heading] = (frame[column] / 1000).map("{:,.1f}".format)
    shown["steps"] = frame["steps_before"] + frame["steps"]
    shown["GFLOPs of this run"] = (frame["flops_training"] / 1e9).map("{:,.0f}".format)
    shown["seconds of it"] = frame["seconds"].astype(float).map("{:,.0f}".format)
    return shown


def _emptied(layers: int) -> str:
    return f", {layers} layer{'s' if layers > 1 else ''} emptied" if layers else ""


def module_flops(model: nn.Module, x: Tensor) -> dict[str, dict[str, float]]:
    """FLOPs of one sample in each module itself, by torch's own counter: {module: {"weights": …, "other": …}}.

    "weights" are products with a weight, "other" those of two activations, as in attention.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter cannot look into it,
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # nor into the fused kernels
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    root = type(model).__name__
    counts = {k.removeprefix(root).removeprefix("."): v for k, v in counter.get_flop_counts().items() if k != "Global"}
    flops: dict[str, dict[str, float]] = {}
    for name, ops in counts.items():
        inside = [theirs for child, theirs in counts.items() if child and child.rpartition(".")[0] == name != child]
        own = {op: n - sum(theirs.get(op, 0) for theirs in inside) for op, n in ops.items()}
        weights = sum(n for op, n in own.items() if str(op).rpartition(".")[2] in _WEIGHT_PRODUCTS)
        flops[name] = {"weights": float(weights), "other": float(sum(own.values()) - weights)}
    return flops


_WEIGHT_PRODUCTS = {"addmm", "mm", "convolution", "_convolution", "cudnn_convolution", "_scaled_mm"}


def sparse_flops(model: nn.Module, flops: Mapping[str, Mapping[str, float]], masks: Masks) -> float:
    """Of the FLOPs by module, those on kept weights; a weight that two modules share counts in both."""
    density = {id(w): float(masks[name].float().mean()) for name, w in _named(model).items() if name in masks}
    total = 0.0
    for name, parts in flops.items():
        module = model.get_submodule(name)
        inside = [
            p for n, p in module.named_parameters(remove_duplicate=False) if p.ndim > 1 and _is_own(n, name, flops)
        ]
        size = sum(p.numel() for p in inside)
        kept = sum(p.numel() * density.get(id(p), 1.0) for p in inside)
        total += parts["other"] + parts["weights"] * (kept / size if size else 1.0)
    return total


def _is_own(parameter: str, module: str, flops: Mapping[str, Any]) -> bool:
    """Whether the parameter belongs to `module` itself, not to a counted module inside it."""
    path = parameter.split(".")[:-1]
    return not any(f"{module}.{'.'.join(path[:i])}".strip(".") in flops for i in range(1, len(path) + 1))


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """The content of named tensors, whatever their device or memory format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return digest.hexdigest()[:16]


def environment(device: str) -> dict[str, Any]:
    """Versions and hardware."""
    from . import __version__

    return {
        "pruninglab": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
    }


def describe(value: Any) -> Any:
    """Any setting as JSON: dataclasses by their fields, functions by name, tensors by content."""
    if is_dataclass(value) and not isinstance(value, type):
        settings = {f.name: describe(getattr(value, f.name)) for f in fields(value) if f.init}
        return {"type": type(value).__name__, **settings}
    if isinstance(value, Tensor):
        return f"tensor {tensor_hash({'': value})}"
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [describe(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, nn.Module):
        return f"{type(value).__name__} {tensor_hash(value.state_dict())} {_short(repr(value) + str(_public(value)))}"
    return label(value)


def label(value: Any) -> str:
    """A name that is the same in every process; the user's own functions with a hash of what they do."""
    if isinstance(value, functools.partial):
        return f"{label(value.func)}{describe(value.args)}{describe(value.keywords)}"
    name = getattr(value, "__name__", None) or type(value).__name__
    is_own = isinstance(value, FunctionType) and value.__module__.partition(".")[0] not in ("torch", "pruninglab")
    return f"{name} {_short(_code(value))}" if is_own else name


def _code(function: FunctionType) -> str:
    """What a function does, as text: its code, the constants, defaults and closed-over values."""

    def parts(code: CodeType) -> list[Any]:
        constants = [parts(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
        return [code.co_code.hex(), code.co_names, constants]

    closed = [describe(cell.cell_contents) for cell in function.__closure__ or ()]
    return str([parts(function.__code__), describe(function.__defaults__ or ()), closed])


def _public(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if not k.startswith("_") and isinstance(v, bool | int | float | str)}


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def text(described: Any) -> str:
    """A described setting in one line, as it would be written."""
    if isinstance(described, dict) and "type" in described:
        inside = ", ".join(f"{k}={text(v)}" for k, v in described.items() if k != "type")
        return f"{described['type']}({inside})"
    return str(described)


def finite(value: Any) -> Any:
    """NaN and infinities as null, which JSON has no other word for."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(scores: Mapping[str, Any]) -> str:
    value = scores.get("accuracy")
    return "unknown" if value is None or not math.isfinite(value) else f"{value:.2%}"


def _target(target: dict[str, Any] | None) -> str:
    if not target:
        return ""
    sparsity = target["sparsity"]
    share = f"{sparsity:.2%}" if isinstance(sparsity, int | float) else str(sparsity)
    return f"{share} ({target['scope']}, by {target['unit']})"


@functools.cache
def code_hash() -> str:
    """The package's own source, as it is now, committed or not."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _commit() -> str | None:
    """The commit of the code that runs, with a + where it was changed since; None where there is no repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

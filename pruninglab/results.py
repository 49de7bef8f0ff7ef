"""`Result`: what one run leaves on disk, as one JSON record, and all records read back as one table."""

import functools
import glob
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from . import _html, storage
from .errors import DataError

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
        return " + ".join(m["name"] for m in self.config["methods"]) or "Dense"

    def row(self) -> dict[str, Any]:
        """One line of a table: what is compared, without the history."""
        config = self.config
        return {
            "data": config["data"]["name"],
            "model": config["model"]["name"],
            "method": self.name,
            "settings": " + ".join(text(m) for m in config["methods"]),
            "seed": config["seed"],
            "status": self.status,
            "target": self.target["sparsity"] if self.target else None,
            "test_accuracy": self.accuracy["test"].get("accuracy"),
            "val_accuracy": self.accuracy["val"].get("accuracy"),
            "sparsity_weights": self.sparsity["weights"],
            "sparsity_weights_and_biases": self.sparsity["weights_and_biases"],
            "sparsity_all": self.sparsity["all"],
            "parameters": self.size["parameters"],
            "nonzero": self.size["nonzero"],
            "flops_dense": self.flops["dense"],
            "flops_sparse": self.flops["sparse"],
            "bytes": self.size["bytes"],
            "bzip2_bytes": self.size["bzip2_bytes"],
            "steps": self.budget["steps"],
            "steps_before": self.budget["steps_before"],
            "start": self.start["kind"],
            "start_hash": self.start["weights"],
            "seconds": self.times.get("seconds"),
        }

    def table(self) -> pd.DataFrame:
        """Kept and total of each layer."""
        return pd.DataFrame(self.layers)

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
        ]
        if collapsed := [layer["layer"] for layer in self.layers if layer["kept"] == 0]:
            lines.insert(1, ("collapsed", f"nothing is left of {', '.join(collapsed)}"))
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


def load(pattern: str | Path) -> pd.DataFrame:
    """All records that a pattern finds (`"runs/**"`, a folder, a file), one row each, with `path`.

    Files that are no records are left out and listed in `frame.attrs["skipped"]`.
    """
    pattern = str(pattern)
    if os.path.isdir(pattern):
        pattern = os.path.join(pattern, "**")
    if pattern.endswith("**"):
        pattern = os.path.join(pattern, "*.json")
    rows, skipped = [], {}
    for path in sorted(glob.glob(pattern, recursive=True)):
        try:
            rows.append({**Result.read(path).row(), "path": path})
        except (DataError, KeyError, TypeError, AttributeError) as error:
            skipped[path] = str(error)
    frame = pd.DataFrame(rows)
    frame.attrs["skipped"] = skipped
    return frame


def table(runs: Mapping[str, Any]) -> pd.DataFrame:
    """Runs or results side by side, by the names given: accuracy, what is zero and of what, and size."""
    rows = {name: getattr(run, "result", run).row() for name, run in runs.items()}
    return _shown(pd.DataFrame.from_dict(rows, orient="index"))


def compare_text(frame: pd.DataFrame) -> str:
    """Loaded records as a plain table for a terminal, best last."""
    named = frame.set_index(frame["path"].map(lambda p: Path(p).stem.replace("-", " ")).rename(None))
    return _shown(named).to_string()


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns that a reader compares, under headings that say what a share is of."""
    kilobytes = {"bytes": "dense file, KB", "bzip2_bytes": "after bzip2, KB"}
    shown = pd.DataFrame(
        {
            "status": frame["status"],
            "test accuracy": frame["test_accuracy"].map("{:.2%}".format),
            "zero, of weights": frame["sparsity_weights"].map("{:.2%}".format),
            "zero, of all parameters": frame["sparsity_all"].map("{:.2%}".format),
            "non-zero parameters": frame["nonzero"].map("{:,}".format),
        }
    )
    for column, heading in kilobytes.items():
        shown[heading] = (frame[column] / 1000).map("{:,.1f}".format)
    shown["steps"] = frame["steps_before"] + frame["steps"]
    return shown


def layer_flops(model: nn.Module, x: Tensor, density: Mapping[str, float]) -> dict[str, float]:
    """FLOPs of one sample by torch's own counter: of the dense net, and of its kept weights alone.

    A layer's FLOPs count by the share of its weight that is kept; what the counter finds outside layers counts whole.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(x)
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    dense = float(counter.get_total_flops())
    sparse = dense
    for name, share in density.items():
        module = name.rpartition(".")[0]
        inside = next((flops for key, flops in by_module.items() if key.partition(".")[2] == module), 0)
        if name.endswith("weight"):
            sparse -= inside * (1 - share)
    return {"dense": dense, "sparse": round(sparse, 1)}


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """The content of named tensors, whatever their device or memory format."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return digest.hexdigest()[:16]


@functools.cache
def environment(device: str) -> dict[str, Any]:
    """Versions and hardware."""
    from . import __version__

    return {
        "pruninglab": __version__,
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
        return {"name": type(value).__name__, **settings}
    if isinstance(value, Tensor):
        return f"tensor {tensor_hash({'': value})}"
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [describe(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, nn.Module):
        return f"{type(value).__name__} {tensor_hash(dict(value.named_parameters()))}"
    return label(value)


def label(value: Any) -> str:
    """A name that is the same in every process."""
    if isinstance(value, functools.partial):
        return f"{label(value.func)}{describe(value.args)}{describe(value.keywords)}"
    return getattr(value, "__name__", None) or (repr(value) if is_dataclass(value) else type(value).__name__)


def text(described: Any) -> str:
    """A described setting in one line, as it would be written."""
    if isinstance(described, dict) and "name" in described:
        inside = ", ".join(f"{k}={text(v)}" for k, v in described.items() if k != "name")
        return f"{described['name']}({inside})"
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


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

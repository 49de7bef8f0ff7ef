"""`Result`: what one run leaves on disk, as one JSON record, and all records read back as one table."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from .. import _html
from ..errors import ConfigError, DataError
from ..identity import text
from ..storage import files
from .schema_1 import from_schema_1

SCHEMA = 2


@dataclass
class Result:
    """Configuration, environment, steps, history and measures of a run. Equal seeds, equal records but for `times`."""

    status: str
    reason: str
    config: dict[str, Any]
    environment: dict[str, Any]
    origin: dict[str, Any]
    steps: dict[str, Any]
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
    tags: dict[str, Any] = field(default_factory=dict)
    """What `fit(…, tags=…)` was given: a column each."""
    schema: int = SCHEMA

    def save(self, path: str | Path) -> Path:
        path = files.check_writable(path, "record")
        files.write_atomic(path, (json.dumps(finite(asdict(self)), indent=1) + "\n").encode())
        return path

    @classmethod
    def read(cls, path: str | Path) -> "Result":
        try:
            content = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no record: {error}.") from None
        found = content.get("schema") if isinstance(content, dict) else None
        if found == 1:
            content = from_schema_1(content)
        elif found != SCHEMA:
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
    def method(self) -> str:
        """The methods and their settings, but for how much is cut: the same at every sparsity."""
        methods = [text(_without_amount(m)) for m in self.config["methods"] if m["type"] != "Dense"]
        return " + ".join(methods) or ("given masks" if self.config["masks"] else "Dense")

    @property
    def control(self) -> str:
        """Which control of a comparison this run can be, if any."""
        if self.method == "Dense" and not self.sparsity["weights"]:
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
        config, steps = self.config, self.steps
        own = steps["own"]
        if self.status == "diverged":  # it was given as many as the others
            own = steps["planned"] - self.origin.get("from_step", 0)
        columns = {
            "data": config["data"]["name"],
            "model": config["model"]["name"],
            "methods": self.name,
            "settings": " + ".join(text(m) for m in config["methods"]),
            "method": self.method,
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
            "steps": steps["own"],
            "steps_before": steps["before"],
            "total_steps": steps["before"] + own,
            "batch_size": config["batch_size"],
            "start": self.origin["kind"],
            "start_hash": self.origin["weights"],
            "dense_hash": self.origin["dense"],
            "split": config["data"]["fingerprint"],
            "init_seed": config["model"].get("seed"),
            "form": config["model"]["form"],
            "metric": text(self.accuracy["metric"]),
            "test_images": config["data"]["test"],
            "device": self.environment["device"],
            "commit": self.environment["commit"],
            "seconds": self.times.get("seconds"),
        }
        return columns | self.tags

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
            ("steps", f"{self.steps['own']:,} steps after {self.steps['before']:,} before"),
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


COLUMNS = frozenset(
    """
    data model methods settings method control seed chosen_on status target collapsed_layers test_accuracy
    val_accuracy test_top5 sparsity_weights sparsity_weights_and_biases sparsity_all parameters nonzero
    flops_dense flops_sparse flops_training bytes bzip2_bytes payload_bytes sparse_bytes steps steps_before
    total_steps batch_size start start_hash dense_hash split init_seed form metric test_images device commit
    seconds path
    """.split()
)
"""Of `Result.row`."""


def check_tags(tags: Mapping[str, Any]) -> None:
    """A tag may name the method; what was measured and set keeps its own column."""
    if taken := tags.keys() & COLUMNS - {"method"}:
        raise ConfigError(f"tags: {', '.join(sorted(taken))} are columns of every record already; take other names.")


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

"""`Result`: what one run leaves on disk, as one JSON record, and all records read back as one table."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import _html
from ..errors import ConfigError, DataError
from ..identity import short_hash, text
from ..layers.names import is_bias
from ..storage import files
from .answers import unpack
from .protocol import ENTRIES, protocol, protocol_hash
from .schema_1 import from_schema_1

SCHEMA = 2
LITTLE = 0.1
"""A run with less than this share of all parameters in scope says so."""


@dataclass
class Result:
    """All that is known of a run: settings, machine, costs, history and measures.

    Runs of equal settings and seeds on one machine have equal records but for `times` and the command line.
    """

    status: str
    reason: str
    config: dict[str, Any]
    environment: dict[str, Any]
    origin: dict[str, Any]
    steps: dict[str, Any]
    target: dict[str, Any] | None
    accuracy: dict[str, Any]
    sparsity: dict[str, float]
    scope: dict[str, Any]
    layers: list[dict[str, Any]]
    collapsed: list[str]
    flops: dict[str, float]
    size: dict[str, int]
    history: list[dict[str, Any]]
    cuts: list[dict[str, Any]]
    methods: list[dict[str, Any]] = field(default_factory=list)
    tags: dict[str, Any] = field(default_factory=dict)
    """What `fit(…, tags=…)` was given: a column each."""
    warnings: list[str] = field(default_factory=list)
    times: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def save(self, path: str | Path) -> Path:
        path = files.check_writable(path, "record")
        derived = {"protocol": {"hash": protocol_hash(self), **self.protocol}}
        files.save_json(path, finite(asdict(self) | derived))
        return path

    @classmethod
    def read(cls, path: str | Path) -> "Result":
        return cls.read_with_row(path)[0]

    @classmethod
    def read_with_row(cls, path: str | Path) -> "tuple[Result, dict[str, Any]]":
        record = files.load_json(path, since=("schema", SCHEMA))
        try:
            record = from_schema_1(record) if record["schema"] == 1 else record
            result = cls(**{f.name: record[f.name] for f in fields(cls)})
            result.collapsed = [name for name in result.collapsed if not is_bias(name)]  # older ones counted those too
            _ = repr(result), result._repr_html_()  # whoever shows it is not to find it broken
            return result, result.row()
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise DataError(f"{path} is a damaged record: {type(error).__name__} {error}.") from None

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

    @property
    def val(self) -> float:
        """Accuracy on the validation split."""
        return _number(self.accuracy["val"].get("accuracy"))

    @property
    def test(self) -> float:
        """Accuracy on the test split."""
        return _number(self.accuracy["test"].get("accuracy"))

    def answers(self) -> np.ndarray | None:
        """Of each test image how far the predicted class is from its label, 0 if it is right; None in old records."""
        entry = self.accuracy.get("answers")
        return unpack(entry, self.config["data"]["test"]) if entry else None

    @property
    def in_scope(self) -> float:
        """The share of all parameters that the run may cut."""
        return self.scope["weights"] / max(self.scope["parameters"], 1)

    @property
    def protocol(self) -> dict[str, Any]:
        """What has to be alike in two runs, so that their difference is that of their methods."""
        return protocol(self)

    def row(self) -> dict[str, Any]:
        """One line of a table: what is compared, without the history; then the tags."""
        return {name: of(self) for name, of in COLUMNS.items()} | self.tags

    def table(self) -> pd.DataFrame:
        """Kept and total of each layer."""
        return pd.DataFrame(self.layers)

    @property
    def _chosen_on_test(self) -> bool:
        return bool(self.config["data"].get("val_is_test"))

    def summary(self) -> list[tuple[str, str]]:
        """What a reader looks for first, as pairs of a name and its words."""
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
            ("size", _bytes(size)),
            ("FLOPs", f"{self.flops['dense']:,.0f} dense, {self.flops['sparse']:,.0f} of them on kept weights"),
            ("steps", f"{self.steps['own']:,} after {self.steps['before']:,} before"),
            ("counted", ", ".join(filter(None, map(_counted, self.methods)))),
        ]
        if self._chosen_on_test:
            lines.insert(2, ("chosen", "on the test images, so that their accuracy is not that of unseen ones"))
        lines[1:1] = [("warning", warning) for warning in self.warnings]
        if self.collapsed:
            lines.insert(1, ("collapsed", f"nothing is left of {', '.join(self.collapsed)}"))
        return [line for line in lines if line[1]]

    def _title(self, on: str, of: str, then: str) -> str:
        config = self.config
        trained = f"{self.name}{on}{config['data']['name']}{of}{config['model']['name']}{then}seed {config['seed']}"
        gone = f"{then}nothing left of {len(self.collapsed)} of {len(self.layers)} layers" if self.collapsed else ""
        return f"{trained}{then}{self.in_scope:.1%} of all parameters in scope{gone}"

    def __repr__(self) -> str:
        lines = [self._title(" on ", "/", ", ")]
        lines += [f"  {key:<10}  {value}" for key, value in self.summary()]
        width = max((len(layer["layer"]) for layer in self.layers), default=0)
        lines += [f"    {x['layer']:{width}}  {x['kept']:>9,} of {x['total']:>9,}" for x in self.layers]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        title = self._title(" · ", " / ", " · ")
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
            + _html.table(("", ""), self.summary())
            + _html.table(("layer", "total", "kept", ""), rows)
            + (f"<div>{chart}{span}</div>" if accuracies else "")
            + "</div>"
        )


def _total_steps(result: Result) -> int:
    own = result.steps["own"]
    if result.status in ("diverged", "collapsed"):  # it was given as many as the others
        own = result.steps["planned"] - result.origin.get("from_step", 0)
    return result.steps["before"] + own


def _search(result: Result) -> int | None:
    """Steps that found the masks; None where they were handed over without the runs that found them."""
    given = result.method == "given masks" and result.origin["kind"] != "run"
    return result.origin.get("search", None if given else 0)


def _trace(result: Result) -> str | None:
    """A hash of all losses: no two trainings of other seeds have the same ones."""
    losses = [h[name] for h in result.history for name in ("loss", "val_loss")]
    losses = finite(losses or [result.accuracy[split].get("loss") for split in ("val", "test")])
    return None if None in losses else short_hash(json.dumps(losses))


COLUMNS: dict[str, Callable[[Result], Any]] = {
    "data": lambda r: r.config["data"]["name"],
    "holds": lambda r: r.config["data"].get("holds", r.config["data"]["name"]),
    "model": lambda r: r.config["model"]["name"],
    "methods": lambda r: r.name,
    "settings": lambda r: " + ".join(text(m) for m in r.config["methods"]),
    "method": lambda r: r.method,
    "method_settings": lambda r: r.method,
    "control": lambda r: r.control,
    "seed": lambda r: r.config["seed"],
    "chosen_on": lambda r: "test" if r._chosen_on_test else "val",
    "status": lambda r: r.status,
    "target": lambda r: r.target["sparsity"] if r.target else None,
    "collapsed_layers": lambda r: len(r.collapsed),
    "test_accuracy": lambda r: r.accuracy["test"].get("accuracy"),
    "val_accuracy": lambda r: r.accuracy["val"].get("accuracy"),
    "test_loss": lambda r: r.accuracy["test"].get("loss"),
    "val_loss": lambda r: r.accuracy["val"].get("loss"),
    "test_top5": lambda r: r.accuracy["test"].get("top5"),
    "sparsity_weights": lambda r: r.sparsity["weights"],
    "sparsity_weights_and_biases": lambda r: r.sparsity["weights_and_biases"],
    "sparsity_all": lambda r: r.sparsity["all"],
    "in_scope": lambda r: r.in_scope,
    "parameters": lambda r: r.size["parameters"],
    "nonzero": lambda r: r.size["nonzero"],
    "flops_dense": lambda r: r.flops["dense"],
    "flops_sparse": lambda r: r.flops["sparse"],
    "flops_training": lambda r: r.flops["training"],
    "flops_before": lambda r: r.flops.get("before"),
    "bytes": lambda r: r.size["bytes"],
    "bzip2_bytes": lambda r: r.size.get("bzip2_bytes"),
    "data_bits": lambda r: r.size.get("data_bits"),
    "index_bits": lambda r: r.size.get("index_bits"),
    "payload_bytes": lambda r: r.size.get("payload_bytes"),
    "sparse_bytes": lambda r: r.size.get("sparse_bytes"),
    "steps": lambda r: r.steps["own"],
    "steps_before": lambda r: r.steps["before"],
    "search_steps": _search,
    "total_steps": _total_steps,
    "protocol": protocol_hash,
    "start": lambda r: r.origin["kind"],
    "start_hash": lambda r: r.origin["weights"],
    "dense_hash": lambda r: r.origin["dense"],
    "end_hash": lambda r: r.accuracy.get("weights"),
    "trace_hash": _trace,
    "split": lambda r: r.config["data"]["fingerprint"],
    "init_seed": lambda r: r.config["model"].get("seed"),
    "form": lambda r: r.config["model"]["form"],
    "metric": lambda r: text(r.accuracy["metric"]),
    "test_images": lambda r: r.config["data"]["test"],
    "device": lambda r: r.environment["device"],
    "processor": lambda r: r.environment["cpu"] if r.config["device"] == "cpu" else r.environment["device"],
    "commit": lambda r: r.environment["commit"],
    "seconds": lambda r: r.times.get("seconds"),
    "seconds_before": lambda r: r.times.get("seconds_before"),
    **ENTRIES,
}
"""What a table of records shows of each."""
_OWN_COLUMNS = COLUMNS.keys() - {"method"} | {"path"}


def check_tags(tags: Mapping[str, Any]) -> None:
    """Tags become columns: none may hide one that is there. `method` is the user's own name for the method."""
    if not isinstance(tags, Mapping):
        raise ConfigError(f"tags={tags!r:.80}; expected a dict, such as {{'method': 'ticket', 'density': 0.1}}.")
    for name, value in tags.items():
        if not isinstance(name, str) or not name or name in _OWN_COLUMNS or name.startswith("param_"):
            raise ConfigError(
                f"tags: {name!r} cannot name a column of its own; every record has {', '.join(sorted(_OWN_COLUMNS))} "
                "already, and those of sweeps param_…. Take another name."
            )
        if not isinstance(value, str | bool | int | float | None) or value in (math.inf, -math.inf) or value != value:
            raise ConfigError(f"tags: {name}={value!r:.80}; expected a text, a number, True, False or None.")


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


def _number(value: float | None) -> float:
    """A number of a record; null stands for one that was not finite."""
    return math.nan if value is None else float(value)


def _bytes(size: Mapping[str, int]) -> str:
    kinds = {"bytes": "dense", "bzip2_bytes": "after bzip2", "sparse_bytes": "in a sparse file"}
    return ", ".join(f"{size[kind]:,} bytes {words}" for kind, words in kinds.items() if size.get(kind))


def percent(scores: Mapping[str, Any]) -> str:
    value = scores.get("accuracy")
    return "unknown" if value is None or not math.isfinite(value) else f"{value:.2%}"


def _target(target: dict[str, Any] | None) -> str:
    if not target:
        return ""
    sparsity = target["sparsity"]
    share = f"{sparsity:.2%}" if isinstance(sparsity, int | float) else str(sparsity)
    return f"{share} ({target['scope']}, by {target['unit']})"

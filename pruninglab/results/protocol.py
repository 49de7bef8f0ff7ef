"""The protocol of a run: what has to be alike in two runs, so that their difference is that of their methods.

It is read off what a record holds, so old records have one too. What an earlier training of the same network did
otherwise is said as well: a learning rate of `0.1, then 0.01`.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..identity import short_hash, text

TRAINING: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "augmentation": lambda c: " + ".join(map(text, c["data"]["augment"])) or "none",
    "normalisation": lambda c: text([c["data"]["mean"], c["data"]["std"]]),
    "loss": lambda c: text(_without_teacher(c["loss"])) + (f" of {text(c['forward'])}" if "forward" in c else ""),
    "teacher": lambda c: c["loss"].get("teacher") if isinstance(c["loss"], dict) else None,
    "optimizer": lambda c: _optimizer(c),
    "lr": lambda c: c["lr"],
    "weight_decay": lambda c: c["weight_decay"],
    "lr_schedule": lambda c: text(c["lr_schedule"]),
    "batch_size": lambda c: f"{c['batch_size']} in {c['accumulate']} parts" if "accumulate" in c else c["batch_size"],
    "precision": lambda c: c["precision"] + (f", weights in {c['model']['dtype']}" if "dtype" in c["model"] else ""),
    "keep": lambda c: c["keep"],
    "patience": lambda c: c["patience"],
    "scope": lambda c: _scope(c),
}
"""Entries that each training has, from the `config` of its record."""


def protocol(result: Any) -> dict[str, Any]:
    """All entries of one record, each as it is compared and shown."""
    return {name: of(result) for name, of in ENTRIES.items()}


def protocol_hash(result: Any) -> str:
    """One word for all entries but the teacher and the statistics of the images, which follow from the seed."""
    found = {name: value for name, value in protocol(result).items() if name not in ("teacher", "normalisation")}
    return short_hash(json.dumps(found, sort_keys=True))


def training(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: of(config) for name, of in TRAINING.items()}


def _throughout(name: str, result: Any) -> Any:
    """An entry of this training, after the different ones of those that its network went through before."""
    own = TRAINING[name](result.config)
    passed = [past[name] for past in result.origin.get("earlier", []) if name in past]
    once = [value for i, value in enumerate(passed) if value not in passed[:i]]
    chain = once if once[-1:] == [own] else [*once, own]
    return own if len(chain) == 1 else ", then ".join(map(str, chain))


def _optimizer(c: Mapping[str, Any]) -> str:
    momentum = f" with momentum {c['momentum']}" if c["optimizer"] == "sgd" else ""
    return c["optimizer"] + momentum + (f", gradients clipped at {c['clip']}" if c.get("clip") else "")


def _without_teacher(loss: Any) -> Any:
    """A teacher is another network for each seed; that there is one stays."""
    return {k: "…" if k == "teacher" else v for k, v in loss.items()} if isinstance(loss, dict) else loss


def _scope(config: Mapping[str, Any]) -> str:
    parts = ["weights", *(part for part in ("biases", "norms") if config[part]), *_patterns(config, "include")]
    skip = _patterns(config, "skip")
    return " and ".join(parts) + (f" without {', '.join(skip)}" if skip else "")


def _patterns(config: Mapping[str, Any], name: str) -> list[str]:
    given = config.get(name, [])
    return [str(pattern) for pattern in (given if isinstance(given, list) else [given])]


ENTRIES: dict[str, Callable[[Any], Any]] = {
    **{name: partial(_throughout, name) for name in TRAINING},
    "scope_size": lambda r: r.scope["weights"],
    "torch": lambda r: r.environment["torch"],
    "device_type": lambda r: r.config["device"],
    "epochs": lambda r: r.config["epochs"],
}
"""The protocol, entry by entry, from a record."""

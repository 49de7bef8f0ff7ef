"""Records of schema 1, in today's words: what was measured stays as it was."""

from typing import Any

TYPES: dict[str, str] = {
    "ConstantRate": "ConstantLR",
    "CosineRate": "CosineLR",
    "StepRate": "StepLR",
    "GatedPruning": "PruneWhileAccurate",
}
FIELDS: dict[str, dict[str, str]] = {
    "Gradual": {"start": "begin"},
    "WeightMom": {"start": "begin", "reading": "interpretation", "interval": "every_epochs"},
    "TargetedDropout": {"rate": "drop"},
    "SoftSharing": {"rates": "lrs"},
    "PGD": {"every": "every_steps"},
    "RigL": {"share": "drop_fraction", "every": "every_steps"},
    "SET": {"share": "drop_fraction", "every": "every_steps"},
    "SparseMomentum": {"share": "drop_fraction", "every": "every_steps"},
    "PruneWhileAccurate": {"share": "prune_fraction", "eval_interval": "every_steps"},
    "Distill": {"share": "weight"},
}
"""Settings by type: their old and their new names."""
ADDED: dict[str, dict[str, dict[str, Any]]] = {
    "WeightMom": {"interpretation": {"depth_exponent": 1.0}},
    "RelevanceL2": {"decay": {"decay_rate": 1.0}},
    "LOBSTER": {"only_prunable": {"patience": None, "tolerance": 0.05}},
    "Sensitivity": {"only_prunable": {"threshold": None, "per_sample": False}},
    "SoftSharing": {"lrs": {"merge_below": None}},
}
"""Settings by type that came later, behind the one they follow, with the value that says what was done before."""
STEPS = {"steps": "own", "steps_before": "before", "steps_planned": "planned"}


def from_schema_1(content: dict[str, Any]) -> dict[str, Any]:
    """A record of schema 1 as one of schema 2. What was not recorded then is empty."""
    scope = {"weights": sum(layer["total"] for layer in content["layers"]), "parameters": content["size"]["parameters"]}
    config = {{"rate": "lr_schedule", "start": "origin"}.get(k, k): _renamed(v) for k, v in content["config"].items()}
    moved = {k: v for k, v in content.items() if k not in ("start", "budget", "config", "methods", "schema")}
    return {
        **moved,
        "config": config,
        "methods": _renamed(content["methods"]),
        "origin": content["start"],
        "steps": {STEPS.get(k, k): v for k, v in content["budget"].items()},
        "target": _renamed(content["target"]),
        "accuracy": _renamed(content["accuracy"]),
        "scope": {**scope, "left_out": {}},
        "tags": content.get("tags", {}),
        "warnings": [],
        "schema": 2,
    }


def _renamed(value: Any) -> Any:
    """A described setting, and all that is within it, in today's words."""
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, dict):
        return value
    given = str(value.get("type", ""))
    kind = TYPES.get(given, given)
    names: dict[str, str] = FIELDS.get(kind, {})
    renamed: dict[str, Any] = {}
    for name, item in value.items():
        today = names.get(str(name), str(name))
        renamed[today] = _renamed(item)
        renamed |= ADDED.get(kind, {}).get(today, {})
    return {**renamed, "type": kind} if "type" in value else renamed

"""Records of schema 1, in today's words: what was measured stays as it was."""

from typing import Any

from ..errors import DataError

TYPES = {
    "ConstantRate": "ConstantLR",
    "CosineRate": "CosineLR",
    "StepRate": "StepLR",
    "GatedPruning": "PruneWhileAccurate",
}
FIELDS = {
    "Gradual": {"start": "begin"},
    "WeightMom": {"start": "begin"},
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
STEPS = {"steps": "own", "steps_before": "before", "steps_planned": "planned"}


def from_schema_1(content: dict[str, Any]) -> dict[str, Any]:
    if missing := {"config", "methods", "start", "budget"} - content.keys():
        raise DataError(f"this is a damaged record: it lacks {', '.join(sorted(missing))}.")
    config = {{"rate": "lr_schedule", "start": "origin"}.get(k, k): _renamed(v) for k, v in content["config"].items()}
    moved = {k: v for k, v in content.items() if k not in ("start", "budget", "config", "methods", "schema")}
    return {
        **moved,
        "config": config,
        "methods": _renamed(content["methods"]),
        "origin": content["start"],
        "steps": {STEPS.get(k, k): v for k, v in content["budget"].items()},
        "tags": {},
        "schema": 2,
    }


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = TYPES.get(value.get("type", ""), value.get("type"))
    names = FIELDS.get(kind or "", {})
    renamed = {names.get(name, name): _renamed(item) for name, item in value.items()}
    return {**renamed, "type": kind} if "type" in value else renamed

"""`Snapshot`: all that rewinding restores."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from ..masks.masks import Masks
from ..storage import files
from .run import Costs


@dataclass(frozen=True)
class Snapshot:
    """Weights, buffers, masks, optimizer and step. `fit(start=snapshot)` goes on from there, rate included."""

    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    masks: Masks
    step: int = 0
    optimizer: dict[str, dict[str, Tensor]] | None = None
    score: float | None = None
    spent: int = 0
    """All steps that went into it, those before its run included."""
    past: Costs = field(default_factory=dict)
    """The trainings that it took: steps, FLOPs and seconds of each."""

    def __repr__(self) -> str:
        kept = f", {self.masks.kept:,} of {self.masks.total:,} weights" if self.masks else ""
        return f"Snapshot(step {self.step}{kept}, score {self.score})"

    @classmethod
    def of(cls, model: nn.Module, masks: Masks | None = None) -> "Snapshot":
        """The weights and buffers of any model, at step 0."""
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
        return cls(weights, buffers, Masks() if masks is None else masks.clone())

    @torch.no_grad()
    def load_into(self, model: nn.Module) -> nn.Module:
        """Set weights and buffers, nothing else."""
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        stored = self.weights | self.buffers
        differing = sorted(own.keys() ^ stored.keys()) or [n for n, t in stored.items() if own[n].shape != t.shape]
        if differing:
            raise ConfigError(f"this snapshot is of another model; they differ in {', '.join(differing[:5])}.")
        for name, tensor in stored.items():
            own[name].copy_(tensor)
        return model

    def save(self, path: str | Path) -> None:
        files.save_state(files.check_writable(path, "path"), {f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: str | Path) -> "Snapshot":
        state = files.load_state(path)
        if state.keys() | {"past"} != {f.name for f in fields(cls)}:  # older files lack it
            raise DataError(f"{path} is a state file, but no snapshot; `run.snapshot().save(path)` makes one.")
        tensors = [state["weights"], state["buffers"], state["masks"], *_values(state["optimizer"] or {})]
        numbers = (state["step"], state["spent"], state["score"] or 0.0)
        if not all(map(_are_tensors, tensors)) or not all(isinstance(n, int | float) for n in numbers):
            raise DataError(f"{path} is a damaged snapshot: its tensors or numbers are none.")
        if not isinstance(state["masks"], Masks) or not all(map(_are_numbers, _values(state.get("past", {})))):
            raise DataError(f"{path} is a damaged snapshot: its masks or costs are none.")
        return cls(**state)


def _values(mapping: Any) -> list[Any]:
    return list(mapping.values()) if isinstance(mapping, dict) else [None]


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in value.items())


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(n, int | float) for n in value.values())

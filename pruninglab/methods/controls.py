"""The baselines that every comparison needs."""

from dataclasses import dataclass

from ..masks.choose import Scope
from ..train.method import Method
from .cuts.oneshot import OneShot


def controls(sparsity: float) -> dict[str, Method]:
    """What every comparison needs beside the method: the dense net, a random mask, and the two plain magnitudes."""
    choices: dict[str, tuple[str, Scope]] = {
        "random mask": ("random", "global"),
        "layer magnitude": ("magnitude", "layer"),
        "global magnitude": ("magnitude", "global"),
    }
    return {"dense": Dense(), **{name: OneShot(sparsity, *choice) for name, choice in choices.items()}}


@dataclass
class Dense(Method):
    """Prunes nothing: the control that gets the same steps.

    >>> run = lab.fit(model, data, lab.methods.Dense(), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    100%
    """

"""What methods with learned gates share: a strength that is steered towards a sparsity, and the cut to exactly that.

How many gates a penalty closes shows only while they learn, so its strength has to follow what it does.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ...layers.names import NOTHING
from ...masks.choose import keep_top
from ...masks.masks import Masks, Unit, units
from ...masks.schedules import Cubic, Schedule
from ...train.run import Run

EDGES = tuple(i / 2 for i in range(-16, 17))
"""Between these log α is counted; what lies beyond counts as in the first or the last of them."""
SPARE = 0.05
"""By this share of the survivors the gates are steered beyond what was asked for."""
RISE = 0.6
"""At this share of the way the final sparsity is aimed at; the rest is for getting there."""
PROPORTIONAL, INTEGRAL = 4.0, 20.0


def check(sparsity: float | Schedule | None, warmup: tuple[float, float], end: float) -> None:
    if sparsity is not None:
        schedule(sparsity)
    if not warmup[0] <= warmup[1] < end:
        raise ConfigError(f"warmup={warmup} has to end before end={end}, and its first number is the lower.")


def begin(run: Run, method: str, sparsity: float | Schedule | None, unit: Unit = "weight") -> None:
    """Refuse what cannot be, and say what is to be reached."""
    if not run.weights:
        raise ConfigError(NOTHING)
    alone(run, method)
    if sparsity is not None:
        run.aim(schedule(sparsity).final, "global", unit)


def alone(run: Run, method: str) -> None:
    """Refuse a second method that calls the net with other weights than its own."""
    if run.net is not run.model:
        raise ConfigError(f"{method} calls the net with changed weights, as another method here does; use one of them.")


def add_group(run: Run, tensors: Mapping[str, Tensor], lr: float | None) -> None:
    """Have these trained too, without weight decay."""
    own = {} if lr is None else {"lr": lr}
    run.param_groups.append({"params": [t.requires_grad_() for t in tensors.values()], "weight_decay": 0.0, **own})


def schedule(sparsity: float | Schedule) -> Schedule:
    """The way to a sparsity: that of `Cubic`, where only a number is given."""
    made = sparsity if isinstance(sparsity, Schedule) else Cubic(sparsity)
    if isinstance(made.final, Mapping):
        raise ConfigError(f"one strength cannot lead each layer to its own share; give a number, not {made.final}.")
    return made


def ramp(progress: float, warmup: tuple[float, float]) -> float:
    """0 up to the first of two shares of the training, 1 from the second on, linear between."""
    first, last = warmup
    return float(progress >= last) if first == last else min(max((progress - first) / (last - first), 0.0), 1.0)


@torch.no_grad()
def steer(run: Run, pull: Tensor, opened: Tensor, total: int, sparsity: float | Schedule, end: float) -> Tensor:
    """By what to multiply the strength, so that the number of open gates goes the way to `sparsity`; may be negative.

    A controller of the logarithm of open to aimed. Its sum of errors, `pull`, moves in proportion to the learning rate,
    because no strength would help once that is low. It does not move before the first gates close.
    """
    share = min(run.progress / end / RISE, 1.0)
    sparse: Any = schedule(sparsity)(share)
    error = (opened.clamp_min(1) / max(total * (1 - sparse) * (1 - SPARE * share), 1.0)).log().clamp(-1, 1)
    pull += error * (opened < 0.99 * total) * (INTEGRAL * run.options.lr_factor(run.progress) / run.steps)
    return pull.exp() * (1 + PROPORTIONAL * error)


def tally(values: Tensor) -> list[int]:
    """How many values there are between each two `EDGES`."""
    places = (2 * (values.detach().clamp(EDGES[0], EDGES[-1]) - EDGES[0])).long().clamp_max(len(EDGES) - 2)
    return places.flatten().bincount(minlength=len(EDGES) - 1).tolist()


def choose(
    run: Run, undecided: Masks, scores: Mapping[str, Tensor], sparsity: float | Schedule, unit: Unit = "weight"
) -> tuple[Masks, str]:
    """Exactly as many as `sparsity` leaves, by score, if `undecided` holds no more; else that, and the reason."""
    exact = keep_top(scores, schedule(sparsity).final, unit=unit, masks=run.masks, clamp=True)
    still, wanted = units(undecided & run.masks, unit)[0], units(exact, unit)[0]
    if still <= wanted:
        return exact, ""
    told = f"{still:,} gates were more open than closed at the cut, where {wanted:,} were to stay"
    return undecided, f"{told}; more epochs or a higher strength close more"


def explain(run: Run, missed: str) -> None:
    """Give the reason why a target was missed, unless another has been given."""
    target = run.target
    if missed and run.status == "running" and target and units(run.masks, target["unit"])[0] > target["kept"]:
        run.end("target_missed", run.reason or missed)

"""WeightMom: Johnson et al., "WeightMom: Learning sparse networks using iterative momentum-based pruning", 2022."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from torch import Tensor

from ...errors import ConfigError
from ...layers.flops import layer_of
from ...masks.choose import keep_highest
from ...masks.masks import Masks, Sparsity, parted
from ...masks.schedules import Schedule
from ...train.lr_schedules import StepLR
from ...train.method import Method
from ...train.run import Run
from ...typed import BelowOne, Count, CountFromZero, Fraction, Positive, PositiveFraction, Range, Strength
from . import memory
from .interpretations import (
    ALL,
    OTHERS,
    Interpretation,
    Meaning,
    as_one_layer,
    common_levels,
    keeps,
    layer_sizes,
    positions,
)
from .memory import kth_lowest


def moving_average(average: Tensor, size: Tensor, beta: float) -> Tensor:
    """The momentum of a weight's size |w| after one more epoch: m ← β·m + (1 - β)·|w|."""
    return average.lerp(size, 1 - beta)


def prunability(size: float, sizes: Collection[float], place: float) -> float:
    """W_l/W_avg·l of a layer's size and place: large and late layers can be pruned more, as the text says."""
    return size / (sum(sizes) / len(sizes)) * place


def lowest_cut(momentum: Tensor, alive: Tensor, eligible: Tensor, cut: int) -> tuple[Tensor, int]:
    """What is left of `alive` without `cut` weights, the eligible first; and how many were cut that were not."""
    low, other = alive & eligible, alive & ~eligible
    lows, others = int(low.count_nonzero()), int(other.count_nonzero())
    missed = max(cut - lows, 0)
    left = keep_highest(momentum, low, lows - (cut - missed)) | keep_highest(momentum, other, others - missed)
    return left, missed


@dataclass
class WeightMom(Method):
    """Cut the weights that have been small for epochs, and more of them where a layer can spare them.

    After each epoch |w| enters its momentum. From the fraction `begin` of the training to `end`, every `every_epochs`
    epochs, exactly the sparsity of `schedule` is cut. The share that a layer loses is in proportion to its
    `prunability`. Eligible weights are cut first: those that were low in `min_epochs_below` of the last `window`
    epochs. The others follow. Within both groups the lowest momentum goes first.

    The paper leaves much open. `memory.py` explains `mode` to `threshold`, and `interpretations.py` `interpretation` to
    `floor`. `watch` weights of each layer are followed through all epochs, for `plots.trajectories`.

    Deviations: the target is exact, and `not_eligible` counts the cuts of other weights. A cut before the window is
    full uses the epochs so far and the same share of them; `short_windows` counts these. No layer falls below `floor`
    times the density of all. The paper's setting starts from a trained model: `fit(trained, …, **PAPER)`.

    >>> run = lab.fit(model, data, lab.methods.WeightMom(lab.Cubic(0.9)), epochs=2)
    >>> print(f"{run.masks.density:.0%}")
    10%
    """

    in_training = True
    schedule: Annotated[Schedule, "for example lab.Cubic(0.9)"]
    mode: memory.Mode = "ema"
    window: Annotated[int, Range(1, 62)] = 15
    beta: BelowOne | None = None
    min_epochs_below: Count = 10
    threshold: Literal["quantile"] | Positive = "quantile"
    interpretation: Interpretation = "text"
    depth_exponent: Strength = 1.0
    basis: Literal["size", "density"] = "size"
    layer_index: Literal["forward", "sequential"] = "forward"
    floor: BelowOne = 0.25
    every_epochs: Count = 1
    begin: Fraction = 0.2
    end: PositiveFraction = 0.75
    watch: CountFromZero = 0
    settled: bool = field(init=False)
    seen: int = field(init=False)
    not_eligible: int = field(init=False)
    short_windows: int = field(init=False)
    past: dict[str, Tensor] = field(init=False)
    """What the momentum of each weight is made from."""
    lows: dict[str, Tensor] = field(init=False)
    """A bit for each epoch of the window, set where |w| was low; the newest is the lowest."""
    watched: dict[str, Tensor] = field(init=False)
    """The places of the weights that are followed, the chosen ones first."""
    trajectories: dict[str, Tensor] = field(init=False)
    """By epoch the |w|, momentum and threshold of each of them; the last two end, as NaN, with the last cut."""

    def on_start(self, run: Run) -> None:
        run.aim(self.schedule(1.0))
        self._order = run.flops.layers(run.weights)  # follows from the model, so that no checkpoint needs it
        left = self._keeps(run.masks, self.schedule(1.0))  # refused now if a weight for each layer is too many
        self.settled, self.seen, self.not_eligible, self.short_windows = False, 0, 0, 0
        self.past = {name: memory.empty(weight, self.mode, self.window) for name, weight in run.weights.items()}
        self.lows = {name: memory.no_epochs(weight, self.window) for name, weight in run.weights.items()}
        self.watched, self.trajectories = memory.followed(run, self.watch, left) if self.watch else ({}, {})

    def on_epoch(self, run: Run) -> None:
        levels = {} if self.settled else self._note(run)
        if self.watch:
            memory.follow(self.trajectories, self.watched, run, self.momentum() if levels else {}, levels)
        progress = self._progress(run)
        if not self.settled and progress is not None:
            self.settled = progress == 1
            self._cut(run, self.schedule(progress))

    def _note(self, run: Run) -> dict[str, Tensor]:
        """Bring momentum and eligibility up to this epoch; returns the threshold of each layer."""
        sizes = {name: weight.detach().abs() for name, weight in run.weights.items()}
        levels = self._levels(run.masks, sizes)
        for name, size in sizes.items():
            if self.mode == "ema":
                self.past[name] = moving_average(self.past[name], size, self._beta)
            else:  # the newest over the oldest
                self.past[name][self.seen % len(self.past[name])] = size
            self.lows[name] = memory.one_more(self.lows[name], size <= levels[name], self.window)
        self.seen += 1
        return levels

    def _levels(self, masks: Masks, sizes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Up to which |w| the weights of each layer are low: of so many as it loses by the end, the largest."""
        if not isinstance(self.threshold, str):
            return {name: size.new_tensor(self.threshold) for name, size in sizes.items()}
        keeps = self._keeps(masks, self.schedule(1.0))
        if factors := self._factors(masks, self.schedule(1.0)):
            return common_levels(sizes, keeps, factors)
        return {name: kth_lowest(size, size.numel() - keeps[name]) for name, size in sizes.items()}

    def _progress(self, run: Run) -> float | None:
        """How far the schedule is, from 0 to 1, if a cut is due after this epoch."""
        first, last = (max(round(share * run.epochs), 1) for share in (self.begin, self.end))
        if run.epoch >= last:
            return 1.0
        due = run.epoch >= first and (run.epoch - first) % self.every_epochs == 0
        return (run.epoch - first) / (last - first) if due else None

    def _cut(self, run: Run, sparsity: Sparsity) -> None:
        keeps, momentum, alive, eligible = self._keeps(run.masks, sparsity), self.momentum(), run.masks, self.eligible()
        self.short_windows += self.seen < self.window and sum(keeps.values()) < alive.kept
        if factors := self._factors(run.masks, sparsity):
            keeps, momentum, alive, eligible = as_one_layer(keeps, momentum, alive, eligible, factors)
        left = Masks()
        for name, mask in alive.items():
            cut = int(mask.count_nonzero()) - keeps[name]
            left[name], missed = lowest_cut(momentum[name], mask, eligible[name], cut)
            self.not_eligible += missed
        run.masks = Masks(parted(left[ALL], run.masks)) if factors else left

    def momentum(self) -> dict[str, Tensor]:
        """What ranks the weights after the epochs seen so far."""
        return {name: memory.momentum(past, self.mode, self.seen, self._beta) for name, past in self.past.items()}

    def eligible(self) -> dict[str, Tensor]:
        """Which weights were low often enough in the epochs seen so far."""
        needed = math.ceil(self.min_epochs_below * min(self.seen, self.window) / self.window)
        return {name: memory.low_often(lows, self.mode, needed) for name, lows in self.lows.items()}

    def of_layers(self, masks: Masks, order: Sequence[str] = ()) -> dict[str, float]:
        """The ratio of each layer by its size (or density) and its place in the order given, else that of the masks."""
        sizes = layer_sizes(masks, self.basis)
        places = positions(order or sizes, self.layer_index)
        return importance(sizes, places, self.interpretation, self.depth_exponent)

    def __post_init__(self) -> None:
        if self.min_epochs_below > self.window:
            raise ConfigError(f"min_epochs_below={self.min_epochs_below} epochs do not fit in window={self.window}.")
        if self.begin >= self.end:
            raise ConfigError(f"WeightMom: begin={self.begin:g} has to come before end={self.end:g}.")

    @property
    def _beta(self) -> float:
        return 1 - 1 / self.window if self.beta is None else self.beta

    def _keeps(self, masks: Masks, sparsity: Sparsity) -> dict[str, int]:
        """How many weights of each layer are left at this sparsity; only their sum counts in one ranking."""
        grows = MEANINGS[self.interpretation].grows
        return keeps(masks, sparsity, self.of_layers(masks, self._order), grows, self.floor)

    def _factors(self, masks: Masks, sparsity: Sparsity) -> dict[str, float]:
        """What makes the momenta of layers comparable, for one ranking of all; nothing if each has its own."""
        meaning = MEANINGS[self.interpretation]
        if not meaning.one_ranking or isinstance(sparsity, Mapping):
            return {}
        ratios = self.of_layers(masks, self._order)
        own = {name: ratios[layer_of(name)] for name in masks}
        return own if meaning.grows == "kept" else {name: 1 / ratio for name, ratio in own.items()}


MEANINGS = {"text": Meaning(prunability, "cut"), **OTHERS}
MEANINGS |= {f"{name}_scores": each._replace(one_ranking=True) for name, each in MEANINGS.items() if name != "off"}
PAPER = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "lr": 0.05,
    "lr_schedule": StepLR(at=tuple(i / 10 for i in range(1, 10)), factor=0.5),
    "weight_decay": 5e-4,
    "batch_size": 128,
    "epochs": 300,
}
"""The paper's training, for `fit`: its sentence is N2NSkip's with SGD replaced by Adam, and this is N2NSkip's. The rate
is halved every 30 of the 300 epochs; `{**PAPER, "optimizer": "adam"}` is the sentence as printed."""


def importance(
    sizes: Mapping[str, float],
    places: Mapping[str, int],
    interpretation: Interpretation = "text",
    depth_exponent: float = 1.0,
) -> dict[str, float]:
    """The ratio of each layer; its place counts with the power `depth_exponent`."""
    ratio = MEANINGS[interpretation].ratio
    return {layer: ratio(size, sizes.values(), places[layer] ** depth_exponent) for layer, size in sizes.items()}

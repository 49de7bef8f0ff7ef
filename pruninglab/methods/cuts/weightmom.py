"""WeightMom: Johnson et al., "WeightMom: Learning sparse networks using iterative momentum-based pruning", 2022."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor

from ...errors import ConfigError
from ...masks.choose import count, keep_highest, keep_top, spread
from ...masks.masks import Masks, Sparsity
from ...masks.schedules import Schedule
from ...randomness import generator
from ...train.lr_schedules import StepLR
from ...train.method import Method
from ...train.run import Run
from ...typed import BelowOne, Count, CountFromZero, Fraction, Positive, PositiveFraction, Range, Strength

Reading = Literal["text", "formula", "formula_prune", "literal", "off"]
LayerIndex = Literal["forward", "sequential"]
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
KEPT_SHARES = ("formula", "literal")
"""The readings in which the ratio is an importance: the kept share grows with it, else the cut share."""


@dataclass
class WeightMom(Method):
    """Cut the weights whose magnitude has been low for epochs, and more of them where a layer can spare them.

    After each epoch |w| is noted. From the fraction `begin` of the training to `end`, every `interval` epochs, the
    sparsity that `schedule` gives is cut exactly: in each layer first the eligible weights, which were low in
    `min_epochs_below` of the last `window` epochs, then the others, and of both those with the lowest momentum first.
    The paper has no formula for the momentum, the threshold or the schedule; what it leaves open is a field:

    `mode` is the momentum of |w|: its moving average, bias-corrected ("ema"; `beta` None is 1 - 1/window), its mean or
    maximum over the window, or "consecutive_below": |w| as it is now, with the low epochs in a row. Windows remember
    `window` + 1 numbers for each weight, the others at most two.
    `threshold`, up to which |w| is low: "quantile" is the layer's, at the share that it loses by the end; a number is
    that value of |w| everywhere.
    `reading` is how a layer's size W_l and place l make its share (`importance`). Equation 1 contradicts the text
    beside it (early layers matter more, large ones can spare more) and equation 2. In "text" the cut share is in
    proportion to W_l/mean(W)·l, which agrees with both sentences. "formula" takes I = W_l/(l·mean(W)) as the importance
    that it is called: the kept share grows with it. In "formula_prune" the cut share grows with it. "literal" puts
    equation 2 into equation 1 as printed: I = sum(W)/l, an importance. "off" is one ranking of all layers.
    `applied`: the ratio sets each layer's share ("shares"), or all layers stand in one ranking, by the momentum times
    the importance or over the prunability ("scores"). `depth_exponent` is the power of l in every reading.
    `basis`: W_l is the number of weights ("size", equation 1) or the layer's "density" (the abstract's "relative
    sparsity"). `layer_index`: l counts layers in the order of definition, where a shortcut's convolution has the place
    of its block's first ("forward") or one of its own ("sequential").

    Deviations: no layer falls below `floor` times the density of all together, or below one weight (in one ranking,
    one weight alone), and the others share what it cannot give; without a floor "text" leaves one of lenet5's 400,000
    weights of fc1, and at few weights it is the floor that most layers stand at. The target is exact: cuts of weights
    that were not eligible are counted in `not_eligible`. A cut before the window is full uses the epochs seen so far,
    and the same share of them as `min_epochs_below` is of `window`; `short_windows` counts the cuts that did. A dict
    as the schedule's final sparsity sets the layers' shares in place of `reading`. The paper's own setting starts from
    a trained model and names Adam with a momentum of 0.9 and a rate of 0.05; with SGD these numbers make sense:
    `fit(trained, …, **PAPER)`.

    The threshold stands at the final share from the first epoch: at the share of the next cut, what goes later could
    not have been low for long. So nearly all that is cut was low all along, and it is the momentum that decides, which
    itself is held to no threshold; a number as the threshold makes the count of low epochs bind.

    `watch` weights of each layer are followed through all epochs for `plots.trajectories`: half of them chosen, evenly
    by rank among the largest at the start, of which half may stay at the end, and half drawn at random.
    """

    schedule: Annotated[Schedule, "for example lab.Cubic(0.9)"]
    mode: Literal["ema", "window_mean", "window_max", "consecutive_below"] = "ema"
    window: Annotated[int, Range(1, 62)] = 15
    beta: BelowOne | None = None
    min_epochs_below: Count = 10
    threshold: Literal["quantile"] | Positive = "quantile"
    reading: Reading = "text"
    applied: Literal["shares", "scores"] = "shares"
    depth_exponent: Strength = 1.0
    basis: Literal["size", "density"] = "size"
    layer_index: LayerIndex = "forward"
    floor: BelowOne = 0.25
    interval: Count = 1
    begin: Fraction = 0.2
    end: PositiveFraction = 0.75
    watch: CountFromZero = 0
    settled: bool = field(init=False)
    seen: int = field(init=False)
    not_eligible: int = field(init=False)
    short_windows: int = field(init=False)
    average: dict[str, Tensor] = field(init=False)
    past: dict[str, Tensor] = field(init=False)
    """The last `window` magnitudes, the newest overwriting the oldest."""
    lows: dict[str, Tensor] = field(init=False)
    """A bit for each epoch of the window, set where |w| was low; "consecutive_below": how many epochs in a row."""
    watched: dict[str, Tensor] = field(init=False)
    """The places of the weights that are followed, the chosen ones first."""
    trajectories: dict[str, Tensor] = field(init=False)
    """By epoch the |w|, momentum and threshold of each of them; the last two end, as NaN, with the last cut."""

    def __post_init__(self) -> None:
        if self.min_epochs_below > self.window:
            raise ConfigError(f"min_epochs_below={self.min_epochs_below} epochs do not fit in window={self.window}.")
        if self.begin >= self.end:
            raise ConfigError(f"WeightMom: begin={self.begin:g} has to come before end={self.end:g}.")

    def on_start(self, run: Run) -> None:
        run.aim(self.schedule(1.0))
        if run.steps == 0:
            raise ConfigError("WeightMom watches weights in training, and epochs=0 has none; use more epochs.")
        keeps = self._keeps(run.masks, self.schedule(1.0))  # refused now if a weight for each layer is too many
        self.settled = False
        self.seen = self.not_eligible = self.short_windows = 0
        whole = torch.int16 if self.window <= 15 else torch.int64
        self.lows = {name: torch.zeros_like(w, dtype=whole) for name, w in run.weights.items()}
        self.average = {n: torch.zeros_like(w) for n, w in run.weights.items()} if self.mode == "ema" else {}
        windows = self.mode in ("window_mean", "window_max")
        self.past = {n: w.new_zeros(self.window, *w.shape) for n, w in run.weights.items()} if windows else {}
        if self.watch:
            sizes = {name: weight.detach().abs().flatten() for name, weight in run.weights.items()}
            self.watched = {n: self._places(size, 2 * keeps[n], run.options.seed) for n, size in sizes.items()}
        else:
            self.watched = {}
        self.trajectories = {n: torch.full((run.epochs, 3, len(p)), math.nan) for n, p in self.watched.items()}

    def on_epoch(self, run: Run) -> None:
        levels = {} if self.settled else self._note(run)
        self._follow(run, levels)
        if self.settled:
            return
        first, last = max(round(self.begin * run.epochs), 1), max(round(self.end * run.epochs), 1)
        if run.epoch < first or (run.epoch < last and (run.epoch - first) % self.interval):
            return
        self.settled = run.epoch >= last
        self._cut(run, self.schedule(1.0 if self.settled else (run.epoch - first) / (last - first)))

    def momentum(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What ranks the weights after the epochs seen so far."""
        recent = min(self.seen, self.window)
        if self.mode == "ema":
            return {name: average / (1 - self._beta**self.seen) for name, average in self.average.items()}
        if self.mode == "window_mean":
            return {name: past[:recent].mean(0) for name, past in self.past.items()}
        if self.mode == "window_max":
            return {name: past[:recent].amax(0) for name, past in self.past.items()}
        return {name: weight.detach().abs() for name, weight in weights.items()}

    def eligible(self) -> dict[str, Tensor]:
        """Which weights were low often enough in the epochs seen so far."""
        needed = math.ceil(self.min_epochs_below * min(self.seen, self.window) / self.window)
        if self.mode == "consecutive_below":
            return {name: streak >= needed for name, streak in self.lows.items()}
        return {name: _bits(low) >= needed for name, low in self.lows.items()}

    @property
    def _beta(self) -> float:
        return 1 - 1 / self.window if self.beta is None else self.beta

    def _note(self, run: Run) -> dict[str, Tensor]:
        """Bring momentum and eligibility up to this epoch; returns the threshold of each layer."""
        magnitudes = {name: weight.detach().abs() for name, weight in run.weights.items()}
        levels = self._levels(run, magnitudes)
        for name, magnitude in magnitudes.items():
            low, below = self.lows[name], magnitude <= levels[name]
            if self.mode == "consecutive_below":
                low.add_(1).clamp_(max=self.window).mul_(below)
            else:  # the newest epoch is the lowest bit, the oldest drops out
                low.bitwise_and_(2 ** (self.window - 1) - 1).mul_(2).add_(below)
        for name, average in self.average.items():
            average.lerp_(magnitudes[name], 1 - self._beta)
        for name, past in self.past.items():
            past[self.seen % self.window] = magnitudes[name]
        self.seen += 1
        return levels

    def _levels(self, run: Run, magnitudes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not isinstance(self.threshold, str):
            return {name: m.new_tensor(self.threshold) for name, m in magnitudes.items()}
        final = self.schedule(1.0)
        if self._together(final):
            factors = self._factors(run.masks)
            everything = torch.cat([(m * factors[name]).flatten() for name, m in magnitudes.items()])
            level = _kth(everything, count(len(everything), final))  # pyright: ignore[reportArgumentType]
            return {name: level / factors[name] for name in magnitudes}
        keeps = self._keeps(run.masks, final)
        return {name: _kth(m.flatten(), m.numel() - keeps[name]) for name, m in magnitudes.items()}

    def _places(self, magnitudes: Tensor, largest: int, seed: int) -> Tensor:
        """Of one layer: `watch` weights, half of them evenly by rank among the largest, the others at random."""
        number = min(self.watch, len(magnitudes))
        choices = number - number // 2
        ranks = torch.linspace(0, min(max(largest, choices), len(magnitudes)) - 1, choices).round().long()
        chosen = magnitudes.cpu().argsort(descending=True, stable=True)[ranks]
        others = torch.randperm(len(magnitudes), generator=generator(seed, "watch"))
        return torch.cat([chosen, others[~torch.isin(others, chosen)][: number - len(chosen)]])

    def _follow(self, run: Run, levels: Mapping[str, Tensor]) -> None:
        momentum = self.momentum(run.weights) if levels and self.watched else {}
        for name, places in self.watched.items():
            row = self.trajectories[name][run.epoch - 1]
            row[0] = run.weights[name].detach().flatten()[places].abs()
            if levels:
                row[1], row[2] = momentum[name].flatten()[places], levels[name]

    def _cut(self, run: Run, sparsity: Sparsity) -> None:
        masks, momentum, eligible = run.masks, self.momentum(run.weights), self.eligible()
        keeps = self._keeps(masks, sparsity)
        self.short_windows += self.seen < self.window and sum(keeps.values()) < masks.kept
        if self._together(sparsity):
            factors = self._factors(masks)
            momentum = {name: m * factors[name] for name, m in momentum.items()}
            best = Masks(
                {name: keep_highest(momentum[name].flatten(), m.flatten(), 1).view_as(m) for name, m in masks.items()}
            )
            cut = masks.kept - sum(keeps.values())
            candidates, momenta, low = (
                torch.cat([part[name].flatten() for name in masks]) for part in (masks & ~best, momentum, eligible)
            )
            kept, missed = lowest_cut(momenta, candidates, low, cut)
            parts = kept.split([mask.numel() for mask in masks.values()])
            new = best & masks | {n: part.view_as(m) for (n, m), part in zip(masks.items(), parts, strict=True)}
            self.not_eligible += missed
        else:
            new = Masks()
            for name, mask in masks.items():
                cut = int(mask.count_nonzero()) - keeps[name]
                kept, missed = lowest_cut(momentum[name].flatten(), mask.flatten(), eligible[name].flatten(), cut)
                new[name] = kept.view_as(mask)
                self.not_eligible += missed
        run.masks = new

    def _together(self, sparsity: Sparsity) -> bool:
        return (self.reading == "off" or self.applied == "scores") and not isinstance(sparsity, Mapping)

    def _factors(self, masks: Masks) -> dict[str, float]:
        """What makes the momenta of different layers comparable in one ranking."""
        ratios = self.of_layers(masks)
        own = {name: ratios[name.rpartition(".")[0]] for name in masks}
        return own if self.reading in KEPT_SHARES else {name: 1 / ratio for name, ratio in own.items()}

    def _keeps(self, masks: Masks, sparsity: Sparsity) -> dict[str, int]:
        """How many weights of each layer are left at this sparsity; only their sum counts in one ranking."""
        kept = masks.kept_by_layer
        if isinstance(sparsity, Mapping):
            level = {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in masks.items()}
            return keep_top(level, sparsity, masks=masks, clamp=True).kept_by_layer
        total = {name: mask.numel() for name, mask in masks.items()}
        keep = min(masks.total - count(masks.total, sparsity), masks.kept)
        density = self.floor * keep / masks.total
        least = {name: min(kept[name], max(1, int(density * total[name]))) for name in masks}
        if sum(least.values()) > keep:  # so few that one each is all that can be asked
            least = {name: min(kept[name], 1) for name in masks}
        shares = self.of_layers(masks)
        quotas = [shares[name.rpartition(".")[0]] * total[name] for name in masks]
        if self.reading in KEPT_SHARES:
            keeps = _between(keep, quotas, list(least.values()), list(kept.values()))
        else:
            already, most = [[total[n] - left[n] for n in masks] for left in (kept, least)]
            cuts = _between(masks.total - keep, quotas, already, most)
            keeps = [total[name] - cut for name, cut in zip(masks, cuts, strict=True)]
        return dict(zip(masks, keeps, strict=True))

    def of_layers(self, masks: Masks) -> dict[str, float]:
        """The importance ratio of each layer, in the sense of `reading`."""
        layers: dict[str, list[Tensor]] = {}  # a bias in scope belongs to its weight's layer
        for name, mask in masks.items():
            layers.setdefault(name.rpartition(".")[0], []).append(mask)
        sizes = {layer: float(sum(m.numel() for m in parts)) for layer, parts in layers.items()}
        if self.basis == "density":
            sizes = {layer: int(sum(m.sum() for m in parts)) / sizes[layer] for layer, parts in layers.items()}
        return importance(sizes, positions(layers, self.layer_index), self.reading, self.depth_exponent)


def importance(
    sizes: Mapping[str, float], indices: Mapping[str, int], reading: Reading = "text", depth_exponent: float = 1.0
) -> dict[str, float]:
    """Equation 1 in each of its readings: an importance in "formula" and "literal", else a prunability."""
    mean = sum(sizes.values()) / len(sizes)
    depth = {layer: indices[layer] ** depth_exponent for layer in sizes}
    if reading == "text":
        return {layer: size / mean * depth[layer] for layer, size in sizes.items()}
    if reading == "literal":
        return {layer: sum(sizes.values()) / depth[layer] for layer in sizes}
    if reading == "off":
        return dict.fromkeys(sizes, 1.0)
    return {layer: size / (depth[layer] * mean) for layer, size in sizes.items()}


def positions(layers: Iterable[str], layer_index: LayerIndex = "forward") -> dict[str, int]:
    """The place of each layer, from 1; with "forward" a shortcut's is that of the first layer of its block."""
    places: dict[str, int] = {}
    for layer in layers:
        parts = layer.split(".")
        inside = next((i for i, part in enumerate(parts) if "shortcut" in part or "downsample" in part), 0)
        block = ".".join(parts[:inside]) + "."
        shared = [place for other, place in places.items() if inside and other.startswith(block)]
        own = max(places.values(), default=0) + 1
        places[layer] = shared[0] if shared and layer_index == "forward" else own
    return places


def lowest_cut(momentum: Tensor, alive: Tensor, eligible: Tensor, cut: int) -> tuple[Tensor, int]:
    """What is left of `alive` without `cut` weights, the eligible first; and how many were cut that were not."""
    low, other = alive & eligible, alive & ~eligible
    lows = int(low.count_nonzero())
    missed = max(cut - lows, 0)
    return keep_highest(momentum, low, lows - (cut - missed)) | keep_highest(
        momentum, other, int(other.count_nonzero()) - missed
    ), missed


def _bits(numbers: Tensor) -> Tensor:
    """How many bits of each number are set: of each two, then of each four, and so on side by side."""
    width = 8 * numbers.element_size()
    for shift in (1, 2, 4, 8, 16, 32):
        if shift < width:
            every_other = sum(2**i for i in range(width - 1) if not i // shift % 2)
            numbers = (numbers & every_other) + ((numbers >> shift) & every_other)
    return numbers


def _between(total: int, quotas: Sequence[float], least: Sequence[int], most: Sequence[int]) -> list[int]:
    """`spread` with a lower bound for each: who would get less is given just that, and the others share the rest."""
    fixed: dict[int, int] = {}
    while True:
        free = [i for i in range(len(most)) if i not in fixed]
        shares = spread(total - sum(fixed.values()), [quotas[i] for i in free], [most[i] for i in free])
        below = {i: least[i] for i, share in zip(free, shares, strict=True) if share < least[i]}
        if not below:
            counts = fixed | dict(zip(free, shares, strict=True))
            return [counts[i] for i in range(len(most))]
        fixed |= below


def _kth(values: Tensor, k: int) -> Tensor:
    """The k-th lowest value, and below all magnitudes for k = 0."""
    return torch.kthvalue(values, k).values if k else values.new_tensor(-1.0)

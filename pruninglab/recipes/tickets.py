"""Lottery tickets: Frankle and Carbin, "The lottery ticket hypothesis: finding sparse, trainable networks", 2019."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from ..criteria.registry import Criterion, CriterionName, resolve
from ..data.dataset import Data
from ..errors import ConfigError
from ..layers.flops import layer_of
from ..masks.at_random import scattered
from ..masks.choose import count, keep_top, spread
from ..masks.projections import keeping
from ..masks.schedules import Cubic, Exponential
from ..methods.cuts.gradual import Gradual
from ..randomness import generator
from ..train.fit import fit
from ..train.method import Method
from ..train.options import TrainingOptions
from ..train.run import Costs, Run
from ..train.snapshot import Snapshot
from ..typed import BelowOne, Count, CountFromZero
from .stages import Stages, Untrained, check_prunable, ended, in_scope, layers_in_order, recipe, stage
from .trials import Trials

Control = Literal["reinitialised", "random mask", "one-shot", "gradual"]
CONTROLS: tuple[Control, ...] = ("reinitialised", "random mask", "one-shot")


@recipe
def tickets(
    model: Untrained,
    data: Data,
    sparsity: BelowOne,
    *,
    epochs: CountFromZero,
    rounds: Count = 5,
    rewind: Literal["weights", "learning_rate"] = "weights",
    step: CountFromZero = 0,
    scope: Literal["layer", "global"] = "layer",
    criterion: CriterionName | Criterion = "magnitude",
    controls: Sequence[Control] = CONTROLS,
    compare: Literal["last", "each"] = "last",
    folder: str | Path | None = None,
    **options: Unpack[TrainingOptions],
) -> Trials:
    """Train the untrained `model`, then `rounds` times cut the same share of the survivors, rewind and train again.

    `rewind="weights"` goes back to the weights, buffers, optimizer and learning rate of `step`. At 0 that is the reset
    of the paper, later it is late rewinding (Frankle et al. 2019). `"learning_rate"` keeps the trained weights and what
    the optimizer remembers, and rewinds the learning rate alone (Renda et al. 2020). Every training ends at `epochs`,
    counted from step 0, and its record has the hashes of what it started from.

    `scope="layer"` cuts each layer by the same share, the last one by half of it, as the paper does. `"global"` ranks
    all weights together. Beside the last ticket, or with `compare="each"` beside every one, stand its `controls`:

    - `"reinitialised"`: the ticket's masks on weights drawn anew, trained from step 0.
    - `"random mask"`: as many weights of each layer at random places, rewound as the ticket is.
    - `"one-shot"`: all cut at once after the first training, then rewound as the ticket is.
    - `"gradual"`: gradual magnitude pruning from the initial weights, to as many weights of each layer.

    A record counts the trainings that found its masks, as `steps_before`. With `scope="global"` the number of weights
    of each layer is itself a finding, so that all controls are charged with the search. `folder` holds a checkpoint and
    a record of each training; the same call goes on from them.
    """
    check_prunable(model, options)
    resolve(criterion)
    weights = in_scope(model, options)
    last = layers_in_order(model, data, weights, options)[-1]
    plan = _plan(weights, sparsity, rounds, last)  # refuses what is impossible
    seed, stages = options.get("seed", 0), Stages("tickets", data, folder, options)
    origin = Snapshot.of(model)
    if step:  # of the same bits as the dense training at this step, which a sweep may have trained elsewhere
        early = fit(model, data, _Until(step), epochs=epochs, start=origin, **stage(folder, "early"), **options)
        if ended(early):
            stages.made.add("early", early, round=0)
            return stages.made
        origin = early.snapshot()
    dense = stages.dense(model, epochs, round=0)
    origin = replace(origin, past=_part(dense, step))

    def train(name: str, start: Snapshot | None, *methods: Method, **given: Any) -> Run:
        file = f"round-{number:02d}-{name.replace(' ', '-')}"
        return stages.train(name, model, *methods, file=file, round=number, epochs=epochs, start=start, **given)

    def rewound(run: Run) -> Snapshot:
        return origin if rewind == "weights" else replace(run.snapshot(), step=step)

    chain = [dense]
    for number in range(1, rounds + 1):
        if stages.over:
            break
        score = chain[-1].score(criterion)
        target = plan[number - 1] if scope == "layer" else _share(sparsity, number / rounds)
        masks = keep_top(score, target, masks=chain[-1].masks)
        found = [*chain]
        chain.append(train("ticket", rewound(chain[-1]), masks=masks, found_by=found))
        of_counts = found if scope == "global" else []
        for method in controls if compare == "each" or number == rounds else ():
            if method == "reinitialised":
                train(method, Snapshot.of(redrawn(model, seed)), masks=masks, found_by=found)
            elif method == "random mask":
                train(method, rewound(dense), masks=scattered(masks, seed), found_by=of_counts)
            elif method == "one-shot":
                once = keep_top(dense.score(criterion), target)
                train(method, rewound(dense), masks=once, found_by=[dense])
            else:
                shares = keeping(dense.weights, masks.kept_by_layer)
                train(method, None, Gradual(Cubic(shares)), found_by=of_counts)
    return stages.made


@torch.no_grad()
def redrawn(model: nn.Module, seed: int) -> nn.Module:
    """A copy of an untrained model with new random weights: each tensor's own values in a new order.

    Every layer of torch draws its weights independently of each other. For such layers this is a draw from the same
    distribution, whatever that is. Constants stay constants.
    """
    model = copy.deepcopy(model)
    for name, weight in model.named_parameters():
        order = torch.randperm(weight.numel(), generator=generator(seed, f"redrawn {name}"))
        weight.copy_(weight.flatten()[order.to(weight.device)].view_as(weight))
    return model


def _part(run: Run, step: int) -> Costs:
    """What the training had cost at this step."""
    return (
        {run.key: {what: spent * step / run.step for what, spent in run.cost.items()} | {"steps": step}} if step else {}
    )


def _plan(weights: Mapping[str, Tensor], sparsity: float, rounds: int, last: str) -> list[dict[str, float]]:
    """The sparsity of each weight, round by round: the layer that runs last loses half the share, the sum is exact."""
    share = 1 - (1 - sparsity) ** (1 / rounds)
    sizes = [w.numel() for w in weights.values()]
    shares = [share / 2 if layer_of(name) == last else share for name in weights]
    counts, plan = sizes, []
    for number in range(1, rounds + 1):
        keep = sum(sizes) - count(sum(sizes), _share(sparsity, number / rounds))
        quotas = [n * (1 - s) ** number for n, s in zip(sizes, shares, strict=True)]
        counts = spread(keep, quotas, counts, least=1)
        plan.append(keeping(weights, dict(zip(weights, counts, strict=True))))
    return plan


def _share(sparsity: float, progress: float) -> float:
    return sparsity if progress == 1 else Exponential(sparsity).between(progress, sparsity)


@dataclass
class _Until(Method):
    """End at a step, to be remembered as it is there."""

    step: int

    def on_start(self, run: Run) -> None:
        if self.step >= run.steps:
            raise ConfigError(
                f"step={self.step} cannot be rewound to: training is over after {run.steps} steps. "
                "Give an earlier step or more epochs."
            )

    def on_step(self, run: Run) -> None:
        if run.step == self.step:
            run.stop(f"to be rewound to step {self.step}")

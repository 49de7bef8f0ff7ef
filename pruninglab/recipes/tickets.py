"""Lottery tickets: Frankle and Carbin, "The lottery ticket hypothesis: finding sparse, trainable networks", 2019."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..criteria.registry import Criterion, resolve
from ..data.dataset import Data
from ..errors import ConfigError
from ..masks.choose import check_sparsity, count, keep_top, scattered, spread
from ..masks.masks import Masks
from ..masks.projections import keeping
from ..masks.schedules import Cubic, Exponential
from ..methods.cuts.gradual import Gradual
from ..randomness import generator
from ..train.fit import fit
from ..train.method import Method
from ..train.run import Run
from ..train.snapshot import Snapshot
from .stages import ended, in_scope, refuse_own, stage
from .trials import Trials

CONTROLS = ("reinitialised", "random mask", "one-shot")
OPTIONAL = ("gradual",)


def tickets(
    model: nn.Module,
    data: Data,
    sparsity: float,
    *,
    epochs: int,
    rounds: int = 5,
    rewind: str = "weights",
    step: int = 0,
    scope: str = "layer",
    criterion: str | Criterion = "magnitude",
    controls: Sequence[str] = CONTROLS,
    compare: str = "last",
    folder: str | Path | None = None,
    **options: Any,
) -> Trials:
    """Train the untrained `model`, then `rounds` times cut the same share of the survivors, rewind and train again.

    `rewind="weights"` goes back to the weights, buffers, optimizer and learning rate of `step`: at 0 that is the reset
    of the paper, later it is late rewinding (Frankle et al. 2019). `"learning_rate"` keeps the trained weights and what
    the optimizer remembers, and rewinds the learning rate alone (Renda et al. 2020). Every training ends at `epochs`,
    counted from step 0, and its record has the hashes of what it started from.

    `scope="layer"` cuts each layer by the same share, the last one by half of it, as the paper does; `"global"` ranks
    all weights together. Beside the last ticket, or with `compare="each"` beside every one, stand its `controls`:

    - `"reinitialised"`: the ticket's masks on weights drawn anew, trained from step 0.
    - `"random mask"`: as many weights of each layer at random places, rewound as the ticket is.
    - `"one-shot"`: all cut at once after the first training, then rewound as the ticket is.
    - `"gradual"`: gradual magnitude pruning from the initial weights, to as many weights of each layer.

    With `scope="global"` the number of each layer is itself a finding, and all controls are charged with the search.

    `folder` holds a checkpoint and a record of each training, and the same call goes on from them.
    """
    _check(model, rounds, rewind, step, scope, controls, compare, options)
    resolve(criterion)
    _plan(in_scope(model, options), sparsity, rounds)  # refuses what cannot be before training
    seed = options.get("seed", 0)
    made = Trials()

    def train(method: str, number: int, start: Snapshot | None, *methods: Method, masks: Masks | None = None) -> Run:
        name = f"round-{number:02d}-{method.replace(' ', '-')}" if number else method
        files = stage(folder, name)
        return fit(model, data, *methods, epochs=epochs, start=start, masks=masks, **files, **options)

    origin, first = Snapshot.of(model), ()
    if step:
        early = train("early", 0, origin, _Until(step))
        if early.status != "stopped":
            made.add("early", early)
            return made
        origin, first = early.snapshot(), (early,)

    def rewound(run: Run) -> Snapshot:
        return origin if rewind == "weights" else replace(run.snapshot(), step=step)

    dense = made.add("dense", train("dense", 0, origin), *first)
    chain, plan = [dense], _plan(dense.weights, sparsity, rounds)
    for number in range(1, rounds + 1):
        if ended(chain[-1]):
            break
        score = chain[-1].score(criterion)
        target = plan[number - 1] if scope == "layer" else _share(sparsity, number / rounds)
        masks = keep_top(score, target, masks=chain[-1].masks)
        found = (*first, *chain)
        chain.append(train("ticket", number, rewound(chain[-1]), masks=masks))
        made.add("ticket", chain[-1], *found)
        for method in controls if compare == "each" or number == rounds else ():
            if ended(made.made[-1].run):
                return made
            before = (*first, dense)
            if method == "reinitialised":
                start = Snapshot.of(redrawn(model, seed))
                run, before = train(method, number, start, masks=masks), found
            elif method == "random mask":
                run = train(method, number, rewound(dense), masks=scattered(masks, seed))
                before = found if scope == "global" else first if rewind == "weights" else before
            elif method == "one-shot":
                run = train(method, number, rewound(dense), masks=keep_top(dense.score(criterion), target))
            else:
                shares = keeping(dense.weights, masks.kept_by_layer)
                run = train(method, number, None, Gradual(Cubic(shares)))
                before = found if scope == "global" else ()
            made.add(method, run, *before)
    return made


@torch.no_grad()
def redrawn(model: nn.Module, seed: int) -> nn.Module:
    """A copy of an untrained model with new random weights: each tensor's own values in a new order.

    Where a layer draws its weights independently of each other, as every layer of torch does, this is a draw from the
    same distribution, whatever that is, and constants stay constants.
    """
    model = copy.deepcopy(model)
    for name, weight in model.named_parameters():
        order = torch.randperm(weight.numel(), generator=generator(seed, f"redrawn {name}"))
        weight.copy_(weight.flatten()[order.to(weight.device)].view_as(weight))
    return model


def untrained(model: Any, options: Mapping[str, Any]) -> None:
    """Refuse what is no model to begin from."""
    refuse_own("a recipe", options)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model is a {type(model).__name__}; expected the untrained model, for example lab.build(…): this recipe "
            "trains it, and goes back to it."
        )
    if not in_scope(model, options):
        raise ConfigError("this model has nothing to prune: no convolution or linear weight is in scope.")


def _plan(weights: Mapping[str, Tensor], sparsity: float, rounds: int) -> list[dict[str, float]]:
    """The sparsity of each layer, round by round: the last layer loses half the share, the sum is exact."""
    if isinstance(sparsity, Mapping):
        raise ConfigError(
            "sparsity is a dict; tickets take one share of all weights, and scope= says how it is spread."
        )
    check_sparsity(sparsity)
    share = 1 - (1 - sparsity) ** (1 / rounds)
    sizes = [w.numel() for w in weights.values()]
    shares = [share] * (len(sizes) - 1) + [share / 2]
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


def _check(
    model: Any,
    rounds: int,
    rewind: str,
    step: int,
    scope: str,
    controls: Sequence[str],
    compare: str,
    options: Mapping[str, Any],
) -> None:
    untrained(model, options)
    if rounds < 1 or step < 0:
        raise ConfigError(f"rounds={rounds}, step={step}: at least one round, and a step of 0 or later.")
    known = {"rewind": ("weights", "learning_rate"), "scope": ("layer", "global"), "compare": ("last", "each")}
    for what, value in (("rewind", rewind), ("scope", scope), ("compare", compare)):
        if value not in known[what]:
            raise ConfigError(f"{what}={value!r} is unknown; expected {' or '.join(map(repr, known[what]))}.")
    if unknown := [method for method in controls if method not in CONTROLS + OPTIONAL]:
        raise ConfigError(f"control {unknown[0]!r} is unknown; there are {', '.join(CONTROLS + OPTIONAL)}.")

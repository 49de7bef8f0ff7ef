"""Progressive pruning: Ye et al., "Progressive weight pruning of deep neural networks using ADMM", 2018."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

import torch
from torch import nn

from ..analysis.allocation import allocate
from ..data.dataset import Data
from ..errors import ConfigError
from ..masks.choose import keep_top
from ..masks.masks import Masks
from ..methods.projection.admm import Penalty
from ..train.lr_schedules import LRSchedule
from ..train.options import TrainingOptions
from ..train.run import Run
from ..typed import Count, CountFromZero, Range, Strength
from .admm import admm
from .stages import dense_start, ended, in_scope, recipe, tag_choice, tags_of
from .trials import Trials

POOL = 3
Compression = Annotated[float, Range(1, above=True)] | Mapping[str, float]


@recipe
def progressive(
    model: nn.Module | Run,
    data: Data,
    compressions: Sequence[Compression],
    *,
    epochs: CountFromZero,
    finetune: CountFromZero | None = None,
    select: Literal["child", "parent", "chain"] = "child",
    direct: Annotated[int, Range(1, POOL)] = POOL,
    allocation: str = "magnitude",
    rho: Penalty | Mapping[str, Penalty] = 1.5e-3,
    updates: Count = 10,
    finetune_lr: Strength | None = None,
    admm_lr_schedule: LRSchedule = "constant",
    folder: str | Path | None = None,
    **options: Unpack[TrainingOptions],
) -> Trials:
    """Prune to one compression after the other, each by `admm` (pull, cut, fine-tune) from an earlier result.

    A compression is how many times fewer weights are kept (at 167, 1 of 167), or a dict from layer patterns to
    sparsities. The first `direct` compressions start from the dense net. Then a pool of three partial results is kept,
    and the result of each round replaces the one that it started from (Fig. 2). With `select="child"`, as in the paper,
    a round starts from all three and keeps the best child by validation accuracy. With `"parent"` it starts from the
    best of the three alone. With `"chain"` each round starts from the one before, the first from the dense net.

    The paper does not say how many weights it keeps of each layer. For a compression that is a number, `allocation`
    finds the shares in the weights that a round starts from. A criterion (`"magnitude"`, `"layer_magnitude"`, …) gives
    them by one global cut. With `"sensitivity"`, cutting each layer alone costs the same on the validation split. No
    layer loses all of its weights.

    The table has columns `round`, `compression`, `from` (that of the start) and `chosen`. `trials.chosen` are the dense
    run and the best of each round; `trials.costs("round")` is what each round took. `folder` holds a folder for each
    child, and the same call goes on from there. The rest is as in `admm`.
    """
    size = POOL if select != "chain" else 1
    if select != "chain" and len(compressions) <= direct:
        raise ConfigError(
            f"{len(compressions)} compressions, and the first {direct} start from the dense net: nothing would be "
            "progressive. Give more compressions, a smaller `direct`, or select='chain'."
        )
    _check_nested(compressions, model.masks if isinstance(model, Run) else Masks.full(in_scope(model, options)))
    options["tags"] = tags_of("progressive", options)
    first: dict[str, Any] = {**options, "tags": {**options["tags"], "stage": "dense", "round": 0}}
    dense = dense_start(model, data, epochs=epochs, folder=folder, name="dense", **first)
    made = Trials()
    made.add("dense", dense, **_columns(0, dense, dense, chosen=True))
    each: dict[str, Any] = {"epochs": epochs, "finetune": finetune, "rho": rho, "updates": updates, **options}
    each |= {"finetune_lr": finetune_lr, "admm_lr_schedule": admm_lr_schedule}
    pool: list[int] = []  # rounds
    for number, compression in enumerate(compressions, 1):
        chosen = made.chosen
        if ended(chosen[-1], model):
            break
        parents = [0] if number <= min(direct, size) else pool
        if select == "parent":
            parents = [max(parents, key=lambda i: _score(chosen[i]))]
        children: dict[int, Run] = {}
        for parent in parents:
            start = chosen[parent]
            target = compression if isinstance(compression, Mapping) else allocate(start, compression, allocation)
            at = Path(folder, f"round-{number:02d}-from-{parent:02d}") if folder else None
            each["tags"] = tags_of("progressive", options, round=number, **{"from": 1 / start.masks.density})
            stages = admm(start, data, target, folder=at, **each)
            for trial in stages.made[1:]:
                made.add(trial.method, trial.run, trial.record, **_columns(number, start, trial.run))
            children[parent] = stages.last
            if stages.last.interrupted:
                return made
        best = max(children, key=lambda parent: _score(children[parent]))
        next(trial for trial in made if trial.run is children[best]).columns["chosen"] = True
        if len(pool) < size:
            pool.append(number)
        else:
            pool[pool.index(best)] = number
    tag_choice(made)
    return made


def _check_nested(compressions: Sequence[Compression], within: Masks) -> None:
    """Each compression keeps less than the one before, of each layer where this is given."""
    flat = {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in within.items()}
    total, before = within.total, within.kept
    for compression in compressions:
        if isinstance(compression, Mapping):
            within = keep_top(flat, compression, masks=within)
        kept = within.kept if isinstance(compression, Mapping) else round(total / compression)
        if kept >= before:
            raise ConfigError(
                f"compressions have to rise: {compression} keeps {kept:,} weights, and {before:,} were left before."
            )
        before = kept


def _score(run: Run) -> float:
    return run.val if not ended(run) else -math.inf


def _columns(number: int, start: Run, run: Run, chosen: bool = False) -> dict[str, Any]:
    return {"round": number, "compression": 1 / run.masks.density, "from": 1 / start.masks.density, "chosen": chosen}

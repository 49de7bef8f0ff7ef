"""Progressive pruning: Ye et al., "Progressive weight pruning of deep neural networks using ADMM", 2018."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from .. import _html
from ..analysis.allocation import allocate
from ..data.dataset import Data
from ..errors import ConfigError
from ..masks.choose import keep_top
from ..methods.projection.admm import Penalty
from ..train.lr_schedules import LRSchedule
from ..train.run import Run
from .admm import admm
from .stages import ended, start_from

POOL = 3


@dataclass
class Progression:
    """What `progressive` returns: the chosen runs, and a row of each that was tried. Showing it is their table."""

    runs: list[Run]
    """The dense run, then the retrained one that was chosen at each compression."""
    tried: list[dict[str, Any]] = field(default_factory=list)

    def table(self) -> pd.DataFrame:
        """One row for each child: its compression, that of its parent, what it kept, reached and cost."""
        return pd.DataFrame(self.tried)

    def costs(self) -> pd.DataFrame:
        """Steps and seconds of each round, of all children together."""
        return self.table().groupby("round").agg({"steps": "sum", "seconds": "sum"})

    def __repr__(self) -> str:
        return self.table().to_string(index=False, float_format="{:.4g}".format)

    def _repr_html_(self) -> str:
        head = ("compression", "from", "kept", "val", "test", "steps", "seconds", "")
        rows = [
            (
                f"{child['compression']:.4g}x", f"{child['from']:.4g}x", f"{child['kept']:,}", f"{child['val']:.2%}",
                f"{child['test']:.2%}", f"{child['steps']:,}", f"{child['seconds']:.0f}",
                "chosen" if child["chosen"] else "",
            )
            for child in self.tried
        ]  # fmt: skip
        return _html.table(head, rows)


def progressive(
    model: nn.Module | Run,
    data: Data,
    compressions: Sequence[float | Mapping[str, float]],
    *,
    epochs: int,
    finetune: int | None = None,
    select: str = "child",
    direct: int = POOL,
    allocation: str = "magnitude",
    rho: Penalty | Mapping[str, Penalty] = 1.5e-3,
    updates: int = 10,
    lr: float = 1e-3,
    finetune_lr: float | None = None,
    admm_lr_schedule: str | LRSchedule = "constant",
    folder: str | Path | None = None,
    **options: Any,
) -> Progression:
    """Prune to one compression after the other, each by `admm` (pull, cut, retrain) from an earlier result.

    A compression is how many times fewer weights are kept (at 167, 1 of 167), or a dict from layer patterns to
    sparsities. The first `direct` compressions start from the dense net. Then a pool of three partial results is kept,
    and the result of each round replaces the one that it started from (Fig. 2): `select="child"` starts from all three
    and keeps the best child by validation accuracy, as the paper does; `"parent"` starts from the best of the three
    alone; `"chain"` starts each round from the one before, the first from the dense net.

    The paper does not say how many weights it keeps of each layer. For a compression that is a number, `allocation`
    finds it in the weights that a round starts from: by one global cut with a criterion (`"magnitude"`,
    `"layer_magnitude"`, …), or by `"sensitivity"`, where cutting each layer alone costs the same on the validation
    split. No layer becomes empty.

    `folder` holds a folder for each child, and the same call goes on from there. The rest is as in `admm`.
    """
    pool_size = POOL if select != "chain" else 1
    _check(compressions, select, direct)
    folder = Path(folder) if folder else None
    dense = start_from(model, data, folder, epochs=epochs, lr=lr, **options)
    _check_nested(compressions, dense)
    made = Progression([dense])
    pool: list[int] = []  # positions in `made.runs`
    for number, compression in enumerate(compressions, 1):
        if ended(made.runs[-1], model):
            break
        parents = [0] if number <= min(direct, pool_size) else pool
        if select == "parent":
            parents = [max(parents, key=lambda i: _score(made.runs[i]))]
        children: dict[int, Run] = {}
        for parent in parents:
            start = made.runs[parent]
            stages = admm(
                start,
                data,
                compression if isinstance(compression, Mapping) else allocate(start, compression, allocation),
                epochs=epochs,
                finetune=finetune,
                rho=rho,
                updates=updates,
                lr=lr,
                finetune_lr=finetune_lr,
                admm_lr_schedule=admm_lr_schedule,
                folder=folder / f"round-{number:02d}-from-{parent:02d}" if folder else None,
                **options,
            )
            children[parent] = stages[-1]
            made.tried.append(_row(number, start, stages[1:]))
            if stages[-1].interrupted:
                made.runs.append(stages[-1])
                return made
        best = max(children, key=lambda parent: _score(children[parent]))
        made.tried[list(children).index(best) - len(children)]["chosen"] = True
        made.runs.append(children[best])
        if len(pool) < pool_size:
            pool.append(number)
        else:
            pool[pool.index(best)] = number
    return made


def _check(compressions: Sequence[float | Mapping[str, float]], select: str, direct: int) -> None:
    if select not in ("child", "parent", "chain"):
        raise ConfigError(f"select={select!r} is unknown; expected 'child', 'parent' or 'chain'.")
    if not 1 <= direct <= POOL:
        raise ConfigError(
            f"direct={direct}: from 1 to {POOL} compressions, as many as the pool holds, start from the dense net."
        )
    if select != "chain" and len(compressions) <= direct:
        raise ConfigError(
            f"{len(compressions)} compressions, and the first {direct} start from the dense net: nothing would be "
            "progressive. Give more compressions, a smaller `direct`, or select='chain'."
        )


def _check_nested(compressions: Sequence[float | Mapping[str, float]], dense: Run) -> None:
    """Each compression keeps less than the one before, of each layer where this is given."""
    flat = {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in dense.masks.items()}
    within, before = dense.masks, dense.masks.kept
    for compression in compressions:
        if isinstance(compression, Mapping):
            within = keep_top(flat, compression, masks=within)
        elif not 1 < compression < math.inf:
            raise ConfigError(
                f"compression {compression!r}: expected a number above 1, or a dict from layer patterns to sparsities."
            )
        kept = within.kept if isinstance(compression, Mapping) else round(dense.masks.total / compression)
        if kept >= before:
            raise ConfigError(
                f"compressions have to rise: {compression} keeps {kept:,} weights, and {before:,} were left before."
            )
        before = kept


def _score(run: Run) -> float:
    return run.result.accuracy["val"]["accuracy"] if not ended(run) else -math.inf


def _row(number: int, start: Run, stages: list[Run]) -> dict[str, Any]:
    last = stages[-1]
    return {
        "round": number,
        "compression": 1 / last.masks.density,
        "from": 1 / start.masks.density,
        "kept": last.masks.kept,
        "val": last.result.accuracy["val"]["accuracy"],
        "test": last.result.accuracy["test"]["accuracy"],
        "steps": sum(run.step for run in stages),
        "seconds": sum(run.seconds for run in stages),
        "chosen": False,
    }

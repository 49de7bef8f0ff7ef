"""What Wanda and SparseGPT share: the layers one by one, each on what the pruned ones before it give."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...criteria.inputs import exactly, layer_by_layer
from ...errors import ConfigError
from ...layers.hooks import evaluating
from ...masks.choose import Scope, keep_top
from ...masks.masks import Masks, Sparsity
from ...train.evaluate import Shuffled
from ...train.run import Run

Layer = tuple[str, Tensor, Tensor, int]
"""Name, mask so far, moment of the inputs, and how many weights the layer is to keep."""


def check_pattern(owner: str, sparsity: Any, pattern: tuple[int, int] | None) -> None:
    """Refuse a pattern n:m that is none, or that leaves another share than the sparsity says."""
    if pattern is None:
        return
    n, m = pattern
    if not n < m or sparsity != 1 - n / m:
        raise ConfigError(
            f"{owner}: n_of_m={pattern} keeps {n} of every {m} weights; expected n < m, and sparsity={1 - n / m:g} "
            f"with it instead of {sparsity!r}."
        )


@torch.no_grad()
def prune_layers(
    run: Run,
    sparsity: Sparsity,
    scope: Scope,
    samples: int,
    whose: str,
    solve: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]],
    *,
    squares: bool = False,
) -> list[dict[str, Any]]:
    """Let `solve(weight, moment, mask, keep)` give each layer's new weight and mask. What each layer lost, one by one.

    The loss of a layer is the squared error of its output as a share of the output's own square, on its own inputs.
    """
    flat = {name: torch.zeros_like(weight) for name, weight in run.weights.items()}
    keeps = keep_top(flat, sparsity, scope=scope, masks=run.masks, clamp=True).kept_by_layer
    seen = list(Shuffled(run.data.train, run.options.batch_size, run.options.seed, run.step, samples))
    masks, lost = Masks(), []
    with evaluating(run.model):
        run.apply_masks()
        for name, moment in layer_by_layer(run.model, seen, list(run.weights), whose, squares=squares):
            weight, mask = run.weights[name], run.masks[name]
            new, kept = solve(weight, moment, mask, keeps[name])
            new, masks[name] = torch.where(kept, new, 0), kept
            lost.append({"layer": name, "kept": int(kept.sum()), "error": _error(weight, new, moment)})
            weight.copy_(new)
    run.masks = Masks({name: masks[name] for name in run.masks})
    return lost


def by_group(tensor: Tensor, moment: Tensor) -> Tensor:
    """A weight, or its mask, as groups x outputs x inputs."""
    return tensor.reshape(len(moment), -1, moment.shape[-1])


def _error(old: Tensor, new: Tensor, moment: Tensor) -> float:
    before, moved = (by_group(exactly(t), moment) for t in (old, new - old))
    of = [float(((t @ moment if len(moment[0]) > 1 else t * moment) * t).sum()) for t in (moved, before)]
    return of[0] / of[1] if of[1] else 0.0


def sections(inputs: int, size: int) -> Iterator[slice]:
    for start in range(0, inputs, size):
        yield slice(start, min(start + size, inputs))

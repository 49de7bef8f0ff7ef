"""Enhanced magnitude pruning: Gale, Elsen and Hooker, "The state of sparsity in deep neural networks", 2019."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Unpack

from torch import Tensor, nn

from ..data.dataset import Data
from ..errors import ConfigError
from ..masks.choose import count, spread
from ..masks.projections import keeping
from ..masks.schedules import Cubic
from ..methods.cuts.gradual import Gradual
from ..train.options import TrainingOptions
from ..train.run import Run
from ..typed import BelowOne, CountFromZero, Range
from .stages import Stages, in_scope, recipe
from .trials import Trials


@recipe
def enhanced(
    model: nn.Module | Run,
    data: Data,
    sparsity: BelowOne,
    *,
    epochs: CountFromZero,
    longer: Annotated[float, Range(1)] = 1.5,
    folder: str | Path | None = None,
    **options: Unpack[TrainingOptions],
) -> Trials:
    """Gradual magnitude pruning for `longer` times the epochs, with the weights where the paper found them needed.

    The first convolution stays dense, the last layer is cut by 80 % at most, and all others by the same share, such
    that the whole has `sparsity`. `folder` holds a checkpoint and a record; the same call goes on from them.
    """
    weights = in_scope(model.model if isinstance(model, Run) else model, options)
    stages = Stages("enhanced", data, folder, options)
    stages.train("enhanced", model, Gradual(Cubic(shares(weights, sparsity))), epochs=math.ceil(epochs * longer))
    return stages.made


def shares(weights: Mapping[str, Tensor], sparsity: float) -> dict[str, float]:
    """The sparsity of each layer."""
    sizes = {name: w.numel() for name, w in weights.items()}
    keep = sum(sizes.values()) - count(sum(sizes.values()), sparsity)
    first = next((name for name, w in weights.items() if w.ndim > 2), None)
    *others, last = [name for name in sizes if name != first] or [""]
    if not others:
        raise ConfigError("the enhanced setting needs a layer between the first convolution and the last layer.")
    fixed = {first: sizes[first]} if first else {}

    def spread_rest(names: list[str]) -> dict[str, int]:
        rest, caps = keep - sum(fixed.values()), [sizes[name] for name in names]
        if rest < len(names):
            most = 1 - (sum(fixed.values()) + len(names)) / sum(sizes.values())
            raise ConfigError(
                f"sparsity {sparsity:g} leaves nothing of {', '.join(others)}: {', '.join(fixed)} alone keep "
                f"{sum(fixed.values()):,} of {keep:,} weights. Ask for less than {most:.4f}, or use methods.Gradual."
            )
        return dict(zip(names, spread(rest, caps, caps, least=1), strict=True))

    counts = spread_rest([*others, last])
    if counts[last] < (least := sizes[last] - count(sizes[last], 0.8)):
        fixed[last] = least
        counts = spread_rest(others)
    counts |= fixed
    return keeping(weights, {name: counts[name] for name in sizes})

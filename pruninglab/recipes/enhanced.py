"""Enhanced magnitude pruning: Gale, Elsen and Hooker, "The state of sparsity in deep neural networks", 2019."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Unpack

from torch import Tensor, nn

from ..data.dataset import Data
from ..errors import ConfigError
from ..layers.flops import layer_of
from ..masks.choose import count, spread
from ..masks.projections import keeping
from ..masks.schedules import Cubic
from ..methods.cuts.gradual import Gradual
from ..train.options import TrainingOptions
from ..train.run import Run
from ..typed import BelowOne, CountFromZero, Range
from .stages import Stages, in_scope, layers_in_order, recipe
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

    The first convolution stays dense, and the last layer loses at most 80 %. All others lose the same share, so that
    the whole network reaches `sparsity`. `folder` holds a checkpoint and a record; the same call goes on from them.
    """
    weights = in_scope(model.model if isinstance(model, Run) else model, options)
    target = shares(weights, sparsity, layers_in_order(model, data, weights, options))
    stages = Stages("enhanced", data, folder, options)
    stages.train("enhanced", model, Gradual(Cubic(target)), epochs=math.ceil(epochs * longer))
    return stages.made


def shares(weights: Mapping[str, Tensor], sparsity: float, layers: Sequence[str]) -> dict[str, float]:
    """The sparsity of each weight, of layers in the order in which they run."""
    sizes = {name: w.numel() for name, w in weights.items()}
    keep = sum(sizes.values()) - count(sum(sizes.values()), sparsity)
    convs = {layer_of(name) for name, w in weights.items() if w.ndim > 2}
    first = next((layer for layer in layers if layer in convs), None)
    lasts = [name for name in sizes if layer_of(name) == layers[-1] != first]
    others = [name for name in sizes if layer_of(name) not in (first, layers[-1])]
    if not others:
        raise ConfigError("the enhanced setting needs a layer between the first convolution and the last layer.")
    fixed = {name: size for name, size in sizes.items() if layer_of(name) == first}

    def spread_rest(names: list[str]) -> dict[str, int]:
        rest, caps = keep - sum(fixed.values()), [sizes[name] for name in names]
        if rest < len(names):
            most = 1 - (sum(fixed.values()) + len(names)) / sum(sizes.values())
            raise ConfigError(
                f"sparsity {sparsity:g} leaves nothing of {', '.join(others)}: {', '.join(fixed)} alone keep "
                f"{sum(fixed.values()):,} of {keep:,} weights. Ask for less than {most:.4f}, or use methods.Gradual."
            )
        return dict(zip(names, spread(rest, caps, caps, least=1), strict=True))

    counts = spread_rest([*others, *lasts])
    least = {last: sizes[last] - count(sizes[last], 0.8) for last in lasts}
    if any(counts[last] < least[last] for last in lasts):
        fixed |= least
        counts = spread_rest(others)
    counts |= fixed
    return keeping(weights, {name: counts[name] for name in sizes})

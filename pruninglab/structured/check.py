"""Whether a smaller network still gives the logits of the one that it was made from."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..coupling.grouping import logits_of
from ..errors import RunError
from ..layers.hooks import hooked
from ..layers.kinds import Norm
from ..randomness import generator

FLOOR = 1e-4  # of the largest logit: in 64 bits a spread below it is too near to what rounding does


@torch.no_grad()
def difference(small: nn.Module, full: nn.Module, kept: Mapping[str, tuple[Any, ...]], x: Tensor) -> float:
    """The largest difference of their logits, in units of the spread of these over inputs: some of `x`, and noise.

    The networks are compared as they are, and with batch norms that have measured these inputs. Without that, the
    output of an untrained network hardly depends on the image.
    """
    x = torch.cat([x[:8], _noise(x)])
    return max(_apart(small, full, x), _apart(*_measured(small, full, kept, x), x))


def _apart(small: nn.Module, full: nn.Module, x: Tensor) -> float:
    a, b = _try(small, x), logits_of(full, x)
    if a.shape != b.shape:
        return math.inf
    apart, spread, largest = (float(t) for t in ((a - b).abs().max(), (b.amax(0) - b.amin(0)).max(), b.abs().max()))
    unit = max(spread, FLOOR * largest) if b.dtype == torch.float64 else spread
    return apart / unit if apart < math.inf and unit else math.inf if apart else 0.0


def _try(model: nn.Module, x: Tensor) -> Tensor:
    try:
        return logits_of(model, x)
    except RuntimeError as error:
        raise RunError(
            f"without these channels the network does not run ({error}): its code counts on their number. Leave the "
            "layers in question out of the masks."
        ) from error


def _measured(small: nn.Module, full: nn.Module, kept: Any, x: Tensor) -> tuple[nn.Module, nn.Module]:
    """Copies whose batch norms have the statistics of these inputs.

    Channels that are the same for all inputs keep theirs: these are the constants that other layers have taken up. What
    a running mean has taken up stays in it.
    """
    small, full = copy.deepcopy(small), copy.deepcopy(full)
    others: dict[str, Any] = dict(small.named_modules())

    def measure(name: str, norm: Any, given: tuple[Any, ...]) -> None:
        other, old, entries = others[name], norm.running_mean, kept.get(f"{name}.running_mean", (slice(None),))
        if old is None:
            return
        seen = given[0].unsqueeze(-1).movedim(1, 0).flatten(2)  # (channel, image, place)
        varies = (seen - seen[:, :1]).abs().amax((1, 2)) > 1e-6 * seen.abs().amax((1, 2))
        mean = torch.where(varies, seen.mean((1, 2)), old)
        norm.running_var = torch.where(varies, seen.var((1, 2), correction=0), norm.running_var)
        other.running_mean = mean[entries] + other.running_mean - old[entries]
        other.running_var = norm.running_var[entries]
        norm.running_mean = mean

    with hooked(full, (Norm,), measure):
        full(x)
    return small, full


def _noise(x: Tensor) -> Tensor:
    """Eight inputs such as `x`: numbers of its mean and deviation, or its tokens in another order."""
    source, shape = generator(0, "noise"), (8, *x.shape[1:])
    if not x.is_floating_point():
        return x.flatten()[torch.randint(x.numel(), shape, generator=source).to(x.device)]
    deviation = float(x.std(correction=0)) or 1.0
    return (float(x.mean()) + deviation * torch.randn(shape, generator=source)).to(x)

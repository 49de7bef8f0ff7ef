"""N2NSkip: Subramaniam and Sharma, "N2NSkip: Learning highly sparse networks using neuron-to-neuron skip connections",
2020.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import floor

import torch
from torch import Tensor

from ...criteria.registry import Criterion, CriterionName
from ...errors import ConfigError
from ...masks.choose import Scope, count, keep_top
from ...masks.masks import Masks, Unit
from ...models.n2nskip import is_skip
from ...train.method import Method
from ...train.run import Run
from ...typed import BelowOne, PartialFraction, check


def shares(total: int, sparsity: float, skip_fraction: float) -> tuple[int, int]:
    """How many weights stay of a base of `total`, skips counted in, and how many of these are in the skips."""
    keep = total - count(total, sparsity)
    return keep, floor(keep * skip_fraction + 0.5)


def keep_groups(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    skip_fraction: float = 0.5,
    granularity: str = "weight",
    scope: Scope = "global",
) -> Masks:
    """As many weights as `sparsity` leaves of those outside the skips, the share `skip_fraction` of them in the skips.

    `scope` is that of `keep_top` in each of the two groups. `granularity="kernel"` keeps whole kernels in the skips,
    the same share in each skip. "channel" also keeps whole kernels, as the authors' code does: each channel on a skip's
    narrower side gets as many partners. Shares are rounded up as far as they go, and what is left goes to the base: the
    sum is exact.
    """
    check("skip_fraction", skip_fraction, PartialFraction)
    check("granularity", granularity, Unit)
    skips = {name: score for name, score in scores.items() if is_skip(name)}
    base = {name: score for name, score in scores.items() if name not in skips}
    if not skips or not base:
        raise ConfigError('there are no skip connections to share with; build the model with lab.build("n2nskip", …).')
    keep, in_skips = shares(sum(score.numel() for score in base.values()), sparsity, skip_fraction)
    room = sum(score.numel() for score in skips.values())
    if not 0 < in_skips <= room:
        raise ConfigError(
            f"skip_fraction={skip_fraction:g} of {keep:,} weights is {in_skips:,}, and the skips hold {room:,}; "
            f"expected 1 to {room:,}: choose another sparsity, fraction or skip_span."
        )
    if granularity == "weight":
        kept = _keep(skips, in_skips, scope)
    else:
        parts = _parts(skips, in_skips, granularity)
        kept = Masks({name: _whole_kernels(score, parts[name], granularity) for name, score in skips.items()})
    chosen = dict(kept) | _keep(base, keep - kept.kept, scope)
    return Masks({name: chosen[name] for name in scores})


@dataclass
class N2NSkip(Method):
    """Cut a model with skip connections before training; `sparsity` is that of its base, skips counted in.

    Of the weights that stay, exactly 1 - sparsity of the base's, the share `skip_fraction` is in the skip connections
    (`keep_groups`). The paper's two preliminary prunings are `criterion` "random" and "snip". A record counts the dense
    shape of the skips too, and so tells a higher sparsity; `density_of_base` is the paper's. The model is
    `lab.build("n2nskip", data, base="resnet20")`. Its authors' code leaves the first and the linear layers dense:
    `fit(skip=...)` does that, and then they are not counted.
    """

    sparsity: BelowOne
    criterion: CriterionName | Criterion = "random"
    skip_fraction: PartialFraction = 0.5
    granularity: Unit = "weight"
    scope: Scope = "global"
    density_of_base: float = field(init=False)
    kept_in_skips: int = field(init=False)

    def on_start(self, run: Run) -> None:
        if run.sparsity:
            raise ConfigError("N2NSkip shares weights out before anything is cut; this run starts under masks.")
        masks = keep_groups(
            run.score(self.criterion),
            self.sparsity,
            skip_fraction=self.skip_fraction,
            granularity=self.granularity,
            scope=self.scope,
        )
        run.aim(1 - masks.kept / masks.total)
        run.masks = masks
        self.kept_in_skips = sum(int(mask.sum()) for name, mask in masks.items() if is_skip(name))
        self.density_of_base = masks.kept / sum(mask.numel() for name, mask in masks.items() if not is_skip(name))


def _keep(scores: Mapping[str, Tensor], keep: int, scope: Scope) -> Masks:
    total = sum(score.numel() for score in scores.values())
    return keep_top(scores, 1 - keep / total, scope=scope)


def _parts(skips: Mapping[str, Tensor], keep: int, granularity: str) -> dict[str, int]:
    """How many kernels of each skip, or partners of each channel: its share, rounded up for whom `keep` still allows.

    Those come first that rounding down would leave with the least of their share.
    """
    most = {name: _grid(score, granularity).shape[1] for name, score in skips.items()}
    room = sum(score.numel() for score in skips.values())
    parts = {name: keep * n // room for name, n in most.items()}
    costs = {name: score.numel() // most[name] for name, score in skips.items()}  # of one more
    left = keep - sum(costs[name] * n for name, n in parts.items())
    for name in sorted(parts, key=lambda name: parts[name] / most[name]):
        if costs[name] <= left and parts[name] < most[name]:
            parts[name] += 1
            left -= costs[name]
    return parts


def _grid(scores: Tensor, granularity: str) -> Tensor:
    """Scores of kernels: in one row, or a row for each channel of the skip's narrower side."""
    kernels = scores.flatten(2).mean(2) if scores.ndim > 2 else scores.view(-1, scores.shape[-1])
    if granularity == "kernel":
        return kernels.reshape(1, -1)
    return kernels.T if kernels.shape[0] > kernels.shape[1] else kernels


def _whole_kernels(scores: Tensor, parts: int, granularity: str) -> Tensor:
    """The best `parts` kernels of each row."""
    chosen = torch.zeros(scores.shape[:2], dtype=torch.bool, device=scores.device)
    best = _grid(scores, granularity).argsort(dim=1, descending=True, stable=True)[:, :parts]
    _grid(chosen, granularity).scatter_(1, best, True)  # a view: what is set in it is set in `chosen`
    return chosen.view(*chosen.shape, *(1 for _ in scores.shape[2:])).expand(scores.shape).contiguous()

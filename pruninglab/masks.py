"""Which weights are kept: `Masks`, the scope (`prunable`), and the two choices, `keep_top` and `grow`.

A sparsity is a fraction in [0, 1), or a dict from layer patterns to fractions. Counts are exact and ties are broken by
position, so the same scores give the same masks everywhere.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from . import _html
from .errors import ConfigError

Scores = Mapping[str, Tensor]
Sparsity = float | Mapping[str, float]

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention, nn.Bilinear)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
SCOPES = ("global", "layer", "erk")
UNITS = {"weight": None, "channel": 1, "kernel": 2}  # leading dimensions that name one unit


class Masks(dict[str, Tensor]):
    """Parameter name -> bool tensor, True is kept. Showing it is the layer table."""

    @classmethod
    def full(cls, weights: Mapping[str, Tensor]) -> Self:
        return cls({name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()})

    @property
    def total(self) -> int:
        return sum(mask.numel() for mask in self.values())

    @property
    def kept(self) -> int:
        return sum(self.kept_by_layer.values())

    @property
    def kept_by_layer(self) -> dict[str, int]:
        return {name: int(mask.count_nonzero()) for name, mask in self.items()}

    @property
    def density(self) -> float:
        return self.kept / self.total if self.total else 1.0

    @property
    def sparsity(self) -> float:
        return 1 - self.density

    @property
    def collapsed(self) -> list[str]:
        """Layers that have nothing left, through which no signal passes."""
        return [name for name, kept in self.kept_by_layer.items() if kept == 0]

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, mask in sorted(self.items()):
            digest.update(name.encode() + mask.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def __and__(self, other: Mapping[str, Tensor]) -> "Masks":
        return Masks({name: mask & other[name] for name, mask in self.items()})

    def __or__(self, other: Mapping[str, Tensor]) -> "Masks":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Masks({name: mask | other[name] for name, mask in self.items()})

    def __invert__(self) -> "Masks":
        return Masks({name: ~mask for name, mask in self.items()})

    def clone(self) -> "Masks":
        return Masks({name: mask.clone() for name, mask in self.items()})

    def to(self, device: str | torch.device) -> "Masks":
        return Masks({name: mask.to(device) for name, mask in self.items()})

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Refuse masks that belong to another model."""
        if unknown := sorted(self.keys() - weights.keys()):
            raise ConfigError(
                f"these masks name {', '.join(unknown)}, which the model does not have as prunable weights; "
                f"it has {', '.join(weights)}. Masks fit only the architecture they were made for."
            )
        if missing := sorted(weights.keys() - self.keys()):
            raise ConfigError(f"these masks lack {', '.join(missing)}; give one mask for each prunable weight.")
        for name, mask in self.items():
            if mask.shape != weights[name].shape or mask.dtype != torch.bool:
                raise ConfigError(
                    f"the mask of {name} is {mask.dtype} {tuple(mask.shape)}; "
                    f"expected torch.bool {tuple(weights[name].shape)}, the shape of the weight."
                )

    @torch.no_grad()
    def apply_(self, weights: Mapping[str, Tensor]) -> None:
        """Set what is not kept to 0, also where it is infinite or NaN."""
        for name, mask in self.items():
            weights[name].masked_fill_(~mask, 0)

    def table(self) -> pd.DataFrame:
        """Kept and total of each layer, and of all together in the last row."""
        rows = [(name, _shape(mask), mask.numel(), int(mask.sum())) for name, mask in self.items()]
        rows.append(("all", "", self.total, self.kept))
        table = pd.DataFrame(rows, columns=pd.Index(["layer", "shape", "total", "kept"]))
        table["sparsity"] = 1 - table["kept"] / table["total"].clip(lower=1)
        return table

    def to_torch(self, model: nn.Module) -> nn.Module:
        """Put these masks on `model` as `torch.nn.utils.prune` does, so that its state dict has `_orig` and `_mask`."""
        self.check({name: w for name, w in _named(model).items() if name in self})
        for name, mask in self.items():
            module, parameter = name.rpartition(".")[::2]
            torch_prune.custom_from_mask(model.get_submodule(module), parameter, mask)
        return model

    @classmethod
    def from_torch(cls, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Self]:
        """A plain state dict and the masks, from a state dict saved under `torch.nn.utils.prune`."""
        masks = cls({k.removesuffix("_mask"): v.bool() for k, v in state.items() if f"{k[:-5]}_orig" in state})
        if not masks:
            raise ConfigError(
                "no `…_orig` and `…_mask` pairs in this state dict; it was not saved under torch.nn.utils.prune. "
                "A plain one is loaded with model.load_state_dict(state)."
            )
        plain: dict[str, Tensor] = {}
        for key, value in state.items():
            name = key.removesuffix("_orig")
            if key.removesuffix("_mask") not in masks or key in masks:
                plain[name] = value * masks[name] if name in masks else value
        return plain, masks

    def __repr__(self) -> str:
        lines = [f"Masks({len(self)} layers, {self.kept:,} of {self.total:,} kept, sparsity {self.sparsity:.4f})"]
        width = max(map(len, self), default=0)
        lines += [f"  {n:{width}}  {k:>10,} of {self[n].numel():>10,}" for n, k in self.kept_by_layer.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [
            (layer, shape, f"{total:,}", f"{kept:,}", _html.bar(1 - sparsity), f"{sparsity:.2%}")
            for layer, shape, total, kept, sparsity in self.table().itertuples(index=False)
        ]
        return _html.table(("layer", "shape", "total", "kept", "", "sparsity"), rows)


def prunable(
    model: nn.Module, *, biases: bool = False, norms: bool = False, skip: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """The weights in scope, in order of definition: convolution and linear weights, tied ones once.

    `skip` leaves out names or patterns (`"fc3.weight"`, `"layer1.*"`). A parametrized weight appears as its original,
    under the name that it has without the parametrization.
    """
    named = _named(model)
    if any(name.endswith("_orig") for name in named):
        raise ConfigError(
            "this model carries torch.nn.utils.prune masks. Take them out with "
            "`state, masks = Masks.from_torch(model.state_dict())`, load `state` into a plain model and pass `masks`."
        )
    if isinstance(skip, str):
        skip = (skip,)
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ConfigError(f"skip={pattern!r} matches no parameter; the model has {', '.join(named)}.")
    scope: dict[str, nn.Parameter] = {}
    for name, parameter in named.items():
        owner = _owner(model, name)
        is_weight = parameter.ndim > 1 and "bias" not in name.rpartition(".")[2]
        wanted = (isinstance(owner, _LAYERS) and (is_weight or biases)) or (
            isinstance(owner, _NORMS) and norms and (biases or "bias" not in name)
        )
        if wanted and not any(fnmatchcase(name, pattern) for pattern in skip):
            scope[name] = parameter
    return scope


def keep_top(
    scores: Scores,
    sparsity: Sparsity,
    *,
    scope: str = "global",
    unit: str = "weight",
    within: Mapping[str, Tensor] | None = None,
    clamp: bool = False,
) -> Masks:
    """Keep the highest scores, exactly as many as `sparsity` leaves.

    `scope`: `"global"` ranks all layers together, `"layer"` gives every layer the same share, `"erk"` gives each a
    density in proportion to (sum of its dimensions) / (their product). Both shares are rounded so that the total is
    exact, and never empty a layer. A dict as `sparsity` sets each layer by itself; layers that no pattern matches stay.
    `unit`: whole `"channel"`s (first dimension) or `"kernel"`s (first two) by their mean score; a sparsity then counts
    units. `within`: masks that may only shrink; nothing outside them is kept. To keep more than they hold is refused,
    or with `clamp` means to keep all that they hold.
    """
    if unit not in UNITS:
        raise ConfigError(f"unit={unit!r} is unknown; expected one of {', '.join(map(repr, UNITS))}.")
    if not scores:
        raise ConfigError("there is nothing to prune: no scores were given. Does the model have conv or linear layers?")
    flat = {name: _unit_scores(name, score, unit) for name, score in scores.items()}
    alive = {n: _unit_alive(s, None if within is None else within[n], unit) for n, s in scores.items()}
    caps = [int(mask.sum()) for mask in alive.values()]
    if isinstance(sparsity, Mapping):
        keeps = _by_pattern(sparsity, {name: len(s) for name, s in flat.items()}, caps, clamp)
    else:
        total = sum(len(s) for s in flat.values())
        keep = total - count(total, sparsity)
        keep = min(keep, sum(caps)) if clamp else keep
        if keep > sum(caps):
            raise ConfigError(
                f"sparsity {sparsity:g} asks to keep {keep:,} of {total:,}, but only {sum(caps):,} are left. "
                "Pruned weights are never revived by a cut; `grow` brings weights back."
            )
        if scope == "global":
            top = _top(torch.cat(list(flat.values())), torch.cat(list(alive.values())), keep)
            return _expand(dict(zip(flat, top.split([len(s) for s in flat.values()]), strict=True)), scores, unit)
        keeps = spread(keep, _quotas(scope, scores, unit), caps, least=1)
    chosen = {n: _top(flat[n], alive[n], k) for n, k in zip(flat, keeps, strict=True)}
    return _expand(chosen, scores, unit)


def grow(masks: Masks, scores: Scores, counts: int | Mapping[str, int]) -> Masks:
    """Bring back the dead weights with the highest scores: `counts` of all together, or as many of each layer."""
    dead = {name: ~masks[name].reshape(-1) for name in scores}
    flat = {name: _unit_scores(name, score, "weight") for name, score in scores.items()}
    if isinstance(counts, Mapping):
        new = {name: _top(flat[name], dead[name], _growable(counts.get(name, 0), dead[name])) for name in scores}
    else:
        every = torch.cat(list(dead.values()))
        top = _top(torch.cat(list(flat.values())), every, _growable(counts, every))
        new = dict(zip(flat, top.split([len(s) for s in flat.values()]), strict=True))
    return masks | {n: new[n].view(m.shape) if n in new else m for n, m in masks.items()}


def units(masks: Mapping[str, Tensor], unit: str = "weight") -> tuple[int, int]:
    """How many units have anything kept, and how many there are."""
    alive = [_unit_alive(mask, mask, unit) for mask in masks.values()]
    return sum(int(a.sum()) for a in alive), sum(len(a) for a in alive)


def count(total: int, share: float) -> int:
    """How many of `total` a share is, half rounded up; refuses what is no fraction or leaves nothing."""
    check_sparsity(share)
    cut = math.floor(total * share + 0.5)
    if cut >= total > 0:
        raise ConfigError(
            f"sparsity {share:g} would cut all {total:,}: the most that can be cut of them is {total - 1:,}."
        )
    return cut


def check_sparsity(sparsity: Any) -> None:
    if isinstance(sparsity, Mapping):
        for value in sparsity.values():
            check_sparsity(value)
        return
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise ConfigError(
            f"sparsity is a fraction in [0, 1) or a dict of layer patterns to fractions; got {sparsity!r}."
        )
    if not 0 <= float(sparsity) < 1:
        hint = f" Did you mean {float(sparsity) / 100:g}?" if 1 < float(sparsity) < 100 else ""
        raise ConfigError(f"sparsity is the fraction of weights cut, in [0, 1); got {float(sparsity):g}.{hint}")


def spread(total: int, quotas: Sequence[float], caps: Sequence[int], least: int = 0) -> list[int]:
    """Split `total` in proportion to `quotas`, none above its cap (the rest goes to the others), the sum exact.

    The remainders go to the largest fractions, then by position. Each with a cap gets `least` or more where it can.
    """
    floor = [min(least, cap) for cap in caps]
    if not sum(floor) <= total <= sum(caps):
        raise ConfigError(
            f"{total:,} cannot be spread over {len(caps)} layers that hold from {sum(floor):,} to {sum(caps):,}. "
            "Ask for a sparsity between, or leave the small layers out with `skip`."
        )
    share = [0.0] * len(caps)
    fixed: dict[int, float] = {}
    while True:  # water-filling: who exceeds a bound is fixed there, the others share what is left
        free = [i for i in range(len(caps)) if i not in fixed]
        weight = sum(quotas[i] for i in free)
        rest = total - sum(fixed.values())
        for i in free:
            share[i] = rest * quotas[i] / weight if weight > 0 else rest / len(free)
        above = {i: float(caps[i]) for i in free if share[i] > caps[i]}
        below = {i: float(floor[i]) for i in free if share[i] < floor[i]}
        if not above and not below:
            break
        over = sum(share[i] - b for i, b in above.items()) - sum(b - share[i] for i, b in below.items())
        fixed |= above if over > 0 or not below else below
    for i, value in fixed.items():
        share[i] = value
    counts = [min(math.floor(s + 1e-9), cap) for s, cap in zip(share, caps, strict=True)]
    by_remainder = sorted(range(len(caps)), key=lambda i: (counts[i] - share[i], i))
    for i in (i for _ in range(len(caps)) for i in by_remainder):
        if sum(counts) == total:
            break
        counts[i] += counts[i] < caps[i]
    return counts


def _top(scores: Tensor, alive: Tensor, keep: int) -> Tensor:
    """The `keep` highest of the alive. Threshold first, then position: `topk` leaves the order of ties open."""
    candidates = scores[alive]
    if keep >= len(candidates):
        return alive.clone()
    chosen = torch.zeros_like(alive)
    if keep == 0:
        return chosen
    threshold = torch.kthvalue(candidates, len(candidates) - keep + 1).values
    top, ties = candidates > threshold, candidates == threshold
    top |= ties & (ties.cumsum(0) <= keep - top.count_nonzero())
    chosen[alive] = top
    return chosen


def _unit_scores(name: str, score: Tensor, unit: str) -> Tensor:
    score = score.detach().float() if score.dtype != torch.float64 else score.detach()
    if torch.isnan(score).any():
        raise ConfigError(f"the criterion gave NaN for {name}; scores must be numbers. Is the model's weight finite?")
    return score.flatten() if _whole(score, unit) else score.flatten(UNITS[unit]).mean(-1).flatten()


def _unit_alive(like: Tensor, mask: Tensor | None, unit: str) -> Tensor:
    mask = torch.ones_like(like, dtype=torch.bool) if mask is None else mask
    return mask.flatten() if _whole(mask, unit) else mask.flatten(UNITS[unit]).any(-1).flatten()


def _whole(tensor: Tensor, unit: str) -> bool:
    """Whether each entry is a unit of its own (every weight; a kernel of a linear layer; a channel of a bias)."""
    leading = UNITS[unit]
    return leading is None or tensor.ndim <= leading


def _expand(chosen: Mapping[str, Tensor], scores: Scores, unit: str) -> Masks:
    masks = Masks()
    for name, top in chosen.items():
        shape = scores[name].shape
        if _whole(scores[name], unit):
            masks[name] = top.view(shape)
        else:
            leading = UNITS[unit] or 0
            masks[name] = top.view(*shape[:leading], *(1 for _ in shape[leading:])).expand(shape).contiguous()
    return masks


def _quotas(scope: str, scores: Scores, unit: str) -> list[float]:
    if scope == "layer":
        return [float(len(_unit_alive(s, None, unit))) for s in scores.values()]
    if scope == "erk":
        return [float(sum(s.shape)) if unit == "weight" and s.ndim > 1 else float(s.shape[0]) for s in scores.values()]
    raise ConfigError(
        f"scope={scope!r} is unknown; expected one of {', '.join(map(repr, SCOPES))}, "
        "or give the sparsity as a dict of layer patterns."
    )


def _by_pattern(targets: Mapping[str, float], sizes: Mapping[str, int], caps: Iterable[int], clamp: bool) -> list[int]:
    for pattern in targets:
        if not any(fnmatchcase(name, pattern) for name in sizes):
            raise ConfigError(f"{pattern!r} matches no prunable layer; the model has {', '.join(sizes)}.")
    keeps = []
    for (name, size), cap in zip(sizes.items(), caps, strict=True):
        matching = [share for pattern, share in targets.items() if fnmatchcase(name, pattern)]
        keep = size - count(size, matching[-1]) if matching else cap
        keep = min(keep, cap) if clamp else keep
        if keep > cap:
            raise ConfigError(
                f"{name}: sparsity {matching[-1]:g} asks to keep {keep:,}, but only {cap:,} are left. "
                "Pruned weights are never revived by a cut; `grow` brings weights back."
            )
        keeps.append(keep)
    return keeps


def _growable(count: int, dead: Tensor) -> int:
    if not 0 <= count <= (most := int(dead.sum())):
        raise ConfigError(f"cannot grow {count:,} weights; between 0 and {most:,} are pruned here.")
    return count


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by canonical name: the original of a parametrized weight under the weight's own name."""
    return {canonical(name): parameter for name, parameter in model.named_parameters()}


def canonical(name: str) -> str:
    if ".parametrizations." in f".{name}" and name.endswith(".original"):
        return f".{name}".replace(".parametrizations.", ".").removesuffix(".original")[1:]
    return name


def _owner(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return None


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))

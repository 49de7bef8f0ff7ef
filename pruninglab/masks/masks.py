"""`Masks`: which weights are kept, by parameter name."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from .. import _html
from ..errors import ConfigError
from ..layers.names import canonical_parameters, is_bias
from ..typed import BelowOne, Filled, checked
from .threshold import counted

Scores = Mapping[str, Tensor]
Sparsity = BelowOne | Annotated[Mapping[str, BelowOne], Filled()]
Unit = Literal["weight", "channel", "kernel"]
Collapse = Literal["stop", "allow"]
"""Whether a layer may be cut away entirely."""
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes, to see any number as bits
UNITS = {"weight": None, "channel": 1, "kernel": 2}  # leading dimensions that name one unit


def emptied(kept_by_layer: Mapping[str, int]) -> list[str]:
    return [name for name, kept in kept_by_layer.items() if not kept and not is_bias(name)]


def nothing_of(layers: Sequence[str]) -> str:
    """The end of a sentence on layers that are cut away entirely, and what to do instead."""
    more = f" and {len(layers) - 5} more" if len(layers) > 5 else ""
    return (
        f"nothing of {', '.join(layers[:5])}{more}. Take a lower sparsity, or scope='layer' or 'erk', which leave "
        "something of every layer; or give collapse='allow' to study the network all the same."
    )


def check_named(masks: Mapping[str, Tensor] | None, names: Mapping[str, Tensor]) -> None:
    """Refuse masks that lack one of these layers."""
    if masks is not None and (missing := [name for name in names if name not in masks]):
        raise ConfigError(f"the masks lack {', '.join(missing)}; give one for each layer.")


class Masks(dict[str, Tensor]):
    """Parameter name -> bool tensor, True is kept. Showing it is the layer table.

    >>> masks = lab.keep_top({'a': torch.tensor([1.0, 3.0, 2.0, 4.0])}, 0.5)
    >>> masks['a'].tolist(), masks.kept, masks.total
    ([False, True, False, True], 2, 4)
    """

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
        return {name: counted(mask) for name, mask in self.items()}

    @property
    def density(self) -> float:
        return self.kept / self.total if self.total else 1.0

    @property
    def sparsity(self) -> float:
        return 1 - self.density

    @property
    def collapsed(self) -> list[str]:
        """Layers that have nothing left, through which no signal passes. Biases are no layers."""
        return emptied(self.kept_by_layer)

    def refuse_collapse(self, collapse: Collapse, what: str) -> None:
        """Unless layers may be cut away entirely, refuse what does so."""
        if collapse == "stop" and (layers := self.collapsed):
            raise ConfigError(f"{what} {nothing_of(layers)}")

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

    def over(self, weights: Mapping[str, Tensor]) -> "Masks":
        """These masks, and full ones for the weights that they do not name."""
        return Masks({**Masks.full(weights), **self})

    @torch.no_grad()
    def apply_(self, weights: Mapping[str, Tensor]) -> None:
        """Set what is not kept to 0, also where it is infinite or NaN."""
        for name, mask in self.items():
            keep_(weights[name], mask)

    def table(self) -> pd.DataFrame:
        """Kept and total of each layer, and of all together in the last row."""
        rows = [(name, _shape(mask), mask.numel(), int(mask.sum())) for name, mask in self.items()]
        rows.append(("all", "", self.total, self.kept))
        table = pd.DataFrame(rows, columns=pd.Index(["layer", "shape", "total", "kept"]))
        table["sparsity"] = (table["total"] - table["kept"]) / table["total"].clip(lower=1)
        return table

    def to_torch(self, model: nn.Module) -> nn.Module:
        """Put these masks on `model` as `torch.nn.utils.prune` does, so that its state dict has `_orig` and `_mask`."""
        self.check({name: w for name, w in canonical_parameters(model).items() if name in self})
        for name, mask in self.items():
            module, parameter = name.rpartition(".")[::2]
            torch_prune.custom_from_mask(model.get_submodule(module), parameter, mask)
        return model

    @classmethod
    def from_torch(cls, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Self]:
        """A plain state dict and the masks, from a state dict saved under `torch.nn.utils.prune`."""
        pairs = [key.removesuffix("_mask") for key in state if key.endswith("_mask")]
        pairs = [name for name in pairs if f"{name}_orig" in state]
        for name in pairs:
            mask = state[f"{name}_mask"]
            if not bool(((mask == 0) | (mask == 1)).all()):
                raise ConfigError(f"{name}_mask is no mask of torch.nn.utils.prune: expected 0 and 1 alone.")
        masks = cls({name: state[f"{name}_mask"].bool() for name in pairs})
        if not masks:
            raise ConfigError(
                "no `…_orig` and `…_mask` pairs in this state dict; it was not saved under torch.nn.utils.prune. "
                "A plain one is loaded with model.load_state_dict(state)."
            )
        plain: dict[str, Tensor] = {}
        for key, value in state.items():
            name = key.removesuffix("_orig")
            if key.endswith("_orig") and name in masks:
                plain[name] = value * masks[name]
            elif not (key.endswith("_mask") and key.removesuffix("_mask") in masks):
                plain[key] = value
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


def parted(row: Tensor, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of all layers in one row as layers again, each in its shape."""
    parts = row.split([layer.numel() for layer in layers.values()])
    return {name: part.view(layers[name].shape) for name, part in zip(layers, parts, strict=True)}


def keep_(tensor: Tensor, mask: Tensor) -> Tensor:
    """Set what is not kept to 0, also where it is infinite or NaN.

    As whole numbers, bits times 0 are 0 and bits times 1 are the same bits, in half of the time of `masked_fill_`.
    """
    tensor.view(INTEGERS[tensor.element_size()]).mul_(mask)
    return tensor


@checked
def units(masks: Mapping[str, Tensor], unit: Unit = "weight") -> tuple[int, int]:
    """How many units have anything kept, and how many there are."""
    alive = [unit_alive(mask.detach(), unit) for mask in masks.values()]
    return sum(map(counted, alive)), sum(len(a) for a in alive)


def unit_alive(mask: Tensor, unit: str) -> Tensor:
    return mask.flatten() if whole(mask, unit) else mask.flatten(UNITS[unit]).any(-1).flatten()


def whole(tensor: Tensor, unit: str) -> bool:
    """Whether each entry is a unit of its own (every weight; a kernel of a linear layer; a channel of a bias)."""
    leading = UNITS[unit]
    return leading is None or tensor.ndim <= leading


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))

"""FLOPs of a network, dense and on the weights that are kept, counted by operation while it runs."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..typed import checked
from .calls import Inputs, calling
from .names import canonical_parameters


@dataclass
class Flops:
    """FLOPs of one sample. A multiplication and an addition are two."""

    weights: dict[str, float] = field(default_factory=dict)
    """Of products with a weight, by its name; where two layers share one it counts in both."""
    other: float = 0.0
    """Of products of two activations, as in attention."""
    used: list[str] = field(default_factory=list)
    """The weights, in the order in which an operation first takes them."""
    called: list[str] = field(default_factory=list)
    """The modules that ran, in the order in which they began."""
    not_counted: list[str] = field(default_factory=list)
    """Operations between a matrix of weights and activations for which there is no formula."""

    @property
    def dense(self) -> float:
        return sum(self.weights.values()) + self.other

    def sparse(self, masks: Mapping[str, Tensor]) -> float:
        """Those on kept weights, and all products of activations."""
        density = {name: float(masks[name].float().mean()) for name in self.weights if name in masks}
        return sum(n * density.get(name, 1.0) for name, n in self.weights.items()) + self.other

    def layers(self, weights: Iterable[str]) -> list[str]:
        """The layers of these weights in the order in which they run; those that do not run come last."""
        names = dict.fromkeys(weights)
        return list(dict.fromkeys(layer_of(name) for name in (*(n for n in self.used if n in names), *names)))


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to; one that the network itself holds is its own."""
    return name.rpartition(".")[0] or name


@checked
def count(model: nn.Module, x: Tensor | Inputs) -> Flops:
    """The FLOPs of a forward pass over `x`, a batch of one sample, by torch's own formula for each operation."""
    counter = _Counter(model)
    with ExitStack() as stack:
        # Fused kernels of attention and of recurrent layers show no products.
        for backend, name in ((torch.backends.mkldnn, "enabled"), (torch.backends.cudnn, "enabled")):
            stack.callback(setattr, backend, name, getattr(backend, name))
            setattr(backend, name, False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(partial(counter.begin, name)).remove)
        stack.enter_context(calling(model, needed=isinstance(x, Inputs)))
        stack.enter_context(counter)
        model(x)
    return counter.found


class _Counter(TorchDispatchMode):
    """Adds the products of every operation to the weight that is in it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.found = Flops()
        self.names: dict[int, list[tuple[range, str]]] = defaultdict(list)  # by storage: bytes, and whose they are
        self.made: list[Tensor] = []  # what was computed from weights alone is kept, so that its place is not taken
        for buffer in model.buffers():
            self._note(buffer, "")
        for name, parameter in canonical_parameters(model).items():
            self._note(parameter, name)

    def begin(self, name: str, module: nn.Module, given: Any) -> None:
        if name not in self.found.called:
            self.found.called.append(name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, kind = kwargs or {}, getattr(func, "_overloadpacket", func)
        formula: Callable[..., int] | None = flop_registry.get(kind) or _MORE.get(str(kind))
        if formula is None and hasattr(func, "decompose"):
            with self:
                whole = func.decompose(*args, **kwargs)
            if whole is not NotImplemented:
                return whole
        out = func(*args, **kwargs)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.ndim]
        owners = [self._owner(t) for t in given]
        weights = [(t, name) for t, name in zip(given, owners, strict=True) if name]
        self.found.used += [name for _, name in weights if name not in self.found.used]
        owner = max(((t.numel(), name) for t, name in weights), default=(0, ""))[1]
        alone = bool(given) and None not in owners
        if formula and not (alone and str(kind) in _MORE):  # as torch counts: not the vectors of a spectral norm
            self._add(owner, float(formula(*args, **kwargs, out_val=out)))
        if alone:
            self._keep(out, owner)
        elif not formula and not _is_free(func) and any(t.ndim > 1 for t, _ in weights):
            self._miss(str(kind))
        return out

    def _keep(self, out: Any, owner: str) -> None:
        for made in (t for t in tree_leaves(out) if isinstance(t, Tensor) and self._owner(t) is None):
            self._note(made, owner)
            self.made.append(made)

    def _miss(self, kind: str) -> None:
        if kind not in self.found.not_counted:
            self.found.not_counted.append(kind)

    def _add(self, owner: str, flops: float) -> None:
        if owner:
            self.found.weights[owner] = self.found.weights.get(owner, 0.0) + flops
        else:
            self.found.other += flops

    def _note(self, tensor: Tensor, name: str) -> None:
        if tensor.layout == torch.strided and tensor.numel():
            span = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = _offset(tensor)
            place = range(start, start + span * tensor.element_size())
            self.names[tensor.untyped_storage()._cdata].append((place, name))

    def _owner(self, tensor: Tensor) -> str | None:
        """The weight that a tensor is, is a part of or was computed from; "" for a buffer."""
        if tensor.layout != torch.strided or not tensor.numel():
            return None
        held = self.names.get(tensor.untyped_storage()._cdata, ())
        return next((name for place, name in held if _offset(tensor) in place), None)


def _offset(tensor: Tensor) -> int:
    """Where a tensor begins in its storage, in bytes."""
    return int(tensor.storage_offset()) * tensor.element_size()


def _vector_product(*given: Any, out_val: Any) -> int:
    """Of a matrix and a vector, or of two vectors."""
    return 2 * max(t.numel() for t in given if isinstance(t, Tensor))


def _bilinear(one: Tensor, weight: Tensor, other: Tensor, *rest: Any, out_val: Any) -> int:
    """A product and a sum for each entry of the weight, (1, outputs, inputs, inputs), and each row of the batch."""
    return 2 * weight.numel() * one.shape[0]


_MORE: dict[str, Callable[..., int]] = {
    "aten.mv": _vector_product,
    "aten.addmv": _vector_product,
    "aten.dot": _vector_product,
    "aten._trilinear": _bilinear,
}
_MOVES = (
    *("embedding", "_embedding_bag", "_embedding_bag_forward_only", "index", "index_select", "gather", "index_put"),
    *("cat", "stack", "copy_", "_to_copy", "constant_pad_nd", "repeat", "flip", "roll", "slice_scatter"),
    *("select_scatter", "masked_fill", "_unsafe_view", "native_layer_norm", "native_group_norm", "_fused_rms_norm"),
)
"""Operations that move numbers, and norms: none multiplies a matrix."""


def _is_free(func: Any) -> bool:
    name = func._schema.name.removeprefix("aten::") if hasattr(func, "_schema") else ""
    return getattr(func, "is_view", False) or torch.Tag.pointwise in getattr(func, "tags", ()) or name in _MOVES

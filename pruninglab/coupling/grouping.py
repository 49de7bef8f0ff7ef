"""Which channels of which layers can only go together, found by `torch-pruning` and told in plain words.

Fang et al., "DepGraph: towards any structural pruning", CVPR 2023.
"""

import copy
import importlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch
from torch import Tensor, nn

from .. import _html
from ..errors import ConfigError
from ..layers.kinds import CONVS, LAYERS, heads, inputs, inside, is_depthwise, kind_of, outputs, projection_rows
from ..layers.modules import CausalAttention


@dataclass(frozen=True)
class Part:
    """What one layer has to do with the channels of a group: its own channel `index[k]` is the group's `channel[k]`.

    `side` says how: "out" gives them, "in" reads them, "through" hands on each by itself, "heads" has them inside.
    `tensors` are its weight and bias, and `rows` those of their rows that make each channel, several x channels: of a
    head the query, the key and the value.
    """

    layer: str
    side: str
    index: Tensor
    channel: Tensor
    tensors: tuple[str, str] = ("weight", "bias")
    rows: Tensor | None = None

    @property
    def weight(self) -> str:
        return f"{self.layer}.{self.tensors[0]}"

    @property
    def made_by(self) -> Tensor:
        return self.index[None] if self.rows is None else self.rows


@dataclass(frozen=True)
class Group:
    """Channels that several layers share, such as those that meet in a residual sum; or why they are `fixed`.

    `unit` numbers what goes together: mostly each channel by itself, but all of a head of attention, and all that one
    group of a grouped convolution reads and gives.
    """

    name: str
    size: int
    parts: tuple[Part, ...]
    fixed: str
    unit: Tensor

    @property
    def givers(self) -> list[Part]:
        return [part for part in self.parts if part.side in ("out", "heads")]

    def dead(self, alive: Mapping[str, Tensor]) -> Tensor:
        """Channels that all their layers give by weights that are cut; what has no mask is alive."""
        dead = torch.ones(self.size, dtype=torch.bool)
        for part in self.givers:
            living = torch.ones(1, dtype=torch.bool)
            if part.weight in alive:
                living = alive[part.weight].flatten(1).any(1).cpu()[part.made_by].any(0)
            dead[part.channel] &= ~living
        return dead

    def missing(self, kept: Tensor) -> Iterator[Tensor]:
        """For each layer that would be left without any of the `kept` units: those that it has."""
        for part in sorted(self.parts, key=lambda part: len(part.channel)):  # what serves a part serves the whole
            mine = self.unit[part.channel].unique()
            if part.side != "through" and len(mine) and not kept[mine].any():
                yield mine

    def entries(self, model: nn.Module, chosen: Tensor) -> Iterator[tuple[str, Tensor]]:
        """What gives these channels, by parameter name: rows of weights, biases, and scales and shifts of norms."""
        for part in (p for p in self.parts if p.side != "in"):
            layer, mine = model.get_submodule(part.layer), part.made_by[:, chosen[part.channel]].unique()
            for tensor in part.tensors:
                if isinstance(inside(layer, tensor), nn.Parameter):
                    yield f"{part.layer}.{tensor}", mine


class Groups(Sequence[Group]):
    """The groups of channels of a network. Showing it is the table."""

    def __init__(self, found: Sequence[Group]):
        self.found = list(found)

    def __getitem__(self, item: Any) -> Any:
        return self.found[item]

    def __len__(self) -> int:
        return len(self.found)

    @property
    def channels(self) -> int:
        """Those that can be removed, each counted once in however many layers it is: what a share is of."""
        return sum(group.size for group in self if not group.fixed)

    @property
    def fixed(self) -> list[str]:
        """The weights none of whose output channels can be removed: `skip` for a run that prunes channels."""
        free = {part.weight for group in self if not group.fixed for part in group.givers}
        return list(dict.fromkeys(p.weight for g in self if g.fixed for p in g.givers if p.weight not in free))

    def silent(self, model: nn.Module, alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which biases, and scales and shifts of norms, belong to channels that are dead, by parameter name."""
        found: dict[str, Tensor] = {}
        for group in (g for g in self if not g.fixed):
            dead = group.dead(alive)
            for name, entries in group.entries(model, dead) if dead.any() else ():
                tensor = model.get_parameter(name)
                if tensor.ndim == 1:
                    flags = found.setdefault(name, torch.zeros(len(tensor), dtype=torch.bool, device=tensor.device))
                    flags[entries.to(tensor.device)] = True
        return found

    def table(self) -> pd.DataFrame:
        rows = [
            {
                "channels": group.size,
                "given by": ", ".join(part.layer for part in group.givers),
                "read by": ", ".join(part.layer for part in group.parts if part.side == "in"),
                "why fixed": group.fixed,
            }
            for group in self
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"Groups({len(self)} groups, {self.channels:,} channels that can be removed)\n{self.table()}"

    def _repr_html_(self) -> str:
        table = self.table()
        return _html.table(list(table.columns), table.astype(str).itertuples(index=False))


def find_groups(model: nn.Module, x: Tensor) -> Groups:
    """The groups of a network that takes `x`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what it only guesses; a wrong guess shows in the logits
            found = _coupled(model, x[:1])
    except ConfigError:
        raise
    except (RuntimeError, ArithmeticError, LookupError, AttributeError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            "it cannot be followed which channels of this network go together: its code rearranges them, or computes "
            f"what torch-pruning does not know ({type(error).__name__}: {error}). Prune single weights instead, by "
            "`lab.prune`."
        ) from error
    found = _with_grouped(model, found)
    found += [_heads(name, m) for name, m in model.named_modules() if kind_of(m).heads]
    found = [_unless_tied(model, group) for group in found]
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    return Groups(sorted(found, key=lambda group: min(order[part.layer] for part in group.givers)))


def _coupled(model: nn.Module, x: Tensor) -> list[Group]:
    """The groups as torch-pruning sees them."""
    graph, traced, ends, pads = _graph(model, x)
    found: list[Group] = []
    covered: dict[Any, Tensor] = {
        m: torch.zeros(outputs(m), dtype=torch.bool) for m in graph.module2node if isinstance(m, LAYERS)
    }
    for module in sorted(covered, key=outputs, reverse=True):  # the widest first: a shortcut that pads has fewer
        wanted = (~covered[module]).nonzero().flatten().tolist()
        if not wanted:
            continue
        pruner = graph.get_pruner_of_module(module)
        items = list(graph.get_pruning_group(module, pruner.prune_out_channels, wanted))
        found.append(_group(traced, items, wanted, ends, pads))
        for part in found[-1].parts:
            layer = traced.get_submodule(part.layer)
            if layer in covered and part.side != "in":
                covered[layer][part.index] = True
    return found


def _graph(model: nn.Module, x: Tensor) -> tuple[Any, nn.Module, list[Any], "_Pads"]:
    """torch-pruning's graph of a copy in which everything has a gradient; the copy; where it begins and ends."""
    torch_pruning = _torch_pruning()
    traced = copy.deepcopy(model).eval()
    for parameter in traced.parameters():
        parameter.requires_grad_(True)
    pads = _Pads()
    padding = [module for module in traced.modules() if kind_of(module).pads]
    kinds: Any = {type(module): pads for module in padding}
    for module in (m for m in traced.modules() if isinstance(m, CausalAttention)):
        kinds[type(module)] = _WHOLE
        module.forward = lambda x: x * 1.0  # what is inside of it is a group of its own, and no concern of the graph
    for module in padding:
        module.register_forward_pre_hook(lambda m, given: pads.inputs.update({m: given[0].shape[1]}))
    start = x.detach().clone()
    if start.is_floating_point():
        start = start.requires_grad_(True) * 1.0  # so that the graph shows where the image itself goes
    ends = [start.grad_fn]

    def forward(net: nn.Module, images: Tensor) -> Tensor:
        logits = logits_of(net, images)
        ends.append(logits.grad_fn)
        return logits

    graph = torch_pruning.DependencyGraph()
    with torch.enable_grad():
        graph.build_dependency(traced, start, forward_fn=forward, customized_pruners=kinds, verbose=False)
    for module in padding:
        node = graph.module2node[module]
        for dependency in node.dependencies:
            if dependency.target in node.inputs:
                dependency.index_mapping[0] = _Below(pads.inputs[module])
    return graph, traced, ends, pads


def _torch_pruning() -> Any:
    """torch-pruning, without timm and all of torchvision, which it would import to count what nobody asks it for."""
    if "torch_pruning" not in sys.modules and "timm" not in sys.modules:
        sys.modules["timm"] = None  # pyright: ignore[reportArgumentType] (Python's word for "there is none")
        try:
            return importlib.import_module("torch_pruning")
        finally:
            del sys.modules["timm"]
    return importlib.import_module("torch_pruning")


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """What the network gives out, or its `.logits`, as of a network of transformers."""
    answer = model(x)
    if not isinstance(logits := getattr(answer, "logits", answer), Tensor):
        raise ConfigError(f"the model returns a {type(answer).__name__}; expected one tensor of logits.")
    return logits


class _Whole:
    """How torch-pruning sees attention that is no layer of torch: it reads and gives as many channels as it has."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return layer

    prune_in_channels = prune_out_channels

    def get_in_channels(self, layer: Any) -> int:
        return layer.out_proj.out_features

    get_out_channels = get_in_channels


_WHOLE = _Whole()


class _Pads:
    """How torch-pruning sees the shortcut that adds channels of zeros: it hands on those that it gets."""

    def __init__(self) -> None:
        self.inputs: dict[nn.Module, int] = {}

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return layer

    prune_in_channels = prune_out_channels

    def get_in_channels(self, layer: nn.Module) -> int:
        return self.inputs[layer]

    def get_out_channels(self, layer: Any) -> int:
        return self.inputs[layer] + layer.added


@dataclass(frozen=True)
class _Below:
    """The indices that are there before channels of zeros are added."""

    inputs: int

    def __call__(self, idxs: Sequence[Any]) -> list[Any]:
        return [i for i in idxs if i.idx < self.inputs]


def _group(traced: nn.Module, items: Sequence[Any], roots: Sequence[int], ends: Sequence[Any], pads: _Pads) -> Group:
    """One group in plain words."""
    names = {module: name for name, module in traced.named_modules()}
    place = {root: i for i, root in enumerate(roots)}
    parts: list[Part] = []
    fixed = ""
    for item in items:
        node, module = item.dep.target, item.dep.target.module
        is_layer = node.type.name in ("CONV", "LINEAR")
        side = item.dep.handler.__name__.split("_")[1] if is_layer else "through"
        name = names.get(module, "")
        if side != "in" or not isinstance(module, LAYERS):
            fixed = fixed or _obstacle(node, name, ends)
        if not _narrows(module):
            continue
        index, channel = torch.tensor(item.idxs), torch.tensor([place.get(root, -1) for root in item.root_idxs])
        if kind_of(module).pads:  # only what it adds is its own
            own = index >= pads.inputs[module]
            index, channel = index[own] - pads.inputs[module], channel[own]
        if (channel < 0).any() or (index >= (inputs(module) if side == "in" else outputs(module))).any():
            fixed = fixed or f"how they come to {name} cannot be followed"
            index, channel = index[:0], channel[:0]
        parts.append(Part(name, side, index, channel))
    root = next(part.layer for part in parts if part.side != "in")
    return Group(root, len(roots), tuple(parts), fixed, torch.arange(len(roots)))


def _obstacle(node: Any, name: str, ends: Sequence[Any]) -> str:
    """Why channels that come by here cannot be removed, if so."""
    module, kind = node.module, node.type.name
    if kind == "OUTPUT" or node.grad_fn is ends[1]:
        return "they are what the network gives out"
    if node.grad_fn is ends[0] is not None:
        return "the image itself is one of them"
    if kind in ("SPLIT", "UNBIND"):
        return "the code of the network splits them"
    if kind == "PARAMETER":
        return "a parameter outside of layers belongs to them"
    if kind_of(module).mixes:
        return f"{name} takes its statistics over all of them"
    if kind == "DEPTHWISE_CONV" and not is_depthwise(module):
        return f"{name} makes several of each"
    return f"{name}, a {type(module).__name__}, cannot be narrowed" if name and not _narrows(module) else ""


def _narrows(module: Any) -> bool:
    """Whether single channels can be taken out of it."""
    kind = kind_of(module)
    return bool(kind.widths and not kind.heads)


def _with_grouped(model: nn.Module, found: Sequence[Group]) -> list[Group]:
    """Join what a grouped convolution reads with what it gives: of both, what is of one of its groups is a unit."""
    starts = [0, *accumulate(group.size for group in found)]
    units: list[tuple[int, int]] = []
    joined: list[tuple[int, int]] = []
    first: dict[tuple[str, int], tuple[int, int]] = {}
    for number, group in enumerate(found):
        for part in group.parts:
            layer: Any = model.get_submodule(part.layer)
            if not isinstance(layer, CONVS) or layer.groups == 1 or is_depthwise(layer):
                continue
            section = part.index // ((inputs(layer) if part.side == "in" else outputs(layer)) // layer.groups)
            for which, channel in zip(section.tolist(), part.channel.tolist(), strict=True):
                origin = first.setdefault((part.layer, which), (number, channel))
                units.append((starts[origin[0]] + origin[1], starts[number] + channel))
                joined.append((origin[0], number))
    unit, together = _components(units, starts[-1]), _components(joined, len(found))
    merged = []
    for members in ((together == label).nonzero().flatten().tolist() for label in together.unique()):
        offsets = list(accumulate((found[i].size for i in members), initial=0))
        parts = tuple(
            replace(part, channel=part.channel + offset)
            for i, offset in zip(members, offsets, strict=False)
            for part in found[i].parts
        )
        fixed = next((found[i].fixed for i in members if found[i].fixed), "")
        mine = torch.cat([unit[starts[i] : starts[i + 1]] for i in members]).unique(return_inverse=True)[1]
        merged.append(Group(found[members[0]].name, offsets[-1], parts, fixed, mine))
    return merged


def _components(pairs: Sequence[tuple[int, int]], size: int) -> Tensor:
    """Which of `size` things hang together by these pairs: equal numbers do."""
    one, other = np.array(pairs, int).reshape(-1, 2).T
    matrix = scipy.sparse.coo_array((np.ones(len(one)), (one, other)), shape=(size, size))
    return torch.from_numpy(scipy.sparse.csgraph.connected_components(matrix, directed=False)[1]).long()


def _heads(name: str, layer: Any) -> Group:
    """The heads of attention, which nothing outside of it sees. Those that share keys and values are one unit."""
    inner, tensors = layer.out_proj.in_features, kind_of(layer).projection
    plain = not isinstance(layer, nn.MultiheadAttention) or (
        layer.in_proj_weight is not None and layer.bias_k is None and not layer.add_zero_attn
    )
    fixed = "" if plain else f"{name} has keys or values of another width, or more of them than it is given"
    every = torch.arange(inner)
    rows = projection_rows(layer) if plain else every[None]
    part = Part(name, "heads", every, every, tensors, rows)
    return Group(name, inner, (part,), fixed, every // (inner // heads(layer)))


def _unless_tied(model: nn.Module, group: Group) -> Group:
    """Fixed, where layers share a weight: what is cut of one would be missing in the other."""
    uses = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    for part in group.parts if not group.fixed else ():
        own = model.get_submodule(part.layer).parameters(recurse=part.side == "heads")
        if any(uses[id(p)] > 1 for p in own):
            return replace(group, fixed=f"{part.layer} shares its weights with another layer")
    return group

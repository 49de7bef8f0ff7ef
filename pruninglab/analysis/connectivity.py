"""How well a pruned network still conducts: heat on the graph of its channels (Subramaniam and Sharma, 2020)."""

import math
import operator
from typing import Any

import numpy as np
import scipy
import torch
from torch import fx, nn

from ..errors import ConfigError
from ..models.n2nskip import is_skip
from ..typed import Strength, checked

Graph = Any
"""A scipy.sparse.csr_array, whose stubs do not know that it has a shape."""
_MOST_PARTS = 10_000


@checked
def distance(pruned: nn.Module, reference: nn.Module, t: Strength = 1.0) -> float:
    """F = ‖S_reference - S_pruned‖, S = exp(-L·t)·A: the heat that 1 at each input has spread after the time `t`.

    0 is the reference itself. Both are of one architecture, with skip connections or without. The paper names neither
    the weight of an edge (`channel_graph`) nor the time. Here a `t` of 1 is the time in which the mean channel of the
    reference passes on its heat once.
    """
    (one, inputs), (other, _) = channel_graph(reference), channel_graph(pruned)
    if one.shape != other.shape:
        raise ConfigError(
            f"these networks have {one.shape[0]:,} and {other.shape[0]:,} channels; compare two of one architecture."
        )
    start = np.zeros(one.shape[0])
    start[:inputs] = 1
    unit = one.shape[0] / one.sum()
    return float(np.linalg.norm(heat(one, start, t * unit) - heat(other, start, t * unit)))


@checked
def heat(graph: Graph, start: np.ndarray, t: Strength) -> np.ndarray:
    """exp(-L·t)·start, with L = D - W.

    As a sum over the numbers of jumps of a random walk on the graph: every term is positive, so that nothing cancels.
    """
    if not scipy.sparse.issparse(graph):
        raise ConfigError(f"graph is a {type(graph).__name__}; expected the first value of channel_graph(model).")
    degree = graph.sum(axis=1)
    rate = float(degree.max(initial=0.0))
    parts = max(math.ceil(rate * t / 32), 1)  # each so short that exp(-rate·t) is far from 0
    if parts > _MOST_PARTS:
        raise ConfigError(f"t={t:g} is too long; expected at most {32 * _MOST_PARTS / rate:g}, when all is even.")
    jumps = rate * t / parts
    for _ in range(parts):
        term, share = start, np.exp(-jumps)
        total, k = share * term, 0
        while k <= jumps or share > 1e-18:
            k += 1
            term = term - (degree * term - graph @ term) / rate if rate else term
            share *= jumps / k
            total = total + share * term
        start = total
    return start


@checked
def channel_graph(model: nn.Module) -> tuple[Graph, int]:
    """The symmetric weights W between channels, and how many of these, the first, are inputs of the network.

    A channel is one output of a convolution or a linear layer. What a skip connection gives belongs to the channels
    that it joins. The weight of an edge is the sum of |w| over the kernel. For a linear layer behind convolutions it is
    the sum over the pixels of a channel. Norms and activations are skipped. A residual sum passes on the channels of
    both branches.
    """
    graph = fx.symbolic_trace(model).graph
    layers = {node: module for node in graph.nodes if (module := _layer(model, node)) is not None}
    handed = _sources(graph, layers)
    joins = {node: _joined(node, handed) for node in layers if is_skip(f"{node.target}.weight")}
    sources = {node: {joins.get(s, s) for n in node.all_input_nodes for s in handed[n]} for node in layers}
    widths = {node: module.weight.shape[0] for node, module in layers.items() if node not in joins}
    entry = next(node for node in graph.nodes if node.op == "placeholder")
    widths = {entry: next(layers[n].weight.shape[1] for n in layers if entry in sources[n]), **widths}
    first = dict(zip(widths, np.cumsum([0, *widths.values()]).tolist(), strict=False))
    blocks = []
    for node, module in layers.items():
        weight = module.weight.detach().cpu().double().abs()
        strength = weight.view(*weight.shape[:2], -1).sum(2)
        channels = max(widths[s] for s in sources[node])
        if strength.shape[1] % channels:
            raise ConfigError(
                f"{node.target} has {strength.shape[1]} inputs from {channels} channels: no whole number."
            )
        strength = strength.view(len(strength), channels, -1).sum(2)
        for source in sources[node]:  # a shortcut that pads has fewer channels than its end
            part = scipy.sparse.coo_array(strength[:, : widths[source]].numpy())
            blocks.append((part.data, part.row + first[joins.get(node, node)], part.col + first[source]))
    values, rows, columns = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    total = sum(widths.values())
    upper = scipy.sparse.csr_array((values, (rows, columns)), shape=(total, total))
    return scipy.sparse.csr_array(upper + upper.T), widths[entry]


def _layer(model: nn.Module, node: fx.Node) -> Any:
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) else None


def _sources(graph: fx.Graph, layers: dict[fx.Node, Any]) -> dict[fx.Node, dict[fx.Node, None]]:
    """By node the layers, or the input of the network, whose channels it hands on, in their order."""
    sources: dict[fx.Node, dict[fx.Node, None]] = {}
    for node in graph.nodes:
        called = getattr(node.target, "__name__", node.target)
        if called in _REARRANGES:
            raise ConfigError(
                f"this network calls {called}, which puts channels side by side or takes them apart; the graph of "
                "channels follows only networks whose ways meet in sums."
            )
        if node in layers or node.op == "placeholder":
            sources[node] = {node: None}
        else:  # a shape that is asked for carries no signal
            given = node.all_input_nodes if node.target is not getattr else ()
            sources[node] = {source: None for before in given for source in sources[before]}
    return sources


_REARRANGES = {"cat", "concat", "concatenate", "stack", "hstack", "chunk", "split", "tensor_split", "unbind"}


def _joined(skip: fx.Node, handed: dict[fx.Node, dict[fx.Node, None]]) -> fx.Node:
    """The layer whose outputs a skip connection is added to."""
    node = skip
    while node.target not in (operator.add, torch.add):
        node = next(iter(node.users))
    return next(s for s in handed[node] if s is not skip)

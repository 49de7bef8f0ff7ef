"""From a network to layers: `torch.fx` gives the graph. What is not known here stays a call of PyTorch, by name."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from ..layers.modules import PadShortcut
from .graph import Foreign, Layer, Network, Pair, Shape, simplified


class Untraceable(Exception):
    """Why there is no graph."""


def lower(model: nn.Module, x: Tensor) -> Network:
    """The graph of a plain network in eval mode, by some of its inputs."""
    graph = _Lowering(model, x)
    output = graph.home[graph.output]
    items = simplified(graph.items, output, graph.shapes)
    sides = {name: tuple(value.shape[1:]) for name, value in graph.results.items() if isinstance(value, Tensor)}
    batched = {node.name for node in graph.module.graph.nodes if graph.batched(node)}
    return Network(items, graph.shapes, sides, batched, graph.input, output, graph.output, graph.module)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, PadShortcut) or super().is_leaf_module(m, module_qualified_name)


class _Lowering:
    """Goes through the graph once; `home` says which value holds what a node gives, perhaps in another shape."""

    def __init__(self, model: nn.Module, x: Tensor):
        try:
            traced = _Tracer().trace(model)
        except Exception as error:  # whatever a network's code does with a proxy
            raise Untraceable(f"{type(error).__name__}: {error}".splitlines()[0]) from None
        self.modules, self.module = dict(model.named_modules()), fx.GraphModule(model, traced)
        self.x = x
        self.results: dict[str, Any] = _Recording(self.module).record(x)
        self.home: dict[str, str] = {}
        self.shapes: dict[str, Shape] = {}
        self.items: list[Layer | Foreign] = []
        self.live: set[str] = set()
        """Nodes that depend on the input: a parameter may happen to have as many rows."""
        self.input = self.output = ""
        for node in traced.nodes:
            self._place(node)

    def _place(self, node: fx.Node) -> None:
        if any(n.name in self.live for n in node.all_input_nodes):
            self.live.add(node.name)
        if node.op == "placeholder":
            if self.input:
                if node.users:
                    raise Untraceable("it takes more than one input")
                return
            self.input = node.name
            self.live.add(node.name)
            self._holds(node, node.name)
        elif node.op == "output":
            given = node.args[0]
            if not isinstance(given, fx.Node) or not self.batched(given):
                raise Untraceable("it does not give one tensor with a row for each input")
            self.output = given.name
        elif not self._alias(node):
            layers = _layers_of(self, node) if self.batched(node) else None
            if layers is None:
                reads = {n.name: self.home[n.name] for n in node.all_input_nodes}
                self.items.append(Foreign(_label(node), node, reads, node.name, _in_place(self, node)))
            else:
                self.items += layers
            self._holds(node, node.name)
            if _in_place(self, node) and node.all_input_nodes:
                self._replace(node.all_input_nodes[0], node)

    def _holds(self, node: fx.Node, value: str) -> None:
        self.home[node.name] = value
        if self.batched(node):
            self.shapes[value] = self.shape(node)

    def _alias(self, node: fx.Node) -> bool:
        """What changes no number, or only how they are told apart: dropout, flatten, view."""
        source = next((n for n in node.all_input_nodes if isinstance(self.results[n.name], Tensor)), None)
        if source is None or not (self.batched(node) and self.batched(source)) or not _only_a_view(self, node):
            return False
        if math.prod(self.shape(node)) != math.prod(self.shape(source)):
            return False
        self.home[node.name] = self.home[source.name]
        return True

    def _replace(self, before: fx.Node, after: fx.Node) -> None:
        """What works in place also changes its input, for all that read it later."""
        old = self.home[before.name]
        for name, home in list(self.home.items()):
            if home == old:
                self.home[name] = self.home[after.name]

    def batched(self, node: fx.Node) -> bool:
        """Whether a node gives 32-bit numbers with a row for each input, as channels and pixels or features."""
        value = self.results.get(node.name)
        if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.ndim not in (2, 4):
            return False
        return node.name in self.live and len(value) == len(self.x) and value.numel() > 0

    def shape(self, node: fx.Node) -> Shape:
        sides = tuple(self.results[node.name].shape[1:])
        return (sides[0], sides[1], sides[2]) if len(sides) == 3 else (sides[0], 1, 1)

    def value(self, node: fx.Node) -> str:
        """The value with what a node gives, in its shape; a copy of it where it is held in another one."""
        held, shape = self.home[node.name], self.shape(node)
        if self.shapes[held] == shape:
            return held
        name = f"{node.name}_as_{'x'.join(map(str, shape))}"
        if name not in self.shapes:
            self.items.append(Layer("reshape", node.name, (held,), name))
            self.shapes[name] = shape
        return name


class _Recording(fx.Interpreter):
    """What each node gives for an example."""

    @torch.no_grad()
    def record(self, x: Tensor) -> dict[str, Any]:
        self.seen: dict[str, Any] = {}
        try:
            self.run(x)
        except Exception as error:
            raise Untraceable(str(error).splitlines()[0]) from None
        return self.seen

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n.name] = result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "get_attr":
            self.seen[n.name] = torch.empty_like(result, memory_format=torch.contiguous_format)  # its shape will do
        return result


def _label(node: fx.Node) -> str:
    """The module's name, or the function's."""
    if node.op == "call_module":
        return str(node.target)
    if node.target in _DISPATCHED:
        return _DISPATCHED[node.target]
    return getattr(node.target, "__name__", str(node.target))


_DISPATCHED: dict[Any, str] = {F.max_pool2d: "max_pool2d", F.adaptive_max_pool2d: "adaptive_max_pool2d"}
_IN_PLACE = ("iadd", "isub", "imul", "itruediv")


def _in_place(graph: _Lowering, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(graph.modules[str(node.target)], "inplace", False))
    name = _label(node)
    return (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE or bool(node.kwargs.get("inplace"))


_VIEWS = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
_VIEW_NAMES = ("flatten", "view", "reshape", "contiguous", "squeeze", "unsqueeze", "clone", "detach", "dropout")


def _only_a_view(graph: _Lowering, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph.modules[str(node.target)], _VIEWS)
    if _label(node) == "dropout":
        return not _arguments(graph, node).get("training", True)
    return node.op in ("call_function", "call_method") and _label(node) in _VIEW_NAMES


# What is known ---------------------------------------------------------------------------------------------------


def _layers_of(graph: _Lowering, node: fx.Node) -> list[Layer] | None:
    """The layers that do what a node does, or None if PyTorch has to do it."""
    if not all(graph.batched(n) for n in node.all_input_nodes if isinstance(graph.results[n.name], Tensor)):
        return None
    if node.op == "call_module":
        module = graph.modules[str(node.target)]
        make = next((made for kind, made in _MODULES.items() if isinstance(module, kind)), None)
        return _checked(make(graph, node, module)) if make and type(module).__module__.startswith(_OURS) else None
    make = _FUNCTIONS.get(_label(node))
    return _checked(make(graph, node, _arguments(graph, node))) if make else None


_OURS = ("torch.nn.", "pruninglab.")
"""A class of somebody else that derives from a known one may do anything."""


def _checked(layer: Layer | None) -> list[Layer] | None:
    return None if layer is None else [layer]


def _arguments(graph: _Lowering, node: fx.Node) -> dict[Any, Any]:
    """By keyword; what a node reads of shapes is known from the example."""
    if node.op == "call_function":
        normal = node.normalized_arguments(graph.module, normalize_to_only_use_kwargs=True)
        given = dict(normal.kwargs) if normal else {**dict(enumerate(node.args)), **node.kwargs}
    else:
        given = {**dict(enumerate(node.args)), **node.kwargs}
    plain: dict[Any, Any] = {
        key: map_arg(value, lambda n: n if isinstance(graph.results[n.name], Tensor) else graph.results[n.name])
        for key, value in given.items()
    }
    return plain


def _first(graph: _Lowering, node: fx.Node) -> tuple[str]:
    return (graph.value(node.all_input_nodes[0]),)


def _pair(value: Any) -> Pair:
    both = (value, value) if isinstance(value, int) else tuple(value)
    return (both * 2)[:2] if len(both) == 1 else both


def _convolution(graph: _Lowering, node: fx.Node, module: Any) -> Layer | None:
    padding = module.padding
    if padding == "same":
        spread = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        padding = None if any(s % 2 for s in spread) else tuple(s // 2 for s in spread)
    elif padding == "valid":
        padding = (0, 0)
    if padding is None or (module.padding_mode != "zeros" and any(padding)):
        return None
    return Layer(
        "convolution", str(node.target), _first(graph, node), node.name, weight=module.weight.detach().double(),
        shift=None if module.bias is None else module.bias.detach().double(), kernel=_pair(module.kernel_size),
        stride=_pair(module.stride), padding=_pair(padding), dilation=_pair(module.dilation), groups=module.groups,
    )  # fmt: skip


def _linear(graph: _Lowering, node: fx.Node, module: Any) -> Layer | None:
    source = node.all_input_nodes[0]
    if graph.results[source.name].ndim != 2:
        return None
    bias = None if module.bias is None else module.bias.detach().double()
    held = graph.home[source.name]  # read where it lies: a flattened image is not copied
    return Layer("linear", str(node.target), (held,), node.name, weight=module.weight.detach().double(), shift=bias)


def _norm(graph: _Lowering, node: fx.Node, module: Any) -> Layer | None:
    if module.running_mean is None or module.running_var is None:
        return None
    scale = 1 / torch.sqrt(module.running_var.double() + module.eps)
    shift = -module.running_mean.double() * scale
    if module.affine:
        scale, shift = scale * module.weight.detach().double(), shift * module.weight.detach().double()
        shift = shift + module.bias.detach().double()
    return Layer("map", str(node.target), _first(graph, node), node.name, scale=scale, shift=shift)


def _relu(graph: _Lowering, node: fx.Node, _: Any) -> Layer:
    return Layer("map", _label(node), _first(graph, node), node.name, relu=True)


def _pool(graph: _Lowering, node: fx.Node, name: str, given: Callable[[str, Any], Any], kind: Any) -> Layer | None:
    """Max or mean pooling; `given` reads a setting, by its name and what it is where it is not said."""
    kernel = _pair(given("kernel_size", None))
    unusual = given("dilation", 1) not in (1, (1, 1), [1, 1]) or given("return_indices", False)
    if unusual or given("divisor_override", None) is not None:
        return None
    stride, padding = given("stride", None), _pair(given("padding", 0))
    return Layer(
        kind, name, _first(graph, node), node.name, kernel=kernel,
        stride=kernel if stride in (None, (), []) else _pair(stride), padding=padding,
        count_padding=kind == "mean" and bool(given("count_include_pad", True)),
    )  # fmt: skip


def _adaptive(graph: _Lowering, node: fx.Node, name: str, kind: Any) -> Layer | None:
    """To a smaller size, where that divides the size that there is."""
    _, *read = graph.shape(node.all_input_nodes[0])
    _, *size = graph.shape(node)
    if graph.results[node.all_input_nodes[0].name].ndim != 4 or any(r % s for r, s in zip(read, size, strict=True)):
        return None
    kernel = _pair([r // s for r, s in zip(read, size, strict=True)])
    return Layer(kind, name, _first(graph, node), node.name, kernel=kernel, stride=kernel)


def _pad_shortcut(graph: _Lowering, node: fx.Node, module: PadShortcut) -> Layer:
    stride = (module.stride, module.stride)
    return Layer("concatenation", str(node.target), _first(graph, node), node.name, stride=stride)


def _sum(graph: _Lowering, node: fx.Node, given: dict[Any, Any]) -> Layer | None:
    """Of two tensors of one shape."""
    both = node.all_input_nodes
    twice = len(both) == 1 and sum(value is both[0] for value in node.args) == 2
    operands = [both[0], both[0]] if twice else both
    if len(operands) != 2 or given.get("alpha", 1) != 1 or not all(graph.batched(n) for n in operands):
        return None
    if any(graph.results[n.name].shape != graph.results[node.name].shape for n in operands):
        return None
    return Layer("map", _label(node), tuple(map(graph.value, operands)), node.name, added=True)


def _concatenation(graph: _Lowering, node: fx.Node, given: dict[Any, Any]) -> Layer | None:
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if axis != 1 or not isinstance(parts, Sequence) or not all(isinstance(p, fx.Node) for p in parts):
        return None
    return Layer("concatenation", _label(node), tuple(graph.value(p) for p in parts), node.name)  # pyright: ignore[reportArgumentType]


def _mean(graph: _Lowering, node: fx.Node, given: dict[Any, Any]) -> Layer | None:
    """Over all pixels."""
    axes = given.get("dim", given.get(1))
    axes = sorted(axis % 4 for axis in axes) if isinstance(axes, list | tuple) else None
    if axes != [2, 3] or graph.results[node.all_input_nodes[0].name].ndim != 4 or graph.shape(node)[1:] != (1, 1):
        return None
    return _adaptive(graph, node, _label(node), "mean")


def _of_module(kind: Any) -> Any:
    def make(graph: _Lowering, node: fx.Node, module: Any) -> Layer | None:
        if graph.results[node.name].ndim != 4:
            return None
        return _pool(graph, node, str(node.target), lambda name, usual: getattr(module, name, usual), kind)

    return make


def _of_function(kind: Any) -> Any:
    def make(graph: _Lowering, node: fx.Node, given: dict[Any, Any]) -> Layer | None:
        if "kernel_size" not in given or graph.results[node.name].ndim != 4:
            return None
        return _pool(graph, node, _label(node), lambda name, usual: given.get(name, usual), kind)

    return make


_MODULES: dict[Any, Callable[[_Lowering, fx.Node, Any], Layer | None]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    (nn.BatchNorm1d, nn.BatchNorm2d): _norm,
    nn.ReLU: _relu,
    nn.MaxPool2d: _of_module("max"),
    nn.AvgPool2d: _of_module("mean"),
    nn.AdaptiveMaxPool2d: lambda graph, node, module: _adaptive(graph, node, str(node.target), "max"),
    nn.AdaptiveAvgPool2d: lambda graph, node, module: _adaptive(graph, node, str(node.target), "mean"),
    PadShortcut: _pad_shortcut,
}
_FUNCTIONS: dict[str, Callable[[_Lowering, fx.Node, dict[Any, Any]], Layer | None]] = {
    **dict.fromkeys(("relu", "relu_"), _relu),
    **dict.fromkeys(("add", "iadd", "add_"), _sum),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenation),
    "max_pool2d": _of_function("max"),
    "avg_pool2d": _of_function("mean"),
    "adaptive_max_pool2d": lambda graph, node, given: _adaptive(graph, node, _label(node), "max"),
    "adaptive_avg_pool2d": lambda graph, node, given: _adaptive(graph, node, _label(node), "mean"),
    "mean": _mean,
}

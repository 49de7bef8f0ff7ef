"""The sparse engine: a pruned network that computes with its surviving weights alone."""

import ctypes
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from .. import _html
from ..errors import ConfigError
from ..train.run import Run
from ..typed import Count, checked
from . import build
from .graph import Foreign, Layer, Network, Shape
from .lowering import Untraceable, lower
from .network import Example, images, plain
from .plan import Plan

TOLERANCE = 1e-4
"""Of the largest logit: beyond it something is wrong, and PyTorch computes."""
MOST_BYTES = 512 * 2**20
"""For many images side by side; larger networks go image by image."""
ROUNDS, LONG = 7, 0.02  # measurements of one kernel, and seconds after which one is enough


@dataclass(eq=False)
class Segment:
    """Layers in a row that the C code computes."""

    layers: list[Layer]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: dict[str, Shape]
    library: ctypes.CDLL = field(repr=False)
    sides: tuple[int, ...] = ()
    """Of the logits of one image, where they are the only output."""
    plans: dict[int, Plan] = field(init=False, repr=False)
    worth: int = field(init=False, default=1)
    """Images from which on a group of lanes is faster than one by one."""

    def __post_init__(self) -> None:
        width = self.library.width_of_vectors()
        arguments = (self.layers, self.shapes, self.inputs, self.outputs)
        self.single = Plan(*arguments, 1, width)
        self.plans, self.spare = {1: self.single}, {}
        if self.single.floats * 4 * width < MOST_BYTES:
            self.plans[width] = Plan(*arguments, width, width)
        self.times = {lanes: self._measured(plan) for lanes, plan in self.plans.items()}
        self.lanes = max(self.plans)
        one, many = (sum(self.times[lanes]) for lanes in (1, self.lanes))
        self.worth = min(int(many / one) + 1, self.lanes + 1) if self.lanes > 1 else 2

    def run(self, given: list[Tensor], n: int, threads: int) -> list[Tensor]:
        """For n images; tensors are contiguous, in 32 bits, on the CPU."""
        made = [torch.empty(n, *self.shapes[name]) for name in self.outputs]
        into = (ctypes.c_void_p * len(given))(*(x.data_ptr() for x in given))
        out = (ctypes.c_void_p * len(made))(*(x.data_ptr() for x in made))
        left = n % self.lanes
        grouped = n if left >= self.worth else n - left
        if self.worth > self.lanes:
            grouped = 0
        if grouped:
            self._call(self.plans[self.lanes], into, out, 0, grouped, threads)
        if grouped < n:
            self._call(self.single, into, out, grouped, n, threads)
        return made

    def run_one(self, x: Tensor) -> Tensor:
        """One image, one tensor in and one out: few lines, as each costs as much as a small layer."""
        made = torch.empty(self.sides)
        spare = self.spare[1, 1]
        arena = spare.pop() if spare else self._arena(self.single, 1)
        self.library.run_one(self.single.address, x.data_ptr(), made.data_ptr(), arena.data_ptr())
        spare.append(arena)
        return made

    def _call(self, plan: Plan, into: Any, out: Any, first: int, last: int, threads: int) -> None:
        """Each call has an arena of its own while it lasts, so that several may run at once."""
        threads = min(threads, -(-(last - first) // plan.lanes))
        arena = self._arena(plan, threads)
        self.library.run(plan.address, into, out, first, last, arena.data_ptr(), threads)
        self.spare[plan.lanes, threads].append(arena)

    def _arena(self, plan: Plan, threads: int) -> Tensor:
        spare = self.spare.setdefault((plan.lanes, threads), [])
        try:
            return spare.pop()
        except IndexError:
            return torch.zeros(plan.floats * threads)

    def _measured(self, plan: Plan) -> list[float]:
        """Seconds of each operation, with the fastest way chosen for each that has weights."""
        source = torch.Generator().manual_seed(0)
        given = [torch.randn(plan.lanes, *self.shapes[name], generator=source) for name in self.inputs]
        into = (ctypes.c_void_p * len(given))(*(x.data_ptr() for x in given))
        made = [torch.empty(plan.lanes, *self.shapes[name]) for name in self.outputs]
        out = (ctypes.c_void_p * len(made))(*(x.data_ptr() for x in made))
        self._call(plan, into, out, 0, plan.lanes, 1)
        arena = self._arena(plan, 1)
        times = []
        for number in range(len(plan.operations)):
            measured = {}
            for weights in list(plan.ways.get(number, [None])):
                if weights is not None:
                    plan.choose(number, weights)
                measured[weights] = self._seconds(plan, number, arena)
            best = min(measured, key=lambda way: measured[way])
            if best is not None:
                plan.choose(number, best)
                plan.ways[number] = [best]
            times.append(measured[best])
        self.spare[plan.lanes, 1].append(arena)
        return times

    def _seconds(self, plan: Plan, number: int, arena: Tensor) -> float:
        once = self.library.seconds(plan.address, number, arena.data_ptr(), 1)
        rounds = 1 if once > LONG else ROUNDS if once > LONG / 100 else 20 * ROUNDS
        return min(once, self.library.seconds(plan.address, number, arena.data_ptr(), rounds))


class Engine:
    """What `compile` gives: call it with a batch of images for their logits. `report` says what each layer takes."""

    def __init__(self, model: nn.Module, x: Tensor, threads: int | None):
        self.model, self.threads = model, threads
        self.shape, self.reason = tuple(x.shape[1:]), ""
        self.network: Network | None = None
        self.steps: list[Segment | Foreign] = []
        self.times: dict[str, float] = {}
        try:
            library = build.library()
            self.network = lower(model, x[torch.arange(7) % len(x)])
            self.steps = _steps(self.network, library)
        except (build.Unbuilt, Untraceable, OverflowError) as error:
            self._leave_to_torch(str(error))
        if not self.reason and not any(isinstance(step, Segment) for step in self.steps):
            self._leave_to_torch("it has no layer that the engine knows")
        self._direct = self._only_segment()
        self._one: tuple[int, ...] = ()
        """The shape of one image, where the short way is open."""
        if not self.reason:
            self._compare(x)
        if not self.reason:
            self._one = (1, *self.shape) if self._direct is not None else ()
            self._race(x)
        if self._torch_wins_one:
            self._one = ()

    @property
    def compiled(self) -> bool:
        """Whether C code computes any of it."""
        return not self.reason

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape == self._one and x.dtype is torch.float32 and x.is_cpu and x.is_contiguous():
            return self._direct.run_one(x)  # pyright: ignore[reportOptionalMemberAccess]
        with torch.no_grad():
            return self._any(x)

    def _any(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.shape or not len(x):
            raise ConfigError(
                f"got a tensor of shape {tuple(x.shape)}; this engine was compiled for batches of {self.shape}. "
                "Compile again with an example of the new size."
            )
        if self.reason or (self._torch_wins_one if len(x) == 1 else self._torch_wins_many):
            return self.model(x.to(self.place))
        return self._computed(x)

    _torch_wins_one = _torch_wins_many = False

    @property
    def place(self) -> torch.device:
        return next(iter(self.model.parameters()), torch.empty(0)).device

    def _computed(self, x: Tensor) -> Tensor:
        threads = self.threads or torch.get_num_threads()
        if self._direct is not None:
            x = x.to("cpu", torch.float32).contiguous()
            return self._direct.run([x], len(x), threads)[0].view(len(x), *self._direct.sides[1:])
        return self._stepwise(x, threads)

    def _stepwise(self, x: Tensor, threads: int) -> Tensor:
        """Segments and calls of PyTorch in turn; `held` has each value in the shape that its layer gives."""
        network = self.network
        assert network is not None
        held: dict[str, Any] = {network.input: x.to("cpu")}
        for step in self.steps:
            if isinstance(step, Segment):
                given = [held[name].float().contiguous() for name in step.inputs]
                held.update(zip(step.outputs, step.run(given, len(x), threads), strict=True))
            else:
                held[step.output] = _called(network, step, held, len(x))
        return held[network.output].reshape(len(x), *network.sides[network.last])

    def _only_segment(self) -> Segment | None:
        network, step = self.network, self.steps[0] if len(self.steps) == 1 else None
        if network is None or not isinstance(step, Segment):
            return None
        step.sides = (1, *network.sides[network.last])
        return step if step.inputs == (network.input,) and step.outputs == (network.output,) else None

    # What is said ----------------------------------------------------------------------------------------------

    def _leave_to_torch(self, reason: str) -> None:
        self.reason, self.steps = reason, []
        warnings.warn(f"PyTorch computes this network: {reason}.", stacklevel=4)

    def _compare(self, x: Tensor) -> None:
        """With PyTorch, on the example and on noise, one by one and in groups."""
        source = torch.Generator().manual_seed(1)
        noise = torch.randn(19, *self.shape, generator=source) if x.is_floating_point() else x[:0]
        x = torch.cat([x[:8], noise.to(x.dtype)])
        with torch.no_grad():
            wanted = self.model(x)
        got = torch.cat([self._computed(x), self._computed(x[:1])])
        self.error = float((got - torch.cat([wanted, wanted[:1]])).abs().max() / wanted.abs().max().clamp_min(1e-30))
        if not self.error <= TOLERANCE:
            self._leave_to_torch(f"the compiled code gives logits that differ by {self.error:.1e} of the largest")

    @torch.no_grad()
    def _race(self, x: Tensor) -> None:
        """Against PyTorch with the same network: the engine is left out where it is slower."""
        many = max((step.lanes for step in self.steps if isinstance(step, Segment)), default=1)
        for name, size in (("one", 1), ("many", max(many, 2))):
            batch = x[torch.arange(size) % len(x)]
            ours, theirs = _raced(lambda b=batch: self(b), lambda b=batch: self.model(b))
            self.times |= {f"engine_{name}": ours / size, f"torch_{name}": theirs / size}
        self._torch_wins_one = self.times["torch_one"] < self.times["engine_one"]
        self._torch_wins_many = self.times["torch_many"] < self.times["engine_many"]

    @property
    def report(self) -> pd.DataFrame:
        """One row a step: how it is computed, its weights, and milliseconds of an image, alone and in a group.

        Measured on one thread when the engine was compiled. The last rows are the whole network, by the engine and by
        PyTorch; `used` says for which number of images each of them computes.
        """
        rows: list[dict[str, Any]] = []
        for step in self.steps:
            rows += _rows(step) if isinstance(step, Segment) else [_row(step.name, "PyTorch")]
        for name, wins in (("engine", False), ("PyTorch", True)):
            key = "torch" if wins else name
            if f"{key}_one" not in self.times:
                continue
            used = [
                word
                for word, torch_wins in (("one", self._torch_wins_one), ("many", self._torch_wins_many))
                if torch_wins == wins
            ]
            one, many = (1000 * self.times[f"{key}_{word}"] for word in ("one", "many"))
            rows.append(_row("whole network", name, ms=one, ms_in_group=many, used=", ".join(used)))
        if self.reason:
            rows.append(_row("whole network", "PyTorch", used="one, many", why=self.reason))
        return pd.DataFrame(rows, columns=list(_row("", ""))).astype({"weights": "Int64", "density": float})

    def __repr__(self) -> str:
        if self.reason:
            return f"Engine(PyTorch computes all of it: {self.reason})"
        ours = sum(len(step.layers) for step in self.steps if isinstance(step, Segment))
        others = sorted({step.name for step in self.steps if isinstance(step, Foreign)})
        beside = f"; PyTorch computes {', '.join(others)}" if others else ""
        one, theirs = self.times["engine_one"], self.times["torch_one"]
        return f"Engine({ours} layers in C{beside}; one image {1e6 * one:,.0f} µs, by PyTorch {1e6 * theirs:,.0f} µs)"

    def _repr_html_(self) -> str:
        rows = ([_shown(value) for value in row] for row in self.report.itertuples(index=False))
        return f"<b>{_html.cell(repr(self))}</b>" + _html.table(list(self.report), rows)


@checked
def compile(
    model: nn.Module | Run,
    example: Example | None = None,
    masks: Mapping[str, Tensor] | None = None,
    *,
    threads: Count | None = None,
) -> Engine:
    """A callable with the logits of a pruned network, computed by C code from its surviving weights alone.

    The engine takes the tensors that the network takes. Channels that nothing needs are removed first (`structured.
    shrink`), and batch norms are folded. For each layer it measures two kernels and keeps the faster. One reads the
    surviving weights one by one; the other computes four rows together from all that any of them needs. Several images
    are computed side by side. What the engine does not know runs in PyTorch, and so does the whole network where that
    is faster: `report` says what runs where, and how long it takes.

    `example` is the data set or a batch of images (a run brings its own). `masks` are applied first. `threads` are
    torch's own by default; they share the images of a batch. The C code is built once with the system's compiler and
    kept in the cache folder. Without a compiler PyTorch computes, with a warning. Weights and images are taken to be
    finite numbers. The engine runs on the CPU, in 32 bits and in eval mode.

        engine = lab.deploy.compile(run)
        logits = engine(images)
    """
    return Engine(plain(model, example, masks), images(model, example), threads)


def _steps(network: Network, library: ctypes.CDLL) -> list[Segment | Foreign]:
    """Layers that follow each other make one segment, until PyTorch has to be called."""
    groups: list[list[Layer] | Foreign] = []
    for item in network.items:
        if isinstance(item, Foreign):
            groups.append(item)
        elif groups and isinstance(groups[-1], list):
            groups[-1].append(item)
        else:
            groups.append([item])
    steps: list[Segment | Foreign] = []
    for number, group in enumerate(groups):
        if isinstance(group, Foreign):
            steps.append(group)
            continue
        made = {layer.output for layer in group}
        later = {name for other in groups[number + 1 :] for name in _inputs(other)} | {network.output}
        read = tuple(dict.fromkeys(name for name in _inputs(group) if name not in made))
        steps.append(Segment(group, read, tuple(sorted(made & later)), network.shapes, library))
    return steps


def _inputs(group: list[Layer] | Foreign) -> list[str]:
    if isinstance(group, Foreign):
        return list(group.inputs)
    return [name for layer in group for name in layer.inputs]


def _called(network: Network, step: Foreign, held: Mapping[str, Any], n: int) -> Any:
    """A node as PyTorch computes it, each tensor in the shape that it has there."""

    def value(node: fx.Node) -> Any:
        found = held[step.reads[node.name]]
        if isinstance(found, Tensor) and node.name in network.batched:
            found = found.reshape(n, *network.sides[node.name])
        return found.clone() if step.in_place and isinstance(found, Tensor) else found

    node = step.node
    args, kwargs = map_arg(node.args, value), map_arg(node.kwargs, value)
    interpreter = fx.Interpreter(network.module, garbage_collect_values=False)
    return getattr(interpreter, node.op)(node.target, args, kwargs)


def _raced(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float]:
    """Median seconds of both, in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 2):
        for spent, work in zip(times, (ours, theirs), strict=True):
            began = time.perf_counter()
            work()
            if number > 1 or time.perf_counter() - began > 1:
                spent.append(time.perf_counter() - began)
    return median(times[0]), median(times[1])


def _row(layer: str, how: str, **known: Any) -> dict[str, Any]:
    empty = {
        "weights": None,
        "density": None,
        "ms": None,
        "how_in_group": "",
        "ms_in_group": None,
        "used": "",
        "why": "",
    }
    return {"layer": layer, "how": how} | empty | known


def _shown(value: Any) -> str:
    """A cell of the report, which may be empty."""
    if isinstance(value, str) or pd.isna(value):
        return value if isinstance(value, str) else ""
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _rows(segment: Segment) -> list[dict[str, Any]]:
    """By layer; one that is several operations is their sum."""
    rows: dict[int, dict[str, Any]] = {}
    for lanes, plan in segment.plans.items():
        for number, (owner, seconds) in enumerate(zip(plan.owners, segment.times[lanes], strict=True)):
            row = rows.setdefault(id(owner), _row(owner.name, "C"))
            weights = plan.ways.get(number)
            if weights:
                row["how" if lanes == 1 else "how_in_group"] = weights[0].kind
            column = "ms" if lanes == 1 else "ms_in_group"
            row[column] = (row[column] or 0.0) + 1000 * seconds / lanes
            if owner.weight is not None:
                row["weights"] = int(owner.weight.count_nonzero())
                row["density"] = row["weights"] / owner.weight.numel()
    return list(rows.values())

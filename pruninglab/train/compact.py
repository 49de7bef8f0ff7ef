"""Compaction while training: a step computes only the channels and input columns that the loss depends on.

A channel is *useless* if no path of kept weights leads from it to the logits. It is *silent* if it is 0 for every
input, because all that could make it something else is pruned. Either way the gradient of all its weights is 0, and
nothing else depends on it. So the network without such channels gives the same logits, and the same gradients.

Weights, masks, optimizer and methods keep their full shapes. The kept weights of a useless channel still move, by
momentum, weight decay or a penalty, and they count in every threshold over the network. Without them it would be
another run. What they cost is the optimizer's step and the methods' own, a few percent of a dense step.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..coupling.grouping import Groups, find_groups
from ..coupling.removal import remove
from ..errors import ConfigError
from ..layers.names import canonical_parameters
from ..layers.precision import exact_device
from .evaluate import Shuffled
from .run import Run

COLUMNS = 0.25
"""From this share of unused input columns on, a linear layer picks the others: picking costs something too."""
EXACT = 1e-7
ELEMENTWISE = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad),
    *(torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.Adadelta),
)
"""Optimizers that move each weight by its own gradients alone."""
Index = tuple[Tensor, ...]
Zeros = Mapping[str, Tensor]


class Compact:
    """Stands for a network, and calls it without the channels and columns that its masks have made useless.

    Its tensors are those of the whole network, which takes part in training as ever. Each call picks what it needs, and
    the gradient of the rest is 0.
    """

    def __init__(self, model: nn.Module, x: Tensor, groups: Groups):
        self.model, self.x, self.groups = model, x[:1], groups
        self.masks: Mapping[str, Tensor] = {}
        self.held: Zeros = {}
        self.small, self.kept = model, {}

    def follow(self, masks: Mapping[str, Tensor], held: Zeros) -> None:
        """Leave out what these masks have made useless, and what is held at 0."""
        if masks is self.masks and [*map(id, held.values())] == [*map(id, self.held.values())]:
            return
        self.masks, self.held = masks, held
        self.small, self.kept = narrowed(self.model, masks, held, self.groups, self.x)
        self._share()

    def __call__(self, x: Any) -> Any:
        if not self.kept:
            return self.model(x)
        for part, whole in self.modes:
            part.training = whole.training
        picked: dict[str, Tensor] = {name: _Pick.apply(whole, *index) for name, whole, index in self.parameters}
        picked |= {name: whole[index] for name, whole, index in self.buffers}
        answer = functional_call(self.small, picked, (x,))
        if self.model.training:
            for name, whole, index in self.buffers:
                whole[index] = picked[name]
        return answer

    def _share(self) -> None:
        """What got no smaller is the network's own tensor; of the rest the places in it are noted."""
        self.parameters: list[tuple[str, Tensor, Index]] = []
        self.buffers: list[tuple[str, Tensor, Index]] = []
        modules = dict(self.model.named_modules())
        self.modes = [(part, modules[path]) for path, part in self.small.named_modules()]
        for path, part in self.small.named_modules():
            whole = modules[path]
            for own, theirs, picked in (
                (part._parameters, whole._parameters, self.parameters),
                (part._buffers, whole._buffers, self.buffers),
            ):
                for name, tensor in theirs.items():
                    full = f"{path}.{name}".lstrip(".")
                    if tensor is not None and full in self.kept:
                        picked.append((full, tensor, self.kept[full]))
                    else:
                        own[name] = tensor  # pyright: ignore[reportArgumentType]


class _Pick(torch.autograd.Function):
    """Some entries of a tensor; the gradient of the others is 0."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, *index: Tensor) -> Tensor:
        ctx.index = index
        ctx.save_for_backward(whole)
        picked = whole[index]
        return picked.contiguous(memory_format=torch.channels_last) if picked.ndim == 4 else picked

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (whole,) = ctx.saved_tensors
        return torch.zeros_like(whole).index_put_(ctx.index, gradients[0]), *(None for _ in ctx.index)


@torch.no_grad()
def narrowed(
    model: nn.Module, masks: Mapping[str, Tensor], held: Zeros, groups: Groups, x: Tensor
) -> tuple[nn.Module, dict[str, Index]]:
    """The network without useless and silent channels, and which entries of its tensors are left.

    It is found on a pattern: 0 where a weight is pruned or held, 1 where it is kept, and NaN, for unknown, elsewhere.
    """
    pattern = copy.deepcopy(model)
    for name, tensor in canonical_parameters(pattern).items():
        tensor.data = masks[name].to(tensor.dtype) if name in masks else torch.full_like(tensor, torch.nan)
        if name in held:
            tensor.data.masked_fill_(held[name], 0)
    kept = remove(pattern, groups, x, absorb=False)[1]
    for path, layer in pattern.named_modules():
        if isinstance(layer, nn.Linear):
            _pick_columns(layer, f"{path}.weight".lstrip("."), kept)
    return pattern, {name: tuple(part.to(x.device) for part in index) for name, index in kept.items()}


def _pick_columns(layer: nn.Linear, name: str, kept: dict[str, Any]) -> None:
    """Let a linear layer read only the columns that any of its outputs uses."""
    used = (layer.weight != 0).any(0)
    if float(used.float().mean()) > 1 - COLUMNS:
        return
    columns = used.nonzero().flatten()
    rows, *before = kept.get(name, (torch.arange(len(layer.weight)),))
    all_columns = before[0].flatten() if before else torch.arange(len(used))
    kept[name] = (rows.view(-1, 1), all_columns[columns.cpu()].view(1, -1))
    layer.register_forward_pre_hook(lambda _, given: (given[0].index_select(-1, columns), *given[1:]))


# Before training ---------------------------------------------------------------------------------------------------


def begin(run: Run) -> None:
    """Put a `Compact` in the place of the network; refuse now where it could not be exact."""
    for reason in _against(run):
        raise ConfigError(f"compact=True: {reason} Leave compact=True out.")
    x = next(iter(Shuffled(run.data.train, 8, run.options.seed, 0, 8)))[0]
    if not isinstance(x, Tensor):
        raise ConfigError("compact=True: the network takes more than one tensor. Leave compact=True out.")
    found = find_groups(run.model, x[:1])
    groups = Groups([group for group in found if group.parts[0].side != "heads"])
    with run.randomness:
        rehearse(run.model, x, groups, run.randomness)
    run.net = Compact(run.model, x, groups)
    follow(run)


def follow(run: Run) -> None:
    """Between epochs: leave out what the masks have made useless since."""
    if isinstance(run.net, Compact):
        run.net.follow(run.masks, {name: dead for method in run.methods for name, dead in method.held.items()})


def _against(run: Run) -> Iterator[str]:
    """Why a run could not be the same with its network compacted."""
    for method in run.methods:
        if method.sees_pruned:
            yield f"{type(method).__name__} looks at pruned weights or brings some back, and they are not computed."
    if run.net is not run.model:
        yield f"{run.name} puts a network of its own around the model."
    if run.options.clip:
        yield "clip= is by the norm of all gradients, those of pruned weights included."
    if getattr(run, "ranks", None):
        yield "it is for one process, and this run has several."
    if type(run.optimizer) not in ELEMENTWISE:
        yield f"{type(run.optimizer).__name__} is not known to move each weight by its own gradients alone."


def rehearse(model: nn.Module, x: Tensor, groups: Groups, source: Any) -> None:
    """Cut every second channel and every third input in a copy, and compare it with its compact form, in 64 bits."""
    place = exact_device(x.device)
    whole, x = copy.deepcopy(model).to(place).double().train(), x.to(place)
    x = x.double() if x.is_floating_point() else x
    masks = _rehearsed(whole, groups)
    named = dict(whole.named_parameters())
    if unknown := masks.keys() - named.keys():
        raise ConfigError(f"compact=True: {', '.join(sorted(unknown))} is parametrized. Leave compact=True out.")
    for name, mask in masks.items():
        named[name].data.mul_(mask)
    small = Compact(copy.deepcopy(whole), x, groups)
    small.follow(masks, {})
    before = source.source.get_state(), source.seeds.get_state()
    expected = _traced(whole, whole, x)
    if not all(map(torch.equal, before, (source.source.get_state(), source.seeds.get_state()))):
        raise ConfigError(
            "compact=True: this network draws random numbers while it trains, as dropout does. They would fall on "
            "other units once some are left out. Leave compact=True out, or build the network without dropout."
        )
    found = _traced(small, small.model, x)
    for name, tensor in expected.items():
        mask = masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
        apart = ((tensor - found[name]) * mask).abs().max() if tensor.numel() else 0.0
        if not float(apart) <= EXACT * max(float(t.abs().max()) for t in expected.values()):
            raise ConfigError(
                f"compact=True: without some of its channels the network gives other numbers ({name}). Its code mixes "
                "channels, or counts them, in a way that its graph does not show. Leave compact=True out."
            )


def _rehearsed(model: nn.Module, groups: Groups) -> dict[str, Tensor]:
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in canonical_parameters(model).items()}
    for group in (group for group in groups if not group.fixed):
        for name, entries in group.entries(model, group.unit % 2 == 1):
            masks[name][entries.to(masks[name].device)] = False
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            masks[f"{path}.weight".lstrip(".")][:, ::3] = False
    return masks


def _traced(net: Any, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Logits and gradients of one pass in training."""
    try:
        with torch.enable_grad():
            logits = net(x)
            (logits * torch.arange(1.0, logits.numel() + 1, device=x.device).sin().view(logits.shape)).sum().backward()
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"compact=True: the network cannot be tried in 64 bits ({error}). Leave it out.") from error
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return {"logits": logits.detach(), **gradients}

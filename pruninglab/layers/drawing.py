"""Which networks draw no random numbers, read off the types of their modules."""

from typing import Any

from torch import nn
from torch.nn.modules import module as of_torch

_QUIET: frozenset[type] = frozenset(
    {
        *(nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity, nn.Flatten, nn.Unflatten, type(None)),
        *(nn.Linear, nn.Bilinear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.PixelShuffle, nn.Upsample, nn.ZeroPad2d),
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.RMSNorm),
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
        *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
        *(nn.Softmax, nn.LogSoftmax, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
        *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
        *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    }
)
_OURS = "pruninglab.models."
"""Modules of this package draw only through modules of torch that they hold."""


def draws_nothing(net: Any) -> bool:
    """Whether its forward pass cannot draw, whatever the settings of its modules.

    Only types count that never draw: dropout does even at rate 0, since its rate may change. A module of somebody else,
    a hook, a patched `forward`, or a parameter of another class may do anything.
    """
    if not isinstance(net, nn.Module) or of_torch._has_any_global_hook():
        return False
    left: list[Any] = [net]
    for module in left:
        kind = type(module)
        if kind not in _QUIET and not kind.__module__.startswith(_OURS):
            return False
        if module is None:
            continue
        own = module.__dict__
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own:
            return False
        for parameter in own["_parameters"].values():
            if type(parameter) is not nn.Parameter and parameter is not None:
                return False
        left += own["_modules"].values()
    return True

"""The most exact floating point that a device has."""

import torch
from torch import Tensor

from ..errors import ConfigError
from ..typed import checked


@checked
def exact_dtype(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on MPS, which has nothing wider."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"device={device!r} is none: {error}.") from None
    return torch.float32 if kind == "mps" else torch.float64


@checked
def exact(tensor: Tensor) -> Tensor:
    """Detached, in the most exact type of its device."""
    return tensor.detach().to(exact_dtype(tensor.device))


@checked
def exact_device(device: torch.device) -> torch.device:
    """Where float64 can be computed for this device: for MPS on the CPU."""
    return torch.device("cpu") if device.type == "mps" else device

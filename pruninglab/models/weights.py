"""Weights from a file into a model: read, name by name compared, and only then copied."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from ..typed import checked

_INSIDE = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # left by data parallel training and by torch.compile
_SHOWN = 5


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@checked
def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a torch checkpoint, without unpickling anything but tensors."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}; expected a .safetensors file or one written with torch.save")
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # the two readers fail in a dozen ways, and all mean the same here
        raise DataError(
            f"{path} cannot be read: {first_line(error)}. It is damaged or holds more than tensors; "
            "write it again with torch.save(model.state_dict(), path)"
        ) from error
    for name in _INSIDE:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise DataError(f"{path} holds no tensors by name; write it with torch.save(model.state_dict(), path)")
    return dict(content)


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES * 2:  # in either order
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _head(model: nn.Module) -> str:
    """Prefix of the tensors of the last layer with a weight matrix: the linear layer or convolution that ends it."""
    matrices = [name for name, tensor in model.named_parameters() if tensor.dim() > 1]
    return matrices[-1][: matrices[-1].rfind(".") + 1] if matrices else ""


def _listed(lines: list[str]) -> str:
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ", ".join(lines[:_SHOWN]) + more


@checked
def load_weights(model: nn.Module, path: str | Path, *, new_head: bool = False) -> None:
    """Copy a file's tensors into the model; `new_head=True` leaves the last linear layer as it was drawn."""
    own = model.state_dict()
    given = read_weights(path)
    given = given if given.keys() == own.keys() else _without_prefix(given)
    if new_head:
        head = _head(model)
        own = {name: tensor for name, tensor in own.items() if not name.startswith(head)}
        given = {name: tensor for name, tensor in given.items() if not name.startswith(head)}
    _check_names(own, given, path)
    differing = [name for name in given if given[name].shape != own[name].shape]
    if differing:
        shapes = [f"{name} {tuple(given[name].shape)} in the file, {tuple(own[name].shape)} here" for name in differing]
        only_head = all(name.startswith(_head(model)) for name in differing)
        hint = "pass new_head=True to train a new last layer" if only_head else "use the same image shape and options"
        raise ConfigError(f"{path} does not fit: {_listed(shapes)}; {hint}")
    model.load_state_dict(given, strict=False)


def _check_names(own: Mapping[str, Tensor], given: Mapping[str, Tensor], path: str | Path) -> None:
    # Counters of batches are absent from old checkpoints and decide nothing.
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    unknown = [name for name in given if name not in own]
    if missing or unknown:
        raise ConfigError(
            f"{path} belongs to another model"
            + (f"; it lacks {_listed(missing)}" if missing else "")
            + (f"; the model has no {_listed(unknown)}" if unknown else "")
            + ". Build the model that wrote the file"
        )

"""Names of parameters, and the scope: which parameters a run may prune."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from ..errors import ConfigError

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention, nn.Bilinear)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def prunable(
    model: nn.Module, *, biases: bool = False, norms: bool = False, skip: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """The weights in scope, in order of definition: convolution and linear weights, tied ones once.

    `skip` leaves out names or patterns (`"fc3.weight"`, `"layer1.*"`). A parametrized weight appears as its original,
    under the name that it has without the parametrization.
    """
    named = canonical_parameters(model)
    if any(name.endswith("_orig") for name in named):
        raise ConfigError(
            "this model carries torch.nn.utils.prune masks. Take them out with "
            "`state, masks = Masks.from_torch(model.state_dict())`, load `state` into a plain model and pass `masks`."
        )
    if isinstance(skip, str):
        skip = (skip,)
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ConfigError(f"skip={pattern!r} matches no parameter; the model has {', '.join(named)}.")
    scope: dict[str, nn.Parameter] = {}
    for name, parameter in named.items():
        owner = owner_of(model, name)
        is_weight = parameter.ndim > 1 and "bias" not in name.rpartition(".")[2]
        wanted = (isinstance(owner, _LAYERS) and (is_weight or biases)) or (
            isinstance(owner, _NORMS) and norms and (biases or "bias" not in name)
        )
        if wanted and not any(fnmatchcase(name, pattern) for pattern in skip):
            scope[name] = parameter
    return scope


def canonical_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by canonical name: the original of a parametrized weight under the weight's own name."""
    return {canonical(name): parameter for name, parameter in model.named_parameters()}


def canonical(name: str) -> str:
    if ".parametrizations." in f".{name}" and name.endswith(".original"):
        return f".{name}".replace(".parametrizations.", ".").removesuffix(".original")[1:]
    return name


def owner_of(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return None

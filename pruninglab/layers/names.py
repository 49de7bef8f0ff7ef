"""Names of parameters, and the scope: which parameters a run may prune."""

from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from ..errors import ConfigError
from ..typed import checked
from .kinds import kind_of

NOTHING = (
    "this model has nothing to prune: none of its weights is in scope. Expected one that is not frozen, or "
    "names in include=, biases=True or norms=True."
)
Pattern = str | type[nn.Module]
"""A parameter's name or a pattern of names, a type of layer by its class or its class's name, or one of `WORDS`."""
WORDS = ("embeddings", "output")
"""All embeddings; the last layer."""


@checked
def prunable(
    model: nn.Module,
    *,
    biases: bool = False,
    norms: bool = False,
    skip: Pattern | Sequence[Pattern] = (),
    include: Pattern | Sequence[Pattern] = (),
) -> dict[str, nn.Parameter]:
    """The weights in scope, in order of definition, each once.

    They are the matrices of every kind of layer in `layers.kinds`: convolutions, linear, recurrent and attention
    layers, embeddings. `include` adds others and `skip` leaves some out. Both take names or patterns (`"fc3.weight"`,
    `"layer1.*"`), types of layers (`"Embedding"`, `nn.LSTM`), and the words `"embeddings"` and `"output"`, the last
    layer. What is frozen (`requires_grad=False`) is in scope only by `include`. A weight that several layers share is
    in scope, and skipped, if that holds for one of them. A parametrized weight appears as its original, under the name
    that it has without the parametrization.

    >>> list(lab.prunable(model))
    ['fc1.weight', 'fc2.weight', 'fc3.weight']
    """
    check_plain(model)
    named, places = canonical_parameters(model), _places(model)
    held = {name: places[id(parameter)] for name, parameter in named.items()}
    last = output_layer(model)
    left_out, brought_in = _matching("skip", skip, held, last), _matching("include", include, held, last)
    scope: dict[str, nn.Parameter] = {}
    for name, parameter in named.items():
        usual = parameter.requires_grad and any(_is_usual(*at, parameter, biases, norms) for at in held[name])
        if (usual or name in brought_in) and name not in left_out:
            scope[name] = parameter
    return scope


def check_plain(model: nn.Module) -> None:
    """Refuse a network that cannot be copied, or whose weights are not its own parameters."""
    for name, parameter in model.named_parameters():
        if name.endswith("_orig"):
            raise ConfigError(
                "this model carries torch.nn.utils.prune masks. Take them out with `state, masks = "
                "Masks.from_torch(model.state_dict())`, load `state` into a plain model and pass `masks`."
            )
        if isinstance(parameter, nn.UninitializedParameter):
            raise ConfigError(f"{name} has no shape yet: the layer is lazy. Run one batch through the model first.")
    for name, module in model.named_modules():
        for held, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                raise ConfigError(
                    f"{name or type(module).__name__} computes {held!r} before each pass, as torch.nn.utils.weight_norm"
                    " does, and cannot be copied. Use the one of torch.nn.utils.parametrizations."
                )


def is_bias(name: str) -> bool:
    """Whether a parameter is what is added to a layer's output."""
    return "bias" in name.rpartition(".")[2]


def _is_usual(owner: nn.Module, name: str, parameter: Tensor, biases: bool, norms: bool) -> bool:
    kind, own = kind_of(owner), name.rpartition(".")[2]
    if kind.norm:
        return norms and (biases or not is_bias(name))
    is_length = own.endswith("_g") and hasattr(owner, own.removesuffix("_g") + "_v")  # of torch.nn.utils.weight_norm
    return kind.prunable and ((parameter.ndim > 1 and not is_bias(name) and not is_length) or biases)


Places = list[tuple[nn.Module, str]]


def _places(model: nn.Module) -> dict[int, Places]:
    """By id of a parameter, every layer that holds it and its canonical name there."""
    found: dict[int, Places] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        name = _canonical(model, name)
        found[id(parameter)].append((model.get_submodule(name.rpartition(".")[0]), name))
    return found


def output_layer(model: nn.Module) -> nn.Module | None:
    """The layer that gives what the network gives: the one that a model of Hugging Face names, or the last defined."""
    named = getattr(model, "get_output_embeddings", lambda: None)()
    layers = [m for m in model.modules() if kind_of(m).prunable and kind_of(m).reads]
    return named if named is not None else layers[-1] if layers else None


def _matching(
    option: str, patterns: Pattern | Sequence[Pattern], held: dict[str, Places], last: nn.Module | None
) -> set[str]:
    """The parameters that the patterns mean; a pattern that means none is refused."""
    found: set[str] = set()
    for wanted in pattern_names(patterns):
        meant = {name for name, places in held.items() if any(_means(wanted, *place, last) for place in places)}
        if not meant:
            raise ConfigError(
                f"{option}={wanted!r} matches no parameter and no type of layer; the model has {', '.join(held)}."
            )
        found |= meant
    return found


def pattern_names(patterns: Pattern | Sequence[Pattern]) -> tuple[str, ...]:
    """One pattern or several as words: a type of layer by its name."""
    several = [patterns] if isinstance(patterns, str | type) else patterns
    return tuple(pattern.__name__ if isinstance(pattern, type) else pattern for pattern in several)


def _means(wanted: str, owner: nn.Module, name: str, last: nn.Module | None) -> bool:
    if wanted in WORDS:
        return isinstance(owner, nn.Embedding | nn.EmbeddingBag) if wanted == "embeddings" else owner is last
    return fnmatchcase(name, wanted) or wanted in {cls.__name__ for cls in type(owner).__mro__}


@checked
def canonical_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by canonical name."""
    return {_canonical(model, name): parameter for name, parameter in model.named_parameters()}


@checked
def real_names(model: nn.Module) -> dict[str, str]:
    """Canonical name -> the name in `named_parameters`, which differs for a parametrized weight."""
    return {_canonical(model, name): name for name, _ in model.named_parameters()}


def _canonical(model: nn.Module, name: str) -> str:
    """The original of a parametrized weight under the weight's own name; of one under weight_norm its direction."""
    owner, _, own = name.rpartition(".")
    layer, inside, tensor = f".{owner}".rpartition(".parametrizations.")
    if not inside or own not in ("original", "original1"):
        return name
    if own == "original1" and type(model.get_submodule(owner)[0]).__name__ != "_WeightNorm":  # pyright: ignore[reportIndexIssue]
        return name
    return f"{layer}.{tensor}".lstrip(".")


@checked
def owner_of(model: nn.Module, name: str) -> nn.Module:
    """The layer that holds a parameter."""
    path = name.rpartition(".")[0]
    if (layer := dict(model.named_modules()).get(path)) is None:
        raise ConfigError(f"name={name!r}: this model has no layer {path!r}.")
    return layer

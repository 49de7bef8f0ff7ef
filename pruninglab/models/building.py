"""`build`: a model by name, or from your own function.

To add one, write a function `(shape, classes, *, options) -> nn.Module` and enter it in `MODELS`;
`build` also takes the function itself.
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from .. import _torchvision
from ..errors import ConfigError
from ..identity import describe, label
from ..layers.widths import Widths, narrow_
from ..randomness import own_randomness
from ..typed import Count, CountFromZero, checked
from .alexnet import alexnet
from .fastnet import fastnet
from .gpt import gpt
from .lenet import lenet5, lenet300
from .n2nskip import n2nskip
from .resnet import resnet20, resnet50
from .shapes import Shape, image_sides, made
from .transformer import transformer
from .vgg import vgg16
from .weights import first_line, load_weights

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet300": lenet300,
    "lenet5": lenet5,
    "alexnet": alexnet,
    "vgg16": vgg16,
    "resnet20": resnet20,
    "resnet50": resnet50,
    "fastnet": fastnet,
    "n2nskip": n2nskip,
}
SEQUENCES: dict[str, Callable[..., nn.Module]] = {"transformer": transformer, "gpt": gpt}
"""Those that read tokens and not images."""
_TORCHVISION = "torchvision:"
# In training these two return a tuple with auxiliary logits; without them they return logits like every other model.
_ONE_OUTPUT = {"aux_logits": False, "init_weights": True}
_TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {"googlenet": _ONE_OUTPUT, "inception_v3": _ONE_OUTPUT}


@runtime_checkable
class Images(Protocol):
    """A data set, or anything else that has a shape and classes."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def classes(self) -> int: ...


def available() -> list[str]:
    """The package's own models of images; `torchvision:NAME` builds any classification model of torchvision, too.

    >>> 'resnet20' in lab.models.available()
    True
    """
    return list(MODELS)


@checked
def build(
    name: str | Callable[..., nn.Module],
    data: Images,
    *,
    seed: CountFromZero = 0,
    weights: str | Path | None = None,
    new_head: bool = False,
    widths: Widths | None = None,
    **options: Any,
) -> nn.Module:
    """A model for the data's images and classes, on the CPU. The same seed draws the same bits.

    `name` is one of `available()`, `transformer`, `gpt`, `torchvision:NAME`, or a function `(shape, classes) ->
    nn.Module`. `options` are that function's keywords. `weights` is a checkpoint (.safetensors or torch.save). With
    `new_head=True` its last linear layer is left out, so that it may come from data with other classes. `widths` are
    those of a network from which channels were removed (`structured.shrink(…).widths`, and in its record). They give
    the same form with new weights, drawn as for so many inputs. The network carries how it was made as `made_of`, which
    its records hold.

    >>> model = lab.build('lenet300', data, seed=0)
    >>> sum(p.numel() for p in model.parameters())
    50610
    """
    classes = data.classes
    shape: Any = tuple(data.shape) if len(data.shape) == 1 else image_sides(data.shape, classes)  # tokens, or images
    if not isinstance(name, str):
        make = partial(made, name, shape, classes, options)
    elif name.startswith(_TORCHVISION):
        make = partial(_from_torchvision, name.removeprefix(_TORCHVISION), shape, classes, options)
    else:
        named = MODELS | SEQUENCES
        make = partial(made, named[_known(name, list(named))], shape, classes, options)
    with own_randomness(seed):
        model = narrow_(make(), widths or {})
    if weights is not None:
        load_weights(model, weights, new_head=new_head)
    made_of = {"name": name if isinstance(name, str) else label(name), "seed": seed, "options": describe(options)}
    made_of |= {"weights": str(weights)} if weights is not None else {}
    vars(model)["made_of"] = made_of | getattr(model, "made_of", {})
    return model


def _known(name: str, names: list[str], prefix: str = "") -> str:
    if name in names:
        return name
    near = get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    raise ConfigError(
        f"there is no model {prefix + name!r}"
        + (f"; did you mean {prefix + near[0]!r}?" if near else ".")
        + f" Expected one of {', '.join(names)}"
        + ("" if prefix else f", {_TORCHVISION}NAME, or a function (shape, classes) -> nn.Module")
    )


def _from_torchvision(name: str, shape: Shape, classes: Count, options: dict[str, Any]) -> nn.Module:
    zoo = _torchvision.torchvision.models
    label = _TORCHVISION + _known(name, zoo.list_models(module=zoo), _TORCHVISION)
    channels, height, width = image_sides(shape, classes)
    if channels != 3:
        raise ConfigError(
            f"{label} wants images of 3 channels and the data have {channels}; "
            f"repeat the grey channel three times, or build one of {', '.join(available())}"
        )
    sized: dict[str, Any] = {}
    if name.startswith("vit_"):
        sized = {"image_size": height}
    elif name.startswith("maxvit"):
        sized = {"input_size": (height, width)}
    settings = _TORCHVISION_OPTIONS.get(name, {}) | sized | options
    try:
        model = zoo.get_model(name, weights=None, num_classes=classes, **settings)
    except (TypeError, ValueError, AssertionError) as error:  # whatever refuses the options or the image size
        raise ConfigError(f"{label} cannot be built for {height}x{width} images: {first_line(error)}") from error
    _check_logits(label, model, shape, classes)
    return model


def _check_logits(label: str, model: nn.Module, shape: Shape, classes: Count) -> None:
    """One image through the model, shapes only: many of these were made for 224x224 and cannot take much less."""
    on_meta = {name: t.to("meta") for name, t in [*model.named_parameters(), *model.named_buffers()]}
    model.eval()
    try:
        with torch.no_grad(), torch.device("meta"):
            logits = torch.func.functional_call(model, on_meta, torch.empty(1, *shape, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"{label} cannot take {shape[1]}x{shape[2]} images ({first_line(error)}); "
            f"enlarge the images, or build one of {', '.join(available())}"
        ) from error
    finally:
        model.train()
    if getattr(logits, "shape", None) != (1, classes):
        raise ConfigError(f"{label} with these options does not return one row of {classes} logits per image")

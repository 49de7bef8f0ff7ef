"""Models by name. Each is plain PyTorch; the order of its modules is the order of its computation."""

from .alexnet import alexnet
from .building import MODELS, available, build
from .fastnet import fastnet, whiten_
from .gpt import continued, gpt
from .lenet import lenet5, lenet300
from .n2nskip import n2nskip
from .resnet import resnet20, resnet50
from .transformer import transformer
from .vgg import vgg16
from .weights import load_weights, read_weights

__all__ = [
    "MODELS",
    "alexnet",
    "available",
    "build",
    "continued",
    "fastnet",
    "gpt",
    "lenet5",
    "lenet300",
    "load_weights",
    "n2nskip",
    "read_weights",
    "resnet20",
    "resnet50",
    "transformer",
    "vgg16",
    "whiten_",
]


def __dir__() -> list[str]:
    return __all__

"""N2NSkip: a network with sparse, learnable skip connections beside its layers.

Subramaniam and Sharma, "N2NSkip: Learning highly sparse networks using neuron-to-neuron skip connections", 2020.
`lab.methods.N2NSkip` cuts such a network.
"""

import math
from collections import OrderedDict
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..typed import Count, OneOf, checked
from .alexnet import alexnet
from .lenet import lenet5
from .resnet import resnet20, resnet50
from .shapes import Shape, image_sides, made
from .vgg import vgg16

BASES = {"lenet5": lenet5, "alexnet": alexnet, "vgg16": vgg16, "resnet20": resnet20, "resnet50": resnet50}


def is_skip(name: str) -> bool:
    """Whether a parameter belongs to a skip connection."""
    return ".skip." in name


class Joined(nn.Module):
    """An activation at which a skip connection arrives: g(z + g(skip(a))), or g(z) + g(skip(a)) behind it."""

    def __init__(self, skip: nn.Sequential, inside: bool):
        super().__init__()
        self.skip, self.inside = skip, inside

    def forward(self, z: Tensor, a: Tensor) -> Tensor:
        arriving = self.skip(a)
        if hasattr(self.skip, "conv"):
            arriving = F.adaptive_max_pool2d(arriving, z.shape[2:])
        return F.relu(z + arriving) if self.inside else F.relu(z) + arriving

    def extra_repr(self) -> str:
        return f"inside={self.inside}"


class Skipping(nn.Sequential):
    """A chain of layers or blocks in which some also get what came in further up: `links` are {target: source}."""

    def __init__(self, layers: OrderedDict[str, nn.Module], links: dict[str, str]):
        super().__init__(layers)
        self.links = links

    def forward(self, input: Tensor) -> Tensor:
        x, sources, seen = input, set(self.links.values()), {}
        for name, layer in self.named_children():
            if name in sources:
                seen[name] = x
            x = layer(x, seen[self.links[name]]) if name in self.links else layer(x)
        return x

    def extra_repr(self) -> str:
        return ", ".join(f"{source} to {target}" for target, source in self.links.items())


@checked
def n2nskip(
    shape: Shape,
    classes: Count,
    *,
    base: Annotated[str, OneOf(BASES)] = "vgg16",
    skip_span: Count = 1,
    inside_activation: bool = True,
    share_bn: bool = False,
    **options: Any,
) -> Skipping:
    """VGG16 with four skips: 16,909,898 parameters on 3x32x32 with 10 classes, 1,920,384 of them weights of skips.

    `base` is lenet5, alexnet, vgg16, resnet20 or resnet50; `options` are its own; equal seeds draw equal base weights.
    A skip leads from the input of a block to the first layer of the block `skip_span` later. It has that layer's filter
    size, no bias, a ReLU, max pooling to the layer's size, and its own BatchNorm if the layer has one. Blocks are the
    stages of VGG16, the residual blocks of a ResNet and the layers of LeNet-5 and AlexNet but their last. A skip into a
    linear layer is linear: AlexNet's own five skips of convolutions go by, and those into its head take the flat
    activation.

    The paper leaves the span open; its equation 2 adds the skip inside the activation, the authors' code behind it
    (`inside_activation=False`) and through the BatchNorm of the target (`share_bn=True`).
    """
    net = made(BASES[base], shape, classes, options)
    blocks = _blocks(base, net)
    if skip_span >= len(blocks):
        raise ConfigError(
            f"skip_span={skip_span!r}; {base} has {len(blocks)} blocks, so expected 1 to {len(blocks) - 1}."
        )
    inputs, links = _inputs(net, image_sides(shape, classes)), {}
    for (source, *_), (_, layer, norm, activation) in zip(blocks, blocks[skip_span:], strict=False):
        if share_bn and not norm:
            raise ConfigError(f"{base} has no BatchNorm that a skip could share; leave share_bn out.")
        skip = _skip(inputs[source], net.get_submodule(layer), net.get_submodule(norm) if norm else None, share_bn)
        net.set_submodule(activation, Joined(skip, inside_activation))
        links[activation.partition(".")[0]] = source
    return Skipping(OrderedDict(net.named_children()), links)


def _blocks(base: str, net: nn.Sequential) -> list[tuple[str, str, str, str]]:
    """Where each block begins, and its first layer, BatchNorm and activation."""
    if base == "lenet5":
        return [(layer, layer, "", relu) for layer, relu in (("conv1", "relu1"), ("conv2", "relu2"), ("fc1", "relu3"))]
    if base == "alexnet":
        layers = [*(f"conv{i}" for i in range(1, 6)), "fc1", "fc2"]
        return [(layer, layer, "", f"relu{i}") for i, layer in enumerate(layers, 1)]
    if base == "vgg16":
        return [(f"conv{s}_1", f"conv{s}_1", f"bn{s}_1", f"relu{s}_1") for s in range(1, 6)]
    blocks = [name for name, _ in net.named_children() if name.startswith("block")]
    return [(b, f"{b}.conv1", f"{b}.bn1", f"{b}.relu1") for b in blocks]


def _inputs(net: nn.Sequential, shape: Shape) -> dict[str, Shape]:
    """The shape of what comes into each layer or block."""
    x, shapes = torch.zeros(1, *shape), {}
    net.eval()
    with torch.no_grad():
        for name, layer in net.named_children():
            shapes[name] = tuple(x.shape[1:])
            x = layer(x)
    net.train()
    return shapes


def _skip(shape: Shape, layer: nn.Module, norm: nn.Module | None, share: bool) -> nn.Sequential:
    """From an activation of this shape to what `layer` gives; drawn by torch's default, as few weights will be left."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if isinstance(layer, nn.Conv2d):
        size = layer.kernel_size[0]
        parts["conv"] = nn.Conv2d(shape[0], layer.out_channels, size, padding=size // 2, bias=False)
    elif isinstance(layer, nn.Linear):
        parts["flatten"] = nn.Flatten()
        parts["fc"] = nn.Linear(math.prod(shape), layer.out_features, bias=False)
    if isinstance(norm, nn.BatchNorm2d):
        parts["bn"] = norm if share else nn.BatchNorm2d(norm.num_features)
    parts["relu"] = nn.ReLU()
    return nn.Sequential(parts)

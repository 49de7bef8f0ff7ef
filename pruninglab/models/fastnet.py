"""A small network that learns CIFAR-10 in minutes: a whitening first layer with a wide stride, three stages, one head.

After Page, "How to train your ResNet", 2019, and Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024. Their
first layer whitens 2x2 patches. Here it whitens 4x4 patches at stride 2, so that all else sees a quarter of the pixels.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..data.dataset import Data
from ..errors import ConfigError
from ..typed import Count, PositiveFraction, checked
from .shapes import Shape, Width, image_sides, scaled

PATCH, STRIDE = 4, 2


class Stage(nn.Module):
    """A convolution, then a second one beside a shortcut."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(outputs), nn.GELU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(outputs), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        return x + self.act2(self.bn2(self.conv2(x)))


class Scale(nn.Module):
    """Smaller logits, for high learning rates."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@checked
def fastnet(shape: Shape, classes: Count, *, width: Width = 1.0) -> nn.Sequential:
    """64-128-192 channels in three stages of two convolutions; 874,368 parameters on 3x32x32 with 10 classes.

    The first layer is frozen, and so out of scope. `whiten_(model, data)` computes it from training images.
    """
    channels, *_ = image_sides(shape, classes, 8)
    stem = 2 * channels * PATCH**2
    whiten = nn.Conv2d(channels, stem, PATCH, STRIDE, padding=1, bias=False).requires_grad_(False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(whiten=whiten, act=nn.GELU())
    inputs = stem
    for number, outputs in enumerate((scaled(n, width) for n in (64, 128, 192)), 1):
        if number > 1:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        layers[f"stage{number}"] = Stage(inputs, outputs)
        inputs = outputs
    layers |= {"pool": nn.AdaptiveMaxPool2d(1), "flatten": nn.Flatten()}
    layers |= {"fc": nn.Linear(inputs, classes, bias=False), "scale": Scale(1 / 8)}
    return nn.Sequential(layers)


@checked
def whiten_(model: nn.Module, data: Data, *, images: Count = 5000, epsilon: PositiveFraction = 1e-2) -> None:
    """Set the first layer, `model.whiten`, from patches of the first training images, without augmentation.

    With the patches' second moments E·diag(λ)·Eᵀ, the weights are the rows of ±Eᵀ/√(λ + ε). So the outputs are
    uncorrelated, with second moments λ/(λ + ε), and both signs pass the activation.
    """
    layer = getattr(model, "whiten", None)
    if not isinstance(layer, nn.Conv2d):
        raise ConfigError("this model has no layer `whiten` to set; expected lab.build('fastnet', data).")
    x, _ = next(iter(data.train.batches([torch.arange(min(images, len(data.train)))])))
    with torch.no_grad():
        layer.weight.copy_(whitening(x.cpu(), PATCH, STRIDE, epsilon))


def whitening(x: Tensor, size: int, stride: int, epsilon: float) -> Tensor:
    """±Eᵀ/√(λ + ε) of all patches of a batch, as (2·channels·size², channels, size, size)."""
    patches = x.double().unfold(2, size, stride).unfold(3, size, stride)  # (n, c, h, w, size, size)
    flat = patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    rows = (vectors / (values.clamp_min(0) + epsilon).sqrt()).T.flip(0)  # the largest λ first
    return torch.cat((rows, -rows)).view(-1, x.shape[1], size, size).float()

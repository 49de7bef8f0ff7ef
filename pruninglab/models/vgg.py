"""VGG16 with BatchNorm for small images, with torch's default initialisation.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2014, configuration D. As
pruning papers use it on CIFAR: with BatchNorm (Ioffe and Szegedy, 2015) after every convolution, and with one hidden
layer of 512.
"""

from collections import OrderedDict

from torch import nn

from ..typed import BelowOne, Count, checked
from .shapes import Shape, Width, dropout_layer, halved, image_sides, scaled

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions


@checked
def vgg16(shape: Shape, classes: Count, *, width: Width = 1.0, dropout: BelowOne = 0.0) -> nn.Sequential:
    """Thirteen convolutions and a 512-512-classes head; 14,986,698 parameters on 3x32x32 with 10 classes.

    Convolutions have no bias, since BatchNorm's shift is one. The sides are halved five times, rounded up.
    """
    channels, *_ = shape = image_sides(shape, classes)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for stage, (outputs, convolutions) in enumerate(_STAGES, start=1):
        outputs = scaled(outputs, width)
        for number in range(1, convolutions + 1):
            layers[f"conv{stage}_{number}"] = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
            layers[f"bn{stage}_{number}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{stage}_{number}"] = nn.ReLU()
            channels = outputs
        layers[f"pool{stage}"] = nn.MaxPool2d(2, ceil_mode=True)
    layers |= OrderedDict(
        flatten=nn.Flatten(),
        drop1=dropout_layer(dropout),
        fc1=nn.Linear(channels * halved(shape, 5), channels),
        relu6=nn.ReLU(),
        drop2=dropout_layer(dropout),
        fc2=nn.Linear(channels, classes),
    )
    return nn.Sequential(layers)

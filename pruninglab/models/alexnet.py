"""AlexNet for small images, with torch's default initialisation.

Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks", 2012, in the form
that pruning papers use on 32x32 images: 3x3 convolutions, no grouping, no response normalisation.
"""

from collections import OrderedDict

from torch import nn

from ..typed import BelowOne, Count, checked
from .shapes import Shape, Width, dropout_layer, halved, image_sides, scaled


@checked
def alexnet(shape: Shape, classes: Count, *, width: Width = 1.0, dropout: BelowOne = 0.0) -> nn.Sequential:
    """Convolutions 64-192-384-256-256, head 4096-4096; 23,272,266 parameters on 3x32x32 with 10 classes.

    The sides are halved four times, rounded up. The first linear layer grows with the image: beyond about 64x64
    `torchvision:alexnet` is the better choice.
    """
    channels, *_ = shape = image_sides(shape, classes)
    c1, c2, c3, c4, hidden = (scaled(n, width) for n in (64, 192, 384, 256, 4096))
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, c1, 3, stride=2, padding=1),
        pool1=nn.MaxPool2d(2, ceil_mode=True),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(c1, c2, 3, padding=1),
        pool2=nn.MaxPool2d(2, ceil_mode=True),
        relu2=nn.ReLU(),
        conv3=nn.Conv2d(c2, c3, 3, padding=1),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(c3, c4, 3, padding=1),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(c4, c4, 3, padding=1),
        pool3=nn.MaxPool2d(2, ceil_mode=True),
        relu5=nn.ReLU(),
        flatten=nn.Flatten(),
        drop1=dropout_layer(dropout),
        fc1=nn.Linear(c4 * halved(shape, 4), hidden),
        relu6=nn.ReLU(),
        drop2=dropout_layer(dropout),
        fc2=nn.Linear(hidden, hidden),
        relu7=nn.ReLU(),
        fc3=nn.Linear(hidden, classes),
    )
    return nn.Sequential(layers)

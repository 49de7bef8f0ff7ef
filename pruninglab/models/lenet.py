"""The two LeNets of the pruning literature, with torch's default initialisation.

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998; layer sizes as in
Caffe's examples, which the pruning papers take over.
"""

from collections import OrderedDict

from torch import nn

from ..typed import Count, checked
from .shapes import Shape, image_sides


@checked
def lenet300(shape: Shape, classes: Count) -> nn.Sequential:
    """LeNet-300-100: 784-300-100-10 and 266,610 parameters on 28x28 grey images; takes images of every size."""
    channels, height, width = image_sides(shape, classes)
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(channels * height * width, 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, classes),
        )
    )


@checked
def lenet5(shape: Shape, classes: Count) -> nn.Sequential:
    """LeNet-5 (Caffe): 20 and 50 filters of 5x5, 500 hidden; 431,080 parameters on 28x28 grey images with 10 classes.

    Images below 16x16 would vanish in the convolutions and are padded by 2 in each.
    """
    channels, height, width = image_sides(shape, classes, smallest=4)
    padding = 0 if min(height, width) >= 16 else 2

    def left(side: int) -> int:
        for _ in range(2):
            side = (side - 4 + 2 * padding) // 2
        return side

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 20, 5, padding=padding),
            pool1=nn.MaxPool2d(2),  # before the ReLU: the same result from a quarter of the comparisons
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(20, 50, 5, padding=padding),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(50 * left(height) * left(width), 500),
            relu3=nn.ReLU(),
            fc2=nn.Linear(500, classes),
        )
    )

"""Residual networks for small images, in the CIFAR form: 3x3 stem, no first pooling, global average pooling.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2015, sections 3.3 and 4.2. Convolutions are
drawn as the paper says (He et al., "Delving deep into rectifiers", 2015: normal with variance 2 / fan-in), the linear
layer by torch's default.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from ..layers.modules import PadShortcut
from ..typed import Count, checked
from .shapes import Shape, Width, image_sides, scaled

Shortcut = Literal["A", "B"]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv


def _shortcut(inputs: int, outputs: int, stride: int, option: Shortcut) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    if option == "A":
        return PadShortcut(outputs - inputs, stride)
    return nn.Sequential(OrderedDict(conv=_conv(inputs, outputs, 1, stride), bn=nn.BatchNorm2d(outputs)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut. What joins x goes to the first activation, if that takes it."""

    def __init__(self, inputs: int, outputs: int, stride: int, option: Shortcut):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2, self.bn2 = _conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride, option)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor, *joining: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)), *joining)
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the 3x3 one carries the stride (the usual variant, "v1.5")."""

    def __init__(self, inputs: int, outputs: int, stride: int, option: Shortcut):
        super().__init__()
        inner = max(1, outputs // 4)
        self.conv1, self.bn1, self.relu1 = _conv(inputs, inner, 1), nn.BatchNorm2d(inner), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = _conv(inner, inner, 3, stride), nn.BatchNorm2d(inner), nn.ReLU()
        self.conv3, self.bn3 = _conv(inner, outputs, 1), nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride, option)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor, *joining: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)), *joining)
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + self.shortcut(x))


def _resnet(
    shape: Shape,
    classes: Count,
    block: Callable[[int, int, int, Shortcut], nn.Module],
    stem: int,
    stages: list[tuple[int, int]],
    option: Shortcut,
) -> nn.Sequential:
    """Stages are (outputs, blocks); each after the first begins with stride 2."""
    channels, *_ = image_sides(shape, classes)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=_conv(channels, stem, 3), bn1=nn.BatchNorm2d(stem), relu1=nn.ReLU()
    )
    inputs = stem
    for stage, (outputs, blocks) in enumerate(stages, start=1):
        for number in range(1, blocks + 1):
            layers[f"block{stage}_{number}"] = block(inputs, outputs, 2 if stage > 1 and number == 1 else 1, option)
            inputs = outputs
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(inputs, classes)}
    return nn.Sequential(layers)


@checked
def resnet20(shape: Shape, classes: Count, *, shortcut: Shortcut = "A", width: Width = 1.0) -> nn.Sequential:
    """16-32-64 channels, three blocks each; 269,722 parameters on 3x32x32 with 10 classes (published as 0.27M).

    `shortcut="A"` is the paper's choice on CIFAR; "B", a 1x1 convolution with BatchNorm, makes it 272,474.
    """
    stages = [(scaled(n, width), 3) for n in (16, 32, 64)]
    return _resnet(shape, classes, BasicBlock, stages[0][0], stages, shortcut)


@checked
def resnet50(shape: Shape, classes: Count, *, shortcut: Shortcut = "B", width: Width = 1.0) -> nn.Sequential:
    """Bottleneck blocks 3-4-6-3 of 256 to 2048 channels; 23,520,842 parameters on 3x32x32 with 10 classes.

    `shortcut="B"` is the paper's choice for this depth; "A", without parameters, makes it 20,744,266.
    """
    stages = [(4 * scaled(n, width), blocks) for n, blocks in ((64, 3), (128, 4), (256, 6), (512, 3))]
    return _resnet(shape, classes, Bottleneck, stages[0][0] // 4, stages, shortcut)

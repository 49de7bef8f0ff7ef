"""The tables by name."""

from typing import Any

from ..models.fastnet import whiten_
from .cifar import CIFAR10, PROTOCOL
from .imagenet import IMAGENET
from .rates import RISING
from .rows import FASHION, MNIST, Table
from .weightmom import connectivity, weightmom_rows

LENET: dict[str, Any] = {"lr": 1e-3, "weight_decay": 5e-5}
SMALL: dict[str, Any] = {
    "data": "CIFAR10",
    "model": "fastnet",
    "start": 4,
    "val": 0.1,
    "options": PROTOCOL,
    "augment": "alternate+shift",
    "prepare": whiten_,
}
TABLES: dict[str, Table] = {
    "MNIST": Table(MNIST, "MNIST"),
    "FashionMNIST": Table(FASHION, "FashionMNIST"),
    "MNIST-rates": Table(RISING, "MNIST", home="MNIST"),
    "WeightMom": Table(
        weightmom_rows(0.98, 0.995), "MNIST", epochs=20, options=LENET, measures={"connectivity": connectivity}
    ),
    "CIFAR10": Table(CIFAR10, epochs=12, **SMALL),
    "WeightMom-CIFAR10": Table(weightmom_rows(0.95, 0.98), epochs=20, measures={"connectivity": connectivity}, **SMALL),
    **IMAGENET,
}

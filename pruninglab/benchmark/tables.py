"""The tables by name."""

from .imagenet import IMAGENET
from .rows import FASHION, MNIST, Table

TABLES: dict[str, Table] = {
    "MNIST": Table(MNIST, "MNIST"),
    "FashionMNIST": Table(FASHION, "FashionMNIST"),
    **IMAGENET,
}

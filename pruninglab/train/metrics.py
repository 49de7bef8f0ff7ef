"""Metrics: one value for each sample, the higher the better. Of text also what a loss says: bits a byte, perplexity."""

import math
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from ..typed import checked

NO_LABEL = nn.CrossEntropyLoss().ignore_index
"""The label of a place that does not count."""
Numbers = TypeVar("Numbers")
"""One number or many: a float, a tensor, a column of a table."""


@checked
def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """1 for each right answer, 0 for each wrong one; of a sequence the fraction of places that are right.

    Places with the label -100 do not count.
    """
    right = (logits.argmax(1) == y).float()
    if right.ndim == 1:
        return right
    right, counted = right.flatten(1), (y != NO_LABEL).flatten(1)
    return (right * counted).sum(1) / counted.sum(1).clamp(min=1)


@checked
def negative_squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """For regression: minus the squared error of each sample, a mean over its outputs."""
    return -(outputs - y).square().flatten(1).mean(1) if y.ndim > 1 else -(outputs - y).square()


@checked
def whole(logits: Tensor, y: Tensor) -> Tensor:
    """For sequences: 1 where every place is right. The default counts the fraction of places."""
    return (logits.argmax(1) == y).flatten(1).all(1).float()


@checked
def compression(logits: Tensor, y: Tensor) -> Tensor:
    """For text: the share of its size that the model saves, 1 - bits per byte / 8. It can be negative.

    A byte has 8 bits as it is, and -log2 p where the model had given it the probability p. With another number of
    tokens than 256 a token has log2 of that number as it is.
    """
    loss = F.cross_entropy(logits.float(), y, reduction="none").flatten(1).mean(1)
    return 1 - loss / math.log(logits.shape[1])


def bits(loss: Numbers) -> Numbers:
    """Bits per token, for bytes *bits per byte*, of a cross-entropy: the lower the better."""
    return loss / math.log(2)  # pyright: ignore[reportOperatorIssue]


def perplexity(loss: float) -> float:
    """Among how many equally likely tokens the model hesitates: exp of the cross-entropy."""
    return math.exp(loss)

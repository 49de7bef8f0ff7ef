"""Metrics: one value for each sample, the higher the better. Of text also what a loss says: bits a byte, perplexity."""

import math
from typing import TypeVar

from torch import Tensor
from torch.nn import functional as F

Numbers = TypeVar("Numbers")
"""One number or many: a float, a tensor, a column of a table."""


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """1 for each right answer, 0 for each wrong one; of a sequence the fraction of places that are right."""
    right = (logits.argmax(1) == y).float()
    return right if right.ndim == 1 else right.flatten(1).mean(1)


def whole(logits: Tensor, y: Tensor) -> Tensor:
    """For sequences: 1 where every place is right. The default counts the fraction of places."""
    return (logits.argmax(1) == y).flatten(1).all(1).float()


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

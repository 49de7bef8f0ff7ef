"""Metrics: one value for each sample, the higher the better."""

from torch import Tensor


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """1 for each right answer, 0 for each wrong one; of a sequence the fraction of places that are right."""
    right = (logits.argmax(1) == y).float()
    return right if right.ndim == 1 else right.flatten(1).mean(1)


def whole(logits: Tensor, y: Tensor) -> Tensor:
    """For sequences: 1 where every place is right. The default counts the fraction of places."""
    return (logits.argmax(1) == y).flatten(1).all(1).float()

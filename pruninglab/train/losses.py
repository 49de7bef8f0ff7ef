"""Losses beyond torch's own. Any `loss(logits, y)` serves; with `takes_input = True` it is called with x as well."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..layers.calls import calling
from ..typed import Fraction, Positive, check_settings
from .run import Costs, Run


def loss_arguments(loss: Callable[..., Tensor], logits: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """`(logits, y)`, and x for a loss or metric that asks for a third argument by the attribute `takes_input`."""
    return (logits, y, x) if getattr(loss, "takes_input", False) else (logits, y)


def returned_loss(logits: Tensor, y: Tensor) -> Tensor:
    """The loss that the network itself returned beside its logits: `fit(…, loss=lab.train.returned_loss)`."""
    if (loss := getattr(logits, "returned_loss", None)) is None:
        raise ConfigError(
            "returned_loss takes the loss that the network returns, and it returned none. Wrap the data with "
            "labels=None, so that the network gets its labels; or give another loss=, a function of (logits, y)."
        )
    return loss


def negative_loss(logits: Tensor, y: Tensor) -> Tensor:
    """The metric where only the network knows its loss: that loss, negative, for each sample of the batch."""
    return -returned_loss(logits, y).detach().expand(len(y))


@dataclass(frozen=True)
class Distill:
    """Learn from the dense net's answers (Hinton 2015): share·T²·KL(teacher, student) + (1 - share)·cross-entropy.

    >>> lab.fit(model, data, epochs=1, loss=lab.train.Distill(dense.model)).status
    'done'
    """

    teacher: "nn.Module | Run"
    temperature: Positive = 4.0
    weight: Fraction = 0.9
    trainings: Costs = field(init=False, repr=False, compare=False, default_factory=dict)
    """What the teacher cost, where it is a run: it counts as the cost of each run that it teaches."""
    takes_input: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self)
        model = self.teacher.model if isinstance(self.teacher, Run) else self.teacher
        object.__setattr__(self, "trainings", self.teacher.trainings if isinstance(self.teacher, Run) else {})
        object.__setattr__(self, "teacher", copy.deepcopy(model).eval())  # the caller's stays where and as it is

    def __call__(self, logits: Tensor, y: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = cast(nn.Module, self.teacher).to(x.device)
            with calling(teacher):
                target = F.log_softmax(teacher(x) / self.temperature, 1)
        soft = F.kl_div(F.log_softmax(logits / self.temperature, 1), target, reduction="batchmean", log_target=True)
        return self.weight * self.temperature**2 * soft + (1 - self.weight) * F.cross_entropy(logits, y)

"""Whom pruning harms: Hooker et al., "Selective brain damage: measuring the disparate impact of model pruning", 2019.

`impact(dense, pruned, data.test)` compares two populations of networks, which were trained alike but for the pruning.
It finds the images on which they vote for another label (pruning-identified exemplars) and the classes that change more
than the whole does. It also measures calibration and agreement. One network a side says nothing of chance; five and
more do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from .. import _html
from ..criteria.registry import Batches
from ..data.splits import Split
from ..errors import ConfigError, DataError
from ..layers.hooks import evaluating
from ..train.run import Run
from ..typed import Count, Filled, checked
from .statistics import holm, welch

BINS = 15


@dataclass(frozen=True, repr=False)
class Votes:
    """What each network of a population answers on each image: labels and confidences, (networks, images)."""

    labels: np.ndarray
    confidence: np.ndarray

    @classmethod
    @torch.no_grad()
    def of(cls, networks: Sequence[Run | nn.Module], split: Any) -> "Votes":
        labels, confidences = [], []
        for network in networks:
            model = network.model if isinstance(network, Run) else network
            device = next(iter(model.parameters()), torch.empty(0)).device
            with evaluating(model):
                logits = torch.cat([model(x.to(device)).cpu() for x, _ in split])
            if logits.ndim != 2:
                raise ConfigError(
                    f"the network gives {tuple(logits.shape)}; expected one row of logits for each image."
                )
            confidence, label = logits.double().softmax(1).max(1)
            labels.append(label.numpy())
            confidences.append(confidence.numpy())
        return cls(np.stack(labels), np.stack(confidences))

    def count(self, classes: int) -> np.ndarray:
        """How many networks vote for each class: (images, classes)."""
        return (self.labels[:, :, None] == np.arange(classes)).sum(0)


@dataclass(frozen=True, repr=False)
class Impact:
    """Two populations on the same images. Showing it is the table of classes."""

    y: np.ndarray
    dense: Votes
    pruned: Votes
    class_names: tuple[str, ...]
    split: Any = None

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def exemplars(self) -> np.ndarray:
        """Positions of the images whose most frequent label differs, whichever of those with as many votes is taken."""
        counts = [votes.count(self.classes) for votes in (self.dense, self.pruned)]
        dense, pruned = (count == count.max(1, keepdims=True) for count in counts)
        return np.flatnonzero(~(dense & pruned).any(1))

    def accuracy(self) -> pd.DataFrame:
        """Mean accuracy of both populations: on all images, on the exemplars, on the others."""
        is_exemplar = np.isin(np.arange(len(self.y)), self.exemplars)
        parts = {"all": np.ones_like(is_exemplar), "exemplars": is_exemplar, "others": ~is_exemplar}
        rows = {
            name: {"images": int(part.sum())}
            | {which: float(right[:, part].mean()) if part.any() else float("nan") for which, right in self._right()}
            for name, part in parts.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    def per_class(self, level: float = 0.05) -> pd.DataFrame:
        """How far each class changes beyond the whole, tested.

        `change` is the mean over networks of (recall - accuracy), pruned minus dense; `low` and `high` bound it with
        probability 1 - level. The test is Welch's, two-sided, since the populations need not spread alike. `adjusted`
        is Holm's p-value: with as many tests as classes it keeps the chance of *any* false claim below `level`. It
        assumes nothing of how the classes depend on each other, which they do through the accuracy that is subtracted.
        Recall is counted in whole images, and a few networks may agree by chance on all of them. Each variance is
        therefore that of the networks and of one more image in the class, decided by a coin.
        """
        if not self._testable:
            raise ConfigError("a test needs two networks or more in each population; train other seeds.")
        rows = []
        beyond = {which: self._recalls(right) - right.mean(1)[:, None] for which, right in self._right()}
        for c in np.flatnonzero(np.bincount(self.y, minlength=self.classes)):
            of = self.y == c
            recall = {f"{which}_recall": float(right[:, of].mean()) for which, right in self._right()}
            test = welch(beyond["pruned"][:, c], beyond["dense"][:, c], level, 0.25 / of.sum() ** 2)
            rows.append({"class": self.class_names[c], "images": int(of.sum()), **recall, **test})
        table = pd.DataFrame(rows)
        table["adjusted"] = holm(table["p"].to_numpy())
        claimed = table["adjusted"] < level
        table["verdict"] = np.select([claimed & (table["change"] < 0), claimed], ["harmed", "spared"], "")
        return table

    def calibration(self) -> pd.DataFrame:
        """Expected calibration error of each population: mean and deviation over its networks, and mean confidence."""
        rows = {}
        for which, right in self._right():
            votes = getattr(self, which)
            errors = [calibration_error(c, r) for c, r in zip(votes.confidence, right, strict=True)]
            rows[which] = {
                "ece": float(np.mean(errors)),
                "deviation": float(np.std(errors, ddof=1)) if len(errors) > 1 else float("nan"),
                "confidence": float(votes.confidence.mean()),
                "accuracy": float(right.mean()),
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    def reliability(self) -> pd.DataFrame:
        """Accuracy by confidence, of all networks of a population together: the data of a reliability diagram."""
        tables = {which: bins(getattr(self, which).confidence.ravel(), right.ravel()) for which, right in self._right()}
        return pd.concat(tables, names=["population"]).reset_index(level=0).reset_index(drop=True)

    def churn(self) -> dict[str, float]:
        """The mean share of images on which two networks differ: of one population, and one of each.

        What pruning changes is what the last exceeds the first by: networks of other seeds differ anyway.
        """
        dense, pruned = self.dense.labels, self.pruned.labels
        return {
            "dense": _differing(dense, dense),
            "pruned": _differing(pruned, pruned),
            "dense to pruned": _differing(dense, pruned),
        }

    def __repr__(self) -> str:
        if not self._testable:
            return self._title()
        return f"{self._title()}\n{self.per_class().to_string(index=False, float_format='{:.4f}'.format)}"

    def _repr_html_(self) -> str:
        if not self._testable:
            return _html.cell(self._title())
        head = ("class", "images", "dense", "pruned", "change beyond the whole", "p", "Holm", "")
        rows = [
            (
                row["class"], row["images"], f"{row['dense_recall']:.2%}", f"{row['pruned_recall']:.2%}",
                f"{100 * row['change']:+.2f} points", f"{row['p']:.3f}", f"{row['adjusted']:.3f}", row["verdict"],
            )
            for row in self.per_class().to_dict("records")
        ]  # fmt: skip
        return _html.table(head, rows, self._title())

    @property
    def _testable(self) -> bool:
        return min(len(self.dense.labels), len(self.pruned.labels)) > 1

    def _title(self) -> str:
        return (
            f"{len(self.dense.labels)} dense and {len(self.pruned.labels)} pruned networks on {len(self.y):,} images: "
            f"{len(self.exemplars):,} exemplars"
        )

    def _right(self) -> list[tuple[str, np.ndarray]]:
        return [("dense", self.dense.labels == self.y), ("pruned", self.pruned.labels == self.y)]

    def _recalls(self, right: np.ndarray) -> np.ndarray:
        """(networks, classes); 0 for a class without images."""
        one_hot = self.y[:, None] == np.arange(self.classes)
        return right.astype(float) @ one_hot / one_hot.sum(0).clip(1)


@checked
def impact(
    dense: Annotated[Sequence[Run | nn.Module], Filled()],
    pruned: Annotated[Sequence[Run | nn.Module], Filled()],
    split: Batches,
    class_names: Sequence[str] | None = None,
) -> Impact:
    """Let both populations answer on `split`, which is `data.test` or any split of a data set."""
    labels = [y for _, y in split]
    if not labels:
        raise DataError("split has no batches; give data.test or another split of a data set.")
    y = torch.cat(labels).cpu()
    if y.ndim != 1:
        raise ConfigError(f"labels of shape {tuple(y.shape)}; classes are compared where each image has one label.")
    votes = Votes.of(dense, split), Votes.of(pruned, split)
    most = 1 + max(int(y.max()), *(int(v.labels.max()) for v in votes))
    names = tuple(class_names) if class_names else tuple(map(str, range(most)))
    if len(names) < most:
        raise ConfigError(f"{len(names)} class names, but labels up to {most - 1}; give one for each class.")
    return Impact(y.numpy(), *votes, names, split if isinstance(split, Split) else None)


def bins(confidence: np.ndarray, right: np.ndarray, number: int = BINS) -> pd.DataFrame:
    """Mean confidence and accuracy in bins of equal width, those that hold anything."""
    which = np.minimum((confidence * number).astype(int), number - 1)
    held = np.bincount(which, minlength=number)
    used = held > 0
    sums = [np.bincount(which, weights, minlength=number)[used] for weights in (confidence, right.astype(float))]
    return pd.DataFrame(
        {"bin": np.flatnonzero(used), "count": held[used], "confidence": sums[0] / held[used]}
        | {"accuracy": sums[1] / held[used]}
    )


@checked
def calibration_error(confidence: np.ndarray, right: np.ndarray, number: Count = BINS) -> float:
    """Mean distance of confidence and accuracy, by bins (Naeini 2015; Guo 2017)."""
    table = bins(confidence, right, number).to_numpy()
    _, count, mean, accuracy = table.T
    return float((count * abs(mean - accuracy)).sum() / len(confidence))


def _differing(first: np.ndarray, second: np.ndarray) -> float:
    pairs = [
        float((a != b).mean()) for i, a in enumerate(first) for b in (second[i + 1 :] if second is first else second)
    ]
    return float(np.mean(pairs)) if pairs else float("nan")

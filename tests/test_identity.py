"""What behaves alike has one description in every process; what behaves otherwise has another."""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruninglab as lab
from pruninglab.identity import describe, label, text

SCALE: Any = 1.0


class Times:
    """A criterion that is a plain object."""

    def __init__(self, by: Any):
        self.by = by

    def __call__(self, model: Any, batches: Any) -> dict[str, Tensor]:
        return {name: self.by * w.abs() for name, w in lab.prunable(model).items()}

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        return self.by * F.cross_entropy(logits, y)


class Slotted:
    __slots__ = ("by",)

    def __init__(self, by: float):
        self.by = by

    def __call__(self) -> float:
        return self.by


class Weighted(nn.Module):
    def __init__(self, by: Any):
        super().__init__()
        self.by = [by]

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        return self.by[0] * F.cross_entropy(logits, y)


def closed(by: Any) -> Any:
    return lambda logits, y: by * F.cross_entropy(logits, y)


def with_attribute(by: float) -> Any:
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return loss.by * F.cross_entropy(logits, y)  # pyright: ignore[reportFunctionMemberAccess]

    loss.by = by  # pyright: ignore[reportFunctionMemberAccess]
    return loss


def keyword_only(by: float) -> Any:
    def loss(logits: Tensor, y: Tensor, *, times: float = by) -> Tensor:
        return times * F.cross_entropy(logits, y)

    return loss


def cached(by: float) -> Any:
    @functools.lru_cache
    def times(x: float) -> float:
        return by * x

    return times


MAKERS: dict[str, Any] = {
    "object": Times,
    "nested object": lambda by: Times(SimpleNamespace(inner=Times(by))),
    "object with a list of arrays": lambda by: Times([np.array([by])]),
    "object with a set": lambda by: Times({"a", "b", by}),
    "object with slots": Slotted,
    "bound method": lambda by: Times(by).loss,
    "bound method of a dict": lambda by: {"a": by}.get,
    "closure": closed,
    "closure over a dict": lambda by: closed({"a": by}),
    "function with an attribute": with_attribute,
    "keyword-only default": keyword_only,
    "partial": lambda by: functools.partial(F.cross_entropy, label_smoothing=by / 10),
    "partial of an object": lambda by: functools.partial(Times(by), None),
    "cached function": cached,
    "own module with a list": Weighted,
    "module of torch": lambda by: nn.CrossEntropyLoss(label_smoothing=by / 10),
    "fraction": lambda by: Fraction(by, 7),
    "path": lambda by: Path(f"{by}"),
    "range": range,
    "bytes": lambda by: bytes([by]),
    "array": lambda by: np.array([by, 0]),
    "tensor": lambda by: torch.tensor([by]),
    "mapping with keys of two types": lambda by: {1: by, "1": 0},
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_made_alike_is_equal_and_another_state_is_another(name):
    make = MAKERS[name]
    assert describe(make(1)) == describe(make(1))
    assert describe(make(1)) != describe(make(2))
    assert "0x" not in str(describe(make(1)))


def test_code_counts():
    def class_of(sign: int) -> Any:
        class Signed:
            def __call__(self, x: float) -> float:
                return x

        class Turned:
            def __call__(self, x: float) -> float:
                return -x

        Turned.__name__ = "Signed"
        return (Signed if sign > 0 else Turned)()

    assert describe(class_of(1)) == describe(class_of(1))
    assert describe(class_of(1)) != describe(class_of(-1))


def test_code_of_a_dataclass_that_can_be_called_counts():
    @dataclass(frozen=True)
    class Scored:
        x: float = 1.0

        def __call__(self) -> float:
            return self.x

    first = describe(Scored())

    @dataclass(frozen=True)
    class Other:
        x: float = 1.0

        def __call__(self) -> float:
            return -self.x

    Other.__name__ = "Scored"
    assert first["type"] == describe(Other())["type"] == "Scored"
    assert first != describe(Other())
    assert text(first).startswith("Scored(x=1.0, code=")


def test_what_a_function_reads_of_its_module_counts(monkeypatch):
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return SCALE * F.cross_entropy(logits, y)

    def outer(logits: Tensor, y: Tensor) -> Tensor:
        return next(loss(logits, y) for _ in "1")

    before = describe(loss), describe(outer)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert describe(loss) != before[0]
    assert describe(outer) != before[1]
    monkeypatch.setitem(globals(), "SCALE", 1.0)
    assert (describe(loss), describe(outer)) == before


def test_two_orders_of_a_set_are_one_and_what_holds_itself_ends():
    assert describe({"b", "a", "c"}) == describe(frozenset(["c", "b", "a"])) == ["a", "b", "c"]
    assert describe({(1, "a"), (0, "b")}) == [[0, "b"], [1, "a"]]
    assert describe(Times({"a": 1, "b": 2})) == describe(Times({"b": 2, "a": 1}))
    ring = Times(1)
    ring.by = [ring]
    assert describe(ring) == describe(ring)

    def again(n: int) -> int:
        return again(n - 1) if n else 0

    assert label(again) == label(again)


def test_names_of_what_everybody_has_stay_names():
    assert describe(F.cross_entropy) == "cross_entropy"
    assert describe(torch.relu) == "relu"
    assert describe(lab.criteria.magnitude) == "magnitude"
    assert describe(nn.Linear) == "Linear"
    assert describe(lab.methods.OneShot(0.5)) == {
        "type": "OneShot",
        "sparsity": 0.5,
        "criterion": "magnitude",
        "scope": "global",
        "unit": "weight",
    }


SCRIPT = """
import json, functools
from dataclasses import dataclass
import torch, numpy as np
from torch import nn
from torch.nn import functional as F
from pruninglab.identity import describe
KINDS = {"ce", "xent", "nll"}
BY_NAME = dict.fromkeys({"a", "b", "c", "d"}, 1)
class C:
    kinds = frozenset({"ce", "xent", "mse", "nll"})
    def __init__(self, k): self.k, self.set, self.map = k, {"x", "y", "z"}, dict.fromkeys({"p", "q", "r"}, 0)
    def __call__(self, logits, y): return self.k * F.cross_entropy(logits, y) if self.k in {"ce", "xent", "mse"} else 0
    @property
    def half(self): return self.k / 2
    @staticmethod
    def other(x): return x in {"u", "v", "w"}
@dataclass
class D:
    names: frozenset = frozenset({"h", "i", "j"})
    def __call__(self, x): return x in ("a", frozenset({"b", "c"}))
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.names = {"k", "l", "m"}
    def forward(self, logits, y): return F.cross_entropy(logits, y) if "k" in self.names else 0
def loss(logits, y, kind="ce", also={"s", "t"}):
    return F.cross_entropy(logits, y) if kind in {"ce", "xent"} and kind in KINDS and BY_NAME else None
def outer(names):
    return lambda logits, y: loss(logits, y) if "a" in names else None
things = [C("ce"), C("ce").__call__, D(), M(), loss, outer({"a", "b", "c"}), functools.partial(loss, also={"f", "g"})]
things += [{"n", "o"}]
torch.manual_seed(0)
print(json.dumps([describe(t) for t in things]))
"""


def test_descriptions_are_the_same_in_every_process():
    def run(seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert run("1") == run("77")

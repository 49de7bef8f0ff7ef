"""One colour and one marker for each method, the same in every figure."""

import re
from collections.abc import Iterable
from itertools import cycle, islice
from typing import NamedTuple

BLUE, ORANGE, VIOLET, PINK, TAN, NAVY, BROWN = COLOURS = (
    "#0B6FB8",
    "#D55E00",
    "#8122E0",
    "#CC7095",
    "#997D54",
    "#383D66",
    "#4C342A",
)
"""Seven colours. Each has a contrast of 3 or more to white, and readers with any of the three kinds of colour blindness
tell each two apart: tests/test_looks.py measures both."""
BLACK, GREY, PALE = "#222222", "#767676", "#D9D9D9"
MARKERS = "os^DPv*Xph<>"


class Look(NamedTuple):
    """How a method is drawn."""

    colour: str
    marker: str


LOOKS = {
    "dense": Look(BLACK, "s"),
    "random mask": Look(GREY, "v"),
    "global magnitude": Look(BLUE, "o"),
    "layer magnitude": Look(TAN, "P"),
    "one-shot": Look(BLUE, "o"),
    "gradual": Look(ORANGE, "^"),
    "enhanced": Look(BROWN, "<"),
    "rounds": Look(NAVY, "s"),
    "SNIP": Look(VIOLET, "s"),
    "GraSP": Look(PINK, "D"),
    "SynFlow": Look(NAVY, "p"),
    "SynFlow, 1 round": Look(BROWN, "p"),
    "N2NSkip": Look(TAN, "h"),
    "WeightMom": Look(PINK, "X"),
    "WeightMom, formula": Look(VIOLET, "D"),
    "WeightMom, no ratio": Look(NAVY, "o"),
    "WeightMom, no memory": Look(BROWN, "p"),
    "relevance": Look(VIOLET, "o"),
    "L2": Look(TAN, "s"),
    "targeted dropout": Look(PINK, "^"),
    "RigL": Look(VIOLET, "D"),
    "SET": Look(NAVY, "s"),
    "sparse momentum": Look(PINK, "P"),
    "ticket": Look(VIOLET, "*"),
    "reinitialised": Look(TAN, "D"),
    "fine-tuned": Look(BLUE, "o"),
    "Scratch-E": Look(NAVY, "s"),
    "Scratch-B": Look(PINK, "D"),
    "variational dropout": Look(VIOLET, "s"),
    "L0": Look(PINK, "D"),
    "ADMM": Look(NAVY, "s"),
    "progressive": Look(VIOLET, "D"),
    "quantized": Look(PINK, "P"),
    "damage": Look(VIOLET, "s"),
    "surgeon": Look(PINK, "^"),
    "slimming": Look(VIOLET, "P"),
    "by sensitivity": Look(VIOLET, "s"),
    "by hand": Look(VIOLET, "s"),
}
"""The methods of the course. Two that never stand in one figure may look alike."""

_SAME = {
    "magnitude": "global magnitude",
    "by magnitude": "global magnitude",
    "one cut": "one-shot",
    "one cut of all": "one-shot",
    "OneShot": "one-shot",
    "random": "random mask",
    "static random mask": "random mask",
    "gradual magnitude": "gradual",
    "enhanced gradual": "enhanced",
    "WeightMom, text": "WeightMom",
    "RelevanceL2": "relevance",
    "C is 1 (plain L2)": "L2",
    "direct": "ADMM",
    "the same share": "layer magnitude",
    "iterative": "rounds",
}


def _key(label: str) -> str:
    """`Random-Mask` and `random mask` are one word."""
    return re.sub(r"[\W_]+", "", label.casefold())


_BY_KEY = {_key(name): look for name, look in LOOKS.items()}
_BY_KEY |= {_key(other): LOOKS[name] for other, name in _SAME.items()}


def look(label: str) -> Look | None:
    """The look of a method by its label: the whole of it, or what stands before a comma or a bracket."""
    return _BY_KEY.get(_key(label)) or _BY_KEY.get(_key(re.split(r"[,(]", label)[0]))


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each label of one figure, no two alike: methods have their own, others the first ones that are free.

    >>> looks(["gradual", "mine"])["gradual"]
    Look(colour='#D55E00', marker='^')
    """
    labels = list(labels)
    given: dict[str, Look] = {}
    for label in labels:
        own = look(label)
        if own and own not in given.values():
            given[label] = own
    colours = {one.colour for one in given.values()}
    pairs = zip(cycle(COLOURS), cycle(MARKERS), strict=False)  # 7 and 12 have no common divisor: all 84 pairs come
    free = [Look(*pair) for pair in islice(pairs, len(COLOURS) * len(MARKERS))]
    free.sort(key=lambda one: one.colour in colours)  # colours that the figure has not used come first
    for label in labels:
        if label not in given:
            given[label] = next((one for one in free if one not in given.values()), Look(GREY, "o"))
    return {label: given[label] for label in labels}

"""Examples in docstrings run, and say what they print. A reader's `model`, `data`, `dense` and `run` are at hand."""

import ast
import doctest
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from make_book import ROOMS
from prose import said_by, sentences, words

import pruninglab as lab


def public() -> dict[str, Any]:
    """Every public class and function by the place where one looks for it, each once."""
    found: dict[int, tuple[str, Any]] = {}
    for room in ROOMS:
        module = import_module(f"pruninglab.{room}")
        names = getattr(
            module, "__all__", [n for n, t in vars(module).items() if n[0] != "_" and inspect.isfunction(t)]
        )
        for name in names:
            thing = getattr(module, name)
            own = isinstance(thing, type) or inspect.isfunction(thing)
            if own and str(thing.__module__).startswith(f"pruninglab.{room.partition('.')[0]}"):
                found.setdefault(id(thing), (f"{room}.{name}", thing))
    return dict(found.values())


PUBLIC = public()
EXAMPLES = {
    test.name: test
    for name, thing in PUBLIC.items()
    for test in doctest.DocTestFinder(recurse=False).find(thing, name, globs={})
    if test.examples
}


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    data = lab.load("digits", train=120, test=60, size=8)
    model = lab.build("lenet300", data, seed=0)
    dense = lab.fit(model, data, epochs=1, progress=False)
    run = lab.fit(dense, data, lab.methods.Gradual(lab.Cubic(0.9)), epochs=2, progress=False)
    return {"lab": lab, "torch": torch, "data": data, "model": model, "dense": dense, "run": run}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name: str, names: dict[str, Any], tmp_path: Path) -> None:
    test = EXAMPLES[name]
    test.globs = names | {"folder": tmp_path}
    said: list[str] = []
    failed = doctest.DocTestRunner(verbose=False).run(test, out=said.append, clear_globs=False).failed
    assert not failed, "".join(said)


def test_no_example_is_lost() -> None:
    """The number only rises: whoever adds a public function shows how it is called."""
    without = sorted(set(PUBLIC) - set(EXAMPLES))
    assert len(EXAMPLES) >= SHOWN, f"without an example: {', '.join(without)}"


SHOWN = 80


def test_no_sentence_of_a_docstring_or_an_error_is_longer_than_30_words() -> None:
    files = sorted(Path(lab.__file__).parent.rglob("*.py"))
    texts = [(path.name, text) for path in files for text in said_by(ast.parse(path.read_text(encoding="utf-8")))]
    assert len(texts) > 1000
    assert [(name, one) for name, text in texts for one in sentences(text) if words(one) > 30] == []


def test_what_a_module_says_is_found() -> None:
    module = '''
"""One."""
LEVEL = 1
"""Two."""
def f(x):
    """Three.

    >>> f(1)
    2

        an indented line

    Four.
    """
    raise ValueError(f"no {x} here")
'''
    found = [one for text in said_by(ast.parse(module)) for one in sentences(text)]
    assert sorted(found) == ["Four.", "One.", "Three.", "Two.", "no x here"]

"""The words of the notebooks: short sentences, a guess before a run, a recap, and no number that may go stale."""

import ast
import json
import re
import statistics
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from normalise_notebooks import found
from prose import numbers, sentences, words

import pruninglab as lab

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
LONGEST_SENTENCE, MEAN_SENTENCE, LONGEST_CELL = 30, 18, 150
SECTIONS = ["The idea", "Parameters", "The method", "Run", "Look", "What to notice, and try"]
NUMERAL = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?")
SETTING = re.compile(r"(?<=[`(\s])(?<!-p )([a-z_]+)=(?=[^`\n]*`)")
EMPTY_CLAIM = re.compile(
    r"\b(significant\w*|outperform\w*|proves|clearly|obviously|undoubtedly|state of the art)\b", re.I
)

CONSTANTS = {0, 1, 2, 95}
"""Ends of a range, indices, and the level of every interval."""

STATED: dict[str, set[float]] = {
    "02_before_training": {30},  # a density in the tables of N2NSkip
    "03_weightmom": {8_000},  # images of CIFAR-10 in the records
    "04_relevance": {99.7, 99.22, 91.67, 96.9, 0.07, 20},  # the paper's tables; epochs of fine-tuning of the records
    "05_admm": {55_000, 2.73},  # training images of the records; the paper's Table 6
    "06_tickets": {16},  # pixels of the images in the records
    "07_scratch": {16, 1.5},  # the same; steps in the enhanced form of Gale et al.
    "08_exemplars": {0.05},  # the level of the test
    "09_sensitivity": {32},  # bits of a value
    "10_gates": {4.5},  # noise that is the method's threshold: exp(3/2)
    "11_regrowth": {45, 15},  # epochs of the records
}
"""Numbers that no cell computes: of a paper, or a setting of runs that were made before."""


def markdown(path: Path) -> dict[str, str]:
    """The prose of a page by cell, without the links to its neighbours."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {c["id"]: "".join(c["source"]) for c in cells if c["cell_type"] == "markdown" and c["id"] != "links"}


def known(path: Path) -> set[float]:
    """All that the cells of a page print or set."""
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    printed = [
        text for output in outputs for text in (output.get("text", ""), output.get("data", {}).get("text/plain", ""))
    ]
    return {value(n) for text in [*(c["source"] for c in cells), *printed] for n in NUMERAL.findall("".join(text))}


def value(numeral: str) -> float:
    return float(numeral.replace(",", ""))


def unfounded(path: Path, text: str) -> list[str]:
    """Numbers in a text that stand nowhere else on its page; a share may be written in percent."""
    allowed = known(path) | CONSTANTS | STATED.get(path.stem, set())
    is_year = lambda n: 1980 <= value(n) < 2040  # noqa: E731
    return [n for n in numbers(text) if not (is_year(n) or value(n) in allowed or round(value(n) / 100, 8) in allowed)]


pages = pytest.mark.parametrize("path", found([NOTEBOOKS]), ids=lambda path: path.name)


@pages
def test_sentences_are_short(path: Path) -> None:
    said = [sentence for text in markdown(path).values() for sentence in sentences(text)]
    assert [sentence for sentence in said if words(sentence) > LONGEST_SENTENCE] == []
    assert statistics.mean(map(words, said)) <= MEAN_SENTENCE


@pages
def test_no_cell_is_a_wall_of_words(path: Path) -> None:
    lengths = {cell: sum(map(words, sentences(text))) for cell, text in markdown(path).items()}
    assert {cell: length for cell, length in lengths.items() if length > LONGEST_CELL} == {}


@pages
def test_every_number_is_computed_on_its_page(path: Path) -> None:
    """A number typed into prose goes stale; one in code or backticks is a setting."""
    wrong = {cell: unfounded(path, text) for cell, text in markdown(path).items()}
    assert {cell: found for cell, found in wrong.items() if found} == {}


@pages
def test_a_page_asks_for_a_guess_and_ends_with_a_recap(path: Path) -> None:
    text = "\n\n".join(markdown(path).values())
    assert re.findall(r"^## (.+)", text, re.M) == SECTIONS
    assert "Guess first" in text
    recap = re.search(r"\*\*Recap\*\*\n\n((?:\d\. .+(?:\n|$))+)", text.split(f"## {SECTIONS[-1]}")[1])
    assert recap
    assert len(recap[1].splitlines()) == 3


@pages
def test_no_claim_is_an_empty_word(path: Path) -> None:
    assert [word for text in markdown(path).values() for word in EMPTY_CLAIM.findall(text)] == []


def test_no_stated_number_is_left_over() -> None:
    for name, stated in STATED.items():
        path = NOTEBOOKS / f"{name}.ipynb"
        used = {value(n) for text in markdown(path).values() for n in numbers(text)}
        assert stated - known(path) <= used, name


def test_the_other_pages_have_short_sentences_too() -> None:
    files = [*NOTEBOOKS.parent.glob("*.md"), *NOTEBOOKS.rglob("*.md")]
    said = [(path.name, one) for path in files for one in sentences(path.read_text(encoding="utf-8"))]
    assert {"README.md", "CONTRIBUTING.md", "guide.md"} <= {name for name, _ in said}
    assert [(name, one) for name, one in said if words(one) > LONGEST_SENTENCE] == []


def test_the_glossary_is_in_order_and_true() -> None:
    """Each term is in its notebook, and each name in code exists."""
    glossary = (NOTEBOOKS / "README.md").read_text(encoding="utf-8").split("## Glossary")[1]
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \| \[\d\d\]\((\S+)\) \|$", glossary, re.M)
    assert len(rows) == len(re.findall(r"^\| ", glossary, re.M)) - 1  # the line of headings
    assert [term.lower() for term, _, _ in rows] == sorted(term.lower() for term, _, _ in rows)
    text = {page: "\n".join(markdown(NOTEBOOKS / page).values()).lower() for _, _, page in rows}
    assert [term for terms, _, page in rows for term in terms.lower().split(", ") if term not in text[page]] == []
    for name in re.findall(r"`lab\.([\w.]+)`", glossary):
        assert attrgetter(name)(lab)


def arguments() -> set[str]:
    """Every name that a call of the package takes: arguments of functions, and fields of classes."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in Path(lab.__file__).parent.rglob("*.py"))
    nodes = [node for tree in trees for node in ast.walk(tree)]
    fields = {node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    return fields | {node.arg for node in nodes if isinstance(node, ast.arg)}


def test_a_setting_that_a_page_names_exists() -> None:
    """`name=value` between backticks, also inside a call."""
    known = arguments()
    named = [(p.name, n) for p in found([NOTEBOOKS]) for text in markdown(p).values() for n in SETTING.findall(text)]
    assert len(named) > 20
    assert [(page, name) for page, name in named if name not in known] == []


def test_headings_are_there_to_which_the_browser_test_scrolls() -> None:
    """It takes minutes, so a heading with new words is found here."""
    source = Path(__file__).with_name("test_browser.py").read_text(encoding="utf-8")
    wanted = re.findall(r'bring\(page, "([^"]+)"\)', source)
    assert wanted
    headings = re.findall(r"^### (.+)", "\n\n".join(markdown(NOTEBOOKS / "16_workbench.ipynb").values()), re.M)
    assert [text for text in wanted if not any(text in heading for heading in headings)] == []


# The checker itself.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("One. Two!\n\n- Three (a `b.c d`)? **Four.** Five", [1, 1, 3, 1, 1]),
        ("# A heading\n\nLiu et al. (2019) have $a + b$.\n\n```sh\nrun it now\n```\n$$x = 1. y$$", [6]),
        ("| a | b |\n|---|---|\n\nSee [one page](two/three.ipynb).", [3]),
        ("1. Keep.\n2. Prune. And\n   go on.", [1, 1, 3]),
    ],
)
def test_sentences_are_found(text: str, said: list[int]) -> None:
    assert [words(sentence) for sentence in sentences(text)] == said


def test_numbers_are_found() -> None:
    text = "1. LeNet-5 at 99.0 % has 1,000 of `3` and $4$ in [5](6.md), 16 × 16, 10-fold, 345x and 1e-3.\n\n| 7 | 8.5 |"
    assert numbers(text) == ["99.0", "1,000", "5", "16", "16", "345", "1e-3", "7", "8.5"]


def test_a_typed_result_is_found(tmp_path: Path) -> None:
    cells: list[dict[str, Any]] = [
        {"id": "a", "cell_type": "code", "source": "share: float = 0.05", "outputs": [{"text": ["it is 97.5%\n"]}]},
        {"id": "b", "cell_type": "markdown", "source": "At 5 % it is 97.5 %, and 98.1 % later."},
    ]
    path = tmp_path / "page.ipynb"
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    assert unfounded(path, markdown(path)["b"]) == ["98.1"]

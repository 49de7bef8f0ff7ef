"""What the tests of the prose read: sentences, words and numbers of a text in Markdown or of a module."""

import ast
import inspect
import re
from collections.abc import Iterator

NOT_PROSE = re.compile(r"```.*?```|\$\$.*?\$\$|<[^>\n]+>", re.DOTALL)
SPAN = re.compile(r"`[^`\n]*`|\$[^$\n]+\$")  # code or mathematics inside a sentence: one word
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.)\s|\s*\||#)")
END = re.compile(r"(?<=[.?!])[*_)\"]*\s+")
SHORT = re.compile(r"\b(et al|e\.g|i\.e|vs|Fig|Eq|No)\.")
NUMBER = re.compile(r"(?<![\w.,/-])\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?!(?!x\b)[\w/]|-\w|,\d|\.\d)")


def blocks(markdown: str) -> Iterator[str]:
    """Paragraphs and items of lists, without code, formulas, tables and headings."""
    for block in BLOCK.split(NOT_PROSE.sub("", markdown)):
        line = block.strip()
        if line and not line.startswith(("#", "|")):
            yield re.sub(r"^(?:[-*]|\d+\.)\s+", "", line)


def plain(block: str) -> str:
    """One block, with a link as its words, and code or mathematics as one word each."""
    return SHORT.sub(r"\1", SPAN.sub("x", LINK.sub(r"\1", block)))


def sentences(markdown: str) -> list[str]:
    parts = (part for block in blocks(markdown) for part in END.split(" ".join(plain(block).split())))
    return [part for part in parts if words(part)]


def words(sentence: str) -> int:
    return sum(any(letter.isalnum() for letter in word) for word in sentence.split())


def numbers(markdown: str) -> list[str]:
    """Numbers in prose and headings: `99.0` of "99.0 %", none of `LeNet-5`, code, formulas or links."""
    text = NOT_PROSE.sub("", markdown)
    return NUMBER.findall(re.sub(r"^\s*\d+\.\s", "", SPAN.sub("x", LINK.sub(r"\1", text)), flags=re.MULTILINE))


def said_by(module: ast.Module) -> Iterator[str]:
    """Docstrings of all kinds, those under a constant too, and messages of errors."""
    for node in ast.walk(module):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield _without_examples(inspect.cleandoc(text))
            case ast.Raise(exc=ast.Call(args=[ast.Constant(value=str(text)), *_])):
                yield text
            case ast.Raise(exc=ast.Call(args=[ast.JoinedStr(values=parts), *_])):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in parts)
            case _:
                pass


def _without_examples(docstring: str) -> str:
    prose = re.sub(r"^>>>.*?(?:\n\n|\Z)", "\n\n", docstring, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4}.*$", "", prose, flags=re.MULTILINE)

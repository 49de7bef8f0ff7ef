"""Mutation testing: would the tests notice a small mistake in the package?

    python tests/mutation.py [--seconds 900] [pruninglab/masks/choose.py …]

A **mutant** is one of these files with one mistake: a comparison is turned or loses its boundary, `+` becomes `-`, a
number moves by one, `and` becomes `or`, a condition is negated, a function returns nothing. Its code is put into the
running functions of a forked process that has everything imported already. The matching test files run there until
one test fails: the mutant is **killed**. A **survivor** is printed with its line. Either a test is missing there, or
the mutant does the same as the code.
"""

import argparse
import ast
import contextlib
import importlib
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import hypothesis  # noqa: F401 (with what a test file imports, so that a forked process finds it there)
import matplotlib  # noqa: F401
import nbformat  # noqa: F401
import pytest

from pruninglab._torchvision import torchvision  # noqa: F401

ROOT = Path(__file__).parent.parent
LAWS = ["test_choose.py", "test_masks.py", "test_laws.py", "test_other_projects.py"]
TESTS = {
    "masks/choose.py": LAWS,
    "masks/schedules.py": ["test_schedules.py", "test_other_projects.py"],
    "masks/projections.py": ["test_masks.py", "test_other_projects.py", "test_laws.py", "test_admm.py"],
    "masks/masks.py": [*LAWS, "test_storage.py"],
    "layers/flops.py": ["test_results.py", "test_other_projects.py"],
    "analysis/compare.py": ["test_compare.py"],
    "analysis/fairness.py": ["test_compare.py", "test_fairness.py"],
    "train/checkpoints.py": ["test_checkpoints.py", "test_state.py"],
}
QUICK = {
    "test_laws.py": "chosen or names_that_end or large_numbers or infinities or fraction or some_layers or torch_s_own",
    "test_other_projects.py": "not known_networks and not level and not rounds and not training_sparse",
}
"""Of files that take long, the tests that matter for the masks."""

COMPARED: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Lt: [ast.LtE, ast.Gt],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.Lt],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """The file with one mistake, and what was changed at which line."""

    tree: ast.Module
    line: int
    before: str
    after: str


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What could stand in the place of this node by mistake."""
    if isinstance(node, ast.Compare):
        for kind in COMPARED.get(type(node.ops[0]), []):
            yield ast.Compare(node.left, [kind(), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        yield ast.BinOp(node.left, COMPUTED[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in COMPUTED:
        yield ast.AugAssign(node.target, COMPUTED[type(node.op)](), node.value)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert | ast.USub):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.If):
        yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Where a node can be replaced: in the bodies of functions, but for messages, docstrings and annotations."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name not in ("__repr__", "_repr_html_"):
            for statement in range(len(function.body)):
                yield from inside(function, "body", statement)


def inside(parent: ast.AST, field: str, index: int | None) -> Iterator[tuple[ast.AST, str, int | None]]:
    node = getattr(parent, field) if index is None else getattr(parent, field)[index]
    if not isinstance(node, ast.AST) or isinstance(node, ast.Raise | ast.JoinedStr | ast.FunctionDef):
        return
    if isinstance(node, ast.keyword) and node.arg == "strict":  # where lengths are equal it says nothing
        return
    yield parent, field, index
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "type_params"):
            for at in range(len(value)) if isinstance(value, list) else [None]:
                yield from inside(node, name, at)


def mutants(path: Path) -> list[Mutant]:
    source = path.read_text(encoding="utf-8")
    found = []
    for number, (parent, field, index) in enumerate(places(ast.parse(source))):
        node: Any = getattr(parent, field) if index is None else getattr(parent, field)[index]
        for which, made in enumerate(variants(node)):
            tree = ast.parse(source)
            other, name, at = next(p for i, p in enumerate(places(tree)) if i == number)
            old: Any = getattr(other, name) if at is None else getattr(other, name)[at]
            new = next(v for i, v in enumerate(variants(old)) if i == which)
            ast.copy_location(new, old)
            if at is None:
                setattr(other, name, new)
            else:
                getattr(other, name)[at] = new
            shown = (ast.unparse(n).splitlines()[0] for n in (node, made))
            found.append(Mutant(ast.fix_missing_locations(tree), node.lineno, *shown))
    return found


def functions(module: ModuleType) -> dict[str, FunctionType]:
    """Every function of a module by its qualified name, those of its classes too."""
    found: dict[str, FunctionType] = {}
    holders: list[Any] = [
        module,
        *(v for v in vars(module).values() if getattr(v, "__module__", "") == module.__name__),
    ]
    for holder in holders:
        for value in vars(holder).values() if hasattr(holder, "__dict__") else ():
            for part in (value, *(getattr(value, name, None) for name in ("fget", "__func__", "__wrapped__", "func"))):
                if isinstance(part, FunctionType) and part.__module__ == module.__name__:
                    found[part.__qualname__] = part
    return found


def codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from codes(constant)


def put_in(mutant: Mutant, module: ModuleType, path: Path) -> None:
    """Give the running functions the code of the file with the mistake."""
    made = {code.co_qualname: code for code in codes(compile(mutant.tree, str(path), "exec"))}
    for name, function in functions(module).items():
        if name in made and made[name].co_freevars == function.__code__.co_freevars:
            function.__code__ = made[name]


def killed(mutant: Mutant, module: ModuleType, path: Path, tests: list[list[str]], limit: float) -> bool:
    """Whether a test fails, or the tests do not come to an end, in a process of their own."""
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException), open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
            put_in(mutant, module, path)
            code = int(any(run(arguments) for arguments in tests))
        os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return True


def run(arguments: list[str]) -> int:
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", "--tb=no", *arguments]))


def commands(name: str) -> list[list[str]]:
    chosen = QUICK if name.startswith("masks") else {}
    return [[str(ROOT / "tests" / t), *(["-k", chosen[t]] if t in chosen else [])] for t in TESTS[name]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", default=[f"pruninglab/{name}" for name in TESTS])
    parser.add_argument("--seconds", type=float, default=900, help="when to stop; mutants come in random order")
    chosen = parser.parse_args()
    end = time.monotonic() + chosen.seconds
    for number, file in enumerate(chosen.files):
        path = ROOT / file
        name = file.removeprefix("pruninglab/")
        module = importlib.import_module("pruninglab." + name.removesuffix(".py").replace("/", "."))
        tests = commands(name)
        began = time.monotonic()
        if killed(Mutant(ast.parse(path.read_text(encoding="utf-8")), 0, "", ""), module, path, tests, 600):
            sys.exit(f"{file}: its tests fail as it is")
        limit = 10 + 5 * (time.monotonic() - began)
        drawn = mutants(path)
        random.Random(0).shuffle(drawn)
        share = time.monotonic() + (end - time.monotonic()) / (len(chosen.files) - number)
        tried, survivors = 0, []
        for mutant in drawn:
            if time.monotonic() > share:
                break
            tried += 1
            if not killed(mutant, module, path, tests, limit):
                survivors.append(mutant)
                print(f"  {file}:{mutant.line}: {mutant.before!r} as {mutant.after!r}", flush=True)
        print(
            f"{file}: {tried} of {len(drawn)} mutants tried, {tried - len(survivors)} killed, "
            f"{len(survivors)} survived ({len(survivors) / max(tried, 1):.0%})",
            flush=True,
        )


if __name__ == "__main__":
    main()

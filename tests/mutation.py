"""Mutation testing: would the tests notice a small mistake in the package?

    python tests/mutation.py [--most 40] [--seconds 1800] [pruninglab/masks/choose.py …]
    python tests/mutation.py pruninglab/masks/choose.py:34      all mutants of this line

A **mutant** is one of these files with one mistake: a comparison is turned or loses its boundary, `+` becomes `-`, a
number moves by one, `and` becomes `or`, a condition is negated, a call is left out, a function returns nothing. First
the tests that belong to the file run once, and coverage notes which test reaches which line. Then a forked process,
which has imported and collected everything already, puts each mutant into the running functions and runs the tests
that reach its line, the quickest first, until one fails: the mutant is **killed**. One that does not come to an end is
killed too. A **survivor** is printed with its line: a test is missing there. What does the same as the code, and no
test could notice, stands in `equivalent.py` with the reason.

Of a file with more mutants than `--most`, so many are drawn, always the same ones.
"""

import argparse
import ast
import contextlib
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import coverage
import hypothesis
import pytest
from coverage.exceptions import CoverageWarning
from equivalent import EQUIVALENT

ROOT = Path(__file__).parent.parent
SCORES = ["criteria", "before_training", "other_projects", "calibrated"]
CURVED = ["second_order", "criteria"]
COMPARED_RUNS = ["compare", "fairness", "aggregate"]
TESTS = {
    "masks/choose.py": ["choose", "masks"],
    "masks/threshold.py": ["choose", "masks"],
    "masks/masks.py": ["masks", "choose"],
    "masks/at_random.py": ["choose"],
    "masks/schedules.py": ["schedules", "other_projects"],
    "masks/projections.py": ["choose", "masks", "other_projects", "admm"],
    "criteria/weights.py": SCORES,
    "criteria/gradients.py": [*SCORES, *CURVED],
    "criteria/before_training.py": SCORES,
    "criteria/channels.py": ["channels", "criteria"],
    "criteria/inputs.py": [*SCORES, *CURVED],
    "criteria/wanda.py": [*SCORES, *CURVED],
    "criteria/curvature.py": CURVED,
    "criteria/quadratic.py": CURVED,
    "train/checkpoints.py": ["checkpoints", "state", "compact"],
    "analysis/compare.py": COMPARED_RUNS,
    "analysis/fairness.py": COMPARED_RUNS,
    "analysis/statistics.py": ["compare", "impact"],
    "layers/flops.py": ["layers", "any"],
    "layers/calls.py": ["layers", "any"],
}
"""The files, and of the tests those that say most about them."""
BAR = 0.1
"""A file with a larger share of survivors fails."""

SWAPPED: dict[type[ast.AST], list[Any]] = {
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
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div],
    ast.Div: [ast.Mult],
    ast.FloorDiv: [ast.Mult],
    ast.Mod: [ast.Mult],
    ast.Pow: [ast.Mult],
    ast.BitAnd: [ast.BitOr],
    ast.BitOr: [ast.BitAnd],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
}


@dataclass(frozen=True)
class Mutant:
    """One mistake in a file: at which line, what was changed, and where in the tree."""

    file: str
    line: int
    lines: frozenset[int]
    """Those of the statement: a test that reaches one of them reaches the mistake."""
    text: str
    """The line as it is."""
    before: str
    after: str
    tree: ast.Module
    holder: Any
    key: Any
    new: ast.AST

    @property
    def reason(self) -> str | None:
        """Why no test can notice it, if that is so."""
        return EQUIVALENT.get(self.file, {}).get(self.text, {}).get((self.before, self.after))

    def code(self, path: Path) -> CodeType:
        """The file with this mistake; the tree is as it was afterwards."""
        old = self.put(self.new)
        try:
            return compile(self.tree, str(path), "exec")
        finally:
            self.put(old)

    def put(self, node: ast.AST) -> ast.AST:
        """Into its place in the tree; returns what was there."""
        held, key = (self.holder, self.key) if isinstance(self.holder, list) else (vars(self.holder), self.key)
        before, held[key] = held[key], node
        return before

    def __str__(self) -> str:
        return f"pruninglab/{self.file}:{self.line}: {self.before!r} as {self.after!r}"


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What could stand in the place of this node by mistake."""
    match node:
        case ast.Compare():
            for kind in SWAPPED.get(type(node.ops[0]), []):
                yield ast.Compare(node.left, [kind(), *node.ops[1:]], node.comparators)
        case ast.BinOp():
            for kind in SWAPPED.get(type(node.op), []):
                yield ast.BinOp(node.left, kind(), node.right)
        case ast.AugAssign():
            for kind in SWAPPED.get(type(node.op), []):
                yield ast.AugAssign(node.target, kind(), node.value)
        case ast.BoolOp():
            yield ast.BoolOp(SWAPPED[type(node.op)][0](), node.values)
        case ast.UnaryOp(ast.Not() | ast.Invert() | ast.USub()):
            yield node.operand
        case ast.IfExp():
            yield ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.If():
            yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        case ast.Constant(bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(int() | float() as number):
            yield ast.Constant(number + 1)
        case ast.Return() if node.value is not None:
            yield ast.Return(ast.Constant(None))
        case ast.Expr(ast.Call()):
            # without `super()` a method would have no `__class__`, and its code would not fit the running function
            yield ast.Expr(ast.Name("super", ast.Load())) if "super()" in ast.unparse(node) else ast.Pass()


Place = tuple[Any, Any, ast.AST, range]


def places(function: ast.FunctionDef) -> Iterator[Place]:
    """Where a node can be replaced: in the body, but for messages, docstrings and annotations."""
    for index, statement in enumerate(function.body):
        yield from inside(function.body, index, statement, range(0))


def inside(holder: Any, key: Any, node: Any, lines: range) -> Iterator[Place]:
    if not isinstance(node, ast.AST) or isinstance(node, ast.Raise | ast.JoinedStr | ast.FunctionDef):
        return
    if isinstance(node, ast.keyword) and node.arg == "strict":  # where lengths are equal it says nothing
        return
    if isinstance(node, ast.stmt):
        body = getattr(node, "body", None)
        last = body[0].lineno if body else (node.end_lineno or node.lineno) + 1
        lines = range(node.lineno, max(last, node.lineno + 1))
    yield holder, key, node, lines
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "type_params"):
            if isinstance(value, list):
                for index, part in enumerate(value):
                    yield from inside(value, index, part, lines)
            else:
                yield from inside(node, name, value, lines)


def mutants(path: Path) -> list[Mutant]:
    source, file = path.read_text(encoding="utf-8"), path.relative_to(ROOT / "pruninglab").as_posix()
    tree, text, found = ast.parse(source), source.splitlines(), []
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
    for function in (f for f in functions if f.name not in ("__repr__", "_repr_html_")):
        for holder, key, node, lines in places(function):
            for new in variants(node):
                ast.fix_missing_locations(ast.copy_location(new, node))
                name = f"{holder.arg}=" if isinstance(holder, ast.keyword) else ""
                before, after = (name + ast.unparse(n).splitlines()[0] for n in (node, new))
                line = vars(node)["lineno"]
                found.append(
                    Mutant(file, line, frozenset(lines), text[line - 1].strip(), before, after, tree, holder, key, new)
                )
    return found


def drawn(path: Path, most: int, line: int | None) -> list[Mutant]:
    every = [mutant for mutant in mutants(path) if line in (None, mutant.line)]
    return sorted(random.Random(0).sample(every, min(most, len(every))), key=lambda mutant: mutant.line)


def functions(module: ModuleType) -> dict[str, FunctionType]:
    """Every function of a module by its qualified name, those of its classes too."""
    found: dict[str, FunctionType] = {}
    made_here = [v for v in vars(module).values() if getattr(v, "__module__", "") == module.__name__]
    for holder in (module, *made_here):
        for value in list(getattr(holder, "__dict__", {}).values()):
            for part in unwrapped(value):
                if isinstance(part, FunctionType) and part.__module__ == module.__name__:
                    found[part.__qualname__] = part
    return found


def unwrapped(value: Any) -> Iterator[Any]:
    yield value
    for name in ("fget", "__func__", "__wrapped__", "func"):
        if (inner := getattr(value, name, None)) is not None and inner is not value:
            yield from unwrapped(inner)


def codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from codes(constant)


def forked(work: Callable[[], int], limit: float) -> int | None:
    """What `work` returns in a process of its own; None if it did not come to an end."""
    child = os.fork()
    if not child:
        code, shown = 70, os.dup(2)
        try:
            with open(os.devnull, "w") as nothing:
                os.setpgid(0, 0)
                os.dup2(nothing.fileno(), 1)
                os.dup2(nothing.fileno(), 2)
                code = work()
        except BaseException as error:
            os.write(shown, f"{error!r}\n".encode())
        os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def first_failure(session: pytest.Session, items: Sequence[pytest.Item]) -> str | None:
    """Run these tests up to the first that fails."""
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return item.nodeid
    return None


class Mutating:
    """Takes the place of the loop over the tests."""

    def __init__(self, path: Path, module: ModuleType, chosen: list[Mutant], end: float):
        self.path, self.module, self.chosen, self.end = path, module, chosen, end
        self.reached: dict[str, list[int]] = {}
        self.took: dict[str, float] = {}
        self.kills: Counter[str] = Counter()
        self.passed = False

    def pytest_collection(self) -> None:
        """A failure is enough: it need not be made small."""
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile("first failure", phases=phases)  # of the rest, what conftest.py says
        hypothesis.settings.load_profile("first failure")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            sys.exit(f"{self.path}: its tests cannot be collected")
        self.measure(session)
        tried, killed, alike, alive = 0, 0, 0, []
        for mutant in self.chosen:
            if mutant.reason:
                alike += 1
                continue
            if time.monotonic() > self.end:
                break
            tried += 1
            why = self.survives(session, mutant)
            killed += why is None
            if why is not None:
                alive.append(mutant)
                print(f"  {mutant}{why}", flush=True)
        print(
            f"{self.path.relative_to(ROOT)}: {len(mutants(self.path))} mutants, {len(self.chosen)} drawn, "
            f"{alike} the same as the code, {tried} tried, {killed} killed, "
            f"{len(alive)} survived ({len(alive) / max(tried, 1):.0%})",
            flush=True,
        )
        self.passed = len(alive) <= BAR * tried
        return True

    def survives(self, session: pytest.Session, mutant: Mutant) -> str | None:
        """None if a test notices the mutant; else what to say of it."""
        made = {code.co_qualname: code for code in codes(mutant.code(self.path))}
        running = [(f, made[name]) for name, f in functions(self.module).items() if name in made]
        if any(f.__code__.co_freevars != code.co_freevars for f, code in running):
            return ", which does not fit the running function"
        items = [item for item in session.items if not mutant.lines.isdisjoint(self.reached[item.nodeid])]
        if not items:
            return ", which no test reaches"
        items.sort(key=lambda item: (-self.kills[item.nodeid], self.took[item.nodeid]))
        with tempfile.NamedTemporaryFile("r") as file:

            def work() -> int:
                for function, code in running:
                    function.__code__ = code
                failed = first_failure(session, items)
                Path(file.name).write_text(failed or "", encoding="utf-8")
                return int(failed is not None)

            end = forked(work, 20 + 5 * sum(self.took[item.nodeid] for item in items))
            if end == 1:
                self.kills[file.read()] += 1
        return "" if end == 0 else None

    def measure(self, session: pytest.Session) -> None:
        """Which lines each test reaches, and how long it takes."""
        with tempfile.NamedTemporaryFile("r") as file:
            if forked(lambda: self.traced(session, Path(file.name)), 1200) != 0:
                sys.exit(f"{self.path}: its tests fail as it is: {file.read() or 'they do not come to an end'}")
            self.reached, self.took = json.load(file)

    def traced(self, session: pytest.Session, file: Path) -> int:
        tracer = coverage.Coverage(data_file=None, include=[str(self.path)], config_file=False)
        tracer.start()
        took = {}
        for item, following in zip(session.items, [*session.items[1:], None], strict=True):
            tracer.switch_context(item.nodeid)
            began = time.monotonic()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            took[item.nodeid] = time.monotonic() - began
            if session.testsfailed:
                file.write_text(item.nodeid, encoding="utf-8")
                return 1
        tracer.stop()
        warnings.simplefilter("ignore", CoverageWarning)  # that no test reaches the file is said
        reached: dict[str, list[int]] = {item.nodeid: [] for item in session.items}
        for line, tests in tracer.get_data().contexts_by_lineno(str(self.path)).items():
            for test in tests:
                reached[test].append(line)
        file.write_text(json.dumps([reached, took]), encoding="utf-8")
        return 0


def mutate(file: str, most: int, end: float, folder: str) -> bool:
    name, _, line = file.removeprefix("pruninglab/").partition(":")
    module = importlib.import_module("pruninglab." + name.removesuffix(".py").replace("/", "."))
    path = ROOT / "pruninglab" / name
    plugin = Mutating(path, module, drawn(path, most, int(line) if line else None), end)
    files = [str(ROOT / "tests" / f"test_{test}.py") for test in TESTS[name]]
    quiet = ["-s", "-qq", "--tb=short", "--assert=plain", f"--rootdir={ROOT}", f"--basetemp={folder}/tests"]
    quiet += (f"-pno:{unused}" for unused in ("cacheprovider", "xdist", "nbval", "cov"))
    pytest.main([*quiet, *files], plugins=[plugin])
    return plugin.passed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", default=[f"pruninglab/{name}" for name in TESTS])
    parser.add_argument("--most", type=int, default=40, help="mutants of one file")
    parser.add_argument("--seconds", type=float, default=1800, help="when to stop")
    chosen = parser.parse_args()
    end, passed = time.monotonic() + chosen.seconds, True
    for number, file in enumerate(chosen.files):
        share = time.monotonic() + (end - time.monotonic()) / (len(chosen.files) - number)
        with tempfile.TemporaryDirectory() as folder:
            child = os.fork()  # each file begins with the same state
            if not child:
                os._exit(int(not mutate(file, chosen.most, share, folder)))
            passed &= os.waitpid(child, 0)[1] == 0
    sys.exit(not passed)


if __name__ == "__main__":
    main()

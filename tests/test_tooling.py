"""The files around the package agree with each other: versions, targets, and what may lie at the top."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from equivalent import EQUIVALENT
from mutation import TESTS, drawn, mutants
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from together import NETWORK, WHOLE, Together

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
PINNED: list[str] = SETTINGS["dependency-groups"]["pinned"]

TOP = {"notebooks", "pruninglab", "tests", "environment.yml", "README.md", "pyproject.toml", "Makefile", "LICENSE"}
TOP |= {"CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"}
HIDDEN = {".gitignore", ".pre-commit-config.yaml", ".ci", ".github"}

OWN = ("tests", "notebooks/book")
"""Folders of scripts that tests import."""

# Spelled so that no pattern matches its own text.
ELSEWHERE = {
    "a path of one machine": re.compile(r"(?<![\w.])/(?:home|root|tmp|Users|mnt|work|farm)/\w|\b[A-Z]:\\(?:Users)\b"),
    "a package registry": re.compile(
        r"\bpypi\.(?:org|io)|pythonhosted\.(?:org)|anaconda\.(?:org|com)|npmjs\.(?:org|com)|download\.pytorch\.(?:org)"
        r"|--(?:extra-)?index-(?:url)|--find-(?:links)"
    ),
}


def by_name(requirements: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(r.name): r for r in map(Requirement, requirements)}


def declared() -> Iterator[tuple[str, Requirement]]:
    """Every range with the place it stands in; the package's own extras, named in one another, are left out."""
    places = {"dependencies": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    for place, requirements in places.items():
        for name, requirement in by_name(requirements).items():
            if name != PROJECT["name"]:
                yield place, requirement


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """What is in the repository or about to be, relative to its root."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [Path(name) for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_environment_repeats_the_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge"]
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": [*PINNED, "-e ."]}]


def test_a_pin_is_one_exact_version() -> None:
    pins = by_name(PINNED)
    assert len(pins) == len(PINNED)
    assert all(re.fullmatch(r"==[\d.]+", str(pin.specifier)) for pin in pins.values())


def test_every_range_admits_its_pin() -> None:
    pins = {name: str(pin.specifier).removeprefix("==") for name, pin in by_name(PINNED).items()}
    ranges = [(place, canonicalize_name(r.name), r.specifier) for place, r in declared()]
    assert {name for _, name, _ in ranges} == set(pins)
    assert [(name, str(range_)) for _, name, range_ in ranges if name in pins and pins[name] not in range_] == []


@pytest.mark.parametrize(("name", "old", "first"), [("torch", "2.10.0", "2.11.0"), ("torchvision", "0.25.0", "0.26.0")])
def test_the_oldest_torch(name: str, old: str, first: str) -> None:
    admitted = by_name(PROJECT["dependencies"])[name].specifier
    assert first in admitted
    assert old not in admitted


def test_jupyterlab_keeps_to_the_loopback_address_and_its_token() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-m jupyterlab notebooks" in makefile
    assert not re.search(r"--ip|\bip=|token|password|allow.root|origin", makefile)


def test_one_list_of_pythons() -> None:
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    admitted = SpecifierSet(PROJECT["requires-python"])
    assert versions == [v for v in (f"3.{minor}" for minor in range(8, 20)) if f"{v}.1" in admitted]
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["pinned"]["strategy"]["matrix"]["python"] == versions
    assert all(f"python{v}" in (ROOT / "Makefile").read_text(encoding="utf-8") for v in versions)


def test_every_import_is_declared() -> None:
    known = {canonicalize_name(r.name) for _, r in declared()} | {PROJECT["name"]}
    distributions = packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in [*(ROOT / "pruninglab").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
        for module in imported(path)
        if module not in sys.stdlib_module_names
        if not any((ROOT / own / name).exists() for own in OWN for name in (module, f"{module}.py"))
        if not known & {canonicalize_name(name) for name in distributions.get(module, [module])}
    }
    assert undeclared == set()


def imported(path: Path) -> Iterator[str]:
    """The top-level modules a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_nothing_else_lies_at_the_top(files: list[Path]) -> None:
    assert {path.parts[0] for path in files} - TOP - HIDDEN == set()


def elsewhere(text: str) -> list[str]:
    """What a text says of one machine or of a registry. Very long lines are pictures."""
    lines = [line for line in text.splitlines() if len(line) < 2000]
    return [f"{what}: {m.group()}" for line in lines for what, p in ELSEWHERE.items() for m in p.finditer(line)]


def test_files_speak_of_the_project_alone(files: list[Path]) -> None:
    text = {path: (ROOT / path).read_bytes().decode("utf-8", errors="ignore") for path in files}
    assert [(str(path), said) for path, content in text.items() for said in elsewhere(content)] == []


@pytest.mark.parametrize("parts", [("see /", "home/ada/x"), ("https://pypi", ".org/simple"), ("pip --index", "-url x")])
def test_what_speaks_of_elsewhere_is_found(parts: tuple[str, str]) -> None:
    assert len(elsewhere("".join(parts))) == 1


@pytest.mark.parametrize("text", ["runs/demo/x", "a/home/x", "pip install torch", "folder:PATH", "~/.cache/pruninglab"])
def test_what_does_not_is_left_alone(text: str) -> None:
    assert elsewhere(text) == []


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands(markdown: str) -> list[str]:
    """What a reader would type: lines of code blocks, and code within a line."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", markdown)


def test_readme_names_targets_that_exist() -> None:
    readme = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    named = {m.group(1) for command in readme if (m := re.match(r"make ([a-z]+)\b", command))}
    assert {"demo", "test", "lab"} <= named
    assert named <= targets()


def test_ci_runs_the_command_of_the_readme() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "exec make test" in script.read_text(encoding="utf-8")
    assert "make test" in commands((ROOT / "README.md").read_text(encoding="utf-8"))


def test_make_alone_lists_every_target() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z]+)", shown, re.MULTILINE)) == targets()


def test_tests_that_share_something_go_to_one_worker() -> None:
    """Of the tests as pytest names them; a file that is named here and is gone would be split without a word."""
    scope = partial(Together._split_scope, None)  # pyright: ignore[reportArgumentType]
    assert scope("notebooks/00_start.ipynb::Cell 3") == "notebooks/00_start.ipynb"
    assert scope("tests/test_claims.py::test_a[1-seeds]") == scope("tests/test_claims.py::test_b")
    assert scope("tests/test_masks.py::test_a") == "tests/test_masks.py::test_a"
    large = f"tests/{NETWORK}torchvision:regnet_y_400mf-0.6]"
    assert scope(large) == scope(large.replace("0.6", "0.3")) != scope(large.replace("regnet", "other"))
    file, test = NETWORK.strip("[").split("::")
    assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert all((ROOT / "tests" / name).is_file() for name in WHOLE if name.startswith("test_"))


def test_mutants_that_are_explained_are_still_mutants() -> None:
    """And each file has its tests, and the mutants drawn of it are always the same ones."""
    package = ROOT / "pruninglab"
    found = {(m.file, m.text, m.before, m.after) for name in TESTS for m in mutants(package / name)}
    lines = [(file, text, changes) for file, of in EQUIVALENT.items() for text, changes in of.items()]
    assert {(file, text, *change) for file, text, changes in lines for change in changes} - found == set()
    assert [t for tests in TESTS.values() for t in tests if not (ROOT / f"tests/test_{t}.py").is_file()] == []
    one, two = (list(map(str, drawn(package / "masks/choose.py", 5, None))) for _ in range(2))
    assert one == two

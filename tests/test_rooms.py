"""The package is a house: imports between its rooms run downwards, and no file imports itself around a corner."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pruninglab as lab

PACKAGE = Path(lab.__file__).parent
ROOMS = (
    *("version", "errors", "_html", "typed", "identity", "randomness", "terminal", "_torchvision"),
    *("layers", "coupling", "masks", "criteria", "data", "models", "storage", "results", "train", "structured"),
    *("deploy", "analysis", "methods", "recipes", "benchmark", "plots", "widgets", "sweep", "console"),
    *("__init__", "__main__"),
)
"""From the ground up. A room imports only from rooms before it."""
COMMANDS = (
    "new",
    "run",
    "sweep",
    "data",
    "demo",
    "report",
    "_write_page",
    "show",
    "measure",
    "check",
    "export_c",
    "_on_workers",
)
"""Commands of `__main__` import what they need when they are called: the others stay quick."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(name: str) -> Iterator[tuple[str, str]]:
    """The file and the name of each import of the package's own, under `if TYPE_CHECKING` as well."""
    path = FILES[name]
    here = name.split(".") if path.name == "__init__.py" and name != "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            up = here[: len(here) - node.level + 1]
            base = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                inside = f"{base}.{alias.name}".strip(".")
                yield (inside if inside in FILES else base or "__init__"), alias.name


def room(name: str) -> str:
    return name.partition(".")[0]


def test_every_room_has_its_place():
    assert {room(name) for name in FILES} == set(ROOMS)
    assert len(list(PACKAGE.glob("*.py"))) <= 10


@pytest.mark.parametrize("name", FILES)
def test_imports_run_downwards(name):
    above = ROOMS[ROOMS.index(room(name)) + 1 :]
    assert [(file, what) for file, what in imports(name) if room(file) in above] == []


@pytest.mark.parametrize("name", FILES)
def test_no_private_name_is_taken_from_another_room(name):
    taken = [(file, what) for file, what in imports(name) if room(file) != room(name)]
    assert [
        what for _, what in taken if what.startswith("_") and what not in ("_html", "_torchvision", "__version__")
    ] == []


def test_no_file_imports_itself_around_a_corner():
    graph = {name: {file for file, _ in imports(name) if file != name} for name in FILES if name != "__init__"}
    faces = {name for name, path in FILES.items() if path.name == "__init__.py"}
    try:
        TopologicalSorter({name: uses - faces for name, uses in graph.items() if name not in faces}).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def behind(name: str) -> set[str]:
    """Every file of the package that importing this one needs, but those that list a room's names."""
    found, todo = set(), [name]
    while todo:
        if (file := todo.pop()) not in found:
            found.add(file)
            todo += [used for used, _ in imports(file)]
    return {file for file in found if FILES[file].name != "__init__.py"}


METHODS = [name for name, path in FILES.items() if room(name) == "methods" and path.name != "__init__.py"]
MANY = {
    "methods.projection.admm": 14,
    "methods.cuts.interpretations": 14,
    "methods.noise.targeted_dropout": 14,
    "methods.projection.code_books": 14,
    "methods.channels.silence": 15,
    "methods.penalties.relevance": 16,
    "methods.cuts.synflow": 17,
    "methods.projection.quantize": 17,
    "methods.cuts.weightmom": 18,
    "methods.cuts.n2nskip": 19,
    "methods.cuts.calibrated": 21,
    "methods.cuts.sparsegpt": 25,
    "methods.cuts.surgeon": 25,
    "methods.cuts.wanda": 25,
}
"""Methods that are made of formulas in other rooms, and how many files that takes."""


@pytest.mark.parametrize("name", METHODS)
def test_a_method_imports_little(name):
    """Nothing that trains, reads data or writes records: what it is given at each moment is enough."""
    files = behind(name)
    assert len(files) <= MANY.get(name, 13)
    assert not {file for file in files if room(file) in ("data", "results") or file in ("train.training", "train.fit")}


@pytest.mark.parametrize("name", FILES)
def test_no_import_is_hidden_in_a_function(name):
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    hidden = {
        function.name
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and node.level
    }
    assert hidden - (set(COMMANDS) if name == "__main__" else set()) == set()


def test_public_names_alone_are_shown():
    for place in (
        lab,
        *(getattr(lab, name) for name in ("methods", "criteria", "recipes", "masks", "train", "results")),
    ):
        shown = dir(place)
        assert sorted(shown) == sorted(place.__all__)
        assert [name for name in shown if name.startswith("_") and name != "__version__"] == []
        assert all(hasattr(place, name) for name in shown)

"""What a person meets first: a quick answer, help with examples, completion, and a notebook to begin with."""

import ast
import os
import shutil
import site
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import nbformat
import pytest
from test_notebooks import _parameters, _size

import pruninglab as lab
from pruninglab.__main__ import EXAMPLES, main, parser_of
from pruninglab.console.completion import SHELLS

ROOT = Path(__file__).parent.parent


def test_version_and_help_wait_for_nothing():
    """Without torch, pandas and matplotlib, which take seconds to import."""
    code = (
        "import sys, pruninglab.__main__ as m; m.parser_of().format_help(); print(pruninglab.__version__, *sys.modules)"
    )
    seen = subprocess.run(
        [sys.executable, "-c", f"import pruninglab; {code}"], capture_output=True, text=True, cwd=ROOT
    )
    version, *modules = seen.stdout.split()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert version == settings["version"] == lab.__version__
    assert not {"torch", "numpy", "pandas", "matplotlib", "torchvision"} & set(modules)
    assert settings["scripts"] == {"pruninglab": "pruninglab.__main__:main"}


def subcommands() -> dict[str, Any]:
    groups: Any = parser_of()._subparsers
    return groups._group_actions[0].choices


@pytest.mark.parametrize("name", subcommands())
def test_the_help_of_a_command_ends_in_examples_that_parse(name):
    assert subcommands()[name].format_help().rstrip().endswith(EXAMPLES[name].rstrip())
    typed = [line.split("pruninglab ", 1)[1] for line in EXAMPLES[name].splitlines() if "pruninglab " in line]
    assert typed
    for line in typed:
        given = line.split(" > ")[0].strip(")").replace("'", "").split()
        assert parser_of().parse_args(given).command == name


def test_the_exit_codes_are_documented():
    shown = parser_of().format_help()
    assert all(f"\n  {code} " in shown for code in (0, 1, 2, 130))


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_every_command_and_option(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(f" {name}" in script or f"{name})" in script for name in subcommands())
    assert "--retry-failed" in script
    if program := shutil.which(shell):
        assert subprocess.run([program, "-n"], input=script, text=True).returncode == 0


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [("sw", ["sweep"]), ("sweep --re", ["--resources", "--retry-failed"]), ("completion f", ["fish"])],
)
def test_bash_completes(typed, offered, capsys, tmp_path):
    main(["completion", "bash"])
    words = ["pruninglab", *typed.split()]
    ask = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _pruninglab; echo ${{COMPREPLY[@]}}"
    asked = f"{capsys.readouterr().out}\n{ask}"
    shown = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert shown.stdout.split() == offered


def test_a_missing_library_is_named_with_what_brings_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nbformat", None)
    monkeypatch.delitem(sys.modules, "pruninglab.console.template", raising=False)
    assert main(["new", "mine"]) == 2
    assert "pip install 'pruninglab[lab]'" in capsys.readouterr().err


def test_problems_are_red_in_a_terminal_alone(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["results", str(tmp_path)])
    assert capsys.readouterr().err.startswith("pruninglab: ")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    main(["results", str(tmp_path)])
    assert capsys.readouterr().err.startswith("\x1b[31m")


def test_a_new_notebook_has_the_form_of_the_course_and_runs(tmp_path, capsys):
    assert main(["new", "my_study", "--folder", str(tmp_path)]) == 0
    path = tmp_path / "my_study.ipynb"
    assert str(path) in capsys.readouterr().out
    notebook: Any = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [*_parameters(path, code), *_size(code)] == []
    titles = [line for cell in notebook.cells for line in cell.source.splitlines() if line.startswith("## ")]
    assert titles == [f"## {t}" for t in ("The idea", "Parameters", "The method", "Run", "Look")] + titles[5:]
    assert len(titles) == 7
    names: dict[str, Any] = {"__name__": "__main__"}
    quick = "\ndata_name, model_name, dense_epochs, epochs = 'digits', 'lenet300', 1, 1"
    for cell in code:
        source = cell.source + (quick if "parameters" in cell.metadata.get("tags", []) else "")
        exec(compile(ast.parse(source), str(path), "exec"), names)
    assert {run.status for run in names["runs"].values()} == {"done"}
    assert main(["new", "my_study", "--folder", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_wheel_carries_the_notebooks_that_its_commands_run():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    carried = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert all((ROOT / source).exists() and f"pruninglab/{source}" == place for source, place in carried.items())
    source = (ROOT / "pruninglab" / "__main__.py").read_text(encoding="utf-8")
    named = {word.value for word in ast.walk(ast.parse(source)) if isinstance(word, ast.Constant)}
    assert {name for name in named if isinstance(name, str) and name.endswith(".ipynb")} - {
        os.path.basename(source) for source in carried
    } == set()


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The commands of a wheel that is built and installed beside the libraries of this Python, away from the clone."""
    away = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(away), str(ROOT)], check=True)
    venv.create(away / "venv")
    python = away / "venv/bin/python"
    place = subprocess.run(
        [python, "-c", "import site; print(*site.getsitepackages())"], capture_output=True, text=True
    )
    libraries = site.getsitepackages()
    (Path(place.stdout.strip()) / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    wheel = next(away.glob("*.whl"))
    install = ["--python", str(python), "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run([*pip, *install], check=True)
    return away / "venv/bin"


@pytest.mark.slow
def test_an_installed_wheel_is_of_use_alone(installed, tmp_path):
    """Every command that runs a notebook, and words that fit where there is no clone and no Makefile."""
    own = {"JUPYTER_PATH": str(Path(sys.prefix, "share/jupyter")), "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}

    def said(*typed: str) -> str:
        program = [installed / "python", "-m", "pruninglab"] if typed[0] == "data" else [installed / "pruninglab"]
        seen = subprocess.run(
            [*program, *typed], capture_output=True, text=True, cwd=tmp_path, env=os.environ | own, timeout=900
        )
        assert seen.returncode == 0, seen.stderr
        assert "make " not in seen.stdout
        return seen.stdout

    assert said("--version") == f"{lab.__version__}\n"
    assert "digits" in said("data")
    assert "jupyter lab" in said("demo")
    assert "global magnitude" in said("results", "runs/demo")
    said("report", "runs/demo", "--out", "page.html")
    assert "data:image/png;base64," in (tmp_path / "page.html").read_text(encoding="utf-8")
    said("new", "my_study")
    few = ("-p", "model_name=lenet300", "-p", "epochs=1", "-p", "dense_epochs=1")
    assert "1 of 1 cells done" in said("sweep", "my_study.ipynb", *few, "--jobs", "1", "--out", "runs/grid")
    shutil.copytree(ROOT / "notebooks/results/papers", tmp_path / "papers", ignore=_all_but("direct-71"))
    assert "direct-71.sparse" in said("verify", "papers")
    assert "26 rows" in said("papers")
    assert not list(Path(installed.parent).rglob("site-packages/pruninglab/notebooks/runs"))


def _all_but(name: str) -> Any:
    return lambda _, names: [one for one in names if "." in one and not one.startswith(f"{name}.")]

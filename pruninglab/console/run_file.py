"""One notebook or script run to its end, in one process or, under torchrun, in several that train together."""

import contextlib
import os
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat

from ..errors import ConfigError, DataError
from ..sweep import headless
from ..sweep.parameters import declared, grid


def run_file(file: Path, settings: Sequence[str] = (), out: Path | None = None) -> Path | None:
    """Run a notebook with these parameters, or a script with these arguments. Of several processes the first shows."""
    if not file.is_file():
        raise DataError(f"{file} is no file; give a notebook (.ipynb) or a script (.py).")
    first = int(os.environ.get("RANK") or 0) == 0
    if file.suffix == ".py":
        _script(file, settings, first)
        return None
    if file.suffix != ".ipynb":
        raise ConfigError(f"{file} is neither a notebook nor a script; expected a name that ends in .ipynb or .py.")
    executed = out or Path("runs") / file.name
    with tempfile.TemporaryDirectory() as beside:
        output = executed if first else Path(beside) / file.name
        output.parent.mkdir(parents=True, exist_ok=True)
        headless.execute(file, output, _parameters(file, settings), folder=file.parent.resolve())
    return executed if first else None


def _parameters(file: Path, settings: Sequence[str]) -> dict[str, object]:
    """`name=value` each, checked against the notebook's parameters."""
    given: dict[str, str] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting} sets nothing; write name=value.")
        given[name] = text
    found = grid(declared(nbformat.read(file, 4)), given)
    if len(found) > 1:
        raise ConfigError(f"these parameters name {len(found)} runs; expected one. Many runs are a sweep.")
    return found[0]


def _script(file: Path, arguments: Sequence[str], first: bool) -> None:
    before = sys.argv, sys.path[:]
    sys.argv, sys.path[:0] = [str(file), *arguments], [str(file.parent.resolve())]
    try:
        with contextlib.ExitStack() as quiet:
            if not first:
                nothing = quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
                quiet.enter_context(contextlib.redirect_stdout(nothing))
            runpy.run_path(str(file), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before

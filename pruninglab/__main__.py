"""`python -m pruninglab demo | data | results`: what a terminal needs; everything else is a notebook or a script."""

import argparse
import sys
from pathlib import Path

from . import __version__, results
from .errors import ConfigError, DataError, RunError


def demo(out: Path) -> None:
    """Run the first notebook headless; leave it executed, as a page, and as records; print its table."""
    import nbformat
    import papermill
    from nbconvert import HTMLExporter

    source = Path(__file__).parent.parent / "notebooks" / "00_start.ipynb"
    if not source.exists():
        raise ConfigError(
            "the notebooks are not part of the installed package; run `make demo` in a clone of the repository."
        )
    out.mkdir(parents=True, exist_ok=True)
    executed = out / source.name
    print(f"Running {source.name}: five ways to prune LeNet-5 on real 8x8 digits, about half a minute on two cores.")
    papermill.execute_notebook(
        source,
        executed,
        {"out": str(out.resolve())},
        kernel_name="python3",
        execution_timeout=600,
        extra_arguments=["--log-level=ERROR"],
    )
    page = executed.with_suffix(".html")
    page.write_text(HTMLExporter().from_notebook_node(nbformat.read(executed, 4))[0], encoding="utf-8")
    print(f"\n{results.compare_text(results.load(out))}\n")
    print(f"Executed notebook: {executed}\nPage to open in a browser: {page}")
    print("Open JupyterLab with: make lab")


def data() -> None:
    """Which data sets there are, and which of them can be loaded now."""
    from .data import available

    for name, about, here in available():
        print(f"{name:<14}{'ready' if here else 'files needed':<14}{about}")


def show(pattern: str, csv: Path | None) -> None:
    """All records that a pattern finds, as a table or as CSV."""
    frame = results.load(pattern)
    for path, why in frame.attrs["skipped"].items():
        print(f"left out: {path}: {why}", file=sys.stderr)
    if frame.empty:
        raise DataError(f"no records found by {pattern!r}; give a folder, a file or a pattern such as 'runs/**'.")
    if csv:
        frame.to_csv(csv, index=False)
    else:
        print(results.compare_text(frame))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pruninglab", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("demo", help="run the first notebook headless")
    command.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for notebook, page and records")
    commands.add_parser("data", help="list the data sets and where they stand")
    command = commands.add_parser("results", help="print records as a table")
    command.add_argument("pattern", help="a folder, a file, or a pattern such as 'runs/**'")
    command.add_argument("--csv", type=Path, help="write all columns to this file instead")
    given = parser.parse_args(arguments)
    try:
        if given.command == "demo":
            demo(given.out)
        elif given.command == "data":
            data()
        else:
            show(given.pattern, given.csv)
    except (ConfigError, DataError, RunError) as error:
        print(f"pruninglab: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

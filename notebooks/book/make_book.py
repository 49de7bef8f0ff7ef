"""Build the book from kept outputs: `python notebooks/book/make_book.py OUT` leaves the site in OUT/html.

The pages are the README, the course, the guide, the results and a reference of every room. Links that lead out of the
book go to the repository where its address is known, and are plain text where it is not.
"""

import inspect
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

import nbformat
from addresses import ROOT, inside, repository
from sphinx.cmd.build import main as sphinx

HERE = Path(__file__).resolve().parent
PAGES = {
    "README.md": "index.md",
    "notebooks/README.md": "notebooks/README.md",
    "notebooks/results/README.md": "notebooks/results/README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    **{f"notebooks/book/{name}.md": f"notebooks/book/{name}.md" for name in ("catalogue", "guide", "papers")},
}
ROOMS = (
    *("analysis", "benchmark", "criteria", "data", "layers", "masks", "methods", "models", "plots", "plots.concepts"),
    *("recipes", "results", "storage", "structured", "sweep", "train", "widgets"),
)


def badges(name: str, home: str) -> str:
    """Where a notebook can be run without an installation, if the repository is public."""
    short = home.removeprefix("https://")
    colab = f"https://colab.research.google.com/{short.replace('github.com', 'github', 1)}/blob/main/notebooks/{name}"
    binder = f"https://mybinder.org/v2/{short.replace('github.com', 'gh', 1)}/main?labpath=notebooks/{name}"
    return f"[Open in Colab]({colab}) · [Open in Binder]({binder})"


def copy(out: Path, home: str) -> list[str]:
    """Pages, notebooks and pictures in the places where they stand in the repository; the names of the notebooks."""
    notebooks = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    pages = PAGES | {f"notebooks/{name}": f"notebooks/{name}" for name in notebooks}
    for source, target in PAGES.items():
        place = out / target
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(inside((ROOT / source).read_text(encoding="utf-8"), source, pages, home), encoding="utf-8")
    for name in notebooks:
        notebook = nbformat.read(ROOT / "notebooks" / name, 4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = inside(cell.source, f"notebooks/{name}", pages, home)
        if home:
            notebook.cells[0].source = re.sub(r"\n", f"\n\n{badges(name, home)}\n", notebook.cells[0].source, count=1)
        nbformat.write(notebook, out / "notebooks" / name)
    for picture in [*(ROOT / "notebooks" / "results").rglob("*.png"), *HERE.glob("*.gif"), *HERE.glob("*.png")]:
        place = out / picture.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, place)
    return notebooks


def reference(room: str) -> str:
    """A page for a room: what it is, then every public class and function."""
    module = import_module(f"pruninglab.{room}")
    title = f"pruninglab.{room}"
    own = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    own = {name: thing for name, thing in own.items() if isinstance(thing, type) or inspect.isfunction(thing)}
    parts = [f".. automodule:: {title}\n" + ("   :no-members:\n" if own else "")]
    for name, thing in own.items():
        parts.append(f".. {'autoclass' if isinstance(thing, type) else 'autofunction'}:: {title}.{name}\n")
    return f"{title}\n{'=' * len(title)}\n\n" + "\n".join(parts)


def page(title: str, pages: list[str]) -> str:
    """A page that lists others."""
    listed = "\n".join(f"/{name}" for name in pages)
    return f"# {title}\n\n```{{toctree}}\n{listed}\n```\n"


def sides() -> str:
    """What stands in the bar at the top, hidden on the front page itself."""
    guide = ["notebooks/book/guide", "notebooks/book/catalogue", "notebooks/results/README", "notebooks/book/papers"]
    listed = "\n".join(["course", *guide, "reference", "CONTRIBUTING", "CHANGELOG"])
    return f"\n\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"


def main(out: Path) -> int:
    source = out / "source"
    shutil.rmtree(source, ignore_errors=True)
    (source / "_static").mkdir(parents=True)
    notebooks = copy(source, repository())
    for name in ("book.css", "icon.svg"):
        shutil.copy(HERE / name, source / "_static")
    shutil.copy(HERE / "conf.py", source)
    (source / "VERSION").write_text(import_module("pruninglab").__version__, encoding="utf-8")
    course = ["notebooks/README", *(f"notebooks/{name.removesuffix('.ipynb')}" for name in notebooks)]
    with (source / "index.md").open("a", encoding="utf-8") as index:
        index.write(sides())
    (source / "course.md").write_text(page("Course", course), encoding="utf-8")
    (source / "reference").mkdir()
    for room in ROOMS:
        (source / "reference" / f"{room}.rst").write_text(reference(room), encoding="utf-8")
    (source / "reference.md").write_text(page("Reference", [f"reference/{room}" for room in ROOMS]), encoding="utf-8")
    return sphinx(["-q", "-b", "html", "-j", "auto", str(source), str(out / "html")])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

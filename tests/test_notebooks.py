"""The committed form of the notebooks: what a reader, papermill and a diff rely on."""

import ast
import json
import operator
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from normalise_notebooks import WIDGET_VIEW, found, normalise, text

import pruninglab as lab

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PICTURE = r'src="data:image/[^"]+"'
LONGEST_CELL, MEDIAN_CELL, LONGEST_DEF = 12, 6, 5
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])/(?:[\w.-]+/)+[\w.-]+|\b[A-Z]:\\\w")


def problems(path: Path) -> list[str]:
    """Everything that keeps a notebook from being committed; empty when it is fine."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    ids = [cell.get("id") for cell in raw["cells"]]
    if None in ids or len(set(ids)) < len(ids):
        return ["every cell needs an id of its own (nbformat 4.5)"]
    notebook: Any = nbformat.from_dict(raw)
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return [f"not a valid notebook: {error.message}"]
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        *_metadata(notebook),
        *_execution(code),
        *_parameters(path, code),
        *_size(code),
        *_outputs(code),
        *_normal_form(path, notebook),
    ]


def _metadata(notebook: Any) -> Iterator[str]:
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"
    for name in ("widgets", "papermill"):
        if any(name in part.metadata for part in [notebook, *notebook.cells]):
            yield f"{name} metadata left in"


def _execution(code: list[Any]) -> Iterator[str]:
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        yield f"not executed once from top to bottom: counts {counts}"
    if any(output.output_type == "error" for cell in code for output in cell.outputs):
        yield "a cell ended in an error"


def _parameters(path: Path, code: list[Any]) -> Iterator[str]:
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        yield f"{len(tagged)} cells are tagged parameters; one is expected"
        return
    names: list[str] = []
    for statement in ast.parse(tagged[0].source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
            case _:
                yield f"the parameters cell holds more than assignments: {ast.unparse(statement)}"
    understood = papermill.inspect_notebook(path)
    for name in names:
        known = understood.get(name)
        if known is None:
            yield f"papermill does not understand parameter {name} (an = in its comment?)"
        elif known["inferred_type_name"] == "None" or not known["help"]:
            yield f"parameter {name} needs a type and a help comment: `name: type = value  # help`"


def _size(code: list[Any]) -> Iterator[str]:
    lines = [len(cell.source.splitlines()) for cell in code]
    if max(lines, default=0) > LONGEST_CELL:
        yield f"a cell of {max(lines)} lines; at most {LONGEST_CELL}"
    if lines and statistics.median(lines) > MEDIAN_CELL:
        yield f"the median cell has {statistics.median(lines)} lines; at most {MEDIAN_CELL}"
    for cell in code:
        tree = ast.parse(TransformerManager().transform_cell(cell.source))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_DEF:
                    yield f"def {node.name} has {length} lines; at most {LONGEST_DEF}, logic lives in the package"


def _outputs(code: list[Any]) -> Iterator[str]:
    for cell in code:
        for output in cell.outputs:
            shown = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
            for match in (ABSOLUTE_PATH.search(re.sub(PICTURE, "", words)) for words in shown):
                if match:
                    yield f"an output shows a path of one machine: {match.group()}"


def _normal_form(path: Path, notebook: Any) -> Iterator[str]:
    if text(normalise(notebook)) != path.read_text(encoding="utf-8"):
        yield "not in the normal form: run `make notebooks`, or tests/normalise_notebooks.py on it"


@pytest.mark.parametrize("path", found([NOTEBOOKS]), ids=lambda path: path.name)
def test_committed_form(path: Path) -> None:
    assert problems(path) == []


@pytest.mark.parametrize("path", found([NOTEBOOKS]), ids=lambda path: path.name)
def test_what_a_fresh_clone_shows(path: Path) -> None:
    """Before anything is trusted JupyterLab drops `<svg>` and keeps `<img>`, whose words a screen reader needs."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    pages = [output.get("data", {}).get("text/html", "") for output in outputs]
    assert [page[:80] for page in pages if "<svg" in page] == []
    images = [image for page in pages for image in re.findall(r"<img [^>]*>", page)]
    assert [image[:80] for image in images if not re.search(r'alt="[^"]+"', image)] == []
    assert [output for output in outputs if "image/png" in output.get("data", {})] == []


@pytest.mark.parametrize("path", found([NOTEBOOKS]), ids=lambda path: path.name)
def test_no_text_touches_another_in_any_figure(path: Path) -> None:
    """Measured by each figure when it was shown."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    drawn = [output for output in outputs if "data:image/png" in output.get("data", {}).get("text/html", "")]
    measured = [output.metadata.get("text/html", {}).get("touching", ["not measured"]) for output in drawn]
    assert measured == [[] for _ in drawn]


@pytest.mark.parametrize("path", found([NOTEBOOKS]), ids=lambda path: path.name)
def test_a_folded_cell_gives_nothing_away(path: Path) -> None:
    """JupyterLab shows its first line, however wide: a line of the answer would widen a narrow page, and tell it."""
    cells = nbformat.read(path, as_version=4).cells
    folded = [cell.source for cell in cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
    assert [source.splitlines()[0] for source in folded] == ["# One answer"]


def test_each_notebook_leads_to_its_neighbours() -> None:
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    for before, path, after in zip([None, *paths], paths, [*paths[1:], None], strict=False):
        last = nbformat.read(path, as_version=4).cells[-1]
        wanted = [other.name for other in (before, after) if other]
        assert [*wanted[: bool(before)], "README.md", *wanted[bool(before) :]] == re.findall(
            r"\]\(([^)]+)\)", last.source
        ), path


def test_the_index_has_every_notebook_in_order() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\(\1\.ipynb\) \|.+\| \d+ \|", (NOTEBOOKS / "README.md").read_text(), re.M)
    assert listed == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def test_the_glossary_leads_to_where_each_word_is_explained() -> None:
    rows = re.findall(r"^\| (.+) \| .+ \| (.+) \| \[\d+\]\((\w+)\.ipynb\) \|$", glossary(), re.M)
    assert len(rows) > 40
    assert [term for term, *_ in rows] == sorted((term for term, *_ in rows), key=str.lower)
    pages = {path.stem: nbformat.read(path, as_version=4).cells for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    prose = {name: "\n".join(c.source for c in cells if c.cell_type == "markdown") for name, cells in pages.items()}
    for term, names, page in rows:
        for word in term.split(", "):
            assert word.lower() in prose[page].lower(), f"{page} does not have {word}"
            bold = re.compile(rf"(?<!- )\*\*{re.escape(word)}\*\*", re.I)
            assert not [name for name in prose if name < page and bold.search(prose[name])], word
        for name in re.findall("`([^`]+)`", names):
            known = operator.attrgetter(name[4:])(lab) if name.startswith("lab.") else name
            assert known is not name or any(name in cell.source for cell in pages[page]), f"{page} does not have {name}"


def glossary() -> str:
    return (NOTEBOOKS / "README.md").read_text(encoding="utf-8").partition("## Glossary")[2]


OTHERS = {
    "02_before_training": {"sparsity": 0.9, "epochs": 1, "batches": 1, "seed": 1},
    "16_workbench": {"model_name": "lenet300", "sparsity": 0.8, "epochs": 2, "images": 20, "seed": 2},
}
"""The first notebook has others in the test of `pruninglab demo`."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["02_before_training", "16_workbench"])
def test_papermill_runs_them_with_other_parameters(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.ipynb"
    how = {"kernel_name": "python3", "cwd": NOTEBOOKS, "progress_bar": False, "execution_timeout": 300}
    papermill.execute_notebook(NOTEBOOKS / f"{name}.ipynb", out, OTHERS[name], **how)
    ran: Any = nbformat.read(out, as_version=4)
    assert ran.metadata.papermill.exception is None
    injected = next(cell for cell in ran.cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert all(f"{parameter} = " in injected.source for parameter in OTHERS[name])


# The checker itself, on a notebook that is fine and on the same one with a single fault.


def fine() -> Any:
    parameters = new_code_cell(
        "seed: int = 0  # of the data, the network and the training\nsparsity: float = 0.9  # share of weights cut",
        execution_count=1,
        metadata={"tags": ["parameters"]},
    )
    printed = new_output("stream", name="stdout", text="kept 3/4 of 12/24 weights\n")
    table = new_output("execute_result", execution_count=2, data={"text/html": "<td>1</td></tr>", "text/plain": "1"})
    look = new_code_cell("%matplotlib inline\nseed", execution_count=2, outputs=[printed, table])
    return normalise(new_notebook(cells=[new_markdown_cell("# The idea"), parameters, look]))


def written(notebook: Any, folder: Path) -> Path:
    path = folder / "notebook.ipynb"
    path.write_text(text(notebook), encoding="utf-8")
    return path


def test_a_fine_notebook_passes(tmp_path: Path) -> None:
    assert problems(written(fine(), tmp_path)) == []


def _unrun(nb: Any) -> None:
    nb.cells[2].execution_count = None


def _out_of_order(nb: Any) -> None:
    nb.cells[1].execution_count, nb.cells[2].execution_count = 2, 1


def _error(nb: Any) -> None:
    nb.cells[2].outputs = [new_output("error", ename="ValueError", evalue="", traceback=[])]


def _kernel(nb: Any) -> None:
    nb.metadata.kernelspec.name = "mine"


def _widgets(nb: Any) -> None:
    nb.metadata.widgets = {}


def _papermill(nb: Any) -> None:
    nb.metadata.papermill = {"exception": True}


def _papermill_cell(nb: Any) -> None:
    nb.cells[0].metadata.papermill = {"status": "completed"}


def _no_parameters(nb: Any) -> None:
    del nb.cells[1].metadata["tags"]


def _two_parameters(nb: Any) -> None:
    nb.cells[2].metadata["tags"] = ["parameters"]


def _no_type(nb: Any) -> None:
    nb.cells[1].source = "seed = None  # of everything"


def _no_help(nb: Any) -> None:
    nb.cells[1].source = "seed: int = 0"


def _equals_in_help(nb: Any) -> None:
    nb.cells[1].source = "layers: list = None  # names, None = all"


def _import_in_parameters(nb: Any) -> None:
    nb.cells[1].source += "\nimport torch"


def _long_cell(nb: Any) -> None:
    nb.cells[2].source = "1\n" * 13


def _long_median(nb: Any) -> None:
    nb.cells[2].source = "1\n" * 12


def _long_def(nb: Any) -> None:
    nb.cells[2].source = "def f():\n" + "    1\n" * 5


def _machine_path(nb: Any) -> None:
    nb.cells[2].outputs[0].text = "saved to /" + "home/ada/run.json\n"


def _machine_path_in_table(nb: Any) -> None:
    nb.cells[2].outputs[1].data["text/html"] = "<td>/" + "srv/ada/run.json</td>"


def _python_version(nb: Any) -> None:
    nb.metadata.language_info.version = "3.12.1"


def _widget_view(nb: Any) -> None:
    nb.cells[2].outputs[1].data[WIDGET_VIEW] = {"model_id": "0"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_unrun, "not executed once"),
        (_out_of_order, "not executed once"),
        (_error, "ended in an error"),
        (_kernel, "not python3"),
        (_widgets, "widgets metadata"),
        (_papermill, "papermill metadata"),
        (_papermill_cell, "papermill metadata"),
        (_no_parameters, "0 cells are tagged"),
        (_two_parameters, "2 cells are tagged"),
        (_no_type, "needs a type"),
        (_no_help, "needs a type"),
        (_equals_in_help, "does not understand parameter layers"),
        (_import_in_parameters, "more than assignments: import torch"),
        (_long_cell, "a cell of 13 lines"),
        (_long_median, "the median cell"),
        (_long_def, "def f has 6 lines"),
        (_machine_path, "path of one machine"),
        (_machine_path_in_table, "path of one machine"),
        (_python_version, "not in the normal form"),
        (_widget_view, "not in the normal form"),
    ],
)
def test_a_fault_is_named(spoil: Callable[[Any], None], said: str, tmp_path: Path) -> None:
    notebook = fine()
    spoil(notebook)
    assert any(said in problem for problem in problems(written(notebook, tmp_path)))


@pytest.mark.parametrize("ids", [{}, {"id": "twice"}], ids=["missing", "twice"])
def test_a_fault_of_the_ids_is_named(ids: dict[str, str], tmp_path: Path) -> None:
    path = written(fine(), tmp_path)
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["cells"] = [{k: v for k, v in cell.items() if k != "id"} | ids for cell in raw["cells"]]
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert "an id of its own" in problems(path)[0]


def test_normalising_keeps_what_was_computed_and_joins_streams() -> None:
    pieces = [new_output("stream", name="stdout", text=t) for t in ("a\n", "b\n")]
    cell = new_code_cell("1", outputs=[*pieces, new_output("stream", name="stderr", text="c\n")])
    joined = normalise(new_notebook(cells=[cell])).cells[0].outputs
    assert [(o.name, o.text) for o in joined] == [("stdout", "a\nb\n"), ("stderr", "c\n")]

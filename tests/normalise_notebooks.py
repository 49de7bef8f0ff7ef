"""Run notebooks top to bottom and write them back in one normal form, so that a diff shows what changed and no more.

python tests/normalise_notebooks.py [--run] FILE_OR_FOLDER ...
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"  # points at a model that is gone when the file is opened


def found(paths: list[Path]) -> list[Path]:
    """The notebooks among files and folders, without what Jupyter and sweeps leave behind."""
    inside = [p for path in paths for p in (path.rglob("*.ipynb") if path.is_dir() else [path])]
    return sorted(p for p in inside if not {".ipynb_checkpoints", "runs"} & set(p.parts))


def normalise(notebook: Any) -> Any:
    """Drop what differs between two equal runs; nothing that was computed is touched."""
    language = {"name": "python"} | dict(notebook.metadata.get("language_info", {}))
    language.pop("version", None)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": language})
    notebook.nbformat, notebook.nbformat_minor = 4, max(5, notebook.nbformat_minor)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in {"tags", "jupyter"}})
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            for output in cell.outputs:
                if "text/plain" in output.get("data", {}):
                    output.data.pop(WIDGET_VIEW, None)
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Text printed in one go may arrive in pieces: join neighbours of one stream."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last["text"] += output.text
        else:
            joined.append(output)
    return joined


def lead(notebook: Any, path: Path) -> Any:
    """End with a cell that links to the notebook before, to the index and to the next one, where there is an index."""
    if not (path.parent / "README.md").exists():
        return notebook
    stems = sorted({path.stem, *(other.stem for other in path.parent.glob("*.ipynb"))})
    at = stems.index(path.stem)
    links = [f"← [{name}]({name}.ipynb)" for name in stems[:at][-1:]]
    links += ["[all notebooks](README.md)", *(f"[{name}]({name}.ipynb) →" for name in stems[at + 1 :][:1])]
    cell = nbformat.v4.new_markdown_cell(" · ".join(links), id="links")
    notebook.cells = [*(cell for cell in notebook.cells if cell.id != "links"), cell]
    return notebook


def text(notebook: Any) -> str:
    """The file of a notebook, byte for byte."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def run(notebook: Any, folder: Path) -> None:
    """Execute in a fresh kernel that stands in the notebook's own folder."""
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name=KERNEL["name"],
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--log-level=ERROR"],  # a local kernel need not warn that it is not encrypted
        resources={"metadata": {"path": str(folder)}},
    ).execute()


def main() -> int:
    """Rewrite each notebook in place; one that fails is left as it was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--run", action="store_true", help="execute first")
    chosen = parser.parse_args()
    failed = 0
    for path in found(chosen.paths):
        start = time.monotonic()
        notebook: Any = nbformat.read(path, as_version=4)
        if chosen.run:
            try:
                run(notebook, path.parent)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                print(f"{path}: not written\n{error}", file=sys.stderr)
                failed += 1
                continue
        partial = path.with_suffix(".ipynb.partial")
        partial.write_text(text(normalise(lead(notebook, path))), encoding="utf-8")
        os.replace(partial, path)
        print(f"{path}: {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

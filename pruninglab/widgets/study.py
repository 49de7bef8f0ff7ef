"""A choice as a notebook with parameters, and the command that runs a grid of it."""

import dataclasses
import shlex
from pathlib import Path

from .choice import Choice, as_code

NAMES = {"data": "data_name", "model": "model_name", "epochs": "epochs", "seed": "seed", "record": "record"}


def write(choice: Choice, path: Path) -> str:
    """Write the notebook; the command has three seeds, and three sparsities where the method is asked for one."""
    import nbformat.v4 as form

    cells = [
        form.new_markdown_cell(f"# {choice.method} on {choice.data}\n\nWritten by the workbench."),
        form.new_code_cell(_parameters(choice), metadata={"tags": ["parameters"]}),
        form.new_code_cell("from pathlib import Path\n\nimport pruninglab as lab"),
        form.new_code_cell("\n".join(_lines(choice))),
        form.new_code_cell("run"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = form.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(form.writes(notebook) + "\n", encoding="utf-8")
    return " ".join(["python -m pruninglab sweep", shlex.quote(str(path)), *_grid(choice), f"--out runs/{path.stem}"])


def _parameters(choice: Choice) -> str:
    amount = choice.sparsity
    lines = [
        f"data_name: str = {as_code(choice.data)}  # data set",
        f"model_name: str = {as_code(choice.model)}  # model",
        *([f"sparsity: float = {amount!r}  # share of the weights that the method removes"] if amount else []),
        f"epochs: int = {choice.epochs}  # epochs of training",
        f"seed: int = {choice.seed}  # of the split, the initial weights and the order of the batches",
        'out: str = ""  # folder for the record; nothing is written when empty',
    ]
    return "\n".join(lines)


def _lines(choice: Choice) -> list[str]:
    with_record = dataclasses.replace(choice, options={**choice.options, "record": None})
    names = NAMES | ({"sparsity": "sparsity"} if choice.sparsity else {})
    return ['record = Path(out) / "record.json" if out else None', *with_record.lines(names)]


def _grid(choice: Choice) -> list[str]:
    amount = choice.sparsity
    denser = (
        [round(1 - (1 - amount) * factor, 6) for factor in (4, 2, 1) if (1 - amount) * factor < 1] if amount else []
    )
    sparsities = [f"-p sparsity={','.join(map(str, denser))}"] if denser else []
    return [*sparsities, f"-p seed={choice.seed}:{choice.seed + 3}"]

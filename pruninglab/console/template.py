"""A notebook to begin a study with: six sections, and typed parameters that papermill and `pruninglab sweep` set."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ..errors import ConfigError

CELLS = (
    ("# {title}\n\n## The idea\n\nWrite down the question, and your guess, before you run anything.", ""),
    ("## Parameters\n\nFrom a terminal: `papermill {name}.ipynb out.ipynb -p sparsity 0.98`. A grid: "
     "`pruninglab sweep {name}.ipynb -p sparsity=0.9,0.95 -p seed=0:3 --out runs/{name}`.", ""),
    ('data_name: str = "digits"  # data set\n'
     'model_name: str = "lenet5"  # model\n'
     "sparsity: float = 0.95  # share of the weights that is set to zero\n"
     "dense_epochs: int = 4  # epochs of training before pruning\n"
     "epochs: int = 4  # epochs of each method\n"
     "seed: int = 0  # of the split, the initial weights and the order of batches\n"
     'out: str = ""  # folder for the records; none are written without one', "parameters"),
    ("from pathlib import Path\n\nimport pruninglab as lab\n\ndata = lab.load(data_name, seed=seed)\ndata", "code"),
    ("## The method\n\nOne dataclass is a method. This one removes the same share of the weights after each epoch. "
     "Put your own in its place: see `help(lab.Method)`.", ""),
    ("from dataclasses import dataclass\n\n\n@dataclass\nclass Mine(lab.Method):\n    sparsity: float = 0.9\n\n"
     "    def on_epoch(self, run):\n"
     '        run.cut("magnitude", self.sparsity * run.progress)', "code"),
    ("## Run\n\nFirst the dense network from which all methods start. Then two controls, and the method.", ""),
    ("model = lab.build(model_name, data, seed=seed)\n"
     "dense = lab.fit(model, data, epochs=dense_epochs, seed=seed)", "quiet"),
    ('methods = {{\n    "dense": lab.methods.Dense(),\n    "random mask": lab.methods.OneShot(sparsity, "random"),\n'
     '    "mine": Mine(sparsity),\n}}\n'
     "runs = {{name: lab.fit(dense, data, method, epochs=epochs, seed=seed) for name, method in methods.items()}}\n"
     "for name, run in runs.items() if out else ():\n"
     '    run.save(Path(out) / f"{{name}}.json")\n'
     "lab.results.table(runs)", "quiet"),
    ("## Look\n\nWhat do you expect to see? Which layers lose most?", ""),
    ("lab.plots.history(*runs.values(), labels=list(runs))", "quiet"),
    ('lab.plots.layers(runs["random mask"], runs["mine"], labels=["random mask", "mine"])', "quiet"),
    ("## What to notice, and try\n\n- Does the method beat the random mask by more than the seeds differ? "
     "`lab.compare` tells.\n- What does it cost?", ""),
    ("## References\n\nThe papers whose methods you use.", ""),
)  # fmt: skip


def write_notebook(name: str, folder: Path) -> Path:
    """`NAME.ipynb` in a folder; a file that is there already is never written over."""
    path = folder / f"{name.removesuffix('.ipynb')}.ipynb"
    if not path.stem.replace("-", "_").isidentifier():
        raise ConfigError(f"{name!r} is no name for a notebook; expected letters, digits and _, such as my_study.")
    if path.exists():
        raise ConfigError(f"{path} is there already; choose another name, or move it away.")
    words = {"name": path.stem, "title": path.stem.replace("_", " ").capitalize()}
    cells = [_cell(source.format(**words), kind) for source, kind in CELLS]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def _cell(source: str, kind: str) -> nbformat.NotebookNode:
    tags = {"parameters": ["parameters"], "quiet": ["nbval-ignore-output"]}.get(kind)
    return new_code_cell(source, metadata={"tags": tags} if tags else {}) if kind else new_markdown_cell(source)

"""A grid of notebook runs on Dask: each cell of it an executed notebook and a record, or nothing.

    sweep.plan("notebooks/14_sweep.ipynb", {"density": [0.1, 0.05], "seed": range(3)}, "runs/x").run()

What lies in the folder:

    runs/x/density=0.1_seed=0_1a2b3c4d/     a finished cell: cell.json, notebook.ipynb, and what the notebook wrote
    runs/x/index.html, summary.csv          all finished cells in one table
    runs/x/.work/                           cells in flight; what a kill leaves there is gone on with
    runs/x/.starts/                         dense networks that cells share (`recipes.dense_start`)

A cell is finished when its folder has been renamed into place; only this process does that, so that a cell is never
finished twice. Cells that are finished are not run again; a cell that was killed begins anew in the folder that it had,
where the checkpoints are that its notebook wrote.
"""

from .cell import run_cell
from .parameters import Parameter, declared, grid, name_of, read_grid, source_hash
from .plan import Sweep, plan
from .sequential import until_width

__all__ = [
    "Parameter",
    "Sweep",
    "declared",
    "grid",
    "name_of",
    "plan",
    "read_grid",
    "run_cell",
    "source_hash",
    "until_width",
]


def __dir__() -> list[str]:
    return __all__

"""The papers' tables, measured: each row by its own method, with its controls, at equal steps."""

from .rows import TABLES, Cell, Row
from .runner import describe_table, run_table

__all__ = ["TABLES", "Cell", "Row", "describe_table", "run_table"]


def __dir__() -> list[str]:
    return __all__

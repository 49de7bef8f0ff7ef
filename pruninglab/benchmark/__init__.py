"""The papers' tables, measured: each row by its own method, with its controls, at equal steps."""

from .report import beside, coded
from .rows import TABLES, Cell, Row
from .runner import describe_table, run_table
from .verify import verify

__all__ = ["TABLES", "Cell", "Row", "beside", "coded", "describe_table", "run_table", "verify"]


def __dir__() -> list[str]:
    return __all__

"""The papers' tables, measured: each row by its own method, with its controls, at equal steps."""

from .report import beside, coded, measured, overview
from .rows import Cell, Row, Table
from .runner import describe_table, estimate, run_table
from .tables import TABLES
from .verify import verify

__all__ = [
    "TABLES",
    "Cell",
    "Row",
    "Table",
    "beside",
    "coded",
    "describe_table",
    "estimate",
    "measured",
    "overview",
    "run_table",
    "verify",
]


def __dir__() -> list[str]:
    return __all__

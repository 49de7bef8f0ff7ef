"""One record for each run, and all records as one table."""

from ..identity import describe, tensor_hash
from .record import SCHEMA, Result
from .tables import compare_text, load, table

__all__ = [
    "SCHEMA",
    "Result",
    "compare_text",
    "describe",
    "load",
    "table",
    "tensor_hash",
]


def __dir__() -> list[str]:
    return __all__

"""What makes sparsity pay on a processor: a sparse engine, C code, ONNX and exported programs."""

from .c_file import CFile, export_c
from .engine import Engine, compile
from .programs import export_onnx, export_program

__all__ = [
    "CFile",
    "Engine",
    "compile",
    "export_c",
    "export_onnx",
    "export_program",
]


def __dir__() -> list[str]:
    return __all__

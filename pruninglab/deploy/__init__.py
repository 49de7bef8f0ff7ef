"""What makes sparsity pay on a processor: a sparse engine, C code, ONNX and exported programs."""

from .engine import Engine, compile

__all__ = [
    "Engine",
    "compile",
]


def __dir__() -> list[str]:
    return __all__

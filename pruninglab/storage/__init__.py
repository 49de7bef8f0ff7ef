"""What goes to disk and how large it is: atomic files, state, the sparse file."""

from .files import HasModel, Source, check_writable, load_state, save_state, write_atomic
from .sparse import index_sizes, layer_sizes, load, save, sizes, state_bytes

__all__ = [
    "HasModel",
    "Source",
    "check_writable",
    "index_sizes",
    "layer_sizes",
    "load",
    "load_state",
    "save",
    "save_state",
    "sizes",
    "state_bytes",
    "write_atomic",
]


def __dir__() -> list[str]:
    return __all__

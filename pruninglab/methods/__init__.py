"""Methods: one paper per file. Each is a dataclass that `lab.fit` takes; several may be combined."""

from .gradual import Gradual
from .oneshot import Dense, OneShot

__all__ = ["Dense", "Gradual", "OneShot"]

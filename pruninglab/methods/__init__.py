"""Methods: one paper per file. Each is a dataclass that `lab.fit` takes; several may be combined."""

from .admm import ADMM
from .gradual import Gradual
from .oneshot import Dense, OneShot
from .pgd import PGD
from .quantize import Quantize
from .shared import SharedWeights

__all__ = ["ADMM", "PGD", "Dense", "Gradual", "OneShot", "Quantize", "SharedWeights"]

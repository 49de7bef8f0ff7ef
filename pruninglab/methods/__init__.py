"""Methods: one paper per file. Each is a dataclass that `lab.fit` takes; several may be combined."""

from .admm import ADMM
from .gated import GatedPruning
from .gradual import Gradual
from .l0 import L0
from .lobster import LOBSTER
from .n2nskip import N2NSkip
from .oneshot import Dense, OneShot
from .pgd import PGD
from .quantize import Quantize
from .relevance import L1, L2, RelevanceL2
from .sensitivity import Sensitivity
from .shared import SharedWeights
from .soft_sharing import SoftSharing
from .synflow import SynFlow
from .targeted_dropout import TargetedDropout
from .variational import VariationalDropout
from .weightmom import WeightMom

__all__ = [
    "ADMM",
    "L0",
    "L1",
    "L2",
    "LOBSTER",
    "PGD",
    "Dense",
    "GatedPruning",
    "Gradual",
    "N2NSkip",
    "OneShot",
    "Quantize",
    "RelevanceL2",
    "Sensitivity",
    "SharedWeights",
    "SoftSharing",
    "SynFlow",
    "TargetedDropout",
    "VariationalDropout",
    "WeightMom",
]

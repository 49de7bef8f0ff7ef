"""Methods: one paper per file. Each is a dataclass that `lab.fit` takes; several may be combined."""

from .admm import ADMM
from .gated import GatedPruning
from .gradual import Gradual
from .group_lasso import GroupLasso
from .lobster import LOBSTER
from .n2nskip import N2NSkip
from .oneshot import Dense, OneShot
from .pgd import PGD
from .quantize import Quantize
from .relevance import L1, L2, RelevanceL2
from .sensitivity import Sensitivity
from .shared import SharedWeights
from .silence import Silence
from .slimming import Slimming
from .soft_sharing import SoftSharing
from .synflow import SynFlow
from .targeted_dropout import TargetedDropout
from .weightmom import WeightMom

__all__ = [
    "ADMM",
    "L1",
    "L2",
    "LOBSTER",
    "PGD",
    "Dense",
    "GatedPruning",
    "Gradual",
    "GroupLasso",
    "N2NSkip",
    "OneShot",
    "Quantize",
    "RelevanceL2",
    "Sensitivity",
    "SharedWeights",
    "Silence",
    "Slimming",
    "SoftSharing",
    "SynFlow",
    "TargetedDropout",
    "WeightMom",
]

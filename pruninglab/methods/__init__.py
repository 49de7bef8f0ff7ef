"""Methods: one paper per file. Each is a dataclass that `lab.fit` takes; several may be combined."""

from .admm import ADMM
from .gated import GatedPruning
from .global_sparse_momentum import GlobalSparseMomentum
from .gradual import Gradual
from .group_lasso import GroupLasso
from .l0 import L0
from .lobster import LOBSTER
from .n2nskip import N2NSkip
from .oneshot import Dense, OneShot
from .pgd import PGD
from .quantize import Quantize
from .relevance import L1, L2, RelevanceL2
from .rigl import RigL
from .sensitivity import Sensitivity
from .shared import SharedWeights
from .silence import Silence
from .slimming import Slimming
from .soft_sharing import SoftSharing
from .sparse_evolution import SET
from .sparse_momentum import SparseMomentum
from .surgeon import OptimalBrainSurgeon
from .surgery import DynamicSurgery
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
    "SET",
    "Dense",
    "DynamicSurgery",
    "GatedPruning",
    "GlobalSparseMomentum",
    "Gradual",
    "GroupLasso",
    "N2NSkip",
    "OneShot",
    "OptimalBrainSurgeon",
    "Quantize",
    "RelevanceL2",
    "RigL",
    "Sensitivity",
    "SharedWeights",
    "Silence",
    "Slimming",
    "SoftSharing",
    "SparseMomentum",
    "SynFlow",
    "TargetedDropout",
    "VariationalDropout",
    "WeightMom",
]

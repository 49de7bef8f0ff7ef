"""Methods: one paper per file, by families. Each is a dataclass that `lab.fit` takes; several may be combined."""

from .channels.group_lasso import GroupLasso
from .channels.silence import Silence
from .channels.slimming import Slimming
from .controls import Dense
from .cuts.accuracy_gate import PruneWhileAccurate
from .cuts.gradual import Gradual
from .cuts.n2nskip import N2NSkip
from .cuts.oneshot import OneShot
from .cuts.recalibrate import Recalibrate
from .cuts.sparsegpt import SparseGPT
from .cuts.surgeon import OptimalBrainSurgeon
from .cuts.synflow import SynFlow
from .cuts.wanda import Wanda
from .cuts.weightmom import WeightMom
from .noise.l0 import L0
from .noise.targeted_dropout import TargetedDropout
from .noise.variational import VariationalDropout
from .penalties.lobster import LOBSTER
from .penalties.plain import L1, L2
from .penalties.relevance import RelevanceL2
from .penalties.sensitivity import Sensitivity
from .penalties.soft_sharing import SoftSharing
from .projection.admm import ADMM
from .projection.code_books import SharedWeights
from .projection.pgd import PGD
from .projection.quantize import Quantize
from .regrowth.dynamic_surgery import DynamicSurgery
from .regrowth.global_sparse_momentum import GlobalSparseMomentum
from .regrowth.rigl import RigL
from .regrowth.set import SET
from .regrowth.sparse_momentum import SparseMomentum

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
    "GlobalSparseMomentum",
    "Gradual",
    "GroupLasso",
    "N2NSkip",
    "OneShot",
    "OptimalBrainSurgeon",
    "PruneWhileAccurate",
    "Quantize",
    "Recalibrate",
    "RelevanceL2",
    "RigL",
    "Sensitivity",
    "SharedWeights",
    "Silence",
    "Slimming",
    "SoftSharing",
    "SparseGPT",
    "SparseMomentum",
    "SynFlow",
    "TargetedDropout",
    "VariationalDropout",
    "Wanda",
    "WeightMom",
]


def __dir__() -> list[str]:
    return __all__

"""2:4 sparsity for the sparse tensor cores of GPUs."""

import copy

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..typed import checked


@checked
def semi_structured(model: nn.Module) -> nn.Module:
    """A copy for NVIDIA GPUs from Ampere on, in 16 bits, whose 2:4 linear layers run on their sparse tensor cores.

    The layers need a 2:4 pattern (`criteria.NofM`) and sides that are multiples of 64; the others stay dense.
    """
    ready = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    if not ready:
        here = torch.cuda.get_device_name() if torch.cuda.is_available() else "this machine has none"
        raise ConfigError(
            f"2:4 sparsity is fast only on NVIDIA GPUs from compute capability 8.0 on; {here}. On a CPU it saves bytes "
            "(storage.sizes), not time; `shrink` saves both."
        )
    from torch.sparse import to_sparse_semi_structured

    model = copy.deepcopy(model).eval().half().cuda()
    chosen = [m for m in model.modules() if isinstance(m, nn.Linear) and is_2_to_4(m.weight) and not _odd(m.weight)]
    if not chosen:
        raise ConfigError("no linear layer has a 2:4 pattern and sides that are multiples of 64; cut by criteria.NofM.")
    for module in chosen:
        module.weight = nn.Parameter(to_sparse_semi_structured(module.weight.detach()), requires_grad=False)
    return model


@checked
def is_2_to_4(weight: Tensor) -> bool:
    """Whether of every 4 neighbours along the input dimension at most 2 are not 0."""
    by_input = (weight.detach() != 0).movedim(1, -1)
    return by_input.shape[-1] % 4 == 0 and int(by_input.unflatten(-1, (-1, 4)).sum(-1).max()) <= 2


def _odd(weight: Tensor) -> bool:
    return any(side % 64 for side in weight.shape)

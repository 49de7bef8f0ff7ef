"""Wanda's score: Sun, Liu, Bair and Kolter, "A simple and effective pruning approach for large language models", ICLR
2024.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers.names import canonical_parameters
from ..layers.precision import exact_dtype
from ..typed import Checked, Count
from .gradients import first
from .inputs import Inputs, exactly
from .registry import BY_NAME, Batches


def of_inputs(weight: Tensor, norms: Tensor) -> Tensor:
    """|w|·‖x‖, ‖x‖ the norm of what the weight is multiplied with: groups x 1 x inputs."""
    rows = exactly(weight).abs().reshape(len(norms), -1, norms.shape[-1])  # groups x outputs x inputs
    return (rows * norms).view(weight.shape).to(weight.device, exact_dtype(weight.device))


@dataclass(frozen=True)
class Wanda(Checked):
    """|w|·‖x‖, ‖x‖ the norm over `batches` batches of what the weight is multiplied with. Made for scope="row".

    Weights of linear layers and convolutions have a score, embeddings and recurrent layers have none. All inputs are
    those of the network as it is; `lab.methods.Wanda` takes those of the pruned one, layer by layer.
    """

    batches: Count = 1

    @torch.no_grad()
    def __call__(self, model: nn.Module, batches: Batches | None) -> dict[str, Tensor]:
        seen = first(batches, self.batches, "Wanda")
        weights = {name: w for name, w in canonical_parameters(model).items() if w.ndim > 1}
        with Inputs(weights, squares=True) as inputs:
            for x, _ in seen:
                model(x)
        known = [name for name in inputs.moments if name not in inputs.others]
        return {name: of_inputs(weights[name], inputs.moments[name].sqrt()) for name in known}


BY_NAME.update(wanda=Wanda())

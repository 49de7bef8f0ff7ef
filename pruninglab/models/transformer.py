"""A small transformer encoder that answers at every place of a sequence.

Vaswani et al., "Attention is all you need", 2017, with the norms before each part, as has become usual since.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..typed import Count, Range, checked

Layers = Annotated[int, Range(1, 1000)]


class Block(nn.Module):
    """Attention and a two-layer perceptron, each beside a shortcut."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.fc1, self.relu, self.fc2 = nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.fc2(self.relu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """Embeddings of tokens and of places, blocks, a norm, and a linear layer that answers at every place."""

    def __init__(
        self, length: int, classes: int, width: int, layers: int, block: Callable[[], nn.Module], bias: bool = True
    ):
        super().__init__()
        self.token = nn.Embedding(classes, width)
        self.place = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(block() for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, length) to logits (n, classes, length), as cross-entropy takes them."""
        place = self.place(torch.arange(x.shape[1], device=x.device))
        return self.fc(self.norm(self.blocks(self.token(x) + place))).transpose(1, 2)


@checked
def transformer(
    shape: tuple[Count, ...], classes: Count, *, width: Count = 32, layers: Layers = 2, heads: Count = 4
) -> Transformer:
    """For sequences of tokens, `shape` = (length,); 26,000 weights in linear and attention layers for 16 numbers."""
    if len(shape) != 1:
        raise ConfigError(
            f"the data have shape {shape}; this transformer reads sequences of tokens, shape (length,): "
            'for example lab.load("sorting")'
        )
    if width % heads:
        raise ConfigError(f"width={width}, heads={heads}: expected heads that divide the width.")
    return Transformer(shape[0], classes, width, layers, lambda: Block(width, heads))

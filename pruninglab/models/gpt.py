"""A small language model: it reads bytes and says at every place what comes next.

Radford et al., "Language models are unsupervised multitask learners", 2019 (GPT-2); keys and values for groups of
heads: Ainslie et al., "GQA: training generalized multi-query transformer models", 2023.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..layers.modules import CausalAttention
from ..randomness import generator
from ..typed import Count, CountFromZero, Strength, checked
from .transformer import Layers, Transformer


class Block(nn.Module):
    """Attention to what came before and a two-layer perceptron, each beside a shortcut."""

    def __init__(self, width: int, heads: int, kv_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, kv_heads)
        self.norm2 = nn.LayerNorm(width)
        self.fc1, self.gelu, self.fc2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))


class GPT(Transformer):
    def __init__(self, length: int, classes: int, width: int, layers: int, heads: int, kv_heads: int, tied: bool):
        super().__init__(length, classes, width, layers, lambda: Block(width, heads, kv_heads), bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:  # the two layers of a block that end in the shortcut: all of them together add 1
                ends = name.endswith(("out_proj.weight", "fc2.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * layers) ** 0.5 if ends else 0.02)
            elif "bias" in name:
                nn.init.zeros_(weight)
        if tied:
            self.fc.weight = self.token.weight


@checked
def gpt(
    shape: tuple[Count, ...],
    classes: Count,
    *,
    width: Count = 160,
    layers: Layers = 4,
    heads: Count = 5,
    kv_heads: Count | None = None,
    tied: bool = False,
) -> GPT:
    """For sequences of tokens, `shape` = (length,), such as `lab.load("code")`; 1.3 million weights.

    `kv_heads` below `heads` share keys and values among that many groups of heads; with 1 all heads share them. `tied`
    uses one matrix as the embedding of the tokens and as the last layer.
    """
    groups = heads if kv_heads is None else kv_heads
    if len(shape) != 1:
        raise ConfigError(
            f"the data have shape {shape}; gpt reads sequences of tokens, shape (length,): for example lab.load('code')"
        )
    if width % heads or heads % groups:
        raise ConfigError(
            f"width={width}, heads={heads}, kv_heads={kv_heads}: expected heads that divide width and kv_heads that "
            "divide heads."
        )
    return GPT(shape[0], classes, width, layers, heads, groups, tied)


@checked
@torch.no_grad()
def continued(
    model: nn.Module,
    prompt: str,
    *,
    length: CountFromZero = 200,
    temperature: Strength = 0.8,
    context: Count = 128,
    seed: CountFromZero = 0,
) -> str:
    """The prompt and `length` bytes that a model of bytes draws after it, each from what it finds likely.

    `temperature` below 1 prefers the likely ones; 0 takes the likeliest. At most the last `context` bytes are read: no
    more than the windows had that the model learned from.
    """
    place, g = next(model.parameters()).device, generator(seed, "continued")
    mode, text = model.training, list(prompt.encode()) or [10]
    model.eval()
    for _ in range(length):
        logits = model(torch.tensor([text[-context:]], device=place))[0, :, -1].float().cpu()
        likely = F.softmax(logits / max(temperature, 1e-6), 0)
        text.append(int(torch.multinomial(likely, 1, generator=g)) if temperature else int(logits.argmax()))
    model.train(mode)
    return bytes(text).decode(errors="replace")

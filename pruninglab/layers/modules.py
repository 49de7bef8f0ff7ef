"""Modules of this package that other rooms have to know: attention that can lose heads, a shortcut that pads."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..typed import Count, CountFromZero, checked
from .kinds import KINDS, Kind


class Attention(nn.MultiheadAttention):
    """`heads` heads of `head_dim` channels each, whatever the width of what goes in and out; without masks.

    The parameters have the names that they have in `nn.MultiheadAttention`, which would ask for width = heads · size.
    """

    @checked
    def __init__(self, full: nn.MultiheadAttention, heads: Count, head_dim: Count):
        place: Any = {"device": full.in_proj_weight.device, "dtype": full.in_proj_weight.dtype}
        bias = full.in_proj_bias is not None
        super().__init__(full.embed_dim, 1, full.dropout, bias, batch_first=full.batch_first, **place)
        self._qkv_same_embed_dim = False  # keeps the fused kernels of torch away: in those the heads fill the width
        self.heads, self.head_dim = heads, head_dim
        self.in_proj_weight = nn.Parameter(torch.empty(3 * heads * head_dim, full.embed_dim, **place))
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            self.in_proj_bias = nn.Parameter(torch.zeros(3 * heads * head_dim, **place))
        self.out_proj = type(full.out_proj)(heads * head_dim, full.embed_dim, bias=bias, **place)
        self.train(full.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            raise NotImplementedError("attention from which heads were removed takes no masks.")
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None,) * 3
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None


class CausalAttention(nn.Module):
    """Each place attends to itself and to those before it: `kv_heads` groups of query heads share keys and values.

    `qkv` gives all queries, then all keys, then all values; `out_proj` reads what the query heads mix.
    """

    @checked
    def __init__(self, width: Count, heads: Count, kv_heads: Count, head_dim: Count | None = None):
        super().__init__()
        self.kv_heads, self.queries, self.head_dim = kv_heads, heads // kv_heads, head_dim or width // heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_dim)
        self.out_proj = nn.Linear(heads * self.head_dim, width)

    @property
    def heads(self) -> int:
        return self.kv_heads * self.queries

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (n, heads and kv_heads, places, size)
        q, k, v = parts.split([self.heads, self.kv_heads, self.kv_heads], 1)
        if self.queries > 1:
            k, v = (part.repeat_interleave(self.queries, 1) for part in (k, v))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, kv_heads={self.kv_heads}, head_dim={self.head_dim}"

    def narrowed(self, kv_heads: int, group: int = 0) -> "CausalAttention":
        """With fewer groups of heads, new weights and all else alike."""
        small = CausalAttention(self.qkv.in_features, kv_heads * self.queries, kv_heads, self.head_dim)
        return small.to(self.qkv.weight.device, self.qkv.weight.dtype).train(self.training)


class PadShortcut(nn.Module):
    """Option A of the paper: every stride-th pixel, and zeros in the channels that are added. No parameters."""

    @checked
    def __init__(self, added: CountFromZero, stride: Count):
        super().__init__()
        self.added, self.stride = added, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))

    def extra_repr(self) -> str:
        return f"added={self.added}, stride={self.stride}"


KINDS[nn.MultiheadAttention] = Kind(prunable=True, last=True, heads="num_heads", narrowed=Attention)
KINDS[Attention] = Kind(prunable=True, last=True, heads="heads", widths=("heads", "head_dim"), narrowed=Attention)
KINDS[CausalAttention] = Kind(
    last=True,
    heads="kv_heads",
    widths=("kv_heads",),
    projection=("qkv.weight", "qkv.bias"),
    narrowed=CausalAttention.narrowed,
)
KINDS[PadShortcut] = Kind(reads="added", gives="added", widths=("added",), pads=True)

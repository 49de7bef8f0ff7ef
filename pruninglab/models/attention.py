"""Attention whose heads do not fill its width: what is left of `nn.MultiheadAttention` when heads are removed."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.MultiheadAttention):
    """`heads` heads of `head_dim` channels each, whatever the width of what goes in and out.

    The parameters have the names that they have in `nn.MultiheadAttention`, which would ask for width = heads · size.
    """

    widths: ClassVar[tuple[str, ...]] = ("heads", "head_dim")

    def __init__(self, width: int, heads: int, head_dim: int, dropout: float = 0.0, bias: bool = True, **options: Any):
        super().__init__(width, 1, dropout=dropout, bias=bias, **options)
        self._qkv_same_embed_dim = (
            False  # keeps the fused kernels of torch away, which take the heads to fill the width
        )
        self.heads, self.head_dim = heads, head_dim
        inner, place = heads * head_dim, {"device": self.in_proj_weight.device, "dtype": self.in_proj_weight.dtype}
        self.in_proj_weight = nn.Parameter(torch.empty(3 * inner, width, **place))
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            self.in_proj_bias = nn.Parameter(torch.zeros(3 * inner, **place))
        self.out_proj = nn.modules.linear.NonDynamicallyQuantizableLinear(inner, width, bias=bias, **place)

    @classmethod
    def like(cls, full: nn.MultiheadAttention, heads: int, head_dim: int) -> "Attention":
        options = {"dropout": full.dropout, "bias": full.in_proj_bias is not None, "batch_first": full.batch_first}
        weight = full.in_proj_weight
        made = cls(full.embed_dim, heads, head_dim, device=weight.device, dtype=weight.dtype, **options)
        return made.train(full.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3) if self.in_proj_bias is not None else (None,) * 3
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        mask = _additive(attn_mask, q)
        if mask is not None and mask.ndim == 3:  # one for each image and head
            mask = mask.unflatten(0, (len(q), self.heads))
        padding = _additive(key_padding_mask, q)
        if padding is not None:
            padding = padding[:, None, None, :]
            mask = padding if mask is None else mask + padding
        scores = q @ k.transpose(-1, -2) / self.head_dim**0.5
        shares = (scores if mask is None else scores + mask).softmax(-1)
        mixed = F.dropout(shares, self.dropout, self.training) @ v
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not self.batch_first:
            out = out.transpose(0, 1)
        if not need_weights:
            return out, None
        return out, shares.mean(1) if average_attn_weights else shares


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask of what to leave out as one that is added."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))

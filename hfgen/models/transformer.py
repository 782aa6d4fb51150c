"""Transformer blocks over the pixels of a feature map, with attention to a text (Rombach et al. 2022, appendix E.2).

Module names are those of diffusers' `Transformer2DModel`, so that weights load both ways.
"""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hfgen.models.attention import attention
from hfgen.models.blocks import GroupNorm


class CrossAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v: queries from pixels, keys and values from a context (Vaswani et al. 2017, eq. 1).

    Pixels are (B, HW, C), the context is (B, L, D); without a context it is self-attention. `head_dim` is d.
    """

    def __init__(self, channels: int, context_dim: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        # a whole number of heads
        self.head_dim = head_dim
        inner = channels // head_dim * head_dim
        # projections
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels), nn.Dropout(dropout)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the attention (B, HW, C) of pixels x (B, HW, C) to `context` (B, L, D), or to x without one."""
        if context is None:
            context = x                                                                  # (B, L, D)
        h = attention(self.to_q(x), self.to_k(context), self.to_v(context), self.head_dim)   # (B, HW, heads d)
        for layer in self.to_out:
            h = layer(h)
        return h                                                                         # (B, HW, C)


class GEGLU(nn.Module):
    """W x * gelu(V x) (Shazeer 2020, eq. 6)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """Return gated features (B, HW, inner) from x (B, HW, channels)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Two linear layers with GEGLU in between, 4 times as wide as the input."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Dropout(dropout), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, HW, C) from x (B, HW, C), each pixel on its own."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Optional self-attention, optional attention to the context, feed-forward: each x + f(LayerNorm(x))."""

    def __init__(
        self, channels: int, context_dim: int | None, head_dim: int, self_attention: bool, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels) if self_attention else None
        self.attn1 = CrossAttention(channels, channels, head_dim, dropout) if self_attention else None
        self.norm2 = nn.LayerNorm(channels) if context_dim else None
        self.attn2 = CrossAttention(channels, context_dim, head_dim, dropout) if context_dim else None
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, dropout)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Return features (B, HW, C) from pixels x (B, HW, C) and `context` (B, L, D), None without a text."""
        if self.norm1 is not None and self.attn1 is not None:
            x = x + self.attn1(self.norm1(x))
        if self.norm2 is not None and self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))                                                # (B, HW, C)


class SpatialTransformer(nn.Module):
    """x + f(x) for a feature map x (B, C, H, W); f are transformer blocks over its sequence of pixels."""

    def __init__(
        self, channels: int, context_dim: int | None, head_dim: int, layers: int, groups: int, self_attention: bool,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm = GroupNorm(groups, channels, 1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList()
        for _ in range(layers):
            block = TransformerBlock(channels, context_dim, head_dim, self_attention, dropout)
            self.transformer_blocks.append(block)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Return x + f(x), (B, C, H, W), from x (B, C, H, W) and `context` (B, L, D), None without a text."""
        h = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).flatten(1, 2)                 # (B, HW, C)
        for block in self.transformer_blocks:
            h = block(h, context)
        h = h.transpose(1, 2).unflatten(2, x.shape[2:])                                  # (B, C, H, W)
        return x + self.proj_out(h)

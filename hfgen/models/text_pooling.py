"""One vector of a whole text, added to the embedding of the timestep (Saharia et al. 2022, section 2.3).

Module names are those of diffusers' `TextTimeEmbedding`, so that weights load both ways.
"""

import torch
from torch import Tensor, nn

from hfgen.models.attention import attention


class AttentionPooling(nn.Module):
    """Attention of the mean of a sequence (B, L, F), plus a learned vector, to itself and all tokens, (B, F)."""

    def __init__(self, features: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.positional_embedding = nn.Parameter(torch.randn(1, features) / features**0.5)
        self.k_proj = nn.Linear(features, features)
        self.q_proj = nn.Linear(features, features)
        self.v_proj = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        asks = x.mean(1, keepdim=True) + self.positional_embedding.to(x.dtype)           # (B, 1, F)
        seen = torch.cat([asks, x], 1)                                                   # (B, 1 + L, F)
        return attention(self.q_proj(asks), self.k_proj(seen), self.v_proj(seen), self.head_dim).flatten(1)


class TextTimeEmbedding(nn.Module):
    """A text's features (B, L, F) as a vector (B, time_dim) for the embedding of the timestep."""

    def __init__(self, features: int, time_dim: int, head_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(features)
        self.pool = AttentionPooling(features, head_dim)
        self.proj = nn.Linear(features, time_dim)
        self.norm2 = nn.LayerNorm(time_dim)

    def forward(self, text: Tensor) -> Tensor:
        vector: Tensor = self.norm2(self.proj(self.pool(self.norm1(text))))
        return vector

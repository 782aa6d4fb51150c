"""Texts pooled to one vector: attention over the features of their tokens (Saharia et al. 2022, section 2.3)."""

import torch
import torch.nn as nn
from torch import Tensor

from hfgen.errors import ConfigError
from hfgen.models.attention import attention


class AttentionPooling(nn.Module):
    """Attention pooling of a sequence (B, L, F) to (B, F): mean plus a learned vector attends to mean and tokens."""

    def __init__(self, features: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.positional_embedding = nn.Parameter(torch.randn(1, features) / features**0.5)
        self.k_proj = nn.Linear(features, features)
        self.q_proj = nn.Linear(features, features)
        self.v_proj = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled vector (B, F) of a sequence x (B, L, F)."""
        query = x.mean(1, keepdim=True) + self.positional_embedding.to(x.dtype)          # (B, 1, F)
        keys = torch.cat([query, x], 1)                                                  # (B, 1 + L, F)
        return attention(self.q_proj(query), self.k_proj(keys), self.v_proj(keys), self.head_dim).flatten(1)


class PooledText(nn.Module):
    """Text features (B, L, F) pooled to a normalised vector (B, width)."""

    def __init__(self, features: int, width: int, head_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(features)
        self.pool = AttentionPooling(features, head_dim)
        self.proj = nn.Linear(features, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, text: Tensor) -> Tensor:
        """Return the vector (B, width) of text features (B, L, F)."""
        vector: Tensor = self.norm2(self.proj(self.pool(self.norm1(text))))
        return vector


def check_text(text: Tensor | None, features: int | None) -> None:
    """Raise ConfigError unless the `text` (B, L, F) is given exactly if the network has `features` F of texts."""
    if (text is None) != (features is None):
        expected = "None: this network has no texts" if features is None else "given"
        raise ConfigError(f"encoder_hidden_states must be {expected} (text_width={features})")

"""The noise predictor for points in the plane (or a few dimensions): a residual MLP with the U-Net's call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.utils import BaseOutput

from hfgen.config import ConfigMixin
from hfgen.errors import ConfigError
from hfgen.models.blocks import SinusoidalFeatures, TimestepEmbedding, as_timesteps
from hfgen.models.checks import require, require_int, require_number


@dataclass
class MLPOutput(BaseOutput):
    """What `MLPDenoiser` returns: `sample`, (B, dim)."""

    sample: torch.Tensor


class ResidualBlock(nn.Module):
    """Residual block conditioned on time: h + W_2 silu(W_1 norm(h) + W_t temb)."""

    def __init__(self, hidden: int, time_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.linear_1 = nn.Linear(hidden, hidden)
        self.time_emb_proj = nn.Linear(time_dim, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, h: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        return h + self.linear_2(F.silu(self.linear_1(self.norm(h)) + self.time_emb_proj(temb)))


class MLPDenoiser(ModelMixin, ConfigMixin):
    """Residual MLP that predicts the noise in points x_t (B, dim), called like the U-Net.

    `data_mean` (one number a coordinate) and `data_std` (one number, or one a coordinate) lead from model coordinates
    to data coordinates: x_data = data_std * x + data_mean. They are stored for the pipeline; forward ignores them.
    Raises ConfigError, naming the field, for values that are impossible.
    """

    @register_to_config
    def __init__(
        self,
        dim: int = 2,
        hidden: int = 128,
        layers: int = 4,
        time_embedding_dim: int = 128,
        num_class_embeds: int | None = None,
        data_mean: Sequence[float] = (0.0, 0.0),
        data_std: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        self._check_config()
        self.linear_in = nn.Linear(dim, hidden)
        self.time_proj = SinusoidalFeatures(time_embedding_dim)
        self.time_embedding = TimestepEmbedding(time_embedding_dim, time_embedding_dim)
        self.class_embedding: nn.Module | None = None
        if num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, time_embedding_dim)
        self.blocks = nn.ModuleList(ResidualBlock(hidden, time_embedding_dim) for _ in range(layers))
        self.norm_out = nn.LayerNorm(hidden)
        self.linear_out = nn.Linear(hidden, dim)

    def _check_config(self) -> None:
        c = self.config
        for field, high in (("dim", 4096), ("hidden", 2**16), ("layers", 256), ("time_embedding_dim", 2**16)):
            require_int(field, c[field], high=high)
        if c["num_class_embeds"] is not None:
            require_int("num_class_embeds", c["num_class_embeds"])
        mean, std = c["data_mean"], c["data_std"]
        for field, value in (("data_mean", mean), ("data_std", std)):
            fits = not isinstance(value, list | tuple) or len(value) == c["dim"]
            require(fits, field, value, f"one number for each of the {c['dim']} coordinates")
        for value in mean if isinstance(mean, list | tuple) else (mean,):
            require_number("data_mean", value, -1e30, 1e30)
        for value in std if isinstance(std, list | tuple) else (std,):
            require_number("data_std", value, 1e-30, 1e30)

    @property
    def config(self) -> Any:
        """Return the configuration plus `in_channels` (= dim) and `sample_size` (None), which the U-Net's has too."""
        saved = super().config
        return FrozenDict({**saved, "in_channels": saved["dim"], "sample_size": None})

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> MLPOutput | tuple[torch.Tensor]:
        """Return the prediction (B, dim) as `.sample` or as a tuple of one.

        `sample`: x_t (B, dim). `timestep`: numbers in [0, 999], whole or not, of shape (), (1,) or (B,).
        `class_labels`: (B,) if conditional, else None. `encoder_hidden_states` must be None. ConfigError otherwise.
        """
        if encoder_hidden_states is not None:
            raise ConfigError("encoder_hidden_states must be None: this network takes no text, only class_labels")
        if (self.class_embedding is None) != (class_labels is None):
            wanted = "None: this network has no class embedding" if self.class_embedding is None else "given"
            raise ConfigError(f"class_labels must be {wanted} (num_class_embeds={self.config['num_class_embeds']})")

        features = self.time_proj(as_timesteps(timestep, sample.device))                 # (B or 1, T)
        temb = self.time_embedding(features.to(sample.dtype))
        if self.class_embedding is not None:
            temb = temb + self.class_embedding(class_labels)
        temb = F.silu(temb)

        h = self.linear_in(sample)                                                       # (B, hidden)
        for block in self.blocks:
            h = block(h, temb)
        out = self.linear_out(F.silu(self.norm_out(h)))                                  # (B, dim)
        return MLPOutput(sample=out) if return_dict else (out,)

"""Parts of a U-Net: time features, residual block, self-attention, halving and doubling of the resolution.

Module names are those of diffusers' blocks, so that weights load both ways.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from hfgen.checks import require
from hfgen.models.attention import attention

Activation = Callable[[torch.Tensor], torch.Tensor]

ACTIVATIONS: dict[str, Activation] = {"silu": F.silu, "swish": F.silu, "mish": F.mish, "gelu": F.gelu, "relu": F.relu}


def as_timesteps(timestep: torch.Tensor | float, device: torch.device) -> torch.Tensor:
    """Return timesteps of shape (B,), or (1,) for a single one, whose features broadcast to the batch."""
    return torch.as_tensor(timestep, device=device).reshape(-1)


class SinusoidalFeatures(nn.Module):
    """Sines and cosines of t at geometric frequencies: sin(t / 10000^(i / (D/2 - shift))).

    t (B,) to (B, D) (Vaswani et al. 2017, sec. 3.5; Ho et al. 2020). The result is float32 for every dtype of the
    model, because t = 998 and t = 999 are equal in bfloat16. An odd D is padded with a zero.
    """

    def __init__(self, dim: int, cos_first: bool = True, shift: float = 0.0) -> None:
        super().__init__()
        self.dim, self.cos_first, self.shift = dim, cos_first, shift

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """Return the features (B, D) of t (B,), float32 in [-1, 1]."""
        half = self.dim // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - self.shift)
        phase = t[:, None].float() * exponent.exp()                                     # (B, D/2)
        waves = (phase.cos(), phase.sin()) if self.cos_first else (phase.sin(), phase.cos())
        return F.pad(torch.cat(waves, dim=1), (0, self.dim % 2))                        # (B, D)


FREQUENCY_STD = 16.0
"""Standard deviation of random frequencies (Song et al. 2021, score SDE, appendix C.2)."""


class FourierFeatures(nn.Module):
    """Cosines and sines of t at fixed random frequencies: cos(2 pi w t), w ~ N(0, scale^2) (Tancik et al. 2020).

    t (B,) to (B, 2 dim). The frequencies are saved with the weights and not trained. Default: 16 waves for 1,000
    timesteps.
    """

    def __init__(self, dim: int, scale: float = FREQUENCY_STD / 1000) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim) * scale, requires_grad=False)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """Return the features (B, 2D), in [-1, 1], of t (B,)."""
        phase = t[:, None].to(self.weight.dtype) * self.weight * 2 * math.pi             # (B, D)
        return torch.cat((phase.cos(), phase.sin()), dim=1)                              # (B, 2D)


def noise_level(t: torch.Tensor) -> torch.Tensor:
    """Return t (B,) as noise levels > 0: 0, the first timestep of DDPM, which has no logarithm, counts as 1."""
    return t + (t == 0).to(t.dtype)


class LogFourierFeatures(FourierFeatures):
    """Sines and cosines of the logarithm of a noise level t at fixed random frequencies: sin(2 pi w log t).

    w ~ N(0, 16^2) (Song et al. 2021, score SDE, appendix C.2). t = 0 counts as 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, FREQUENCY_STD)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """Return the features (B, 2D), in [-1, 1], of t (B,) >= 0."""
        phase = torch.log(noise_level(t))[:, None] * self.weight * 2 * math.pi           # (B, D)
        return torch.cat((phase.sin(), phase.cos()), dim=1)                              # (B, 2D)


class TableFeatures(nn.Embedding):
    """Features of the timesteps 0, ..., T - 1, a row of a table each; between timesteps they are interpolated."""

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """Return the features (B, D) of t (B,) in [0, T - 1], integers or not."""
        if not t.is_floating_point():
            return super().forward(t)
        below = t.long()
        above = (below + 1).clamp(max=self.num_embeddings - 1)
        part = (t - below)[:, None].to(self.weight.dtype)                                # (B, 1)
        return super().forward(below).lerp(super().forward(above), part)                 # (B, D)

    def use_fourier_features(self) -> None:
        """Fill the table with `FourierFeatures` of 16 waves for all timesteps, and freeze it."""
        waves = FourierFeatures(self.embedding_dim // 2, FREQUENCY_STD / self.num_embeddings)
        features = waves(torch.arange(self.num_embeddings))
        with torch.no_grad():
            self.weight.copy_(F.pad(features, (0, self.embedding_dim % 2)))
        self.weight.requires_grad_(False)


class TimestepEmbedding(nn.Module):
    """Two linear layers that turn time features (B, F) into the embedding (B, D)."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(features, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the embedding (B, D) of time features (B, F) in [-1, 1]."""
        return self.linear_2(F.silu(self.linear_1(features)))


@dataclass(frozen=True)
class BlockSettings:
    """The settings that all blocks of one network share.

    `time_dim`: None without a time embedding. `groups`: None for `groups_of` the channels.
    """

    time_dim: int | None
    groups: int | None
    eps: float
    act: Activation
    dropout: float
    scale_shift: bool
    head_dim: int | None
    downsample_padding: int


def groups_of(channels: int, groups: int | None = None) -> int:
    """Return the number of groups of a normalisation. Default: channels / 4, at most 32 (Song et al. 2021, app. H).

    Raises ConfigError unless they divide the channels.
    """
    groups = groups or min(channels // 4, 32)
    divides = groups > 0 and channels % groups == 0
    require(divides, "block_out_channels", channels, f"such that every normalisation has equal groups ({groups})")
    return groups


def has_layout(x: torch.Tensor) -> bool:
    """Return whether the memory layout of x is known: not under `torch.func.vmap`, which has no rules for layouts."""
    try:
        x.is_contiguous(memory_format=torch.channels_last)
    except RuntimeError:
        return False
    return True


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return x (B, C, H, W) in the memory layout that makes convolutions on CPUs fastest; unchanged elsewhere."""
    if x.device.type == "cpu" and has_layout(x):
        return x.contiguous(memory_format=torch.channels_last)
    return x


def halve(x: torch.Tensor) -> torch.Tensor:
    """Return x (B, C, H, W) at half the height and width: means over 2x2 pixels."""
    return F.avg_pool2d(x, 2)


def double(x: torch.Tensor) -> torch.Tensor:
    """Return x (B, C, H, W) at twice the height and width: each pixel is repeated 2x2 times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Downsample(nn.Module):
    """Halve height and width with a strided convolution; padding 0 pads the right and the bottom edge only."""

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """Return x (B, C, H, W) at half the height and width, (B, C, H / 2, W / 2); `temb` has no effect."""
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))                  # (B, C, H/2, W/2)


class Upsample(nn.Module):
    """Double height and width (nearest neighbour), then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """Return x (B, C, H, W) at twice the height and width, (B, C, 2H, 2W); `temb` has no effect."""
        return self.conv(double(x))                                                      # (B, C, 2H, 2W)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in the dtype of its weights: float32 under autocast on every device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (B, C, ...) with mean 0 and variance 1 over each group, then scaled and shifted by channel."""
        x = x.to(self.weight.dtype)
        return super().forward(x if has_layout(x) else x.contiguous())


class ResnetBlock(nn.Module):
    """Residual block conditioned on time: x + conv(act(norm(conv(act(norm(x))) + W temb))) (Ho et al. 2020, app. B).

    With `scale_shift` the embedding scales and shifts the second normalisation (adaptive group norm, Dhariwal and
    Nichol 2021). `resample` is applied to both branches before the first convolution. `temb`, (B, D) or (1, D), is the
    embedding after the activation, None without a `time_dim`. The sum is divided by `scale`. `groups`: of the first
    normalisation. Default: those of `settings`. `project`: x passes a 1x1 convolution also where channels are equal.
    """

    # set on every block by diffusers' `enable_gradient_checkpointing`
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        settings: BlockSettings,
        scale: float = 1.0,
        resample: Activation | None = None,
        groups: int | None = None,
        project: bool = False,
    ) -> None:
        super().__init__()
        self.act, self.scale_shift, self.scale, self.resample = settings.act, settings.scale_shift, scale, resample
        # first convolution
        self.norm1 = GroupNorm(groups_of(in_channels, groups or settings.groups), in_channels, settings.eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        # condition on time
        time_dim, width = settings.time_dim, out_channels * (2 if settings.scale_shift else 1)
        self.time_emb_proj = None if time_dim is None else nn.Linear(time_dim, width)
        # second convolution
        self.norm2 = GroupNorm(groups_of(out_channels, settings.groups), out_channels, settings.eps)
        self.dropout = nn.Dropout(settings.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        project = project or in_channels != out_channels
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if project else None

    def forward(self, x: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """Return `residual` of x (B, C, H, W) and `temb` (B or 1, D); the backward pass may compute it again."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self.residual, x, temb)
        return self.residual(x, temb)

    def residual(self, x: torch.Tensor, temb: torch.Tensor | None) -> torch.Tensor:
        """Return the block's output (B, C_out, H', W') for x (B, C_in, H, W); H' = H, W' = W without `resample`."""
        # first convolution
        h = self.act(self.norm1(x))                                                      # (B, C_in, H, W)
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)                                                                # (B, C_out, H, W)
        # second convolution, conditioned on time
        h = self.norm2(h) if self.time_emb_proj is None else self._timed(h, self.time_emb_proj(temb)[:, :, None, None])
        h = self.conv2(self.dropout(self.act(h)))
        # residual connection
        h = h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))
        return h if self.scale == 1 else h / self.scale

    def _timed(self, h: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Return h (B, C, H, W) after the second normalisation, with time's shift (B or 1, C or 2C, 1, 1)."""
        if not self.scale_shift:
            return self.norm2(h.add_(shift))
        scale, shift = shift.chunk(2, dim=1)
        return self.norm2(h) * (1 + scale) + shift


class Attention(nn.Module):
    """Self-attention over pixels (B, C, H, W): x + W_o softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1).

    `head_dim`: d, None for one head over all channels. The sum is divided by `scale`.
    """

    def __init__(self, channels: int, groups: int | None, eps: float, head_dim: int | None, scale: float = 1.0) -> None:
        super().__init__()
        self.head_dim, self.scale = head_dim or channels, scale
        inner = channels // self.head_dim * self.head_dim
        self.group_norm = GroupNorm(groups, channels, eps) if groups else nn.Identity()
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (x + attention over its pixels) / `scale`, (B, C, H, W), for x (B, C, H, W)."""
        h = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)                         # (B, HW, C)
        h = attention(self.to_q(h), self.to_k(h), self.to_v(h), self.head_dim)           # (B, HW, heads d)
        h = self.to_out[0](h).transpose(1, 2).unflatten(2, x.shape[2:])                  # (B, C, H, W)
        return (h + x) if self.scale == 1 else (h + x) / self.scale


def attention_or_nothing(channels: int, attend: bool, settings: BlockSettings) -> nn.Module:
    """Return the self-attention of one level, or without `attend` the identity, which has no weights."""
    return Attention(channels, settings.groups, settings.eps, settings.head_dim) if attend else nn.Identity()


class DownBlock(nn.Module):
    """One level of the encoder: (residual block, attention?) x layers, then halving (`resample`: conv, resnet, None).

    `skips`: `__init__` appends the channels of the skip connections.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        skips: list[int],
        layers: int,
        attend: bool,
        resample: str | None,
        settings: BlockSettings,
    ) -> None:
        super().__init__()
        # residual blocks with attention
        self.resnets, self.attentions, self.downsamplers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i in range(layers):
            self.resnets.append(ResnetBlock(channels if i else in_channels, channels, settings))
            self.attentions.append(attention_or_nothing(channels, attend, settings))
        # halving
        if resample == "resnet":
            self.downsamplers.append(ResnetBlock(channels, channels, settings, resample=halve))
        elif resample == "conv":
            self.downsamplers.append(Downsample(channels, settings.downsample_padding))
        skips += [channels] * (layers + len(self.downsamplers))

    def forward(self, h: torch.Tensor, temb: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return features (B, C', H', W') of h (B, C, H, W), H' = H / 2, or H without `resample`; and the skips."""
        skips = []
        for resnet, attend in zip(self.resnets, self.attentions, strict=True):
            h = attend(resnet(h, temb))
            skips.append(h)
        for downsample in self.downsamplers:
            h = downsample(h, temb)                                                      # (B, C, H/2, W/2)
            skips.append(h)
        return h, skips


class MidBlock(nn.Module):
    """The level of lowest resolution: residual block, attention?, residual block; sums are divided by `scale`."""

    def __init__(
        self, channels: int, attend: bool, attn_groups: int | None, scale: float, settings: BlockSettings
    ) -> None:
        super().__init__()
        attention = Attention(channels, attn_groups, settings.eps, settings.head_dim, scale)
        self.attentions = nn.ModuleList([attention if attend else nn.Identity()])
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, settings, scale) for _ in range(2)])

    def forward(self, h: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """Return features of h (B, C, H, W), in the same shape; `temb` is (B or 1, D)."""
        h = self.resnets[0](h, temb)
        return self.resnets[1](self.attentions[0](h), temb)


class UpBlock(nn.Module):
    """One level of the decoder: (join a skip, residual block, attention?) x layers, then doubling (as `DownBlock`)."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        skips: list[int],
        layers: int,
        attend: bool,
        resample: str | None,
        settings: BlockSettings,
    ) -> None:
        super().__init__()
        # residual blocks with attention
        self.resnets, self.attentions, self.upsamplers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i in range(layers):
            self.resnets.append(ResnetBlock((channels if i else in_channels) + skips.pop(), channels, settings))
            self.attentions.append(attention_or_nothing(channels, attend, settings))
        # doubling
        if resample == "resnet":
            self.upsamplers.append(ResnetBlock(channels, channels, settings, resample=double))
        elif resample == "conv":
            self.upsamplers.append(Upsample(channels))

    def forward(self, h: torch.Tensor, skips: list[torch.Tensor], temb: torch.Tensor) -> torch.Tensor:
        """Return features (B, C', H', W') of h (B, C, H, W); H' = 2H, or H without `resample`.

        `skips`: skip connections of this level; each is removed from the list, and its memory freed, once it is joined.
        """
        for resnet, attend in zip(self.resnets, self.attentions, strict=True):
            h = attend(resnet(torch.cat((h, skips.pop()), dim=1), temb))
        for upsample in self.upsamplers:
            h = upsample(h, temb)                                                        # (B, C, 2H, 2W)
        return h

"""Encoder and decoder of autoencoders of images, continuous and discrete (Rombach et al. 2022), in diffusers' names."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hfgen.checks import require, require_int, require_number, require_size
from hfgen.models.blocks import (
    ACTIVATIONS,
    BlockSettings,
    Downsample,
    GroupNorm,
    MidBlock,
    ResnetBlock,
    Upsample,
    channels_last,
    groups_of,
)
from hfgen.models.unet_config import MAX_LAYERS, MAX_LEVELS

EPS = 1e-6
KINDS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


class Encoder(nn.Module):
    """Encoder: images (B, C, H, W) to features (B, `out_channels`, H / f, W / f), f = 2^(levels - 1)."""

    def __init__(
        self, in_channels: int, widths: Sequence[int], layers: int, out_channels: int, attend: bool,
        settings: BlockSettings,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False), 1):
            self.down_blocks.append(EncoderLevel(before, width, layers, i == len(widths), settings))
        self.mid_block = MidBlock(widths[-1], attend, settings.groups, 1.0, settings)
        self.conv_norm_out = GroupNorm(groups_of(widths[-1], settings.groups), widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, `out_channels`, h, w) of images x (B, C, H, W) in [-1, 1]."""
        h = channels_last(self.conv_in(x))                                                    # (B, C_0, H, W)
        for block in self.down_blocks:
            h = block(h)                                                                 # (B, C_i, H/2^i, W/2^i)
        h = self.mid_block(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))                              # (B, D, h, w)


class Decoder(nn.Module):
    """Decoder: latents (B, D, h, w) to images (B, C, h f, w f), f = 2^(levels - 1)."""

    def __init__(
        self, latent_channels: int, widths: Sequence[int], layers: int, out_channels: int, attend: bool,
        settings: BlockSettings,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = widths[::-1]
        self.conv_in = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], attend, settings.groups, 1.0, settings)
        self.up_blocks = nn.ModuleList()
        for i, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False), 1):
            self.up_blocks.append(DecoderLevel(before, width, layers + 1, i == len(widths), settings))
        self.conv_norm_out = GroupNorm(groups_of(widths[-1], settings.groups), widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, C, h f, w f) on the scale [-1, 1], not clipped, from latents z (B, D, h, w)."""
        return self.conv_out(self.features(z)).contiguous()                              # (B, C, H, W)

    def features(self, z: Tensor) -> Tensor:
        """Return the input (B, C_0, H, W) of the last layer, `conv_out`."""
        h = self.mid_block(channels_last(self.conv_in(z)))
        for block in self.up_blocks:
            h = block(h)                                                                 # (B, C_i, h 2^i, w 2^i)
        return F.silu(self.conv_norm_out(h))


class Level(nn.Module):
    """Residual blocks of one level; `EncoderLevel` and `DecoderLevel` add halving and doubling."""

    def __init__(self, in_channels: int, channels: int, layers: int, settings: BlockSettings) -> None:
        super().__init__()
        widths = [in_channels, *[channels] * (layers - 1)]
        self.resnets = nn.ModuleList()
        for width in widths:
            self.resnets.append(ResnetBlock(width, channels, settings))

    def forward(self, h: Tensor) -> Tensor:
        """Return features (B, C', H, W) from h (B, C, H, W)."""
        for resnet in self.resnets:
            h = resnet(h)
        return h


class EncoderLevel(Level):
    """Residual blocks, then halving with padding at the right and the bottom edge, unless it is the `last` level."""

    def __init__(self, in_channels: int, channels: int, layers: int, last: bool, settings: BlockSettings) -> None:
        super().__init__(in_channels, channels, layers, settings)
        self.downsamplers = nn.ModuleList()
        if not last:
            self.downsamplers.append(Downsample(channels, settings.downsample_padding))

    def forward(self, h: Tensor) -> Tensor:
        """Return features (B, C', H / 2, W / 2) from h (B, C, H, W); the last level keeps H and W."""
        h = super().forward(h)
        for downsample in self.downsamplers:
            h = downsample(h)                                                            # (B, C, H/2, W/2)
        return h


class DecoderLevel(Level):
    """Residual blocks, then doubling unless it is the `last` level."""

    def __init__(self, in_channels: int, channels: int, layers: int, last: bool, settings: BlockSettings) -> None:
        super().__init__(in_channels, channels, layers, settings)
        self.upsamplers = nn.ModuleList()
        if not last:
            self.upsamplers.append(Upsample(channels))

    def forward(self, h: Tensor) -> Tensor:
        """Return features (B, C', 2H, 2W) from h (B, C, H, W); the last level keeps H and W."""
        h = super().forward(h)
        for upsample in self.upsamplers:
            h = upsample(h)                                                              # (B, C, 2H, 2W)
        return h


def settings_of(config: Any) -> BlockSettings:
    """Return the settings of all blocks: no time, no dropout, one attention head over all channels."""
    act = ACTIVATIONS[config["act_fn"].lower()]
    return BlockSettings(None, config["norm_num_groups"], EPS, act, 0.0, False, None, downsample_padding=0)


def check_blocks(config: Any) -> None:
    """Raise ConfigError, naming the field, for an impossible or unsupported setting of encoder and decoder."""
    # levels
    c = config
    channels = c["block_out_channels"]
    listed = isinstance(channels, list | tuple) and 1 <= len(channels) <= MAX_LEVELS
    require(listed, "block_out_channels", channels, f"a list of 1 to {MAX_LEVELS} channel counts")
    for field, kind in KINDS.items():
        good = isinstance(c[field], list | tuple) and len(c[field]) == len(channels) and set(c[field]) == {kind}
        require(good, field, c[field], f"{kind} for each of block_out_channels ({len(channels)})")
    # channels
    for field in ("in_channels", "out_channels", "latent_channels", "norm_num_groups"):
        require_int(field, c[field])
    for count in channels:
        require_int("block_out_channels", count)
        groups = c["norm_num_groups"]
        require(count % groups == 0, "block_out_channels", count, f"multiples of norm_num_groups ({groups})")
    # other settings
    require_int("layers_per_block", c["layers_per_block"], high=MAX_LAYERS)
    known = isinstance(c["act_fn"], str) and c["act_fn"].lower() in ACTIVATIONS
    require(known, "act_fn", c["act_fn"], f"one of {tuple(ACTIVATIONS)}")
    require_size("sample_size", c["sample_size"], 2**24)
    require_number("scaling_factor", c["scaling_factor"], 1e-6)


def require_switches(config: Any, fields: Iterable[str]) -> None:
    """Raise ConfigError, naming the field, unless the settings `fields` are true or false."""
    for field in fields:
        require(isinstance(config[field], bool), field, config[field], "true or false")

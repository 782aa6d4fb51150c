"""Levels of NCSN++: anti-aliased resampling, and an image that runs beside the features (Song et al. 2021, appendix H).

Module names are those of diffusers' `SkipDownBlock2D`, `AttnSkipDownBlock2D` and their mirror images, so that weights
load both ways.
"""

from dataclasses import replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hfgen.models.blocks import Attention, BlockSettings, GroupNorm, ResnetBlock, double, groups_of, halve

COLOURS = 3
"""Channels of the image beside the features; diffusers' blocks have no other number."""

ATTENTION_GROUPS = 32
SCALE = 2**0.5
"""Divisor of each sum of two branches, which keeps the variance (Karras et al. 2018; Song et al. 2021, appendix H)."""


def blur(x: Tensor) -> Tensor:
    """Return x (B, C, H, W) filtered with [1, 2, 1] / 4 along both axes; beyond the border x is 0."""
    return F.avg_pool2d(F.avg_pool2d(x, 2, stride=1, padding=1), 2, stride=1)


def smooth_halve(x: Tensor) -> Tensor:
    """Return x (B, C, H, W) at half the height and width, filtered with [1, 3, 3, 1] / 8 (Zhang 2019, section 3.3)."""
    return halve(blur(x))


def smooth_double(x: Tensor) -> Tensor:
    """Return x (B, C, H, W) at twice the height and width, filtered with [1, 3, 3, 1] / 4 between inserted zeros."""
    return blur(double(x))


def attention(channels: int, settings: BlockSettings) -> Attention:
    """Return the self-attention of one level."""
    return Attention(channels, groups_of(channels, ATTENTION_GROUPS), settings.eps, settings.head_dim, SCALE)


class SkipDownBlock(nn.Module):
    """One level of the encoder: (residual block, attention?) x layers, then halving, unless it is the `last` level.

    A smaller copy of the input image joins the halved features ("progressive input"). `skips`: `__init__` appends the
    channels of the skip connections.
    """

    def __init__(
        self, in_channels: int, channels: int, skips: list[int], layers: int, attend: bool, last: bool,
        settings: BlockSettings,
    ) -> None:  # fmt: skip
        super().__init__()
        settings = replace(settings, groups=None)
        # residual blocks with attention
        self.resnets, self.attentions = nn.ModuleList(), nn.ModuleList()
        for i in range(layers):
            self.resnets.append(ResnetBlock(channels if i else in_channels, channels, settings, SCALE))
            self.attentions.append(attention(channels, settings) if attend else nn.Identity())
        # halving
        self.resnet_down = self.skip_conv = None
        if not last:
            self.resnet_down = ResnetBlock(channels, channels, settings, SCALE, smooth_halve, project=True)
            self.skip_conv = nn.Conv2d(COLOURS, channels, 1)
        skips += [channels] * (layers + (not last))

    def forward(self, h: Tensor, temb: Tensor, image: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return features (B, C', H', W') of h (B, C, H, W), the skips, and `image` (B, 3, H, W) at H', W'.

        H' = H / 2, or H in the last level.
        """
        # residual blocks
        skips = []
        for resnet, attend in zip(self.resnets, self.attentions, strict=True):
            h = attend(resnet(h, temb))
            skips.append(h)
        # halving, joined by the image
        if self.resnet_down is not None and self.skip_conv is not None:
            image = smooth_halve(image)                                                  # (B, 3, H/2, W/2)
            h = self.skip_conv(image) + self.resnet_down(h, temb)                        # (B, C, H/2, W/2)
            skips.append(h)
        return h, skips, image


class SkipUpBlock(nn.Module):
    """One level of the decoder: (join a skip, residual block) x layers, attention?, doubling unless it is the `last`.

    Each level but the last adds its part to an image, which the next level doubles ("progressive output").
    """

    def __init__(
        self, in_channels: int, channels: int, skips: list[int], layers: int, attend: bool, last: bool,
        settings: BlockSettings,
    ) -> None:  # fmt: skip
        super().__init__()
        settings = replace(settings, groups=None)
        # residual blocks, then attention
        self.resnets = nn.ModuleList()
        for i in range(layers):
            before, skip = channels if i else in_channels, skips.pop()
            # the groups of stock's AttnSkipUpBlock2D
            groups = min(before + skip // 4, 32) if attend else None
            self.resnets.append(ResnetBlock(before + skip, channels, settings, SCALE, groups=groups))
        self.attentions = nn.ModuleList([attention(channels, settings)] if attend else [])
        # part of the image, and doubling
        self.skip_norm = self.skip_conv = self.resnet_up = None
        if not last:
            self.skip_norm = GroupNorm(groups_of(channels), channels, settings.eps)
            self.skip_conv = nn.Conv2d(channels, COLOURS, 3, padding=1)
            self.resnet_up = ResnetBlock(channels, channels, settings, SCALE, smooth_double, project=True)

    def forward(
        self, h: Tensor, skips: list[Tensor], temb: Tensor, image: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return features (B, C', H', W') of h (B, C, H, W), H' = 2H, or H in the last level; and the image so far.

        `image`: (B, 3, H / 2, W / 2), None in the first level; the result is (B, 3, H, W). `skips` as in `UpBlock`.
        """
        # residual blocks, attention
        for resnet in self.resnets:
            h = resnet(torch.cat((h, skips.pop()), dim=1), temb)
        for attend in self.attentions:
            h = attend(h)
        # the image, and doubling
        image = None if image is None else smooth_double(image)                          # (B, 3, H, W)
        if self.skip_norm is not None and self.skip_conv is not None and self.resnet_up is not None:
            part = self.skip_conv(F.silu(self.skip_norm(h)))
            image = part if image is None else image + part
            h = self.resnet_up(h, temb)                                                  # (B, C, 2H, 2W)
        return h, image

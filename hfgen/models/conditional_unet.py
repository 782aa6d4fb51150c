"""The U-Net of latent diffusion: it predicts the noise in latents or images, conditioned on classes and texts.

Its weights have the names of diffusers' `UNet2DConditionModel`, as which it is saved with texts.
"""

from collections.abc import Callable
from math import gcd
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from hfgen.checks import check_divisible, require, require_int, require_number, require_size
from hfgen.errors import ConfigError
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
from hfgen.models import stock_conditional_unet
from hfgen.models.blocks import (
    BlockSettings,
    DownBlock,
    FourierFeatures,
    GroupNorm,
    MidBlock,
    SinusoidalFeatures,
    TimestepEmbedding,
    UpBlock,
    as_timesteps,
    channels_last,
)
from hfgen.models.pooled_text import PooledText
from hfgen.models.transformer import SpatialTransformer
from hfgen.models.unet_config import MAX_LAYERS, MAX_LEVELS

Transformers = Callable[[int, int], nn.ModuleList]
"""Function that returns transformers for a number of channels and a number of layers."""


class DownLevel(DownBlock):
    """A level of the encoder: (residual block, transformer?) x layers, then halving unless it is the `last`."""

    def __init__(
        self, in_channels: int, channels: int, skips: list[int], layers: int, transformers: Transformers | None,
        last: bool, settings: BlockSettings,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, channels, skips, layers, False, None if last else "conv", settings)
        self.attend = transformers is not None
        if transformers is not None:
            self.attentions = transformers(channels, layers)

    def forward(
        self, h: Tensor, temb: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return features (B, C', H', W') of h (B, C, H, W), H' = H / 2, or H in the `last` level; and the skips."""
        skips = []
        for resnet, attend in zip(self.resnets, self.attentions, strict=True):
            h = resnet(h, temb)
            if self.attend:
                h = attend(h, context)
            skips.append(h)
        for downsample in self.downsamplers:
            h = downsample(h, temb)                                                      # (B, C, H/2, W/2)
            skips.append(h)
        return h, skips


class MidLevel(MidBlock):
    """The level of lowest resolution: residual block, transformer, residual block."""

    def __init__(self, channels: int, transformers: Transformers, settings: BlockSettings) -> None:
        super().__init__(channels, False, None, 1.0, settings)
        self.attentions = transformers(channels, 1)

    def forward(self, h: Tensor, temb: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Return features of h (B, C, H, W), in the same shape; `context` is (B, L, F)."""
        h = self.attentions[0](self.resnets[0](h, temb), context)
        return self.resnets[1](h, temb)


class UpLevel(UpBlock):
    """A level of the decoder: (join a skip, residual block, transformer?) x layers, then doubling (as `DownLevel`)."""

    def __init__(
        self, in_channels: int, channels: int, skips: list[int], layers: int, transformers: Transformers | None,
        last: bool, settings: BlockSettings,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, channels, skips, layers, False, None if last else "conv", settings)
        self.attend = transformers is not None
        if transformers is not None:
            self.attentions = transformers(channels, layers)

    def forward(self, h: Tensor, skips: list[Tensor], temb: Tensor, context: Tensor | None = None) -> Tensor:
        """Return features (B, C', H', W') of h (B, C, H, W); H' = 2H, or H in the `last` level."""
        for resnet, attend in zip(self.resnets, self.attentions, strict=True):
            h = resnet(torch.cat((h, skips.pop()), dim=1), temb)
            if self.attend:
                h = attend(h, context)
        for upsample in self.upsamplers:
            h = upsample(h, temb)                                                        # (B, C, 2H, 2W)
        return h


class ConditionalUNet(ModelMixin):
    """U-Net with transformer blocks, for latents or images (Rombach et al. 2022, section 3.3).

    The middle and the levels in `attention_levels` (0 is the finest) have a transformer after each residual block.
    `self_attention`: the transformers have self-attention. `cross_attention_dim`: features of the text to which they
    attend; None without texts. `pooled_text`: a vector of the whole text is also added to the embedding of the
    timestep, so every residual block is conditioned on the text (Saharia et al. 2022, section 2.3).
    `attention_head_dim`: width of a head. `num_class_embeds`: number of classes, the null class of guidance included
    as the last. `time_embedding_type`: "positional", or "fourier", random frequencies. `time_embedding_dim`: width of
    the embedding of the timestep. Default: 4 times the channels of the first level (2 times with "fourier").
    `resnet_time_scale_shift`: that of `UNet`.

    Raises ConfigError, naming the field, for impossible values.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ("norm",)
    _no_split_modules = ("ResnetBlock", "SpatialTransformer", "UpLevel", "AttentionPooling")
    _repeated_blocks = ("TransformerBlock",)
    _keep_in_fp32_modules = ("time_proj",)

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: tuple[int, ...] = (64, 128, 128),
        layers_per_block: int = 2,
        attention_levels: tuple[int, ...] = (1, 2),
        attention_head_dim: int = 32,
        transformer_layers: int = 1,
        self_attention: bool = True,
        cross_attention_dim: int | None = None,
        pooled_text: bool = False,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        resnet_time_scale_shift: str = "default",
    ) -> None:
        super().__init__()
        check_config(self.config)
        widths, levels = tuple(block_out_channels), len(block_out_channels)
        fourier, scale_shift = time_embedding_type == "fourier", resnet_time_scale_shift == "scale_shift"
        time_dim = time_embedding_dim or (2 if fourier else 4) * widths[0]
        settings = BlockSettings(
            time_dim, norm_num_groups, 1e-5, F.silu, dropout, scale_shift, None, downsample_padding=1
        )

        # embedding of time, class and text
        self.time_proj = FourierFeatures(time_dim // 2) if fourier else SinusoidalFeatures(widths[0])
        self.time_embedding = TimestepEmbedding(time_dim if fourier else widths[0], time_dim)
        self.class_embedding = nn.Embedding(num_class_embeds, time_dim) if num_class_embeds else None
        if pooled_text:
            assert cross_attention_dim is not None
            head_dim = gcd(cross_attention_dim, attention_head_dim)
            self.add_embedding = PooledText(cross_attention_dim, time_dim, head_dim)

        # encoder; `skips` are the channels of the skip connections
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        channels, skips = widths[0], [widths[0]]
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            attend = self._transformers if level in attention_levels else None
            last = level == levels - 1
            self.down_blocks.append(DownLevel(channels, width, skips, layers_per_block, attend, last, settings))
            channels = width

        # middle
        self.mid_block = MidLevel(channels, self._transformers, settings)

        # decoder
        self.up_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            attend = self._transformers if level in attention_levels else None
            self.up_blocks.append(UpLevel(channels, width, skips, layers_per_block + 1, attend, level == 0, settings))
            channels = width

        # output
        self.conv_norm_out = GroupNorm(norm_num_groups, channels, 1e-5)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def stock_settings(self) -> dict[str, Any] | None:
        """Return the settings of the `UNet2DConditionModel` with these tensors; None if it has no such settings."""
        return stock_conditional_unet.stock_settings(self.config)

    @classmethod
    def own_settings(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of the network for those of a `UNet2DConditionModel`; ConfigError if there are none."""
        return stock_conditional_unet.own_settings(config)

    def _transformers(self, channels: int, number: int) -> nn.ModuleList:
        c = self.config
        transformers = nn.ModuleList()
        for _ in range(number):
            transformers.append(SpatialTransformer(
                channels, c["cross_attention_dim"], c["attention_head_dim"], c["transformer_layers"],
                c["norm_num_groups"], c["self_attention"], c["dropout"],
            ))  # fmt: skip
        return transformers

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Return the prediction (B, C', H, W) as `.sample` or as a tuple of one.

        `sample`: x_t (B, C, H, W); H and W divisible by 2^(levels - 1). `timestep`: a number, or a tensor of shape (),
        (1,) or (B,). `class_labels`: ints (B,) in [0, num_class_embeds - 1], None without classes.
        `encoder_hidden_states`: (B, L, cross_attention_dim), None without texts. Raises ConfigError for other inputs.
        """
        # embedding of time, class and text
        self._check_inputs(sample, class_labels, encoder_hidden_states)
        temb = self.time_embedding(self.time_proj(as_timesteps(timestep, sample.device)).to(self.dtype))
        if self.class_embedding is not None:
            temb = temb + self.class_embedding(class_labels)                             # (B, D)
        if self.config["pooled_text"]:
            temb = temb + self.add_embedding(encoder_hidden_states)                      # (B, D)
        temb = F.silu(temb)

        # first convolution, and the memory layout that makes convolutions on CPUs fastest
        h = channels_last(self.conv_in(sample))                                          # (B, C_0, H, W)
        # encoder, middle, decoder
        skips = [h]
        for block in self.down_blocks:
            h, more = block(h, temb, encoder_hidden_states)                              # (B, C_i, H/2^i, W/2^i)
            skips += more
        h = self.mid_block(h, temb, encoder_hidden_states)
        number = self.config["layers_per_block"] + 1
        for block in self.up_blocks:
            own, skips = skips[-number:], skips[:-number]
            h = block(h, own, temb, encoder_hidden_states)                               # (B, C_i, H/2^i, W/2^i)
        # output
        out = self.conv_out(F.silu(self.conv_norm_out(h))).contiguous()                  # (B, C_out, H, W)
        if not return_dict:
            return (out,)
        return UNet2DOutput(sample=out)

    def _check_inputs(self, sample: Tensor, labels: Tensor | None, text: Tensor | None) -> None:
        c = self.config
        check_divisible("sample", sample.shape[-2], sample.shape[-1], len(c["block_out_channels"]))
        # text
        if text is not None and c["cross_attention_dim"] is None:
            raise ConfigError("encoder_hidden_states must be None: this U-Net takes no text (cross_attention_dim)")
        if text is None and c["cross_attention_dim"] is not None:
            raise ConfigError("encoder_hidden_states must be given: this U-Net is conditioned on texts "
                              "(cross_attention_dim)")  # fmt: skip
        if text is not None and text.shape[-1] != c["cross_attention_dim"]:
            raise ConfigError(f"encoder_hidden_states must have {c['cross_attention_dim']} features, got "
                              f"{text.shape[-1]}")  # fmt: skip
        # class
        if labels is not None and c["num_class_embeds"] is None:
            raise ConfigError("class_labels must be None: this U-Net has no class embedding; set num_class_embeds")
        if labels is None and c["num_class_embeds"] is not None:
            raise ConfigError("class_labels must be given: this U-Net is conditional, one label for each sample")


CHOICES = {"time_embedding_type": ("positional", "fourier"), "resnet_time_scale_shift": ("default", "scale_shift")}


def check_config(config: Any) -> None:
    """Raise ConfigError, naming the field, for an impossible value."""
    # sizes
    c = config
    channels, levels = c["block_out_channels"], c["attention_levels"]
    listed = isinstance(channels, list | tuple) and 1 <= len(channels) <= MAX_LEVELS
    require(listed, "block_out_channels", channels, f"a list of 1 to {MAX_LEVELS} channel counts")
    for field in ("in_channels", "out_channels", "norm_num_groups", "attention_head_dim"):
        require_int(field, c[field])
    for field in ("cross_attention_dim", "num_class_embeds", "time_embedding_dim"):
        if c[field] is not None:
            require_int(field, c[field])
    for field in ("layers_per_block", "transformer_layers"):
        require_int(field, c[field], high=MAX_LAYERS)
    require_number("dropout", c["dropout"], 0.0, 1.0)
    # time
    for field, choices in CHOICES.items():
        require(c[field] in choices, field, c[field], f"one of {choices}")
    width = c["time_embedding_dim"]
    even = width is None or width % 2 == 0 or c["time_embedding_type"] != "fourier"
    require(even, "time_embedding_dim", width, "even with fourier features")
    # switches
    for field in ("self_attention", "pooled_text"):
        require(isinstance(c[field], bool), field, c[field], "true or false")
    text = "given: the features of the text are pooled"
    require(not c["pooled_text"] or c["cross_attention_dim"] is not None, "cross_attention_dim", None, text)
    # channels and levels
    groups, head = c["norm_num_groups"], c["attention_head_dim"]
    for count in channels:
        require_int("block_out_channels", count)
        require(count % groups == 0, "block_out_channels", count, f"multiples of norm_num_groups ({groups})")
    require(isinstance(levels, list | tuple), "attention_levels", levels, "a list of levels")
    for level in levels:
        require_int("attention_levels", level, 0, len(channels) - 1)
    for count in {channels[-1], *(channels[level] for level in levels)}:
        require(count % head == 0, "attention_head_dim", head, f"a divisor of {count}, the channels it divides")
    # resolution
    if c["sample_size"] is not None:
        height, width = require_size("sample_size", c["sample_size"], 2**24)
        check_divisible("sample_size", height, width, len(channels))

"""The U-Net of denoising diffusion: a noisy image and its time in, a prediction of the same size out.

Configuration keys, defaults and state-dict keys are those of diffusers' `UNet2DModel`.
"""

import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput

from hfgen.config import ConfigMixin
from hfgen.errors import ConfigError
from hfgen.models.blocks import (
    ACTIVATIONS,
    BlockSettings,
    DownBlock,
    FourierFeatures,
    GroupNorm,
    MidBlock,
    SinusoidalFeatures,
    TimestepEmbedding,
    UpBlock,
    as_timesteps,
    require,
    require_int,
    require_number,
)

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D")
OLD_PREFIX = "UNetRes"  # old configurations say "UNetResDownBlock2D"

CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier", "learned"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
    "center_input_sample": (False, True),
    "flip_sin_to_cos": (False, True),
    "add_attention": (True, False),
}
WHOLE_NUMBERS = ("in_channels", "out_channels", "norm_num_groups")
OPTIONAL_WHOLE_NUMBERS = (
    "time_embedding_dim",
    "attention_head_dim",
    "attn_norm_num_groups",
    "num_class_embeds",
    "num_train_timesteps",
)
MAX_LEVELS, MAX_LAYERS = 12, 64


def check_config(config: Any) -> None:
    """Raise ConfigError, naming the field, for a value that is impossible or that this network does not reproduce."""
    for field, allowed in CHOICES.items():
        known = any(config[field] == value and type(config[field]) is type(value) for value in allowed)
        require(known, field, config[field], f"one of {allowed}")
    act = config["act_fn"]
    require(isinstance(act, str) and act.lower() in ACTIVATIONS, "act_fn", act, f"one of {tuple(ACTIVATIONS)}")
    for field in WHOLE_NUMBERS:
        require_int(field, config[field])
    for field in OPTIONAL_WHOLE_NUMBERS:
        if config[field] is not None:
            require_int(field, config[field])
    require_int("layers_per_block", config["layers_per_block"], high=MAX_LAYERS)
    require_number("norm_eps", config["norm_eps"], 0.0)
    require_number("dropout", config["dropout"], 0.0, 1.0)
    require_number("mid_block_scale_factor", config["mid_block_scale_factor"], 1e-6)
    learned = config["time_embedding_type"] == "learned"
    steps = config["num_train_timesteps"]
    require(not learned or steps is not None, "num_train_timesteps", steps, "set with learned time features")
    _check_levels(config)
    _check_channels(config)
    if config["sample_size"] is not None:
        _check_sample_size(config["sample_size"], len(config["block_out_channels"]))


def _check_levels(config: Any) -> None:
    channels = config["block_out_channels"]
    good = isinstance(channels, list | tuple) and 1 <= len(channels) <= MAX_LEVELS
    require(good, "block_out_channels", channels, f"a list of 1 to {MAX_LEVELS} channel counts")
    for field, allowed in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        kinds = config[field]
        good = isinstance(kinds, list | tuple) and len(kinds) == len(channels)
        require(good, field, kinds, f"a list as long as block_out_channels ({len(channels)})")
        for kind in kinds:
            require(str(kind).removeprefix(OLD_PREFIX) in allowed, field, kind, f"made of {allowed}")


def _check_channels(config: Any) -> None:
    channels, groups, head_dim = config["block_out_channels"], config["norm_num_groups"], config["attention_head_dim"]
    for count in channels:
        require_int("block_out_channels", count)
        divisible = count % groups == 0
        require(divisible, "block_out_channels", count, f"multiples of norm_num_groups ({groups})")
    attending = [c for c, kind in zip(channels, config["down_block_types"], strict=True) if "Attn" in kind]
    attending += [c for c, kind in zip(channels[::-1], config["up_block_types"], strict=True) if "Attn" in kind]
    if config["mid_block_type"] is not None and config["add_attention"]:
        attending.append(channels[-1])
        attn_groups = config["attn_norm_num_groups"]
        allowed = f"a divisor of the last of block_out_channels ({channels[-1]})"
        require(not attn_groups or channels[-1] % attn_groups == 0, "attn_norm_num_groups", attn_groups, allowed)
    if head_dim is not None and attending:
        least = min(attending)
        require(head_dim <= least, "attention_head_dim", head_dim, f"at most {least}, the channels it divides")
    shift, half = config["freq_shift"], channels[0] // 2
    require_number("freq_shift", shift, 0.0)
    require(half == 0 or shift < half, "freq_shift", shift, f"below block_out_channels[0] / 2 ({half})")


def _check_sample_size(sample_size: Any, levels: int) -> None:
    pair = tuple(sample_size) if isinstance(sample_size, list | tuple) else (sample_size, sample_size)
    require(len(pair) == 2, "sample_size", sample_size, "an int or a pair (height, width)")
    for side in pair:
        require_int("sample_size", side)
    check_divisible("sample_size", pair[0], pair[1], levels)


def check_divisible(where: str, height: int, width: int, levels: int) -> None:
    """Raise ConfigError with the nearest valid sizes unless height and width can be halved `levels - 1` times."""
    factor = 2 ** (levels - 1)
    if height % factor or width % factor:
        below = [max(factor, side // factor * factor) for side in (height, width)]
        above = [math.ceil(side / factor) * factor for side in (height, width)]
        raise ConfigError(
            f"{where} must have height and width divisible by {factor} = 2^(levels - 1) for {levels} levels, got "
            f"{height}x{width}; the nearest valid sizes are {below[0]}x{below[1]} and {above[0]}x{above[1]}"
        )


class UNet(ModelMixin, ConfigMixin):
    """U-Net that predicts the noise (or what the scheduler's `prediction_type` says) in x_t (Ho et al. 2020, app. B).

    Down: each level has `layers_per_block` residual blocks, with self-attention in an "Attn" block, and halves the
    resolution. Middle: block, attention, block. Up: one residual block more a level, each fed with the output that was
    stored on the way down (the skip connections). Time, and the class if any, reaches every residual block.

    Raises ConfigError for values that are impossible, and for values of stock configurations that are not reproduced.
    Built under `torch.device("meta")` it allocates nothing, so that parameters can be counted before loading.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ("norm",)

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        super().__init__()
        check_config(self.config)
        self.sample_size = sample_size
        self.levels = len(block_out_channels)
        channels = block_out_channels[0]
        time_dim = time_embedding_dim or 4 * channels
        scale_shift = resnet_time_scale_shift == "scale_shift"
        self.act = ACTIVATIONS[act_fn.lower()]
        settings = BlockSettings(
            time_dim, norm_num_groups, norm_eps, self.act, dropout, scale_shift, attention_head_dim, downsample_padding
        )

        self._build_embeddings(channels, time_dim)

        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        skips = [channels]  # channels of the outputs stored on the way down

        self.down_blocks = nn.ModuleList()
        for level, (kind, width) in enumerate(zip(down_block_types, block_out_channels, strict=True)):
            attend, last = "Attn" in kind, level == self.levels - 1
            resample = None if last else downsample_type if attend else "conv"
            self.down_blocks.append(DownBlock(channels, width, skips, layers_per_block, attend, resample, settings))
            channels = width

        self.mid_block = None
        if mid_block_type is not None:
            groups = attn_norm_num_groups or (None if scale_shift else norm_num_groups)
            self.mid_block = MidBlock(channels, add_attention, groups, mid_block_scale_factor, settings)

        self.up_blocks = nn.ModuleList()
        for level, (kind, width) in enumerate(zip(up_block_types, block_out_channels[::-1], strict=True)):
            attend, last = "Attn" in kind, level == self.levels - 1
            resample = None if last else upsample_type if attend else "conv"
            self.up_blocks.append(UpBlock(channels, width, skips, layers_per_block + 1, attend, resample, settings))
            channels = width

        self.conv_norm_out = GroupNorm(norm_num_groups, channels, norm_eps)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def _build_embeddings(self, channels: int, time_dim: int) -> None:
        """Build what turns timesteps and class labels into the embedding of width `time_dim`."""
        c = self.config
        features = 2 * channels if c["time_embedding_type"] == "fourier" else channels
        self.time_proj: nn.Module
        if c["time_embedding_type"] == "fourier":
            self.time_proj = FourierFeatures(channels)
        elif c["time_embedding_type"] == "learned":
            self.time_proj = nn.Embedding(c["num_train_timesteps"], channels)
        else:
            self.time_proj = SinusoidalFeatures(channels, c["flip_sin_to_cos"], c["freq_shift"])
        self.time_embedding = TimestepEmbedding(features, time_dim)

        self.class_embedding: nn.Module | None = None
        if c["class_embed_type"] == "timestep":
            self.class_embedding = TimestepEmbedding(features, time_dim)
        elif c["class_embed_type"] == "identity":
            self.class_embedding = nn.Identity()
        elif c["num_class_embeds"] is not None:
            self.class_embedding = nn.Embedding(c["num_class_embeds"], time_dim)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Return the prediction, same height and width as `sample`, as `.sample` or as a tuple of one.

        `sample`: x_t (B, C, H, W); H and W divisible by 2^(levels - 1). `timestep`: a number, or a tensor of shape (),
        (1,) or (B,). `class_labels`: (B,) whole numbers (`num_class_embeds`), times ("timestep") or (B, time_dim)
        embeddings ("identity"). `encoder_hidden_states` must be None. Raises ConfigError otherwise.
        """
        self._check_inputs(sample, class_labels, encoder_hidden_states)
        t = as_timesteps(timestep, sample.device)                                        # (B,) or (1,)
        temb = self.act(self.embed(t, class_labels))                                     # (B or 1, D)

        x = 2 * sample - 1 if self.config["center_input_sample"] else sample
        h = self.conv_in(x)                                                              # (B, C_0, H, W)
        if h.device.type == "cpu":
            h = h.contiguous(memory_format=torch.channels_last)  # the layout in which CPU convolutions are fastest

        skips = [h]
        for block in self.down_blocks:
            h = block(h, temb, skips)                                                    # (B, C_i, H/2^i, W/2^i)
        if self.mid_block is not None:
            h = self.mid_block(h, temb)
        for block in self.up_blocks:
            h = block(h, temb, skips)                                                    # (B, C_i, H/2^i, W/2^i)

        out = self.conv_out(F.silu(self.conv_norm_out(h))).contiguous()                  # (B, C_out, H, W)
        if self.config["time_embedding_type"] == "fourier":
            out = (out / t[:, None, None, None]).to(out.dtype)                           # the score's 1 / sigma
        return UNet2DOutput(sample=out) if return_dict else (out,)

    def embed(self, t: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        """Return the embedding of times (B,) or (1,) plus, if conditional, that of the labels: (B, D) or (1, D)."""
        temb = self.time_embedding(self.time_proj(t).to(self.dtype))
        if self.class_embedding is None:
            return temb
        if self.config["class_embed_type"] == "timestep":
            class_labels = self.time_proj(class_labels).to(self.dtype)
        return temb + self.class_embedding(class_labels).to(self.dtype)

    def _check_inputs(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None, encoder_hidden_states: torch.Tensor | None
    ) -> None:
        check_divisible("sample", sample.shape[-2], sample.shape[-1], self.levels)
        if encoder_hidden_states is not None:
            raise ConfigError("encoder_hidden_states must be None: this U-Net takes no text, only class_labels")
        if self.class_embedding is None and class_labels is not None:
            raise ConfigError("class_labels must be None: this U-Net has no class embedding; set num_class_embeds")
        if self.class_embedding is not None and class_labels is None:
            raise ConfigError("class_labels must be given: this U-Net is conditional, one label for each sample")

"""The U-Net of denoising diffusion: from a noisy image and its timestep to a prediction of the same size.

Configuration keys, defaults and state-dict keys are those of diffusers' `UNet2DModel`.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DOutput

from hfgen.checks import check_divisible
from hfgen.errors import ConfigError
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
from hfgen.models.blocks import (
    ACTIVATIONS,
    BlockSettings,
    DownBlock,
    GroupNorm,
    LogFourierFeatures,
    MidBlock,
    SinusoidalFeatures,
    TableFeatures,
    TimestepEmbedding,
    UpBlock,
    as_timesteps,
    channels_last,
    groups_of,
    noise_level,
)
from hfgen.models.ncsnpp import SkipDownBlock, SkipUpBlock
from hfgen.models.unet_config import check_config


class UNet(ModelMixin):
    """U-Net that predicts the noise in x_t, or the scheduler's `prediction_type` (Ho et al. 2020, app. B).

    Encoder: each level has `layers_per_block` residual blocks, with self-attention in an "Attn" block, and halves the
    resolution. Middle: block, attention, block. Decoder: one residual block more per level; each has a skip connection
    from the encoder. Every residual block is conditioned on time and, if there are classes, on the class. "Skip" blocks
    are those of NCSN++, with an image beside the features (Song et al. 2021, appendix H).

    `time_embedding_type`: "positional"; "learned", a table of `num_train_timesteps` rows; or "fourier", where t is a
    noise level, its logarithm has random frequencies, and the output is divided by it (Song et al. 2021, appendix C.2).
    `resnet_time_scale_shift`: the embedding is added in each residual block, or with "scale_shift" it scales and shifts
    the normalisation (adaptive group norm, Dhariwal and Nichol 2021).

    Raises ConfigError for impossible values, and for values of stock configurations that are not reproduced. Under
    `torch.device("meta")` it allocates nothing, so that parameters can be counted before loading.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ("norm",)
    _no_split_modules = ("ResnetBlock", "Attention", "UpBlock", "SkipDownBlock", "SkipUpBlock")
    _repeated_blocks = ("Attention",)
    _keep_in_fp32_modules = ("time_proj",)

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
        norm_num_groups: int | None = 32,
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
        # settings of all blocks
        self.sample_size = sample_size
        self.levels = len(block_out_channels)
        channels = block_out_channels[0]
        time_dim = time_embedding_dim or 4 * channels
        scale_shift = resnet_time_scale_shift == "scale_shift"
        self.act = ACTIVATIONS[act_fn.lower()]
        settings = BlockSettings(
            time_dim, norm_num_groups, norm_eps, self.act, dropout, scale_shift, attention_head_dim, downsample_padding
        )

        # embedding of time and class
        self._build_embeddings(channels, time_dim)

        # encoder; `skips` are the channels of the skip connections
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        skips = [channels]
        self.down_blocks = nn.ModuleList()
        for level, (kind, width) in enumerate(zip(down_block_types, block_out_channels, strict=True)):
            attend, last = "Attn" in kind, level == self.levels - 1
            block: nn.Module
            if "Skip" in kind:
                block = SkipDownBlock(channels, width, skips, layers_per_block, attend, last, settings)
            else:
                resample = None if last else (downsample_type if attend else "conv")
                block = DownBlock(channels, width, skips, layers_per_block, attend, resample, settings)
            self.down_blocks.append(block)
            channels = width

        # middle
        self.mid_block = None
        if mid_block_type is not None:
            groups = attn_norm_num_groups or (None if scale_shift else groups_of(channels, norm_num_groups))
            self.mid_block = MidBlock(channels, add_attention, groups, mid_block_scale_factor, settings)

        # decoder
        self.up_blocks = nn.ModuleList()
        for level, (kind, width) in enumerate(zip(up_block_types, block_out_channels[::-1], strict=True)):
            attend, last = "Attn" in kind, level == self.levels - 1
            if "Skip" in kind:
                block = SkipUpBlock(channels, width, skips, layers_per_block + 1, attend, last, settings)
            else:
                resample = None if last else (upsample_type if attend else "conv")
                block = UpBlock(channels, width, skips, layers_per_block + 1, attend, resample, settings)
            self.up_blocks.append(block)
            channels = width

        # output
        self.conv_norm_out = GroupNorm(groups_of(channels, norm_num_groups), channels, norm_eps)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def _build_embeddings(self, channels: int, time_dim: int) -> None:
        """Build the layers from timesteps and class labels to the embedding of width `time_dim`."""
        # time
        c = self.config
        features = 2 * channels if c["time_embedding_type"] == "fourier" else channels
        self.time_proj: nn.Module
        if c["time_embedding_type"] == "fourier":
            self.time_proj = LogFourierFeatures(channels)
        elif c["time_embedding_type"] == "learned":
            self.time_proj = TableFeatures(c["num_train_timesteps"], channels)
        else:
            self.time_proj = SinusoidalFeatures(channels, c["flip_sin_to_cos"], c["freq_shift"])
        self.time_embedding = TimestepEmbedding(features, time_dim)

        # class
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
        """Return the prediction (B, C', H, W) as `.sample` or as a tuple of one.

        `sample`: x_t (B, C, H, W); H and W divisible by 2^(levels - 1). `timestep`: a number, or a tensor of shape (),
        (1,) or (B,). `class_labels`: ints (B,) (`num_class_embeds`), times (B,) ("timestep") or embeddings
        (B, time_dim) ("identity"). `encoder_hidden_states` must be None. Raises ConfigError for other inputs.
        """
        # embedding of time and class
        self._check_inputs(sample, class_labels, encoder_hidden_states)
        t = as_timesteps(timestep, sample.device)                                        # (B,) or (1,)
        temb = self.act(self.embed(t, class_labels))                                     # (B or 1, D)

        # first convolution, and the memory layout that makes convolutions on CPUs fastest
        x = 2 * sample - 1 if self.config["center_input_sample"] else sample
        h = channels_last(self.conv_in(x))                                               # (B, C_0, H, W)

        # encoder, middle, decoder; in NCSN++ images run beside the features
        h, skips = self._encode(h, temb, x)
        if self.mid_block is not None:
            h = self.mid_block(h, temb)
        h, image = self._decode(h, skips, temb)

        # output; with Fourier features t is sigma, and the score is divided by it
        out = self.conv_out(F.silu(self.conv_norm_out(h))).contiguous()                  # (B, C_out, H, W)
        if image is not None:
            out = out + image.to(out.device)
        if self.config["time_embedding_type"] == "fourier":
            out = (out / noise_level(t).to(out.device)[:, None, None, None]).to(out.dtype)
        return UNet2DOutput(sample=out) if return_dict else (out,)

    def _encode(self, h: torch.Tensor, temb: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the features (B, C_i, H/2^i, W/2^i) of the last level, and the skip connections, h being the first."""
        image, skips = x, [h]
        for block in self.down_blocks:
            if isinstance(block, SkipDownBlock):
                h, more, image = block(h, temb, image)
            else:
                h, more = block(h, temb)
            skips += more
        return h, skips

    def _decode(
        self, h: torch.Tensor, skips: list[torch.Tensor], temb: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the features (B, C_0, H, W), and the image (B, 3, H, W) of NCSN++, None in other networks."""
        image, number = None, self.config["layers_per_block"] + 1
        for block in self.up_blocks:
            own, skips = skips[-number:], skips[:-number]
            if isinstance(block, SkipUpBlock):
                h, image = block(h, own, temb, image)
            else:
                h = block(h, own, temb)
        return h, image

    def embed(self, t: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        """Return the embedding (B, D) or (1, D) of times (B,) or (1,), plus that of labels if there are classes."""
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

"""The autoencoder of latent diffusion (Rombach et al. 2022): images to latents of a normal distribution, and back.

Configuration keys, defaults and state-dict keys are those of diffusers' `AutoencoderKL`. The file has the model, then
its encoder and decoder with their blocks, then the checks of its settings.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from hfgen.checks import check_divisible, require, require_int, require_number, require_size
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
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

POSTERIOR_TENSORS = ("parameters", "mean", "logvar", "std", "var")

SWITCHES = ("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")


@dataclass
class AutoencoderKLPass(DecoderOutput):
    """Reconstructed images (B, C, H, W), `.sample`, and q(z|x) of their latents, `.latent_dist`."""

    latent_dist: DiagonalGaussianDistribution | None = None


class Posterior(DiagonalGaussianDistribution):
    """q(z|x) = N(mu, sigma^2), whose tensors torch's tools find: export, vmap and data parallelism."""


def _flatten(posterior: Posterior) -> tuple[list[Tensor], bool]:
    return [getattr(posterior, name) for name in POSTERIOR_TENSORS], posterior.deterministic


def _unflatten(tensors: Iterable[Any], deterministic: bool) -> Posterior:
    posterior = Posterior.__new__(Posterior)
    vars(posterior).update(zip(POSTERIOR_TENSORS, tensors, strict=True), deterministic=deterministic)
    return posterior


register_pytree_node(Posterior, _flatten, _unflatten, serialized_type_name="hfgen.models.autoencoder_kl.Posterior")


class AutoencoderKL(ModelMixin):
    """Autoencoder with latents q(z|x) = N(mu, sigma^2), which a small KL keeps near N(0, 1) (Rombach et al. 2022).

    Images (B, C, H, W) in [-1, 1] become z (B, `latent_channels`, H / f, W / f), f = 2^(levels - 1). Diffusion models
    use normalised latents, of mean 0 and variance 1: `to_latents` and `from_latents` convert images to them and back.

    `force_upcast`: a note for users of float16; it has no effect. Raises ConfigError for impossible values, and for
    values of stock configurations that are not reproduced.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ("norm",)
    _no_split_modules = ("ResnetBlock", "Attention")

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int | tuple[int, int] = 32,
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ) -> None:
        super().__init__()
        check_config(self.config)
        # encoder, decoder, and the 1x1 convolutions in between
        widths, settings, attend = tuple(block_out_channels), settings_of(self.config), mid_block_add_attention
        self.encoder = Encoder(in_channels, widths, layers_per_block, latent_channels, attend, settings)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1) if use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else None
        self.decoder = Decoder(latent_channels, widths, layers_per_block, out_channels, attend, settings)

    @property
    def factor(self) -> int:
        """Return f, the side of an image over the side of its latents."""
        return 1 << (len(self.config["block_out_channels"]) - 1)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Return q(z|x) of images (B, C, H, W) in [-1, 1] as `.latent_dist`, with `mean`, `std`, `mode()`, `sample()`.

        Raises ConfigError unless H and W are divisible by f.
        """
        posterior = self.posterior(x)
        if not return_dict:
            return (posterior,)
        return AutoencoderKLOutput(latent_dist=posterior)

    def posterior(self, x: Tensor) -> Posterior:
        """Return q(z|x), (B, D, h, w), of images (B, C, H, W) in [-1, 1].

        Raises ConfigError unless f divides H and W.
        """
        check_divisible("images", x.shape[-2], x.shape[-1], len(self.config["block_out_channels"]))
        moments = self.encoder(x)                                                        # (B, 2D, h, w)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        return Posterior(moments.contiguous())

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Return the images (B, C, h f, w f) of z (B, D, h, w) as `.sample`, on the scale [-1, 1], not clipped.

        `generator` has no effect; diffusers' pipelines pass it.
        """
        x = self.decoder(self.before_decoder(z))
        if not return_dict:
            return (x,)
        return DecoderOutput(sample=x)

    def before_decoder(self, z: Tensor) -> Tensor:
        """Return the input of the decoder for z (B, D, h, w), in the same shape."""
        if self.post_quant_conv is None:
            return z
        return self.post_quant_conv(z)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        eps: Tensor | None = None,
    ) -> AutoencoderKLPass | tuple[Tensor]:
        """Return reconstructed images (B, C, H, W), `.sample`, and q(z|x), `.latent_dist`.

        `sample`: images (B, C, H, W) in [-1, 1]. z is the mean of q(z|x); mu + sigma eps for `eps`
        (B, D, h, w); a new draw with `sample_posterior`.
        """
        # latents
        posterior = self.posterior(sample)
        if eps is not None:
            z = posterior.mean + posterior.std * eps
        elif sample_posterior:
            z = posterior.sample(generator)
        else:
            z = posterior.mode()
        # images
        x = self.decoder(self.before_decoder(z))
        if not return_dict:
            return (x,)
        return AutoencoderKLPass(sample=x, latent_dist=posterior)

    def to_latents(self, images: Tensor, eps: Tensor | None = None) -> Tensor:
        """Return normalised latents (B, D, h, w), of mean 0 and variance 1, of images (B, C, H, W) in [-1, 1].

        They are the means of q(z|x), or the draws mu + sigma eps for `eps` (B, D, h, w).
        """
        posterior = self.posterior(images)
        if eps is None:
            return self.normalise(posterior.mean)
        return self.normalise(posterior.mean + posterior.std * eps)

    def to_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation > 0, (B, D, h, w), of normalised latents of images (B, C, H, W)."""
        posterior = self.posterior(images)
        _, scale = self._shift_and_scale(posterior.mean)
        return self.normalise(posterior.mean), posterior.std * scale

    def from_latents(self, latents: Tensor) -> Tensor:
        """Return the images (B, C, H, W) on the scale [-1, 1], not clipped, of normalised latents (B, D, h, w)."""
        x: Tensor = self.decoder(self.before_decoder(self.denormalise(latents)))
        return x

    def normalise(self, z: Tensor) -> Tensor:
        """Return normalised latents (z - shift) scale, (B, D, h, w), of mean 0 and variance 1, of the encoder's z."""
        shift, scale = self._shift_and_scale(z)
        return (z - shift) * scale

    def denormalise(self, latents: Tensor) -> Tensor:
        """Return latents / scale + shift, (B, D, h, w), of latents of mean 0 and variance 1; inverts `normalise`."""
        shift, scale = self._shift_and_scale(latents)
        return latents / scale + shift

    def _shift_and_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift and scale: scalars, or (D, 1, 1) from `latents_mean` and `latents_std` with `scaling_factor`."""
        c = self.config
        if c["latents_mean"] is not None:
            mean, std = like.new_tensor(c["latents_mean"]), like.new_tensor(c["latents_std"])
            return mean[:, None, None], c["scaling_factor"] / std[:, None, None]
        return like.new_full((), c["shift_factor"] or 0.0), like.new_full((), c["scaling_factor"])


class Encoder(nn.Module):
    """Encoder: images (B, C, H, W) to mean and log-variance, joined, (B, 2D, H / f, W / f), f = 2^(levels - 1)."""

    def __init__(
        self, in_channels: int, widths: Sequence[int], layers: int, latent_channels: int, attend: bool,
        settings: BlockSettings,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False), 1):
            self.down_blocks.append(EncoderLevel(before, width, layers, i == len(widths), settings))
        self.mid_block = MidBlock(widths[-1], attend, settings.groups, 1.0, settings)
        self.conv_norm_out = GroupNorm(groups_of(widths[-1], settings.groups), widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return mean and log-variance of q(z|x), joined (B, 2D, h, w), of images x (B, C, H, W) in [-1, 1]."""
        h = channels_last(self.conv_in(x))                                                    # (B, C_0, H, W)
        for block in self.down_blocks:
            h = block(h)                                                                 # (B, C_i, H/2^i, W/2^i)
        h = self.mid_block(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))                              # (B, 2D, h, w)


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


def check_config(config: Any) -> None:
    """Raise ConfigError, naming the field, for a value that is impossible or not reproduced."""
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
    for field in SWITCHES:
        require(isinstance(c[field], bool), field, c[field], "true or false")
    require_size("sample_size", c["sample_size"], 2**24)
    _check_scale(c)


def _check_scale(c: Any) -> None:
    """Raise ConfigError for impossible factors of the normalisation of latents."""
    # factors of all channels
    require_number("scaling_factor", c["scaling_factor"], 1e-6)
    if c["shift_factor"] is not None:
        require_number("shift_factor", c["shift_factor"], -1e6)
    # factors of each channel
    each = {field: c[field] for field in ("latents_mean", "latents_std")}
    if all(value is None for value in each.values()):
        return
    require(c["shift_factor"] is None, "shift_factor", c["shift_factor"], "null if latents_mean is given")
    for (field, values), low in zip(each.items(), (-1e6, 1e-6), strict=True):
        good = isinstance(values, list | tuple) and len(values) == c["latent_channels"]
        require(good, field, values, f"a list of latent_channels ({c['latent_channels']}) numbers, or null for both")
        for value in values:
            require_number(field, value, low)

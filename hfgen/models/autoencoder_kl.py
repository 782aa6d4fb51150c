"""The autoencoder of latent diffusion (Rombach et al. 2022): images to latents of a normal distribution, and back.

Configuration keys, defaults and state-dict keys are those of diffusers' `AutoencoderKL`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from hfgen.checks import check_divisible, require, require_number
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
from hfgen.models.encoder_decoder import Decoder, Encoder, check_blocks, require_switches, settings_of

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
        self.encoder = Encoder(in_channels, widths, layers_per_block, 2 * latent_channels, attend, settings)
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


def check_config(config: Any) -> None:
    """Raise ConfigError, naming the field, for a value that is impossible or not reproduced."""
    check_blocks(config)
    require_switches(config, SWITCHES)
    _check_scale(config)


def _check_scale(c: Any) -> None:
    """Raise ConfigError for impossible factors of the normalisation of latents."""
    # shift of all channels
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

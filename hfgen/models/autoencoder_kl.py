"""The autoencoder of latent diffusion (Rombach et al. 2022): images to latents of a normal distribution, and back.

Configuration keys, defaults and state-dict keys are those of diffusers' `AutoencoderKL`.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor

from hfgen.component import ModelMixin
from hfgen.models.autoencoder_kl_parts import Decoder, Encoder, check_config, settings_of
from hfgen.models.checks import check_divisible


@dataclass
class AutoencoderKLPass(DecoderOutput):
    """Images (B, C, H, W) that went through their latents, `.sample`, and q(z|x) of those, `.latent_dist`."""

    latent_dist: DiagonalGaussianDistribution | None = None


class AutoencoderKL(ModelMixin):
    """Autoencoder whose latents q(z|x) = N(mu, sigma^2) are held near N(0, 1) by a small KL (Rombach et al. 2022).

    Images (B, C, H, W) in [-1, 1] become z (B, `latent_channels`, H / f, W / f), f = 2^(levels - 1). A diffusion model
    works on latents of mean 0 and variance 1: `to_latents` and `from_latents` lead there and back.

    `force_upcast` is a note for those who run it in float16. Raises ConfigError for values that are impossible, and for
    values of stock configurations that are not reproduced.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ("norm",)

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
        widths, settings, attend = tuple(block_out_channels), settings_of(self.config), mid_block_add_attention
        self.encoder = Encoder(in_channels, widths, layers_per_block, latent_channels, attend, settings)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1) if use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else None
        self.decoder = Decoder(latent_channels, widths, layers_per_block, out_channels, attend, settings)

    @property
    def factor(self) -> int:
        """Return f, how many times an image is as high and as wide as its latents."""
        return 1 << (len(self.config["block_out_channels"]) - 1)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Return q(z|x) of images (B, C, H, W) in [-1, 1], `.latent_dist`: its `mean`, `std`, `mode()`, `sample()`.

        H and W must be divisible by f, else ConfigError.
        """
        posterior = self.posterior(x)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def posterior(self, x: Tensor) -> DiagonalGaussianDistribution:
        """Return q(z|x) of images (B, C, H, W)."""
        check_divisible("images", x.shape[-2], x.shape[-1], len(self.config["block_out_channels"]))
        moments = self.encoder(x)                                                        # (B, 2D, h, w)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        return DiagonalGaussianDistribution(moments.contiguous())

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Return the images of z (B, D, h, w), `.sample`, (B, C, h f, w f). `generator` is for the stock contract."""
        x = self.decoder(self.before_decoder(z))
        return DecoderOutput(sample=x) if return_dict else (x,)

    def before_decoder(self, z: Tensor) -> Tensor:
        """Return what the decoder is given for z, the same shape."""
        return z if self.post_quant_conv is None else self.post_quant_conv(z)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        eps: Tensor | None = None,
    ) -> AutoencoderKLPass | tuple[Tensor]:
        """Return images through their latents, `.sample`, and q(z|x), `.latent_dist`.

        z is the mean of q(z|x); with `eps` (B, D, h, w) it is mu + sigma eps, with `sample_posterior` a fresh draw.
        """
        posterior = self.posterior(sample)
        if eps is not None:
            z = posterior.mean + posterior.std * eps
        else:
            z = posterior.sample(generator) if sample_posterior else posterior.mode()
        x = self.decoder(self.before_decoder(z))
        return AutoencoderKLPass(sample=x, latent_dist=posterior) if return_dict else (x,)

    def to_latents(self, images: Tensor, eps: Tensor | None = None) -> Tensor:
        """Return the latents of images as a diffusion model takes them, of mean 0 and variance 1: (B, D, h, w).

        The means of q(z|x), or with `eps` (B, D, h, w) the draws mu + sigma eps.
        """
        posterior = self.posterior(images)
        return self.normalise(posterior.mean if eps is None else posterior.mean + posterior.std * eps)

    def to_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latents of images as a diffusion model takes them, (B, D, h, w)."""
        posterior = self.posterior(images)
        _, scale = self._shift_and_scale(posterior.mean)
        return self.normalise(posterior.mean), posterior.std * scale

    def from_latents(self, latents: Tensor) -> Tensor:
        """Return the images (B, C, H, W) of latents as a diffusion model gives them."""
        x: Tensor = self.decoder(self.before_decoder(self.denormalise(latents)))
        return x

    def normalise(self, z: Tensor) -> Tensor:
        """Return (z - shift) scale of what the encoder gives; nothing outside of this class applies them."""
        shift, scale = self._shift_and_scale(z)
        return (z - shift) * scale

    def denormalise(self, latents: Tensor) -> Tensor:
        """Return latents / scale + shift, the inverse of `normalise`."""
        shift, scale = self._shift_and_scale(latents)
        return latents / scale + shift

    def _shift_and_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift and scale, of all channels or (D, 1, 1): those of each are then scaled by `scaling_factor`."""
        c = self.config
        if c["latents_mean"] is not None:
            mean, std = (like.new_tensor(c[field])[:, None, None] for field in ("latents_mean", "latents_std"))
            return mean, c["scaling_factor"] / std
        return like.new_tensor(c["shift_factor"] or 0.0), like.new_tensor(c["scaling_factor"])

"""The discrete autoencoder: images to a grid of codes and back (VQ-VAE, van den Oord et al. 2017; FSQ, Mentzer et al.
2024).

Configuration keys, defaults and state-dict keys are those of diffusers' `VQModel`; `quantizer` and `levels` are added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from torch import Tensor, nn

from hfgen.checks import check_divisible, require, require_choice, require_int
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
from hfgen.models.encoder_decoder import Decoder, Encoder, check_blocks, require_switches, settings_of
from hfgen.models.quantizers import FiniteScalarQuantizer, VectorQuantizer

OWN = ("quantizer", "levels")
"""Settings that diffusers does not have."""

SWITCHES = ("force_upcast", "lookup_from_codebook", "mid_block_add_attention")

MAX_CODES = 2**20

BETA = 0.25
"""Weight of the codebook's term in the `commit_loss` of diffusers."""


@dataclass
class VQAutoencoderPass(DecoderOutput):
    """Reconstructed images `sample` (B, C, H, W), and diffusers' `commit_loss`, a scalar.

    `latents` z (B, D, h, w) of the encoder, their `vectors` (B, D, h, w), through whose gradient a codebook learns, and
    `codes` (B, h, w) int64.
    """

    commit_loss: Any = None
    latents: Any = None
    vectors: Any = None
    codes: Any = None


class VQAutoencoder(ModelMixin):
    """Autoencoder whose latents are codes 0..K-1 (van den Oord et al. 2017; `quantizer="fsq"`: Mentzer et al. 2024).

    Images (B, C, H, W) in [-1, 1] become codes (B, H / f, W / f), f = 2^(levels of resolution - 1): `to_codes` and
    `from_codes`. With "vq" a code is the nearest of `num_vq_embeddings` learned vectors of `vq_embed_dim` channels
    (default: `latent_channels`), as in diffusers' `VQModel`; with "fsq" each of len(`levels`) channels is rounded to
    `levels[i]` values, and K is their product. `scaling_factor` and `force_upcast` are notes and have no effect.

    Raises ConfigError for impossible values, and for values of stock configurations that are not reproduced.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ("norm", "quantize")
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
        latent_channels: int = 3,
        sample_size: int | tuple[int, int] = 32,
        num_vq_embeddings: int = 256,
        norm_num_groups: int = 32,
        vq_embed_dim: int | None = None,
        scaling_factor: float = 0.18215,
        norm_type: str = "group",
        mid_block_add_attention: bool = True,
        lookup_from_codebook: bool = False,
        force_upcast: bool = False,
        quantizer: str = "vq",
        levels: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        check_config(self.config)
        # encoder, quantiser between 1x1 convolutions, decoder
        widths, settings, attend = tuple(block_out_channels), settings_of(self.config), mid_block_add_attention
        self.encoder = Encoder(in_channels, widths, layers_per_block, latent_channels, attend, settings)
        quantize = quantizer_of(num_vq_embeddings, vq_embed_dim or latent_channels, levels)
        self.quant_conv = nn.Conv2d(latent_channels, quantize.dim, 1)
        self.quantize = quantize
        self.post_quant_conv = nn.Conv2d(quantize.dim, latent_channels, 1)
        self.decoder = Decoder(latent_channels, widths, layers_per_block, out_channels, attend, settings)

    @property
    def factor(self) -> int:
        """Return f, the side of an image over the side of its grid of codes."""
        return 1 << (len(self.config["block_out_channels"]) - 1)

    @property
    def num_codes(self) -> int:
        """Return K, the number of codes."""
        return self.quantize.num_codes

    def code_shape(self, image_shape: Sequence[int]) -> tuple[int, int]:
        """Return (h, w), the grid of codes of images of shape (..., H, W). Raises ConfigError unless f divides both."""
        height, width = image_shape[-2:]
        check_divisible("images", height, width, len(self.config["block_out_channels"]))
        return height // self.factor, width // self.factor

    def encode(self, x: Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[Tensor]:
        """Return z (B, D, h, w), not quantised, as `.latents`, of images (B, C, H, W) in [-1, 1].

        Raises ConfigError unless f divides H and W.
        """
        z = self.before_quantizer(x)
        if not return_dict:
            return (z,)
        return VQEncoderOutput(latents=z)

    def before_quantizer(self, x: Tensor) -> Tensor:
        """Return z (B, D, h, w), not quantised, of images (B, C, H, W) in [-1, 1]."""
        self.code_shape(x.shape)
        return self.quant_conv(self.encoder(x)).contiguous()

    def decode(
        self,
        h: Tensor,
        force_not_quantize: bool = False,
        return_dict: bool = True,
        shape: Sequence[int] | None = None,
    ) -> DecoderOutput | tuple[Tensor, Tensor]:
        """Return the images (B, C, H, W) of z (B, D, h, w), which is quantised first, as `.sample`, and `.commit_loss`.

        `force_not_quantize`: z is decoded as it is; in a network with `lookup_from_codebook`, h are codes in its place,
        int64, whose vectors have the `shape` (B, h, w, D). Images are on the scale [-1, 1], not clipped.
        """
        # quantise, or look up the codes
        if not force_not_quantize:
            passed = self._decoded(h)
            sample, commit_loss = passed.sample, passed.commit_loss
        else:
            vectors = h
            if self.config["lookup_from_codebook"]:
                vectors = self.quantize.vectors(h if shape is None else h.reshape(tuple(shape[:3])))
            sample = self.decoder(self.before_decoder(vectors))
            commit_loss = sample.new_zeros(len(sample))
        # return images and loss
        if not return_dict:
            return sample, commit_loss
        return DecoderOutput(sample=sample, commit_loss=commit_loss)

    def before_decoder(self, vectors: Tensor) -> Tensor:
        """Return the input of the decoder (B, D', h, w) for vectors (B, D, h, w)."""
        return self.post_quant_conv(vectors.to(self.post_quant_conv.weight.dtype))

    def forward(self, sample: Tensor, return_dict: bool = True) -> VQAutoencoderPass | tuple[Tensor, Tensor]:
        """Return reconstructed images (B, C, H, W), `.sample`, diffusers' `.commit_loss`, latents, vectors and codes.

        `sample`: images (B, C, H, W) in [-1, 1]. Raises ConfigError unless f divides H and W.
        """
        passed = self._decoded(self.before_quantizer(sample))
        if not return_dict:
            return passed.sample, passed.commit_loss
        return passed

    def _decoded(self, z: Tensor) -> VQAutoencoderPass:
        """Return the images of z (B, D, h, w), quantised, with the tensors on the way."""
        quantised, codes = self.quantize(z)
        sample = self.decoder(self.before_decoder(quantised))
        vectors = self.quantize.vectors(codes).to(z.dtype)
        commit_loss = (vectors.detach() - z).square().mean() + BETA * (vectors - z.detach()).square().mean()
        if self.config["quantizer"] == "fsq":                                            # nothing to commit to
            commit_loss = z.new_zeros(())
        return VQAutoencoderPass(sample=sample, commit_loss=commit_loss, latents=z, vectors=vectors, codes=codes)

    def to_codes(self, images: Tensor) -> Tensor:
        """Return codes (B, h, w) int64 in [0, K) of images (B, C, H, W) in [-1, 1]."""
        return self.quantize(self.before_quantizer(images))[1]

    def from_codes(self, codes: Tensor) -> Tensor:
        """Return the images (B, C, h f, w f) on the scale [-1, 1], not clipped, of codes (B, h, w) int64 in [0, K)."""
        x: Tensor = self.decoder(self.before_decoder(self.quantize.vectors(codes)))
        return x

    def stock_settings(self) -> dict[str, Any] | None:
        """Return the settings of diffusers' `VQModel` with the same tensors; None with finite scalar quantisation."""
        if self.config["quantizer"] != "vq":
            return None
        return {key: value for key, value in self.config.items() if not key.startswith("_") and key not in OWN}


def quantizer_of(num_codes: int, dim: int, levels: Sequence[int] | None) -> VectorQuantizer | FiniteScalarQuantizer:
    """Return the quantiser to the grid of `levels`; None for that to the nearest of `num_codes` vectors (D = `dim`)."""
    if levels is None:
        return VectorQuantizer(num_codes, dim)
    return FiniteScalarQuantizer(levels)


def check_config(config: Any) -> None:
    """Raise ConfigError, naming the field, for a value that is impossible or not reproduced."""
    # encoder and decoder
    c = config
    check_blocks(c)
    require_switches(c, SWITCHES)
    require(c["norm_type"] == "group", "norm_type", c["norm_type"], "'group'")
    # quantiser
    require_choice("quantizer", c["quantizer"], ("vq", "fsq"))
    require_int("num_vq_embeddings", c["num_vq_embeddings"], high=MAX_CODES)
    if c["vq_embed_dim"] is not None:
        require_int("vq_embed_dim", c["vq_embed_dim"])
    levels = c["levels"]
    if c["quantizer"] == "vq":
        require(levels is None, "levels", levels, "null unless quantizer is 'fsq'")
        return
    listed = isinstance(levels, list | tuple) and len(levels) > 0
    require(listed, "levels", levels, "a list of numbers of levels, such as [8, 5, 5, 5]")
    for count in levels:
        require_int("levels", count, 2, MAX_CODES)
    require(prod(levels) <= MAX_CODES, "levels", levels, f"numbers whose product is at most {MAX_CODES}")
    require(c["vq_embed_dim"] in (None, len(levels)), "vq_embed_dim", c["vq_embed_dim"], f"null or {len(levels)}")

"""Autoencoding for latent diffusion: images to latents of mean 0 and variance 1, and back."""

from typing import Any

import torch
from torch import Tensor

from hfgen.checks import check_int
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.images import as_output, check_output_type
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.pipelines.first_stage import FirstStagePipeline, Output
from hfgen.pipelines.inputs import checked


class AutoencoderKLPipeline(FirstStagePipeline):
    """Images to latents and back (Rombach et al. 2022, section 3.1), in the manner of `FirstStagePipeline`."""

    model_cpu_offload_seq = "vae"

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.register_modules(vae=vae)

    @property
    def first_stage(self) -> Any:
        """Return the autoencoder."""
        return self.vae

    @torch.no_grad()
    def encode(self, images: Any, batch_size: int = 64) -> Tensor:
        """Return latents (B, D, h, w) float32: means of q(z|x), scaled to mean 0 and variance 1 for diffusion.

        `images`: PIL images, or a float tensor (B, C, H, W) in [0, 1].
        """
        check_int("batch_size", batch_size, 1)
        x = self.prepare(checked(images)).to(self.vae.dtype)
        latents = torch.cat([self.vae.to_latents(part).float() for part in x.split(batch_size)])
        self.maybe_free_model_hooks()
        return latents

    @torch.no_grad()
    def decode(
        self, latents: Tensor, batch_size: int = 64, output_type: str = "pil", return_dict: bool = True
    ) -> Output:
        """Return the images of latents (B, D, h, w), `.images`: arrays and tensors are in [0, 1].

        Raises ConfigTypeError unless latents are floats, ConfigError for another shape.
        """
        # check the arguments
        check_output_type(output_type)
        check_int("batch_size", batch_size, 1)
        D = self.vae.config.latent_channels
        if not isinstance(latents, Tensor) or not latents.is_floating_point():
            raise ConfigTypeError(f"latents must be a float tensor (B, {D}, h, w), got {type(latents).__name__}")
        if latents.ndim != 4 or latents.shape[1] != D or not len(latents):
            raise ConfigError(f"latents must have shape (B, {D}, h, w), got {list(latents.shape)}")
        # decode the latents in parts
        z = latents.to(self._execution_device, self.vae.dtype)
        x = torch.cat([self.vae.from_latents(part).float() for part in z.split(batch_size)])
        return self._output(as_output(x, output_type), return_dict)

"""What the autoencoder of latent diffusion makes of images: latents of mean 0 and variance 1, and images again."""

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.images import as_output, check_output_type
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.pipelines.base import Pipeline, check_int
from hfgen.pipelines.inputs import Given, checked, prepared

Output = ImagePipelineOutput | tuple[Any]


class AutoencoderKLPipeline(Pipeline):
    """Images to latents and back (Rombach et al. 2022, section 3.1), brought to the network's `sample_size` first.

    `images` are a PIL image or a list of them, of any sizes, or a float tensor (B, C, H, W) in [0, 1]; `batch_size`
    images go through the network at a time, which changes nothing else. What comes back are PIL images, an array
    (B, H, W, C) or a tensor (B, C, H, W) in [0, 1], by `output_type` "pil", "np" or "pt". Errors: ConfigError, or
    ConfigTypeError (a TypeError too) for what holds no images.
    """

    model_cpu_offload_seq = "vae"

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.register_modules(vae=vae)

    def __call__(self, images: Any, batch_size: int = 64, output_type: str = "pil", return_dict: bool = True) -> Output:
        """Return `reconstruct(images)`."""
        return self.reconstruct(images, batch_size, output_type, return_dict)

    def reconstruct(
        self, images: Any, batch_size: int = 64, output_type: str = "pil", return_dict: bool = True
    ) -> Output:
        """Return images through the means of their latents and back, `.images`."""
        check_output_type(output_type)
        return self.decode(self.encode(images, batch_size), batch_size, output_type, return_dict)

    @torch.no_grad()
    def encode(self, images: Any, batch_size: int = 64) -> Tensor:
        """Return the latents of images as a diffusion model takes them, (B, D, h, w) float32, of mean 0, variance 1."""
        check_int("batch_size", batch_size, 1)
        x = self.prepare(checked(images)).to(self.vae.dtype)
        latents = torch.cat([self.vae.to_latents(part).float() for part in x.split(batch_size)])
        self.maybe_free_model_hooks()
        return latents

    @torch.no_grad()
    def decode(
        self, latents: Tensor, batch_size: int = 64, output_type: str = "pil", return_dict: bool = True
    ) -> Output:
        """Return the images of latents (B, D, h, w), `.images`."""
        check_output_type(output_type)
        check_int("batch_size", batch_size, 1)
        D = self.vae.config.latent_channels
        if not isinstance(latents, Tensor) or not latents.is_floating_point():
            raise ConfigTypeError(f"latents must be a float tensor (B, {D}, h, w), got {type(latents).__name__}")
        if latents.ndim != 4 or latents.shape[1] != D or not len(latents):
            raise ConfigError(f"latents must have shape (B, {D}, h, w), got {list(latents.shape)}")
        z = latents.to(self._execution_device, self.vae.dtype)
        x = torch.cat([self.vae.from_latents(part).float() for part in z.split(batch_size)])
        self.maybe_free_model_hooks()
        images = as_output(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def prepare(self, images: Given) -> Tensor:
        """Return images as the network takes them: float32 (B, C, H, W) in [-1, 1], on its device."""
        size = self.vae.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return prepared(images, self.vae.config.in_channels, height, width, self._execution_device)

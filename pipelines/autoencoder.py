"""Autoencoding of images: codes, reconstructions, denoised images, completed images."""

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

from hfgen.checks import check_int
from hfgen.errors import ConfigTypeError
from hfgen.images import LATENT, as_output, check_output_type
from hfgen.models.autoencoder import Autoencoder
from hfgen.pipelines.base import Pipeline
from hfgen.pipelines.inputs import Given, checked, prepared, prepared_mask

Output = ImagePipelineOutput | tuple[Any]


class AutoencoderPipeline(Pipeline):
    """Images to codes and back, x' = d(e(x)). Images are first resized to the network's size and channels.

    `images`: a PIL image or a list of them, of any sizes, or a float tensor (B, C, H, W) in [0, 1]. `batch_size`:
    images in one evaluation of the network; it does not change the result. `output_type`: "pil" for PIL images, "np" or
    "numpy" for an array (B, H, W, C), "pt" for a tensor (B, C, H, W), in [0, 1]. Raises ConfigError, or ConfigTypeError
    (also a TypeError) for arguments that are not images.
    """

    model_cpu_offload_seq = "autoencoder"

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.register_modules(autoencoder=autoencoder)

    def __call__(
        self, images: Any, batch_size: int = 256, output_type: str = "pil", return_dict: bool = True
    ) -> Output:
        """Return `reconstruct(images)`."""
        return self.reconstruct(images, batch_size, output_type, return_dict)

    def reconstruct(
        self, images: Any, batch_size: int = 256, output_type: str = "pil", return_dict: bool = True
    ) -> Output:
        """Return the reconstructions d(e(x)), `.images`; for "latent" the codes e(x), (B, D), in their place."""
        check_output_type(output_type, latent=True)
        if output_type == LATENT:
            return self._output(self.encode(images, batch_size), return_dict)
        x = self.prepare(checked(images))
        return self._output(as_output(self._reconstructed(x, batch_size), output_type), return_dict)

    def denoise(self, images: Any, batch_size: int = 256, output_type: str = "pil", return_dict: bool = True) -> Output:
        """Return denoised images d(e(x)), `.images` (Vincent et al. 2008).

        The network must be trained on such noise (--corruption gaussian or salt_pepper). A tensor may exceed [0, 1], as
        images with Gaussian noise do.
        """
        check_output_type(output_type)
        x = self.prepare(checked(images, noisy=True))
        return self._output(as_output(self._reconstructed(x, batch_size), output_type), return_dict)

    def complete(
        self, images: Any, mask: Any, batch_size: int = 256, output_type: str = "pil", return_dict: bool = True
    ) -> Output:
        """Return completed images, `.images`: d(e(x)) at missing pixels, the given pixels elsewhere.

        `mask`: one for all images or one for each; a PIL image or a list of them, white where pixels are missing, or a
        bool or float tensor (B, 1, H, W) or (H, W), 1 where pixels are missing. It should have the size of the images,
        since it is resized as they are. The network must be trained on missing patches (--corruption patch).
        """
        # images and mask
        check_output_type(output_type)
        x = self.prepare(checked(images))
        height, width = self.autoencoder.sides
        missing = prepared_mask(mask, len(x), height, width, self._execution_device)     # (B or 1, 1, H, W)
        # fill the missing pixels, keep the others
        filled = self._reconstructed(torch.where(missing, 0.0, x), batch_size)           # 0: the middle grey
        return self._output(as_output(torch.where(missing, filled, x), output_type), return_dict)

    @torch.no_grad()
    def encode(self, images: Any, batch_size: int = 256) -> torch.Tensor:
        """Return the codes e(x) of images, (B, D) float32, on the network's device.

        `images`: PIL images, or a float tensor (B, C, H, W) in [0, 1].
        """
        check_int("batch_size", batch_size, 1)
        x = self.prepare(checked(images)).to(self.autoencoder.dtype)
        codes = torch.cat([self.autoencoder.encode(part).float() for part in x.split(batch_size)])
        self.maybe_free_model_hooks()
        return codes

    @torch.no_grad()
    def decode(
        self, latents: torch.Tensor, batch_size: int = 256, output_type: str = "pil", return_dict: bool = True
    ) -> Output:
        """Return the images d(z) of codes z (B, D), `.images`: arrays and tensors are in [0, 1].

        Raises ConfigTypeError unless codes are floats.
        """
        # check the arguments
        check_output_type(output_type)
        check_int("batch_size", batch_size, 1)
        if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
            raise ConfigTypeError(f"latents must be a float tensor (B, D), got {type(latents).__name__}")
        # decode the codes in parts
        z = latents.to(self._execution_device, self.autoencoder.dtype)
        x = torch.cat([self.autoencoder.decode(part).float() for part in z.split(batch_size)])
        return self._output(as_output(x, output_type), return_dict)

    def prepare(self, images: Given) -> torch.Tensor:
        """Return images as inputs of the network: float32 (B, C, H, W) in [-1, 1] on its device."""
        height, width = self.autoencoder.sides
        return prepared(images, self.autoencoder.config.channels, height, width, self._execution_device)

    @torch.no_grad()
    def _reconstructed(self, x: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Return d(e(x)) of prepared images, float32 (B, C, H, W) in [-1, 1]."""
        check_int("batch_size", batch_size, 1)
        parts = x.to(self.autoencoder.dtype).split(batch_size)
        return torch.cat([self.autoencoder(part).sample.float() for part in parts])

"""What an autoencoder makes of images: codes, reconstructions, images without noise, images completed."""

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.images import as_output, check_output_type
from hfgen.models.autoencoder import Autoencoder
from hfgen.pipelines.base import Pipeline, check_int
from hfgen.pipelines.inputs import Given, checked, prepared

Output = ImagePipelineOutput | tuple[Any]


class AutoencoderPipeline(Pipeline):
    """Images through a code and back, x' = d(e(x)), brought to the size and channels of the network first.

    Everywhere `images` are a PIL image or a list of them, of any sizes, or a float tensor (B, C, H, W) in [0, 1];
    `batch_size` images go through the network at a time, which changes nothing else. What comes back are PIL images, an
    array (B, H, W, C) or a tensor (B, C, H, W) in [0, 1], by `output_type` "pil", "np" or "pt". Errors: ConfigError, or
    ConfigTypeError (a TypeError too) for what holds no images.
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
        """Return the reconstructions d(e(x)), `.images`."""
        check_output_type(output_type)
        x = self.prepare(checked(images))
        return self._output(as_output(self._reconstructed(x, batch_size), output_type), return_dict)

    def denoise(self, images: Any, batch_size: int = 256, output_type: str = "pil", return_dict: bool = True) -> Output:
        """Return noisy images without their noise, `.images`: d(e(x)) of a network trained so (Vincent et al. 2008).

        The network has to have been trained on such noise (--corruption gaussian or salt_pepper). A tensor may leave
        [0, 1], as images with Gaussian noise do.
        """
        check_output_type(output_type)
        x = self.prepare(checked(images, noisy=True))
        return self._output(as_output(self._reconstructed(x, batch_size), output_type), return_dict)

    def complete(
        self, images: Any, mask: Any, batch_size: int = 256, output_type: str = "pil", return_dict: bool = True
    ) -> Output:
        """Return images whose missing pixels are filled in, `.images`: d(e(X - {x})) there, the given pixels elsewhere.

        `mask`: what is missing, for each image or one for all: a PIL image or a list of them, white where missing, or a
        bool or float tensor (B, 1, H, W) or (H, W), 1 where missing. It is brought to the network's size as the images
        are, so it should have theirs. The network has to have been trained on missing patches (--corruption patch).
        """
        check_output_type(output_type)
        x = self.prepare(checked(images))
        missing = self._missing(mask, len(x))                                            # (B, 1, H, W)
        filled = self._reconstructed(torch.where(missing, 0.0, x), batch_size)           # 0: the middle grey
        return self._output(as_output(torch.where(missing, filled, x), output_type), return_dict)

    @torch.no_grad()
    def encode(self, images: Any, batch_size: int = 256) -> torch.Tensor:
        """Return the codes e(x) of images, (B, D) float32."""
        check_int("batch_size", batch_size, 1)
        x = self.prepare(checked(images)).to(self.autoencoder.dtype)
        codes = torch.cat([self.autoencoder.encode(part).float() for part in x.split(batch_size)])
        self.maybe_free_model_hooks()
        return codes

    @torch.no_grad()
    def decode(
        self, latents: torch.Tensor, batch_size: int = 256, output_type: str = "pil", return_dict: bool = True
    ) -> Output:
        """Return the images of codes (B, D), `.images`."""
        check_output_type(output_type)
        check_int("batch_size", batch_size, 1)
        if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
            raise ConfigTypeError(f"latents must be a float tensor (B, D), got {type(latents).__name__}")
        z = latents.to(self._execution_device, self.autoencoder.dtype)
        x = torch.cat([self.autoencoder.decode(part).float() for part in z.split(batch_size)])
        return self._output(as_output(x, output_type), return_dict)

    def prepare(self, images: Given) -> torch.Tensor:
        """Return images as the network takes them: float32 (B, C, H, W) in [-1, 1], on its device."""
        height, width = self.autoencoder.sides
        return prepared(images, self.autoencoder.config.channels, height, width, self._execution_device)

    @torch.no_grad()
    def _reconstructed(self, x: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Return d(e(x)) of prepared images, float32 (B, C, H, W) in [-1, 1]."""
        check_int("batch_size", batch_size, 1)
        parts = x.to(self.autoencoder.dtype).split(batch_size)
        return torch.cat([self.autoencoder(part).sample.float() for part in parts])

    def _missing(self, mask: Any, count: int) -> torch.Tensor:
        """Return which pixels are missing, bool (B, 1, H, W) or (1, 1, H, W), at the network's size."""
        if isinstance(mask, torch.Tensor):
            mask = mask.float() if mask.dtype == torch.bool else mask
            mask = mask[None, None] if mask.ndim == 2 else mask
        given = checked(mask, "mask")
        if len(given) not in (1, count):
            raise ConfigError(f"mask must be one for all images or one for each of {count}, got {len(given)}")
        height, width = self.autoencoder.sides
        return prepared(given, 1, height, width, self._execution_device) > 0

"""Discrete autoencoding: images to a grid of codes, and back."""

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from hfgen.checks import check_int
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.images import LATENT, as_output, check_output_type
from hfgen.models.vq_autoencoder import VQAutoencoder
from hfgen.pipelines.base import Pipeline
from hfgen.pipelines.inputs import Given, checked, prepared

Output = ImagePipelineOutput | tuple[Any]


class VQAutoencoderPipeline(Pipeline):
    """Images to codes and back (van den Oord et al. 2017). Images are first resized to `sample_size`.

    `images`: a PIL image or a list of them, of any sizes, or a float tensor (B, C, H, W) in [0, 1]. `batch_size`:
    images in one evaluation of the network; it does not change the result. `output_type`: "pil" for PIL images, "np" or
    "numpy" for an array (B, H, W, C), "pt" for a tensor (B, C, H, W), in [0, 1]. Raises ConfigError, or ConfigTypeError
    (also a TypeError) for arguments that are not images.
    """

    model_cpu_offload_seq = "autoencoder"

    def __init__(self, autoencoder: VQAutoencoder) -> None:
        super().__init__()
        self.register_modules(autoencoder=autoencoder)

    def __call__(self, images: Any, batch_size: int = 64, output_type: str = "pil", return_dict: bool = True) -> Output:
        """Return `reconstruct(images)`."""
        return self.reconstruct(images, batch_size, output_type, return_dict)

    def reconstruct(
        self, images: Any, batch_size: int = 64, output_type: str = "pil", return_dict: bool = True
    ) -> Output:
        """Return reconstructions from the codes, `.images`; for "latent" the codes (B, h, w) in their place."""
        check_output_type(output_type, latent=True)
        codes = self.encode(images, batch_size)
        if output_type == LATENT:
            return self._output(codes, return_dict)
        return self.decode(codes, batch_size, output_type, return_dict)

    @torch.no_grad()
    def encode(self, images: Any, batch_size: int = 64) -> Tensor:
        """Return codes (B, h, w) int64 in [0, K).

        `images`: PIL images, or a float tensor (B, C, H, W) in [0, 1].
        """
        check_int("batch_size", batch_size, 1)
        x = self.prepare(checked(images)).to(self.autoencoder.dtype)
        codes = torch.cat([self.autoencoder.to_codes(part) for part in x.split(batch_size)])
        self.maybe_free_model_hooks()
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor, batch_size: int = 64, output_type: str = "pil", return_dict: bool = True) -> Output:
        """Return the images of codes (B, h, w), `.images`: arrays and tensors are in [0, 1].

        Raises ConfigTypeError unless codes are ints, ConfigError for another shape or codes that are not in [0, K).
        """
        # check the arguments
        check_output_type(output_type)
        check_int("batch_size", batch_size, 1)
        if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.is_complex():
            kind = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
            raise ConfigTypeError(f"codes must be a tensor (B, h, w) of ints, got {kind}")
        if codes.ndim != 3 or not codes.numel():
            raise ConfigError(f"codes must have shape (B, h, w), got {list(codes.shape)}")
        if not 0 <= int(codes.min()) <= int(codes.max()) < self.autoencoder.num_codes:
            raise ConfigError(f"codes must be in [0, {self.autoencoder.num_codes - 1}], "
                              f"got {int(codes.min())} to {int(codes.max())}")  # fmt: skip
        # decode the codes in parts
        codes = codes.to(self._execution_device, torch.int64)
        x = torch.cat([self.autoencoder.from_codes(part).float() for part in codes.split(batch_size)])
        return self._output(as_output(x, output_type), return_dict)

    def prepare(self, images: Given) -> Tensor:
        """Return images as inputs of the network: float32 (B, C, H, W) in [-1, 1] on its device."""
        size = self.autoencoder.config.sample_size
        if isinstance(size, int):
            size = (size, size)
        height, width = size
        return prepared(images, self.autoencoder.config.in_channels, height, width, self._execution_device)

"""Base class of the pipelines of autoencoders whose latents or codes another model generates."""

from typing import Any

from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from hfgen.images import LATENT, check_output_type
from hfgen.pipelines.base import Pipeline
from hfgen.pipelines.inputs import Given, prepared

Output = ImagePipelineOutput | tuple[Any]


class FirstStagePipeline(Pipeline):
    """Base of the pipelines that map images to latents or codes, and back. Images are first resized to `sample_size`.

    `images`: a PIL image or a list of them, of any sizes, or a float tensor (B, C, H, W) in [0, 1]. `batch_size`:
    images in one evaluation of the network; it does not change the result. `output_type`: "pil" for PIL images, "np" or
    "numpy" for an array (B, H, W, C), "pt" for a tensor (B, C, H, W), in [0, 1]. Raises ConfigError, or ConfigTypeError
    (also a TypeError) for arguments that are not images.
    """

    model_cpu_offload_seq: str | None = None

    @property
    def first_stage(self) -> Any:
        """Return the autoencoder."""
        raise NotImplementedError

    def encode(self, images: Any, batch_size: int = 64) -> Tensor:
        """Return latents or codes of images."""
        raise NotImplementedError

    def decode(self, codes: Tensor, batch_size: int = 64, output_type: str = "pil", return_dict: bool = True) -> Output:
        """Return the images of latents or codes."""
        raise NotImplementedError

    def __call__(self, images: Any, batch_size: int = 64, output_type: str = "pil", return_dict: bool = True) -> Output:
        """Return `reconstruct(images)`."""
        return self.reconstruct(images, batch_size, output_type, return_dict)

    def reconstruct(
        self, images: Any, batch_size: int = 64, output_type: str = "pil", return_dict: bool = True
    ) -> Output:
        """Return reconstructions, `.images`; for "latent" the latents or codes in their place, as `encode` has them."""
        check_output_type(output_type, latent=True)
        codes = self.encode(images, batch_size)
        if output_type == LATENT:
            return self._output(codes, return_dict)
        return self.decode(codes, batch_size, output_type, return_dict)

    def prepare(self, images: Given) -> Tensor:
        """Return images as inputs of the network: float32 (B, C, H, W) in [-1, 1] on its device."""
        config = self.first_stage.config
        size = config.sample_size
        if isinstance(size, int):
            size = (size, size)
        height, width = size
        return prepared(images, config.in_channels, height, width, self._execution_device)

"""Discrete autoencoding: images to a grid of codes, and back."""

from typing import Any

import torch
from torch import Tensor

from hfgen.checks import check_int
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.images import as_output, check_output_type
from hfgen.models.vq_autoencoder import VQAutoencoder
from hfgen.pipelines.first_stage import FirstStagePipeline, Output
from hfgen.pipelines.inputs import checked


class VQAutoencoderPipeline(FirstStagePipeline):
    """Images to codes and back (van den Oord et al. 2017), in the manner of `FirstStagePipeline`."""

    model_cpu_offload_seq = "autoencoder"

    def __init__(self, autoencoder: VQAutoencoder) -> None:
        super().__init__()
        self.register_modules(autoencoder=autoencoder)

    @property
    def first_stage(self) -> Any:
        """Return the autoencoder."""
        return self.autoencoder

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

"""Base class of the pipelines that draw entries: levels of pixels, or codes of a discrete autoencoder."""

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from hfgen.errors import ConfigError
from hfgen.images import as_output, check_output_type
from hfgen.models.entries import PixelEntries
from hfgen.pipelines.base import own_network
from hfgen.pipelines.conditional import ConditionalPipeline
from hfgen.pipelines.guidance import Guide, joined, mixed
from hfgen.pipelines.inputs import checked, prepared
from hfgen.pipelines.step_end import LATENTS


class EntriesPipeline(ConditionalPipeline):
    """Base of the pipelines whose network predicts entries, integers in [0, V - 1], in raster order.

    With an `autoencoder` entries are its codes. Without one they are pixels of images of the shape `image_shape` (C, H,
    W) at `levels` grey levels, or patches of `patch_size` pixels a side (`hfgen.models.entries.PixelEntries`).
    """

    model_cpu_offload_seq = "text_encoder->network->autoencoder"
    _optional_components = ["text_encoder", "tokenizer", "autoencoder"]  # noqa: RUF012  (as diffusers declares it)
    default_guidance = 1.0
    causal = True
    """Whether the network predicts each entry from those before it; otherwise from all that are not masked."""

    def _register_entries(
        self, network: Any, text_encoder: CLIPTextModel | None, tokenizer: CLIPTokenizer | None, autoencoder: Any,
        null_condition: bool, image_shape: Any, levels: Any, patch_size: Any,
    ) -> None:  # fmt: skip
        """Register the components; ConfigError if the network has other entries than the images or the autoencoder."""
        network = own_network(network)
        if getattr(network, "causal", True) != self.causal:
            raise ConfigError(f"network must have causal={self.causal} in {type(self).__name__}; others are for "
                              "AutoregressivePipeline (true) and MaskedGenerationPipeline (false)")
        text = network.config.get("text_width") is not None
        self._register("network", network, text, text_encoder, tokenizer, null_condition, autoencoder=autoencoder)
        self.register_to_config(image_shape=image_shape, levels=levels, patch_size=patch_size)
        # compare the entries
        if autoencoder is None and (image_shape is None or len(image_shape) != 3):
            raise ConfigError(f"image_shape must be (C, H, W) without an autoencoder, got {image_shape}")
        if autoencoder is not None:
            count, values = network.num_entries, autoencoder.num_codes
        else:
            count, values = self._pixel_entries.count, self._pixel_entries.vocab_size
        if (count, values) != (network.num_entries, network.vocab_size):
            raise ConfigError(f"the network predicts {network.num_entries} entries of {network.vocab_size} values; "
                              f"images of this pipeline have {count} of {values}")

    @property
    def conditioned(self) -> Any:
        """Return the network that predicts entries."""
        return self.network

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape (C, H, W) of an image."""
        if self.autoencoder is None:
            return self._pixel_entries.shape
        rows, columns, _ = self.network.grid
        return self.autoencoder.config["out_channels"], rows * self._factor, columns * self._factor

    @property
    def _pixel_entries(self) -> PixelEntries:
        channels, height, width = self.config["image_shape"]
        return PixelEntries((channels, height, width), self.config["levels"], self.config["patch_size"])

    @property
    def _factor(self) -> int:
        """Return the side in pixels of one cell of the network's grid."""
        return int(self.config["patch_size"] if self.autoencoder is None else self.autoencoder.factor)

    @property
    def _callback_tensor_inputs(self) -> list[str]:
        return [LATENTS]

    @torch.no_grad()
    def encode(self, image: Any) -> Tensor:
        """Return the entries (B, n), int64 in [0, V - 1], of images: PIL, or tensors (B, C, H, W) in [0, 1]."""
        return self._encoded(self._pixels(image))

    @torch.no_grad()
    def decode(self, entries: Tensor, output_type: str = "pil") -> Any:
        """Return the images of entries (B, n), such as a state; those of -1 are grey.

        `output_type`: "pil", or an array or a tensor in [0, 1] ("np", "pt").
        """
        check_output_type(output_type)
        return as_output(self._images(entries), output_type)

    def _pixels(self, image: Any) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1], with the size and the channels of the samples."""
        channels, height, width = self.sample_shape
        return prepared(checked(image, "image"), channels, height, width, self._execution_device)

    def _encoded(self, pixels: Tensor) -> Tensor:
        """Return the entries (B, n) of images (B, C, H, W) in [-1, 1]."""
        if self.autoencoder is None:
            return self._pixel_entries.encode(pixels)
        codes: Tensor = self.autoencoder.to_codes(pixels.to(self.autoencoder.device, self.autoencoder.dtype))
        return codes.flatten(1)

    def _images(self, entries: Tensor) -> Tensor:
        """Return images (B, C, H, W) float32 in [-1, 1] of entries (B, n); entries of -1 are grey, 0."""
        # all entries, with some value where none is known
        known, values = entries >= 0, entries.clamp(min=0)
        if self.autoencoder is None:
            x, shown = self._pixel_entries.decode(values), self._pixel_entries.spread(known)
        else:
            rows, columns, _ = self.network.grid
            codes = values.view(-1, rows, columns).to(self.autoencoder.device)
            x = self.autoencoder.from_codes(codes).float().clamp(-1, 1)
            cells = known.view(-1, 1, rows, columns)
            shown = cells.repeat_interleave(self._factor, 2).repeat_interleave(self._factor, 3)
        # grey where none is known
        return x.where(shown.to(x.device), 0.0)


def conditions_of(guide: Guide) -> dict[str, Tensor | None]:
    """Return the network's conditions: under guidance those of 2 B rows, the unconditional ones first, else of B."""
    if guide.scale == 1:
        return guide.cond
    return {name: joined(guide.uncond[name], value) for name, value in guide.cond.items()}


def guided_logits(logits: Tensor, guided: bool, scale: float) -> Tensor:
    """Return u + w (c - u) of log-probabilities, w = `scale`, (B, ...); under no guidance `logits` (B, ...) themselves.

    Guided, `logits` (2 B, ..., V) hold u in the first rows, c in the last. p(x|y) is so weighed by (p(x|y) /
    p(x))^(w - 1), as in Ho and Salimans 2021, section 3.2.
    """
    if not guided:
        return logits
    u, c = logits.float().log_softmax(-1).chunk(2)
    return mixed(u, c, scale)

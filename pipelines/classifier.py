"""Classes of images: what the small classifier sees in PIL images or tensors of any size."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from PIL import Image, ImageOps

from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.images import from_pil
from hfgen.models.classifier import Classifier
from hfgen.pipelines.base import Pipeline, check_int

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
GREY = (0.299, 0.587, 0.114)                           # ITU-R BT.601, as Pillow converts colours to grey
ROUNDING = 1e-3


@dataclass
class ClassifierOutput(BaseOutput):
    """What a classifier saw: `labels` (B,) int64; `probabilities` (B, K) float32, each row of sum 1; `names`, the class
    name of each label, None where the classes have none."""

    labels: torch.Tensor
    probabilities: torch.Tensor
    names: list[str] | None = None


class ClassifierPipeline(Pipeline):
    """Labels and probabilities of images, brought to the size and channels of the network first."""

    model_cpu_offload_seq = "classifier"

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.register_modules(classifier=classifier)

    @torch.no_grad()
    def __call__(
        self,
        images: Image.Image | list[Image.Image] | torch.Tensor,
        batch_size: int = 256,
        return_dict: bool = True,
    ) -> ClassifierOutput | tuple[torch.Tensor, torch.Tensor, list[str] | None]:
        """Return the most probable class of each image and the probabilities of all, `batch_size` images at a time.

        `images`: a PIL image or a list of them, of any sizes, or a float tensor (B, C, H, W) in [0, 1], as pipelines
        return for "pt". Other sizes are resized as training data are: shortest side to the network's, bicubic and
        antialiased, centre kept. Transparency becomes white, colours grey and grey colours as the network needs.
        Errors: ConfigError, or ConfigTypeError (a TypeError too) for what holds no images.
        """
        check_int("batch_size", batch_size, 1)
        given = _checked(images)
        parts = [given[i : i + batch_size] for i in range(0, len(given), batch_size)]
        logits = torch.cat([self.classifier(self.prepare(part)) for part in parts])     # (B, K)
        self.maybe_free_model_hooks()
        probabilities = logits.float().softmax(1)
        labels = probabilities.argmax(1)
        known = self.classifier.config.class_names
        names = [known[label] for label in labels.tolist()] if known else None
        return ClassifierOutput(labels, probabilities, names) if return_dict else (labels, probabilities, names)

    def prepare(self, images: list[Image.Image] | torch.Tensor) -> torch.Tensor:
        """Return images as the network takes them: (B, C, H, W) in [-1, 1], on its device and in its precision."""
        channels, (height, width) = self.classifier.config.channels, self.classifier.sides
        if isinstance(images, torch.Tensor):
            unit = _with_channels(images.to(self._execution_device, torch.float32), channels)
            x = _resized(unit, height, width) * 2 - 1
        elif channels in MODES:
            flat = [_flattened(image, MODES[channels]) for image in images]
            x = from_pil([ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC) for image in flat])
        else:
            raise ConfigError(f"PIL images have 1, 3 or 4 channels, this network wants {channels}; give a tensor")
        return x.to(self._execution_device, self.classifier.dtype)

    def states(self, *args: Any, **settings: Any) -> Iterator[torch.Tensor]:
        """Raise ConfigError: a classifier makes no images."""
        raise ConfigError("a classifier makes no images; call it with images to get their classes")


def _checked(images: Any) -> list[Image.Image] | torch.Tensor:
    """Return one PIL image as a list, others as they are; ConfigError or ConfigTypeError for what holds no images."""
    images = [images] if isinstance(images, Image.Image) else images
    if isinstance(images, torch.Tensor):
        _check_tensor(images)
    elif not isinstance(images, list) or not all(isinstance(image, Image.Image) for image in images):
        found = type(images).__name__
        kinds = f" of {', '.join(sorted({type(i).__name__ for i in images}))}" if isinstance(images, list) else ""
        raise ConfigTypeError(f"images must be PIL images or a float tensor (B, C, H, W) in [0, 1], got {found}{kinds}")
    if not len(images):
        raise ConfigError("images must hold at least one image, got none")
    return images


def _check_tensor(images: torch.Tensor) -> None:
    if not images.is_floating_point():
        raise ConfigTypeError(f"images must be floats in [0, 1], got {images.dtype}; divide integers by their maximum")
    if images.ndim != 4:
        raise ConfigError(f"images must be (B, C, H, W), got {tuple(images.shape)}")
    if images.numel() and not -ROUNDING <= float(images.min()) <= float(images.max()) <= 1 + ROUNDING:
        low, high = float(images.min()), float(images.max())
        raise ConfigError(f"images must be in [0, 1], found {low:g} to {high:g}; from [-1, 1] use images / 2 + 0.5")


def _flattened(image: Image.Image, mode: str) -> Image.Image:
    """Return an image in the mode L, RGB or RGBA; for the first two its transparency shows white."""
    if image.mode == "F" or image.mode.startswith("I"):
        raise ConfigError(f"images must have 8 bits a channel, found mode {image.mode}; give a tensor in [0, 1]")
    if mode != "RGBA" and image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert(mode)


def _with_channels(unit: torch.Tensor, channels: int) -> torch.Tensor:
    """Return images (B, C, H, W) in [0, 1] with another number of channels, 1, 3 or 4."""
    found = unit.shape[1]
    if found == channels:
        return unit
    if found not in MODES or channels not in MODES:
        raise ConfigError(f"images have {found} channels and the network wants {channels}; only 1, 3 and 4 convert")
    colours = unit[:, :3].expand(-1, 3, -1, -1)
    if channels == 4:
        return torch.cat([colours, torch.ones_like(unit[:, :1])], 1)
    if found == 4:
        colours = colours * unit[:, 3:] + 1 - unit[:, 3:]
    return colours if channels == 3 else (colours * colours.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)


def _resized(unit: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return images (B, C, H, W) in [0, 1] at (height, width): the centred box of that shape, in whole pixels."""
    h, w = unit.shape[2:]
    if (h, w) == (height, width):
        return unit
    scale = max(height / h, width / w)
    box_h, box_w = round(height / scale), round(width / scale)
    top, left = (h - box_h) // 2, (w - box_w) // 2
    box = unit[:, :, top : top + box_h, left : left + box_w]
    return F.interpolate(box, (height, width), mode="bicubic", antialias=True).clamp(0, 1)

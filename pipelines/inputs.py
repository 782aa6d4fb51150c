"""Images that go into pipelines: PIL images or tensors of any size, brought to what a network takes."""

from typing import Any

import torch
from PIL import Image, ImageOps

from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.images import from_pil
from hfgen.resizing import fitted, with_channels

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
ROUNDING = 1e-3

Given = list[Image.Image] | torch.Tensor


def checked(images: Any, name: str = "images", noisy: bool = False) -> Given:
    """Return one PIL image as a list, others as they are; ConfigError or ConfigTypeError for what holds no images.

    A tensor must be float (B, C, H, W) in [0, 1], or finite if the images may be `noisy`. Errors call them `name`.
    """
    images = [images] if isinstance(images, Image.Image) else images
    if isinstance(images, torch.Tensor):
        _check_tensor(images, name, noisy)
    elif not isinstance(images, list) or not all(isinstance(image, Image.Image) for image in images):
        found = type(images).__name__
        kinds = f" of {', '.join(sorted({type(i).__name__ for i in images}))}" if isinstance(images, list) else ""
        raise ConfigTypeError(f"{name} must be PIL images or a float tensor (B, C, H, W) in [0, 1], got {found}{kinds}")
    if not len(images):
        raise ConfigError(f"{name} must hold at least one image, got none")
    return images


def prepared(images: Given, channels: int, height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return checked images as networks take them: float32 (B, channels, height, width) in [-1, 1] on `device`.

    Other sizes are resized as training data are: shortest side to the network's, bicubic and antialiased, centre kept.
    Transparency becomes white, colours grey and grey colours as the channels need.
    """
    if isinstance(images, torch.Tensor):
        return fitted(with_channels(images.to(device, torch.float32), channels), height, width) * 2 - 1
    if channels not in MODES:
        raise ConfigError(f"PIL images have 1, 3 or 4 channels, this network wants {channels}; give a tensor")
    flat = [_flattened(image, MODES[channels]) for image in images]
    return from_pil([ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC) for image in flat]).to(device)


def _check_tensor(images: torch.Tensor, name: str, noisy: bool) -> None:
    if not images.is_floating_point():
        raise ConfigTypeError(f"{name} must be floats in [0, 1], got {images.dtype}; divide integers by their maximum")
    if images.ndim != 4:
        raise ConfigError(f"{name} must be (B, C, H, W), got {tuple(images.shape)}")
    if noisy and images.isfinite().all():
        return
    if images.numel() and not -ROUNDING <= float(images.min()) <= float(images.max()) <= 1 + ROUNDING:
        low, high = float(images.min()), float(images.max())
        raise ConfigError(f"{name} must be in [0, 1], found {low:g} to {high:g}; from [-1, 1] use {name} / 2 + 0.5")


def _flattened(image: Image.Image, mode: str) -> Image.Image:
    """Return an image in the mode L, RGB or RGBA; for the first two its transparency shows white."""
    if image.mode == "F" or image.mode.startswith("I"):
        raise ConfigError(f"images must have 8 bits a channel, found mode {image.mode}; give a tensor in [0, 1]")
    if mode != "RGBA" and image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert(mode)

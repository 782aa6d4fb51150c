"""Arguments of pipelines, checked: images and masks resized for a network, the batch size, the strength."""

import inspect
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from hfgen.checks import check_int, require_number
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.images import fitted, from_pil, with_channels

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
ROUNDING = 1e-3

Given = list[Image.Image] | torch.Tensor


def checked(images: Any, name: str = "images", noisy: bool = False) -> Given:
    """Return images as PIL images or a tensor (B, C, H, W); ConfigError or ConfigTypeError for anything else.

    `images`: a PIL image or a list of them, or a float tensor (B, C, H, W) or array (B, H, W, C) in [0, 1], of any
    finite values if `noisy`, or a list of tensors or arrays, of one image each. `name` is the argument in error
    messages.
    """
    # one image as a list, a list as one tensor or array, an array as a tensor
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, list) and images and isinstance(images[0], torch.Tensor | np.ndarray):
        images = _joined(images, name)
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    # a tensor, or PIL images; at least one
    if isinstance(images, torch.Tensor):
        _check_tensor(images, name, noisy)
    elif not isinstance(images, list) or not all(isinstance(image, Image.Image) for image in images):
        given = type(images).__name__
        if isinstance(images, list):
            given += f" of {', '.join(sorted({type(image).__name__ for image in images}))}"
        raise ConfigTypeError(f"{name} must be PIL images, a float tensor (B, C, H, W) or an array (B, H, W, C) in "
                              f"[0, 1], got {given}")  # fmt: skip
    if not len(images):
        raise ConfigError(f"{name} must hold at least one image, got none")
    return images


def prepared(images: Given, channels: int, height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return checked images as networks take them: float32 (B, channels, height, width) in [-1, 1] on `device`.

    Images of other sizes are resized as training data are: shortest side to the network's, bicubic and antialiased,
    centre crop. Transparent pixels become white. RGB is converted to grey, or grey to RGB, as `channels` requires.
    Raises ConfigError for PIL images where `channels` is not 1, 3 or 4.
    """
    if isinstance(images, torch.Tensor):
        return fitted(with_channels(images.to(device, torch.float32), channels), height, width) * 2 - 1
    if channels not in MODES:
        raise ConfigError(f"PIL images have 1, 3 or 4 channels, this network takes {channels}; give a tensor")
    # PIL images: mode, then size
    flat = [_flattened(image, MODES[channels]) for image in images]
    return from_pil([ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC) for image in flat]).to(device)


def prepared_mask(mask: Any, count: int, height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return a mask as bool (B, 1, height, width), B being `count` or 1, True where it is 1 or white.

    `mask`: a PIL image or a list of them, or a bool or float tensor (B, 1, H, W) or (H, W) in [0, 1]; it is resized as
    images are. Raises ConfigError or ConfigTypeError for anything else.
    """
    # a tensor of floats (B, 1, H, W)
    if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
        mask = mask.float()
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        mask = mask[None, None]
    # resize as images are
    given = checked(mask, "mask")
    if len(given) not in (1, count):
        raise ConfigError(f"mask must be one for all images or one for each of {count}, got {len(given)}")
    return prepared(given, 1, height, width, device) > 0


def common_batch(batch_size: int, **given: Any) -> int:
    """Return the number of samples: the number of rows of the lists and tensors `given`, or `batch_size`.

    One row is repeated for all samples, except in `latents`. Raises ConfigError if the numbers differ.
    """
    check_int("batch_size", batch_size, 1)
    # rows
    counts = {}
    for name, value in given.items():
        listed = isinstance(value, list) or (isinstance(value, torch.Tensor) and value.ndim > 0)
        if listed and (len(value) != 1 or name == "latents"):
            counts[name] = len(value)
    if batch_size != 1:
        counts["batch_size"] = batch_size
    # the common number of them
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise ConfigError(f"these must agree: {', '.join(f'{name} {count}' for name, count in counts.items())}")
    return next(iter(counts.values()), 1)


def repeated(rows: Any, count: int, times: int) -> Any:
    """Return a list or tensor of `count` rows with each row `times` in a row; any other value unchanged.

    A value without rows, and a single row among several samples, holds for all of them.
    """
    if isinstance(rows, list) and len(rows) == count:
        return [row for row in rows for _ in range(times)]
    if isinstance(rows, torch.Tensor) and rows.ndim > 0 and len(rows) == count:
        return rows.repeat_interleave(times, 0)
    return rows


def share_of(strength: Any, image: Any, mask: Any) -> float:
    """Return the share of the steps, in (0, 1], that sampling takes: `strength` for an image, 1 without one.

    Default: 0.8 (1 with a mask). Raises ConfigError, naming the argument.
    """
    if image is None:
        if mask is not None or strength is not None:
            raise ConfigError("mask and strength require an image, got none")
        return 1.0
    if strength is None:
        return 0.8 if mask is None else 1.0
    return require_number("strength", strength, 0, 1, "(]")


def checked_eta(eta: Any, scheduler: Any) -> dict[str, float]:
    """Return {"eta": eta} if the scheduler's `step` takes it, else {}.

    Raises ConfigError if eta is outside [0, 1], or not 0 for a scheduler without it.
    """
    require_number("eta", eta, 0, 1)
    if "eta" in inspect.signature(scheduler.step).parameters and scheduler.config.get("method", "ddim") == "ddim":
        return {"eta": float(eta)}
    if eta:
        raise ConfigError(f"eta is the noise of DDIM: {type(scheduler).__name__} has none; use sampler 'ddim'")
    return {}


def _joined(images: list[Any], name: str) -> Any:
    """Return tensors (C, H, W) or arrays (H, W, C), or each with a first dimension of 1, as one with all rows."""
    kind, shape = type(images[0]), images[0].shape
    if not all(type(image) is kind and image.shape == shape for image in images):
        raise ConfigError(f"{name} must be of one shape in a list; call once for each shape")
    if kind is np.ndarray:
        return np.stack(images) if len(shape) == 3 else np.concatenate(images)
    return torch.stack(images) if len(shape) == 3 else torch.cat(images)


def _check_tensor(images: torch.Tensor, name: str, noisy: bool) -> None:
    """Raise unless `images` are floats (B, C, H, W) in [0, 1], of any finite values if `noisy`."""
    if not images.is_floating_point():
        raise ConfigTypeError(f"{name} must be floats in [0, 1], got {images.dtype}; divide integers by their maximum")
    if images.ndim != 4:
        raise ConfigError(f"{name} must be (B, C, H, W), got {tuple(images.shape)}")
    if noisy and images.isfinite().all():
        return
    if images.numel() and not -ROUNDING <= float(images.min()) <= float(images.max()) <= 1 + ROUNDING:
        low, high = float(images.min()), float(images.max())
        raise ConfigError(f"{name} must be in [0, 1], got {low:g} to {high:g}; from [-1, 1] use {name} / 2 + 0.5")


def _flattened(image: Image.Image, mode: str) -> Image.Image:
    """Return an image in the mode L, RGB or RGBA; for L and RGB transparent pixels become white."""
    if image.mode == "F" or image.mode.startswith("I"):
        raise ConfigError(f"images must have 8 bits a channel, got mode {image.mode}; give a tensor in [0, 1]")
    if mode != "RGBA" and image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert(mode)

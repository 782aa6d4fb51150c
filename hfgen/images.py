"""Images: conversion between PIL or uint8 and float tensors (B, C, H, W) in [-1, 1], sizes and channels, and pictures.

Functions whose argument is named `unit` take and return images in [0, 1].
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hfgen.checks import require_choice
from hfgen.errors import ConfigError

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey: ITU-R BT.601, as in Pillow."""

OUTPUT_TYPES = ("pil", "np", "numpy", "pt")
LATENT = "latent"
"""Values of the argument `output_type` of pipelines: images, and for some pipelines latents that are not decoded."""


def from_integers(pixels: torch.Tensor, top: int = 255) -> torch.Tensor:
    """Return integer pixels in [0, top], any shape, as float32 in [-1, 1]: x * 2 / top - 1."""
    return pixels.to(torch.float32).mul_(2 / top).sub_(1.0)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Return images in [-1, 1], any shape, as uint8 in [0, 255], rounded and clipped; NaN becomes 0."""
    return images.float().nan_to_num(-1.0).add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def from_pil(images: list[Image.Image]) -> torch.Tensor:
    """Return PIL images of one size and one mode (L, LA, RGB, RGBA) as (B, C, H, W) in [-1, 1]."""
    arrays = [np.atleast_3d(np.asarray(image)) for image in images]
    return from_integers(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2))


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Return (B, C, H, W) images in [-1, 1] as PIL images of mode L (C=1), LA (2), RGB (3) or RGBA (4)."""
    arrays = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    if arrays.shape[-1] == 1:
        arrays = arrays[..., 0]
    return [Image.fromarray(array) for array in arrays]


def unit_of(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) in [-1, 1] as float32 in [0, 1]; values outside are clipped, as in saved images.

    Raises ConfigError for other shapes and for integers.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ConfigError(f"images must be float (B, C, H, W) in [-1, 1], got {images.dtype} {tuple(images.shape)}")
    return (images.to(torch.float32) / 2 + 0.5).clamp(0, 1)


def check_output_type(output_type: str, latent: bool = False) -> None:
    """Raise ConfigError unless `output_type` is one of "pil", "np", "numpy", "pt", or with `latent` also "latent"."""
    require_choice("output_type", output_type, (*OUTPUT_TYPES, LATENT) if latent else OUTPUT_TYPES)


def as_output(images: torch.Tensor, output_type: str) -> Any:
    """Return images (B, C, H, W) in [-1, 1] in the `output_type` of a pipeline.

    `"pil"`: list of PIL images; `"np"` or `"numpy"`: float32 array (B, H, W, C) in [0, 1]; `"pt"`: tensor (B, C, H, W)
    in [0, 1]. Raises ConfigError for another type.
    """
    check_output_type(output_type)
    if output_type == "pil":
        return to_pil(images)
    unit = (images / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return unit
    return unit.cpu().permute(0, 2, 3, 1).float().numpy()


def with_channels(unit: Tensor, channels: int) -> Tensor:
    """Return images (B, C, H, W) in [0, 1] with 1, 3 or 4 `channels`; transparent pixels become white.

    Raises ConfigError for other numbers of channels, unless they are equal.
    """
    # check the numbers of channels
    given = unit.shape[1]
    if given == channels:
        return unit
    if given not in (1, 3, 4) or channels not in (1, 3, 4):
        raise ConfigError(f"images have {given} channels and the network takes {channels}; only 1, 3 and 4 convert")
    # convert by way of colours
    colours = unit[:, :3].expand(-1, 3, -1, -1)
    if channels == 4:
        return torch.cat([colours, torch.ones_like(unit[:, :1])], 1)
    if given == 4:
        colours = colours * unit[:, 3:] + 1 - unit[:, 3:]
    if channels == 3:
        return colours
    return (colours * colours.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)


def resized(unit: Tensor, height: int, width: int) -> Tensor:
    """Return images (B, C, H, W) in [0, 1] resized to (height, width), bicubic; the aspect ratio may change."""
    if unit.shape[2:] == (height, width):
        return unit
    return F.interpolate(unit, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def shortest_side(unit: Tensor, size: int) -> Tensor:
    """Return images (B, C, H, W) in [0, 1] with the shorter side `size`; the longer side is rounded down."""
    h, w = unit.shape[2:]
    short = min(h, w)
    return resized(unit, int(size * h / short), int(size * w / short))


def centre_crop(unit: Tensor, height: int, width: int) -> Tensor:
    """Return the centre (B, C, height, width), in pixels, of images (B, C, H, W) that are at least as large."""
    top, left = (unit.shape[2] - height) // 2, (unit.shape[3] - width) // 2
    return unit[:, :, top : top + height, left : left + width]


def fitted(unit: Tensor, height: int, width: int) -> Tensor:
    """Return images (B, C, H, W) in [0, 1], resized to (height, width) from the largest centred crop of that shape.

    The crop has whole pixels. Training data are resized in the same way, but the edges of their crop may lie between
    two pixels.
    """
    h, w = unit.shape[2:]
    scale = max(height / h, width / w)
    box = centre_crop(unit, max(1, round(height / scale)), max(1, round(width / scale)))
    return resized(box, height, width)


def grid(images: list[Image.Image], columns: int | None = None, padding: int = 2, min_side: int = 32) -> Image.Image:
    """Return PIL images of one size, pasted row by row on one grid.

    `columns`: number of columns. Default: the square root of the number of images, rounded up. Images with a side below
    `min_side` are first enlarged by an integer factor, so that 8x8 digits are visible.
    """
    # size of the grid
    columns = columns or max(1, math.ceil(math.sqrt(len(images))))
    factor = max(1, math.ceil(min_side / min(images[0].size)))
    width, height = (side * factor for side in images[0].size)
    rows = math.ceil(len(images) / columns)
    sheet = Image.new(images[0].mode, (columns * (width + padding) + padding, rows * (height + padding) + padding))
    # paste the images
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        enlarged = image.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (padding + column * (width + padding), padding + row * (height + padding)))
    return sheet


def scatter(
    points: torch.Tensor, low: float, high: float, side: int = 512, behind: torch.Tensor | None = None
) -> Image.Image:
    """Return a scatter plot of points (N, 2) in [low, high]^2, y upwards; points outside are not drawn.

    Points are black on white; the darkness of a pixel grows with the logarithm of its number of points. `behind`:
    points (M, 2) drawn in orange behind them, such as reference data.
    """
    sheet = np.ones((side, side, 3))
    for some, ink in ((behind, (0.0, 0.4, 1.0)), (points, (1.0, 1.0, 1.0))):
        if some is not None:
            sheet *= 1 - _darkness(some, low, high, side)[..., None] * np.array(ink)
    return Image.fromarray((255 * sheet).astype(np.uint8))


def _darkness(points: torch.Tensor, low: float, high: float, side: int) -> np.ndarray:
    """Return the darkness (side, side), in [0, 1], of the pixels of a scatter plot."""
    x, y = points.double().cpu().T
    counts, _, _ = np.histogram2d(-y.numpy(), x.numpy(), bins=side, range=[[-high, -low], [low, high]])
    return np.where(counts > 0, 0.35 + 0.65 * np.log1p(counts) / max(np.log1p(counts).max(), 1e-9), 0)

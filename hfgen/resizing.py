"""Resizing of images for networks: tensors (B, C, H, W) in [0, 1], float32, not rounded to 8 bits.

Resizing changes the second digit of a Fréchet distance (Parmar et al. 2022). Here it is bicubic and antialiased (the
filter grows with the reduction), as in Pillow, and clipped to [0, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen.errors import ConfigError

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey: ITU-R BT.601, as Pillow's."""


def with_channels(unit: Tensor, channels: int) -> Tensor:
    """Return images (B, C, H, W) with 1, 3 or 4 `channels`; transparent pixels become white."""
    given = unit.shape[1]
    if given == channels:
        return unit
    if given not in (1, 3, 4) or channels not in (1, 3, 4):
        raise ConfigError(f"images have {given} channels and the network takes {channels}; only 1, 3 and 4 convert")
    colours = unit[:, :3].expand(-1, 3, -1, -1)
    if channels == 4:
        return torch.cat([colours, torch.ones_like(unit[:, :1])], 1)
    if given == 4:
        colours = colours * unit[:, 3:] + 1 - unit[:, 3:]
    return colours if channels == 3 else (colours * colours.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)


def resized(unit: Tensor, height: int, width: int) -> Tensor:
    """Return images (B, C, H, W) resized to (height, width); the aspect ratio may change."""
    if unit.shape[2:] == (height, width):
        return unit
    return F.interpolate(unit, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def shortest_side(unit: Tensor, size: int) -> Tensor:
    """Return images with the shorter side `size`; the longer side keeps the aspect ratio, rounded down."""
    h, w = unit.shape[2:]
    short = min(h, w)
    return resized(unit, int(size * h / short), int(size * w / short))


def centre_crop(unit: Tensor, height: int, width: int) -> Tensor:
    """Return the centre (height, width) of images that are at least as large."""
    top, left = (unit.shape[2] - height) // 2, (unit.shape[3] - width) // 2
    return unit[:, :, top : top + height, left : left + width]


def fitted(unit: Tensor, height: int, width: int) -> Tensor:
    """Return images resized to (height, width) from the largest centred crop of that aspect ratio, in whole pixels.

    Training data are resized in the same way, but their crop may have edges between two pixels.
    """
    h, w = unit.shape[2:]
    scale = max(height / h, width / w)
    box = centre_crop(unit, max(1, round(height / scale)), max(1, round(width / scale)))
    return resized(box, height, width)


def unit_of(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as float32 in [0, 1]; values outside are clipped, as in saved images."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ConfigError(f"images must be float (B, C, H, W) in [-1, 1], got {images.dtype} {tuple(images.shape)}")
    return (images.to(torch.float32) / 2 + 0.5).clamp(0, 1)

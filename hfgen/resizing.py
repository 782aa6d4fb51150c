"""Images brought to what a network takes: tensors (B, C, H, W) in [0, 1], float32, never rounded to levels.

How images are resized decides the second digit of a Fréchet distance (Parmar et al. 2022): bicubic and antialiased
(the filter grows with the reduction), as Pillow does, clipped to [0, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen.errors import ConfigError

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey: ITU-R BT.601, as Pillow's."""


def with_channels(unit: Tensor, channels: int) -> Tensor:
    """Return images (B, C, H, W) with another number of channels, 1, 3 or 4; transparency becomes white."""
    found = unit.shape[1]
    if found == channels:
        return unit
    if found not in (1, 3, 4) or channels not in (1, 3, 4):
        raise ConfigError(f"images have {found} channels and the network wants {channels}; only 1, 3 and 4 convert")
    colours = unit[:, :3].expand(-1, 3, -1, -1)
    if channels == 4:
        return torch.cat([colours, torch.ones_like(unit[:, :1])], 1)
    if found == 4:
        colours = colours * unit[:, 3:] + 1 - unit[:, 3:]
    return colours if channels == 3 else (colours * colours.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)


def resized(unit: Tensor, height: int, width: int) -> Tensor:
    """Return images (B, C, H, W) at (height, width), whatever that does to their shape."""
    if unit.shape[2:] == (height, width):
        return unit
    return F.interpolate(unit, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def shortest_side(unit: Tensor, size: int) -> Tensor:
    """Return images whose shorter side is `size` and whose longer one keeps the shape, rounded down."""
    h, w = unit.shape[2:]
    short = min(h, w)
    return resized(unit, int(size * h / short), int(size * w / short))


def centre_crop(unit: Tensor, height: int, width: int) -> Tensor:
    """Return the middle (height, width) of images at least as large."""
    top, left = (unit.shape[2] - height) // 2, (unit.shape[3] - width) // 2
    return unit[:, :, top : top + height, left : left + width]


def fitted(unit: Tensor, height: int, width: int) -> Tensor:
    """Return images at (height, width): the largest centred box of about that shape, in whole pixels, resized.

    Training data are read the same way but for the box, whose edges there may lie between two pixels.
    """
    h, w = unit.shape[2:]
    scale = max(height / h, width / w)
    box = centre_crop(unit, max(1, round(height / scale)), max(1, round(width / scale)))
    return resized(box, height, width)


def unit_of(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as float32 in [0, 1]; what lies outside is clipped, as when they are saved."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ConfigError(f"images must be float (B, C, H, W) in [-1, 1], got {images.dtype} {tuple(images.shape)}")
    return (images.to(torch.float32) / 2 + 0.5).clamp(0, 1)

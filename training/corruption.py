"""The corruptions that a denoising or completing autoencoder undoes: corrupted images, from draws per sample."""

from typing import Literal

import torch
from torch import Tensor

from hfgen.training.noise import Noise

Corruption = Literal["none", "gaussian", "salt_pepper", "patch"]

HIGHEST: dict[str, float] = {"none": 0.0, "gaussian": 100.0, "salt_pepper": 1.0, "patch": 1.0}
"""The largest level of each kind."""


def corrupted(x: Tensor, noise: Noise, corruption: Corruption, level: float) -> Tensor:
    """Return images (B, C, H, W) in [-1, 1] corrupted.

    "gaussian": x + level n, n ~ N(0, I), not clipped (Vincent et al. 2010, section 3.3). "salt_pepper": each pixel
    becomes white or black, all channels alike, with probability level / 2 each (the same section). "patch": a box,
    `level` of the sides high and wide, at a random place, becomes the middle grey 0.
    """
    if corruption == "gaussian":
        return x + level * noise.normal("corruption", *x.shape[1:])
    if corruption == "salt_pepper":
        u = noise.uniform("corruption", 1, *x.shape[2:])                                 # (B, 1, H, W)
        return torch.where(u < level, torch.where(u < level / 2, 1.0, -1.0), x)
    if corruption == "patch":
        return torch.where(patches(noise, x.shape[2], x.shape[3], level), 0.0, x)
    return x


def patches(noise: Noise, height: int, width: int, level: float) -> Tensor:
    """Return which pixels lie in a random box of `level` height x `level` width, rounded, bool (B, 1, H, W)."""
    inside = []
    for side, name in ((height, "rows"), (width, "columns")):
        length = max(1, round(level * side))
        first = (noise.uniform(f"patch {name}") * (side - length + 1)).long()[:, None]   # (B, 1)
        position = torch.arange(side, device=first.device)
        inside.append((position >= first) & (position < first + length))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]

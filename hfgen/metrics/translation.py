"""How near translated images are to the true ones, and cycles to where they began: tensors in, numbers out.

Images are (N, C, H, W) in [-1, 1]; errors are mean absolute differences on that scale, in [0, 2].
"""

import torch
from torch import Tensor

from hfgen.errors import ConfigError

TOLERANCE = 8 / 255
"""Difference from the background up to which a pixel belongs to it: four of 255 levels."""


def cycle_error(images: Tensor, cycled: Tensor) -> float:
    """Return the mean absolute difference of images and what came back, E |G_ba(G_ab(a)) - a| (Zhu et al. 2017, eq. 2).

    A mean over all values, not a sum.
    """
    _require_same(cycled=cycled, images=images)
    return float((images.double() - cycled.double()).abs().mean())


def background(images: Tensor) -> Tensor:
    """Return the colour of each image's border, its median in each channel: (N, C, 1, 1)."""
    border = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, 1:-1, 0], images[:, :, 1:-1, -1]], 2)
    return border.median(2).values[:, :, None, None]


def foreground(images: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Return which pixels differ from the background in any channel by more than `tolerance`, bool (N, H, W)."""
    return ((images - background(images)).abs() > tolerance).any(1)


def translation_error(translated: Tensor, truth: Tensor, images: Tensor, tolerance: float = TOLERANCE) -> float:
    """Return the mean absolute error where `images`, the input, or the truth differ from their background.

    The rest, most of a picture with one thing in it, would make every translation look good. All such pixels of all
    images and their channels count alike. Input and translation may have different channels.
    """
    _require_same(translated=translated, truth=truth)
    if images.shape[::2] != truth.shape[::2] or images.shape[3] != truth.shape[3]:
        raise ConfigError(f"images must be {_words(truth)} but for the channels, got {_words(images)}")
    where = foreground(images, tolerance) | foreground(truth, tolerance)                 # (N, H, W)
    if not where.any():
        raise ConfigError("images and truth hold nothing but background: there is no error to measure")
    errors = (translated.double() - truth.double()).abs().mean(1)
    return float(errors[where].mean())


def translation_baselines(truth: Tensor, images: Tensor) -> dict[str, float]:
    """Return the translation errors of doing nothing: `blank`, the input's background alone, and `untranslated`.

    Both need input and truth of the same channels.
    """
    _require_same(images=images, truth=truth)
    blank = background(images).expand_as(images)
    return {
        "blank": translation_error(blank, truth, images),
        "untranslated": translation_error(images, truth, images),
    }


def _require_same(**pair: Tensor) -> None:
    (first, a), (second, b) = pair.items()
    if a.shape != b.shape or a.ndim != 4 or not a.numel():
        raise ConfigError(f"{first} and {second} must be images of one shape, got {_words(a)} and {_words(b)}")


def _words(images: Tensor) -> str:
    return str(tuple(images.shape))

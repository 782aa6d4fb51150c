"""Errors of translated images to the truth, and of cycles to their input: tensors in, numbers out.

Images are (N, C, H, W) in [-1, 1]. Errors are mean absolute differences on that scale, in [0, 2].
"""

import torch
from torch import Tensor

from hfgen.errors import ConfigError

TOLERANCE = 8 / 255
"""Largest difference of a background pixel from the background colour: four of 255 levels."""


def cycle_error(images: Tensor, cycled: Tensor) -> float:
    """Return E |G_ba(G_ab(a)) - a|, the mean absolute difference of `images` a and `cycled`, in [0, 2].

    Zhu et al. 2017, eq. 2, as a mean over all values, not a sum. Raises ConfigError for different shapes or no images.
    """
    _require_same(cycled=cycled, images=images)
    return float((images.double() - cycled.double()).abs().mean())


def background(images: Tensor) -> Tensor:
    """Return the background colour of each image, (N, C, 1, 1) in [-1, 1]: the median of its border per channel.

    `images`: (N, C, H, W) in [-1, 1].
    """
    border = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, 1:-1, 0], images[:, :, 1:-1, -1]], 2)
    return border.median(2).values[:, :, None, None]


def foreground(images: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Return a mask (N, H, W) bool: True where a channel differs from the background by more than `tolerance`.

    `images`: (N, C, H, W) in [-1, 1].
    """
    return ((images - background(images)).abs() > tolerance).any(1)


def translation_error(translated: Tensor, truth: Tensor, images: Tensor, tolerance: float = TOLERANCE) -> float:
    """Return the mean absolute error of translations over the foreground of `images`, the input, or of the truth.

    In [0, 2]. The background, most of an image with one object, would make every translation look good. All foreground
    pixels of all images and channels have equal weight. Input and translation may have different channels. Raises
    ConfigError for other differences of shape, and if there is no foreground.
    """
    # check the shapes
    _require_same(translated=translated, truth=truth)
    if images.shape[::2] != truth.shape[::2] or images.shape[3] != truth.shape[3]:
        raise ConfigError(f"images must be {_words(truth)} but for the channels, got {_words(images)}")
    # average over the foreground
    mask = foreground(images, tolerance) | foreground(truth, tolerance)                  # (N, H, W)
    if not mask.any():
        raise ConfigError("images and truth hold nothing but background: there is no error to measure")
    errors = (translated.double() - truth.double()).abs().mean(1)
    return float(errors[mask].mean())


def translation_baselines(truth: Tensor, images: Tensor) -> dict[str, float]:
    """Return the errors, in [0, 2], of two trivial outputs: `blank`, the input's background, and `untranslated`.

    Both arguments are images (N, C, H, W) in [-1, 1]. Raises ConfigError unless input and truth have one shape.
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

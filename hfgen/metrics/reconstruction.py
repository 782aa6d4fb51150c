"""How near reconstructed images are to the true ones: tensors in, numbers out."""

import math

import torch

from hfgen.errors import ConfigError


def psnr(images: torch.Tensor, truth: torch.Tensor, peak: float = 2.0) -> float:
    """Return the peak signal-to-noise ratio of images against the truth in decibels, infinite where they are equal.

    10 log10(peak^2 / MSE), the mean squared error taken over all pixels of all images (not per image, whose mean would
    be infinite as soon as one image is exact). `peak` is the range of the values: 2 for [-1, 1], 1 for [0, 1].
    """
    if images.shape != truth.shape or not images.numel():
        raise ConfigError(f"images and truth must have one shape, got {tuple(images.shape)} and {tuple(truth.shape)}")
    return decibels(float((images.double() - truth.double()).square().mean()), peak)


def decibels(mse: float, peak: float = 2.0) -> float:
    """Return the peak signal-to-noise ratio, 10 log10(peak^2 / MSE), that belongs to a mean squared error."""
    return 10 * math.log10(peak**2 / mse) if mse else math.inf

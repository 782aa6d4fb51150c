"""Errors of reconstructed images: tensors in, numbers out."""

import math

import torch

from hfgen.errors import ConfigError


def psnr(images: torch.Tensor, truth: torch.Tensor, peak: float = 2.0) -> float:
    """Return the peak signal-to-noise ratio of images against the truth (same shape) in decibels.

    10 log10(peak^2 / MSE), infinite for equal images. The mean squared error is taken over all pixels of all images
    (the mean over images would be infinite if one image were exact). `peak`: range of the values, 2 for [-1, 1] and 1
    for [0, 1]. Raises ConfigError for different shapes or no images.
    """
    if images.shape != truth.shape or not images.numel():
        raise ConfigError(f"images and truth must have one shape, got {tuple(images.shape)} and {tuple(truth.shape)}")
    return decibels(float((images.double() - truth.double()).square().mean()), peak)


def decibels(mse: float, peak: float = 2.0) -> float:
    """Return the peak signal-to-noise ratio of a mean squared error in decibels: 10 log10(peak^2 / MSE)."""
    if mse == 0:
        return math.inf
    return 10 * math.log10(peak**2 / mse)

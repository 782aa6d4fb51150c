"""A dataset of latents: q(z|x) of images, encoded once and kept beside the run."""

from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from hfgen.data.dataset import Dataset
from hfgen.logging import warn
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.training.engine import encoded_images
from hfgen.training.engine.encoded_images import BATCH_SIZE, EncodedImages, Part

OFF = 0.05
"""How far the mean of all latents may be from 0, and their variance from 1, before a run warns."""


class Latents(EncodedImages):
    """Latents of mean 0 and variance 1: q(z|x) of every image, as means and standard deviations (N, F, D, h, w).

    Beside the means, `x`, a batch has `std`, so that z ~ q(z|x) is drawn at every step.
    """

    kind = "latents"

    def __init__(self, source: Dataset, mean: Tensor, std: Tensor, key: str) -> None:
        super().__init__(source, {"x": mean, "std": std}, key, mean.shape[2:])

    def tensor(self, n: int | None = None) -> Tensor:
        """Return the means of the first `n` latents, not mirrored, (n, D, h, w) float32. Default: all."""
        return self._tensors["x"][:n, 0]


def encoded(source: Dataset, vae: AutoencoderKL, flip: bool, folder: Path) -> Latents:
    """Return the latents of all images of `source`, which must not mirror any, from the files in `folder`.

    Errors as in `encoded_images.kept`. Warns where the latents are not of mean 0 and variance 1, as of an autoencoder
    that was measured on other images.
    """

    def encode(x: Tensor) -> Part:
        mean, std = vae.to_moments(x)
        return {"mean": mean.float(), "std": std.float()}

    tensors, key = encoded_images.kept(Latents.kind, source, vae, flip, folder, encode)
    if PartialState().is_main_process:
        _check_standard(source.name, tensors["mean"], tensors["std"])
    return Latents(source, tensors["mean"], tensors["std"], key)


def load_autoencoder(model: str) -> AutoencoderKL:
    """Return the AutoencoderKL of a run or a pipeline (its `vae`), or that which a folder or a Hub id is alone.

    The name of a Python object stands for a pipeline or an AutoencoderKL, of which a copy is returned. Raises
    ConfigError for any other.
    """
    return encoded_images.load_autoencoder(model, AutoencoderKL, "vae")


def mean_and_variance(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return mean and variance of z ~ N(mu, sigma^2), given in parts (mu, sigma), over all its numbers.

    Var z = E mu^2 + E sigma^2 - (E mu)^2, so that nothing has to be drawn.
    """
    mean = square = torch.zeros((), dtype=torch.float64)
    count = 0
    for part in parts:
        mu, sigma = part[0].cpu().double(), part[1].cpu().double()
        mean, square, count = mean + mu.sum(), square + mu.square().sum() + sigma.square().sum(), count + mu.numel()
    return float(mean / count), max(0.0, float(square / count - (mean / count) ** 2))


def _check_standard(name: str, mean: Tensor, std: Tensor) -> None:
    """Warn unless the latents have mean 0 and variance 1, which their diffusion starts from."""
    average, variance = mean_and_variance(zip(mean.split(BATCH_SIZE), std.split(BATCH_SIZE), strict=True))
    if abs(average) > OFF or abs(variance - 1) > OFF:
        warn(
            f"{name}: the latents have mean {average:.3f} and variance {variance:.3f}, not 0 and 1: shift_factor and "
            "scaling_factor in the autoencoder's config.json are not those of these images"
        )

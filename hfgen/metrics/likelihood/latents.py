"""Log-likelihoods of models that have latents, the bounds on them, and how many of the latents are in use.

All in nats unless said otherwise, in float64. `x` is what the model takes: for a Bernoulli likelihood pixels that are
-1 or 1 (`hfgen.losses.elbo.binarised`); for a density over pixels, such as the Gaussian, pixels with the rounding to
levels undone (`dequantised`), or else the density of a grid of points, which nothing bounds, is what is measured.
"""

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from hfgen.checks import require_int
from hfgen.errors import ConfigError

ROWS = 1000
"""Draws of z whose pixels are held at once."""


class Latent(Protocol):
    """A model that draws z ~ q(z|x) and weighs it, such as `hfgen.VAE`: log w = log p(x, z) - log q(z|x)."""

    def log_weights(
        self, x: Tensor, k: int, generator: torch.Generator | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        """Return log w (B, k) of k draws for each item."""


@torch.no_grad()
def log_likelihood(
    model: Latent,
    x: Tensor,
    n: int,
    generator: torch.Generator | None = None,
    batch: int = ROWS,
    class_labels: Tensor | None = None,
) -> Tensor:
    """Return log 1/n sum_i p(x, z_i) / q(z_i|x) with exactly `n` draws z_i ~ q(z|x) for each item, (B,) float64.

    Importance sampling (Burda et al. 2016, eq. 8): a lower bound in expectation for every n, log p(x) as n grows.
    `batch` draws are held at once, of some items or of a part of one item's; sums run in float64.
    """
    groups = _log_weights(model, x, n, generator, batch, class_labels)
    sums = [torch.stack([log_w.logsumexp(1) for log_w in parts]).logsumexp(0) for parts in groups]
    return torch.cat(sums) - math.log(n)


@torch.no_grad()
def elbo(
    model: Latent,
    x: Tensor,
    n: int = 1,
    generator: torch.Generator | None = None,
    batch: int = ROWS,
    class_labels: Tensor | None = None,
) -> Tensor:
    """Return the mean of log p(x, z) - log q(z|x) over `n` draws z ~ q(z|x) for each item, (B,) float64.

    Its expectation is the evidence lower bound, log p(x) - KL(q(z|x) || p(z|x)) (Kingma and Welling 2014, eq. 3).
    """
    groups = _log_weights(model, x, n, generator, batch, class_labels)
    return torch.cat([torch.stack([log_w.sum(1) for log_w in parts]).sum(0) / n for parts in groups])


def _log_weights(
    model: Latent, x: Tensor, n: int, generator: torch.Generator | None, batch: int, class_labels: Tensor | None
) -> Iterator[Iterator[Tensor]]:
    """Yield, for one group of items after the other, log w (b, k) in float64, the k adding up to `n`."""
    require_int("n", n)
    require_int("batch", batch)
    if not len(x):
        raise ConfigError("x must hold at least one item, got none")
    items, draws = max(1, batch // n), min(n, batch)
    sizes = [min(draws, n - start) for start in range(0, n, draws)]
    for first in range(0, len(x), items):
        part = x[first : first + items]
        labels = None if class_labels is None else class_labels[first : first + items]
        yield (model.log_weights(part, k, generator, labels).double() for k in sizes)


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """Return how many latents are in use: Var_x(E[z_d|x]) > 0.01 (Burda et al. 2016, section 5.2).

    `means` (N, D): the means of q(z|x) of N items.
    """
    return int((means.double().var(0, unbiased=False) > threshold).sum())


def reconstruction_error(x: Tensor, reconstructed: Tensor) -> Tensor:
    """Return the mean squared error of each item, (B,) float64, on the scale of `x`."""
    return (x.double() - reconstructed.double()).square().flatten(1).mean(1)


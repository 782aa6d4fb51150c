"""Log-likelihoods of models with latents, bounds on them, and the number of active latents; in nats, float64.

`x` is the input of the model. For a Bernoulli likelihood its pixels are -1 or 1 (`hfgen.losses.elbo.binarised`). For a
density over pixels, such as the Gaussian, pixels are dequantised (`dequantised`): the density at the points of the
grid of levels has no bound.
"""

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from hfgen.checks import require_int
from hfgen.errors import ConfigError

ROWS = 1000
"""Default number of draws of z that are decoded at once."""


class Latent(Protocol):
    """A model with latents z ~ q(z|x) and importance weights log w = log p(x, z) - log q(z|x), such as `hfgen.VAE`."""

    def log_weights(
        self, x: Tensor, k: int, generator: torch.Generator | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        """Return log w (B, k) in nats of k draws for each item of x (B, ...)."""


@torch.no_grad()
def log_likelihood(
    model: Latent,
    x: Tensor,
    n: int,
    generator: torch.Generator | None = None,
    batch: int = ROWS,
    class_labels: Tensor | None = None,
) -> Tensor:
    """Return log 1/n sum_i p(x, z_i) / q(z_i|x) in nats for each item of x (B, ...), z_i ~ q(z|x), (B,) float64.

    Importance sampling (Burda et al. 2016, eq. 8) with exactly `n` draws per item: its expectation is a lower bound of
    log p(x) for each n and tends to log p(x) as n grows. `batch`: draws that are decoded at once, of several items or
    of a part of one item. Raises ConfigError for no items and for n or batch below 1.
    """
    sums = []
    for parts in _log_weights(model, x, n, generator, batch, class_labels):
        sums.append(torch.stack([log_w.logsumexp(1) for log_w in parts]).logsumexp(0))
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
    """Return the mean of log p(x, z) - log q(z|x) in nats over `n` draws z ~ q(z|x) per item, (B,) float64.

    Its expectation is the evidence lower bound, log p(x) - KL(q(z|x) || p(z|x)) (Kingma and Welling 2014, eq. 3).
    Arguments and errors as of `log_likelihood`.
    """
    means = []
    for parts in _log_weights(model, x, n, generator, batch, class_labels):
        means.append(torch.stack([log_w.sum(1) for log_w in parts]).sum(0) / n)
    return torch.cat(means)


def _log_weights(
    model: Latent, x: Tensor, n: int, generator: torch.Generator | None, batch: int, class_labels: Tensor | None
) -> Iterator[Iterator[Tensor]]:
    """Yield, for each group of items, the tables log w (b, k) float64, whose numbers of draws k add up to `n`."""
    # check the arguments
    require_int("n", n)
    require_int("batch", batch)
    if not len(x):
        raise ConfigError("x must hold at least one item, got none")
    # divide items and draws into groups of at most `batch`
    items, draws = max(1, batch // n), min(n, batch)
    sizes = [min(draws, n - start) for start in range(0, n, draws)]
    for first in range(0, len(x), items):
        part = x[first : first + items]
        labels = None if class_labels is None else class_labels[first : first + items]
        yield (model.log_weights(part, k, generator, labels).double() for k in sizes)


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """Return the number of active latents, in [0, D]: Var_x(E[z_d|x]) > `threshold` (Burda et al. 2016, section 5.2).

    `means` (N, D): means of q(z|x) of N items.
    """
    return int((means.double().var(0, unbiased=False) > threshold).sum())


def reconstruction_error(x: Tensor, reconstructed: Tensor) -> Tensor:
    """Return the mean squared error of each item of x (B, ...), on the squared scale of `x`, (B,) float64 >= 0."""
    return (x.double() - reconstructed.double()).square().flatten(1).mean(1)


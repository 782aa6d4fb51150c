"""Evidence lower bounds and their terms: pure functions, in nats, in float32 or wider.

Log-likelihoods take data and parameters (..., P) that broadcast, P pixels in the last axis, and return the sum over
pixels, (...). KL divergences and log-densities are returned by dimension, (..., D).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

LOG_2PI = math.log(2 * math.pi)
NEAR = 0.5
"""Size of logits of the continuous Bernoulli below which a series is used: at 0 its normaliser is 0 / 0."""


def wide(x: Tensor) -> Tensor:
    """Return x, any shape, in the wider of its dtype and float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def kl_to_standard_normal(mu: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mu, sigma^2) || N(0, 1)) in nats by dimension, >= 0, in the shape of `mu`.

    1/2 (mu^2 + sigma^2 - 1 - log sigma^2), the summand of Kingma and Welling 2014, appendix B. `log_var`: log sigma^2.
    """
    mu, log_var = wide(mu), wide(log_var)
    return (mu.square() + torch.expm1(log_var) - log_var) / 2


def kl_of_normals(mu: Tensor, log_var: Tensor, prior_mu: Tensor, prior_log_var: Tensor) -> Tensor:
    """Return KL(N(mu, sigma^2) || N(prior_mu, prior_sigma^2)) in nats by dimension, >= 0, in the common shape."""
    # logarithm of the ratio of variances, and the squared distance of means in prior variances
    difference = wide(log_var) - wide(prior_log_var)
    distance = (wide(mu) - wide(prior_mu)).square() * torch.exp(-wide(prior_log_var))
    return (distance + torch.expm1(difference) - difference) / 2


def log_normal(z: Tensor, mu: Tensor | float = 0.0, log_var: Tensor | float = 0.0) -> Tensor:
    """Return log N(z; mu, sigma^2) in nats by dimension, in the common shape. Default: the standard normal."""
    if not isinstance(log_var, Tensor):
        log_var = z.new_full((), log_var)
    log_var = wide(log_var)
    return -((wide(z) - mu).square() * torch.exp(-log_var) + log_var + LOG_2PI) / 2


def log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """Return sum x log p + (1 - x) log(1 - p), p = sigmoid(logits), x in [0, 1] (Kingma and Welling 2014, eq. 11).

    It is a log-likelihood for binary x. For grey x it is a cross-entropy, not the log-likelihood of a distribution.
    """
    x, logits = torch.broadcast_tensors(wide(x), wide(logits))
    return -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


def log_continuous_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """Return the log-density of x in [0, 1] under continuous Bernoullis: cross-entropy plus log normaliser.

    `x` and `logits`: shape (..., P). log C(lambda) = log(2 artanh(1 - 2 lambda) / (1 - 2 lambda)), log 2 at 1/2
    (Loaiza-Ganem and Cunningham 2019, eq. 8); with lambda = sigmoid(l) it is log(l coth(l / 2)).
    """
    # series near 0
    size = wide(logits).abs()
    near, square = size < NEAR, size.square()
    series = math.log(2) + square * (1 / 12 - square * (7 / 1440 - square * (31 / 90720 - square * 127 / 4838400)))
    # closed form elsewhere, without 0 / 0 in value and gradient
    away = size.where(~near, 1.0)
    log_c = torch.where(near, series, torch.log(away / torch.tanh(away / 2)))
    return log_bernoulli(x, logits) + log_c.sum(-1)


def log_gaussian(x: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    """Return the log-density of x (..., P) under N(mu, sigma^2), summed over pixels, (...)."""
    return log_normal(x, wide(mu), 2 * wide(log_sigma)).sum(-1)


def log_discretised_logistic(x: Tensor, mu: Tensor, log_s: Tensor, levels: int = 256) -> Tensor:
    """Return log P(x) of pixels at `levels` even levels in [-1, 1]: the mass of logistics of scale s in their bins.

    Arguments have shapes that broadcast to (..., P). P(x) = sigmoid(b) - sigmoid(a), b and a = (x - mu +- h) / s, h = 1
    / (levels - 1) half the distance of levels. The outermost bins reach to infinity (Salimans et al. 2017, eq. 2; Ho et
    al. 2020, eq. 13). The difference is computed as sigmoid(b) sigmoid(-a) (1 - exp(a - b)), which is also exact far
    from mu.
    """
    # ends of the bins
    x, half, s = wide(x), 1 / (levels - 1), torch.exp(wide(log_s))
    b, a = (x - wide(mu) + half) / s, (x - wide(mu) - half) / s
    # mass of the outermost and of the other bins
    below, above = logsigmoid(b), logsigmoid(-a)
    inside = below + above + torch.log(-torch.expm1(-2 * half / s))
    return torch.where(x < half - 1, below, torch.where(x > 1 - half, above, inside)).sum(-1)


def log_discretised_gaussian(x: Tensor, mu: Tensor, log_sigma: Tensor, levels: int = 256) -> Tensor:
    """Return log P(x) of pixels at `levels` even levels in [-1, 1]: the mass of Gaussians in their bins.

    Arguments have shapes that broadcast to (..., P). P(x) = Phi(b) - Phi(a), b and a = (x - mu +- 1 / (levels - 1)) /
    sigma. The outermost bins reach to infinity (Ho et al. 2020, eq. 13). The difference is computed in the lower tail;
    the upper tail is mirrored to it.
    """
    # ends of the bins, mirrored to the lower tail
    x, half, sigma = wide(x), 1 / (levels - 1), torch.exp(wide(log_sigma))
    centre = (x - wide(mu)) / sigma
    reach = half / sigma
    low, high = -centre.abs() - reach, -centre.abs() + reach
    # mass of the outermost and of the other bins
    above = torch.special.log_ndtr(high)
    inside = above + torch.log(-torch.expm1((torch.special.log_ndtr(low) - above).clamp(max=-1e-7)))
    first, last = torch.special.log_ndtr(centre + reach), torch.special.log_ndtr(reach - centre)
    return torch.where(x < half - 1, first, torch.where(x > 1 - half, last, inside)).sum(-1)


def elbo(log_px_z: Tensor, kl: Tensor, beta: float = 1.0) -> Tensor:
    """Return log p(x|z) - beta KL in nats, the evidence lower bound for beta = 1 (Kingma and Welling 2014, eq. 3).

    A larger beta trades reconstruction for disentanglement (Higgins et al. 2017, eq. 4). Shapes broadcast.
    """
    return log_px_z - beta * kl


def free_bits(kl: Tensor, nats: float) -> Tensor:
    """Return sum_d max(nats, KL_d), (...), of KLs by dimension (..., D): below `nats` a dimension has no gradient.

    Kingma et al. 2016, eq. 15, where KL_d is a mean over the minibatch; here the caller chooses the mean.
    """
    return kl.clamp(min=nats).sum(-1)


def log_mean_exp(log_w: Tensor) -> Tensor:
    """Return log 1/k sum_i w_i over the last axis of log w (..., k), (...), in nats.

    The bound L_k (Burda et al. 2016, eq. 8). With w = p(x, z) / q(z|x) and z ~ q(z|x) its expectation grows with k from
    the ELBO to log p(x).
    """
    return torch.logsumexp(wide(log_w), -1) - math.log(log_w.shape[-1])


def binarised(x: Tensor, u: Tensor) -> Tensor:
    """Return grey values x in [-1, 1] as -1 or 1, in the shape of x: 1 with probability (x + 1) / 2.

    `u`: uniform on [0, 1), in the shape of x. With a new `u` for each use of an image it is dynamic binarisation
    (Salakhutdinov and Murray 2008; Burda et al. 2016).
    """
    return torch.where(u < (x + 1) / 2, 1.0, -1.0).to(x.dtype)


@dataclass(frozen=True)
class Likelihood:
    """Likelihood p(x|z) of pixels in [-1, 1], with a location for each pixel and, if `has_scale`, one log-scale.

    `log_prob(x, location, log_scale, levels)`: sum over pixels; a density over [-1, 1] unless `discrete`.
    `mean(location)`: image in [-1, 1] of the distribution. `link`: inverse of `mean`, for initialisation.
    """

    log_prob: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    mean: Callable[[Tensor], Tensor]
    link: Callable[[Tensor], Tensor]
    has_scale: bool
    discrete: bool


def continuous_bernoulli_mean(logits: Tensor) -> Tensor:
    """Return the mean 1 / (1 - exp(-l)) - 1 / l of logits l, in [0, 1] and in the shape of l.

    Source: Loaiza-Ganem and Cunningham 2019, eq. 9.
    """
    size = wide(logits)
    near = size.abs() < NEAR
    # series near 0, closed form elsewhere
    away = size.where(~near, 1.0)
    square = size.square()
    series = 0.5 + size * (1 / 12 - square * (1 / 720 - square * (1 / 30240 - square / 1209600)))
    return torch.where(near, series, -1 / torch.expm1(-away) - 1 / away)


def _unit(x: Tensor) -> Tensor:
    return (wide(x) + 1) / 2


def _logit(x: Tensor) -> Tensor:
    return _unit(x).clamp(1e-3, 1 - 1e-3).logit()


LIKELIHOODS: dict[str, Likelihood] = {
    "bernoulli": Likelihood(
        lambda x, location, log_scale, levels: log_bernoulli(_unit(x), location),
        lambda location: wide(location).sigmoid() * 2 - 1, _logit, has_scale=False, discrete=True,
    ),
    "continuous_bernoulli": Likelihood(
        lambda x, location, log_scale, levels: log_continuous_bernoulli(_unit(x), location)
        - x.shape[-1] * math.log(2),
        lambda location: continuous_bernoulli_mean(location) * 2 - 1, _logit, has_scale=False, discrete=False,
    ),
    "gaussian": Likelihood(
        lambda x, location, log_scale, levels: log_gaussian(x, location, log_scale),
        wide, wide, has_scale=True, discrete=False,
    ),
    "discretised_logistic": Likelihood(log_discretised_logistic, wide, wide, has_scale=True, discrete=True),
}  # fmt: skip
"""Likelihoods of pixels by name: for binary pixels, for grey pixels as densities (two), for pixels with levels."""

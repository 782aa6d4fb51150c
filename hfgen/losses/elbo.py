"""Evidence lower bounds and what they are made of: pure functions, in nats, in float32 at least.

Log-likelihoods take data and parameters of shape (..., P), P pixels in the last axis, broadcast against each other,
and return their sum over pixels, (...). KL divergences and log-densities stay apart by dimension, (..., D).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

LOG_2PI = math.log(2 * math.pi)
NEAR = 0.5
"""Logits of the continuous Bernoulli below this size go through a series: at 0 its normaliser is 0 / 0."""


def wide(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def kl_to_standard_normal(mu: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mu, sigma^2) || N(0, 1)) by dimension, 1/2 (mu^2 + sigma^2 - 1 - log sigma^2), shape of `mu`.

    Kingma and Welling 2014, appendix B, before the sum.
    """
    mu, log_var = wide(mu), wide(log_var)
    return (mu.square() + torch.expm1(log_var) - log_var) / 2


def kl_of_normals(mu: Tensor, log_var: Tensor, prior_mu: Tensor, prior_log_var: Tensor) -> Tensor:
    """Return KL(N(mu, sigma^2) || N(prior_mu, prior_sigma^2)) by dimension, in the shape they broadcast to."""
    difference = wide(log_var) - wide(prior_log_var)
    distance = (wide(mu) - wide(prior_mu)).square() * torch.exp(-wide(prior_log_var))
    return (distance + torch.expm1(difference) - difference) / 2


def log_normal(z: Tensor, mu: Tensor | float = 0.0, log_var: Tensor | float = 0.0) -> Tensor:
    """Return log N(z; mu, sigma^2) by dimension, in the shape they broadcast to; of the standard normal by default."""
    log_var = wide(torch.as_tensor(log_var, device=z.device))
    return -((wide(z) - mu).square() * torch.exp(-log_var) + log_var + LOG_2PI) / 2


def log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """Return sum x log p + (1 - x) log(1 - p) with p = sigmoid(logits), x in [0, 1] (Kingma and Welling 2014, eq. 11).

    A log-likelihood for binary x. For grey x it is a cross-entropy, which no distribution of grey values has.
    """
    x, logits = torch.broadcast_tensors(wide(x), wide(logits))
    return -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


def log_continuous_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """Return the log-density of x in [0, 1] under continuous Bernoullis: the cross-entropy and its normaliser.

    log C(lambda) = log(2 artanh(1 - 2 lambda) / (1 - 2 lambda)), log 2 at 1/2 (Loaiza-Ganem and Cunningham 2019,
    eq. 8); with lambda = sigmoid(l) it is log(l coth(l / 2)).
    """
    size = wide(logits).abs()
    near, square = size < NEAR, size.square()
    series = math.log(2) + square * (1 / 12 - square * (7 / 1440 - square * (31 / 90720 - square * 127 / 4838400)))
    away = size.where(~near, 1.0)                                            # no 0 / 0, in the gradient neither
    log_c = torch.where(near, series, torch.log(away / torch.tanh(away / 2)))
    return log_bernoulli(x, logits) + log_c.sum(-1)


def log_gaussian(x: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    """Return the log-density of x under N(mu, sigma^2), summed over pixels."""
    return log_normal(x, wide(mu), 2 * wide(log_sigma)).sum(-1)


def log_discretised_logistic(x: Tensor, mu: Tensor, log_s: Tensor, levels: int = 256) -> Tensor:
    """Return log P(x) of pixels at `levels` even steps from -1 to 1: the mass of logistics of scale s in their bins.

    P(x) = sigmoid(b) - sigmoid(a), b and a = (x - mu +- h) / s with half a step h = 1 / (levels - 1); the outermost
    bins reach to infinity (Salimans et al. 2017, eq. 2; Ho et al. 2020, eq. 13). The difference is computed as
    sigmoid(b) sigmoid(-a) (1 - exp(a - b)), which is exact also far from mu.
    """
    x, half, s = wide(x), 1 / (levels - 1), torch.exp(wide(log_s))
    b, a = (x - wide(mu) + half) / s, (x - wide(mu) - half) / s
    below, above = logsigmoid(b), logsigmoid(-a)
    inside = below + above + torch.log(-torch.expm1(-2 * half / s))
    return torch.where(x < half - 1, below, torch.where(x > 1 - half, above, inside)).sum(-1)


def log_discretised_gaussian(x: Tensor, mu: Tensor, log_sigma: Tensor, levels: int = 256) -> Tensor:
    """Return log P(x) of pixels at `levels` even steps from -1 to 1: the mass of Gaussians in their bins.

    P(x) = Phi(b) - Phi(a), b and a = (x - mu +- 1 / (levels - 1)) / sigma; the outermost bins reach to infinity (Ho et
    al. 2020, eq. 13). Computed in the tail where both are below 0, to which the other one is mirrored.
    """
    x, half, sigma = wide(x), 1 / (levels - 1), torch.exp(wide(log_sigma))
    centre = (x - wide(mu)) / sigma
    reach = half / sigma
    low, high = -centre.abs() - reach, -centre.abs() + reach
    above = torch.special.log_ndtr(high)
    inside = above + torch.log(-torch.expm1((torch.special.log_ndtr(low) - above).clamp(max=-1e-7)))
    first, last = torch.special.log_ndtr(centre + reach), torch.special.log_ndtr(reach - centre)
    return torch.where(x < half - 1, first, torch.where(x > 1 - half, last, inside)).sum(-1)


def elbo(log_px_z: Tensor, kl: Tensor, beta: float = 1.0) -> Tensor:
    """Return log p(x|z) - beta KL, the evidence lower bound for beta = 1 (Kingma and Welling 2014, eq. 3).

    Another beta trades reconstruction for disentanglement (Higgins et al. 2017, eq. 4). Shapes broadcast.
    """
    return log_px_z - beta * kl


def free_bits(kl: Tensor, nats: float) -> Tensor:
    """Return sum_d max(nats, KL_d) of KLs by dimension (..., D): below `nats` a dimension costs nothing more.

    Kingma et al. 2016, eq. 15, where KL_d is a mean over the minibatch; what it is here is the caller's choice.
    """
    return kl.clamp(min=nats).sum(-1)


def log_mean_exp(log_w: Tensor) -> Tensor:
    """Return log 1/k sum_i w_i over the last axis of log w (..., k): the bound L_k (Burda et al. 2016, eq. 8).

    With w = p(x, z) / q(z|x) and z ~ q(z|x) its expectation rises with k, from the ELBO towards log p(x).
    """
    return torch.logsumexp(wide(log_w), -1) - math.log(log_w.shape[-1])


def binarised(x: Tensor, u: Tensor) -> Tensor:
    """Return x, grey in [-1, 1], as -1 or 1: 1 with probability (x + 1) / 2, decided by `u`, uniform on [0, 1).

    A new draw for every look at an image is dynamic binarisation (Salakhutdinov and Murray 2008; Burda et al. 2016).
    """
    return torch.where(u < (x + 1) / 2, 1.0, -1.0).to(x.dtype)


@dataclass(frozen=True)
class Likelihood:
    """The density p(x|z) of pixels in [-1, 1], given a location for each pixel and, where `has_scale`, one log-scale.

    `log_prob(x, location, log_scale, levels)` sums over pixels; where not `discrete` it is a density over [-1, 1].
    `mean(location)` is the picture in [-1, 1] that stands for the distribution, `link` the inverse, for a start.
    """

    log_prob: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    mean: Callable[[Tensor], Tensor]
    link: Callable[[Tensor], Tensor]
    has_scale: bool
    discrete: bool


def continuous_bernoulli_mean(logits: Tensor) -> Tensor:
    """Return the mean in [0, 1], 1 / (1 - exp(-l)) - 1 / l (Loaiza-Ganem and Cunningham 2019, eq. 9, by logits)."""
    size = wide(logits)
    near = size.abs() < NEAR
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
"""The likelihoods of pixels by name. Of binary pixels, of grey ones as densities (two), of pixels with levels."""

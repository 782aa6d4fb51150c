"""The reverse process of DDPM: the distribution p(x_{t-1} | x_t) of a model, and the terms of its variational bound."""

import math

import torch
from torch import Tensor

from hfgen.errors import ConfigError
from hfgen.losses.elbo import kl_of_normals, log_discretised_gaussian, log_normal
from hfgen.schedulers.ddpm import DDPMScheduler, dynamic_threshold
from hfgen.schedulers.forward import upcast


def reverse_moments(scheduler: DDPMScheduler, model_output: Tensor, t: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log variance of p(x_{t-1} | x_t); both broadcast to x_t (B, C, ...).

    `t`: timesteps (B,) in [0, T - 1]. The mean is that of the posterior at the model's x_0, clipped or thresholded by
    the scheduler's settings (Ho et al. 2020, eq. 7 and 15). The variance follows the scheduler's `variance_type`. The
    posterior's variance is 0 at t = 0 and is replaced there by that of t = 1 (Nichol and Dhariwal 2021, section 3.1);
    sampling adds no noise at t = 0. Needs T >= 2. Raises ConfigError if the channels of a learned variance are missing.
    """
    # divide the output into prediction and variance
    config, kind = scheduler.config, scheduler.variance_type
    prediction, raw = model_output, None
    if kind.startswith("learned"):
        if model_output.shape[1] != 2 * x_t.shape[1]:
            raise ConfigError(f"variance_type {kind!r} needs {2 * x_t.shape[1]} output channels, "
                              f"got {model_output.shape[1]}")
        prediction, raw = model_output.chunk(2, dim=1)
    # posterior mean at the estimate of x_0
    x_0 = scheduler.predict_x0(prediction, t, x_t)
    if config.thresholding:
        x_0 = dynamic_threshold(x_0, config.dynamic_thresholding_ratio, config.sample_max_value)
    elif config.clip_sample:
        x_0 = x_0.clamp(-config.clip_sample_range, config.clip_sample_range)
    mean = scheduler.posterior(x_0, x_t, t)[0]
    # log variance; the interpolation is Nichol and Dhariwal 2021, eq. 15
    small, large = _log_variances(scheduler, t, x_t)
    if raw is None:
        return mean, large if "large" in kind else small
    if kind == "learned":
        return mean, upcast(raw).clamp(min=1e-20).log()
    return mean, small + (upcast(raw) + 1) / 2 * (large - small)


def _log_variances(scheduler: DDPMScheduler, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return log beta-tilde_t and log beta_t, each (B, 1, ...); at t = 0 beta-tilde_1 replaces beta-tilde_0 = 0."""
    small = scheduler.posterior(like, like, t.clamp(min=1))[1]
    large = scheduler.betas.to(small)[t].view(small.shape)
    return small.log(), large.log()


def kl_term(scheduler: DDPMScheduler, model_output: Tensor, t: Tensor, x_t: Tensor, x_0: Tensor) -> Tensor:
    """Return KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), (B,) in nats, for t > 0 (Ho et al. 2020, eq. 5).

    `t`: (B,). `x_t` and `x_0`: (B, C, ...); `model_output` too, or (B, 2C, ...) with a learned variance.
    """
    mean, log_variance = reverse_moments(scheduler, model_output, t, x_t)
    true_mean = scheduler.posterior(x_0, x_t, t)[0]
    return kl_of_normals(true_mean, _log_variances(scheduler, t, x_t)[0], mean, log_variance).flatten(1).sum(1)


def decoder_term(
    scheduler: DDPMScheduler,
    model_output: Tensor,
    t: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    levels: int | None = 256,
) -> Tensor:
    """Return -log p(x_0 | x_t), (B,) in nats: L_0 of Ho et al. 2020, eq. 5, for t = 0, the least noisy state.

    It is the mass of a Gaussian in the bins of pixels at `levels` even levels in [-1, 1] (eq. 13); for None, its
    density. The variance is the model's at t = 0. For pixels and a fixed variance it is the smaller posterior variance
    of t = 1, as in the code of Ho et al. 2020 and of Nichol and Dhariwal 2021: beta_0 is the variance of x_0 given x_t
    for data with a density, and pixels are known more exactly, to one level. `t`: (B,). `x_t` and `x_0`: (B, C, ...);
    `model_output` too, or (B, 2C, ...) with a learned variance.
    """
    # a density without levels
    mean, log_variance = reverse_moments(scheduler, model_output, t, x_t)
    if levels is None:
        return -log_normal(x_0, mean, log_variance).flatten(1).sum(1)
    # the mass of bins otherwise
    if not scheduler.variance_type.startswith("learned"):
        log_variance = _log_variances(scheduler, t, x_t)[0]
    log_sigma = (log_variance / 2).expand_as(mean).flatten(1)
    return -log_discretised_gaussian(x_0.flatten(1), mean.flatten(1), log_sigma, levels)


def vlb_term(
    scheduler: DDPMScheduler, model_output: Tensor, t: Tensor, x_t: Tensor, x_0: Tensor, levels: int = 256
) -> Tensor:
    """Return the term of the variational bound on pixels at timesteps t (B,), (B,) in nats: KL for t > 0, else L_0.

    Its mean over uniform t, times T, is the bound without its constant prior term (Nichol and Dhariwal 2021, eq. 4).
    `x_t` and `x_0`: (B, C, ...); `model_output` too, or (B, 2C, ...) with a learned variance.
    """
    given = (scheduler, model_output, t, x_t, x_0)
    return torch.where(t == 0, decoder_term(*given, levels), kl_term(*given))


def prior_term(scheduler: DDPMScheduler, x_0: Tensor) -> Tensor:
    """Return L_T = KL(q(x_T | x_0) || N(0, I)), (B,) in nats: the information about x_0 (B, ...) left in x_T."""
    alpha_bar = scheduler.alpha_bar[-1]
    mean = upcast(x_0) * float(alpha_bar.sqrt())
    log_variance = torch.full_like(mean, math.log1p(-float(alpha_bar)))
    return kl_of_normals(mean, log_variance, mean.new_zeros(()), mean.new_zeros(())).flatten(1).sum(1)

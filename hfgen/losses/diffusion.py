"""Losses of denoising diffusion: pure functions on tensors.

Symbols as in Ho et al. 2020: x_0 is the image, eps the noise, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.
"""

from typing import Literal

import torch

from hfgen.losses.choices import PredictionType


def l_simple(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return each sample's mean squared error over its dimensions, (B,) float32, non-negative (Ho et al. 2020, eq. 14).

    `prediction` and `target` are (B, ...), of any precision.
    """
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def vlb_weights(
    alpha_bar: torch.Tensor, variance: Literal["fixed_small", "fixed_large"] = "fixed_small"
) -> torch.Tensor:
    """Return lambda_t = beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t)) for all t, (T,) float64.

    It is the factor of |eps - eps_theta|^2 in the variational bound in nats (Ho et al. 2020, eq. 12). `alpha_bar`: (T,)
    in (0, 1). sigma_t^2 is the posterior variance ("fixed_small") or beta_t ("fixed_large"). The posterior variance of
    the first step is 0 and is replaced by that of the second (Nichol and Dhariwal 2021, section 3.1).
    """
    # alpha and beta of each step
    alpha_bar = alpha_bar.double()
    alpha_bar_prev = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    alpha = alpha_bar / alpha_bar_prev
    beta = 1 - alpha
    # variance of each step
    sigma2 = beta
    if variance == "fixed_small":
        sigma2 = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
        sigma2 = torch.cat([sigma2[1:2], sigma2[1:]])
    return beta.square() / (2 * sigma2 * alpha * (1 - alpha_bar))


def min_snr_weights(snr: torch.Tensor, prediction_type: PredictionType, gamma: float = 5.0) -> torch.Tensor:
    """Return the min-SNR-gamma weight of each timestep, > 0, in the shape of `snr` (Hang et al. 2023, section 3.4).

    SNR = alpha_bar / (1 - alpha_bar). The weight is min(SNR, gamma) for x_0 prediction, divided by SNR for eps and by
    SNR + 1 for v prediction; all three are the same weight of the error of x_0.
    """
    # weight of the error of x_0
    clipped = snr.clamp(max=gamma)
    # the same weight for errors of eps and of v
    if prediction_type == "epsilon":
        return clipped / snr
    return clipped / (snr + 1) if prediction_type == "v_prediction" else clipped

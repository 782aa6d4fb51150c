"""Losses of denoising diffusion: pure functions on tensors.

Symbols as in Ho et al. 2020: x_0 is the image, eps the noise, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.
"""

from typing import Literal

import torch

PredictionType = Literal["epsilon", "sample", "v_prediction"]
Weighting = Literal["simple", "vlb", "min_snr"]


def l_simple(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the squared error of each sample, averaged over its dimensions (Ho et al. 2020, eq. 14).

    Both are (B, ...); the result is (B,) in float32 whatever the inputs' precision.
    """
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def vlb_weights(
    alpha_bar: torch.Tensor, variance: Literal["fixed_small", "fixed_large"] = "fixed_small"
) -> torch.Tensor:
    """Return lambda_t = beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t)) for every t, shape (T,), float64.

    The factor of |eps - eps_theta|^2 in the variational bound (Ho et al. 2020, eq. 12), in nats. `alpha_bar` is (T,).
    sigma_t^2 is the posterior variance ("fixed_small") or beta_t ("fixed_large"); the posterior variance of the first
    step is 0, so the second's stands in for it (Nichol & Dhariwal 2021, section 3.1).
    """
    alpha_bar = alpha_bar.double()
    alpha_bar_prev = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    alpha = alpha_bar / alpha_bar_prev
    beta = 1 - alpha
    sigma2 = beta
    if variance == "fixed_small":
        sigma2 = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
        sigma2 = torch.cat([sigma2[1:2], sigma2[1:]])
    return beta.square() / (2 * sigma2 * alpha * (1 - alpha_bar))


def min_snr_weights(snr: torch.Tensor, prediction_type: PredictionType, gamma: float = 5.0) -> torch.Tensor:
    """Return the min-SNR-gamma weight of each timestep, the shape of `snr` (Hang et al. 2023, section 3.4).

    With SNR = alpha_bar / (1 - alpha_bar): min(SNR, gamma) for x_0 prediction, divided by SNR for eps and by SNR + 1
    for v prediction, which are the same weight on the error of x_0.
    """
    clipped = snr.clamp(max=gamma)
    if prediction_type == "epsilon":
        return clipped / snr
    return clipped / (snr + 1) if prediction_type == "v_prediction" else clipped

"""The weights of diffusion losses against the bound they come from."""

import pytest
import torch

from hfgen.losses.diffusion import l_simple, min_snr_weights, vlb_weights


def schedule(steps: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    beta = torch.linspace(1e-3, 0.2, steps, dtype=torch.float64)
    return beta, torch.cumprod(1 - beta, 0)


def test_l_simple_is_the_mean_square_of_each_sample_in_float32() -> None:
    a, b = torch.randn(5, 3, 4, 4, dtype=torch.bfloat16), torch.randn(5, 3, 4, 4, dtype=torch.bfloat16)
    expected = ((a.double() - b.double()) ** 2).reshape(5, -1).mean(1)
    torch.testing.assert_close(l_simple(a, b).double(), expected, atol=1e-6, rtol=0)
    assert l_simple(a, b).dtype == torch.float32


def test_vlb_weight_times_noise_error_is_the_kl_between_the_posteriors() -> None:
    """KL(q(x_{t-1}|x_t, x_0) || p(x_{t-1}|x_t)) of two Gaussians of one variance, from their means (eq. 5, 7, 8)."""
    beta, alpha_bar = schedule()
    x_0, eps, eps_theta = torch.randn(3, 4, dtype=torch.float64)
    weights = vlb_weights(alpha_bar)
    for t in range(1, len(beta)):
        x_t = alpha_bar[t].sqrt() * x_0 + (1 - alpha_bar[t]).sqrt() * eps
        x_0_theta = (x_t - (1 - alpha_bar[t]).sqrt() * eps_theta) / alpha_bar[t].sqrt()
        factor = alpha_bar[t - 1].sqrt() * beta[t] / (1 - alpha_bar[t])
        variance = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta[t]
        kl = (factor * (x_0 - x_0_theta)).square().sum() / (2 * variance)
        torch.testing.assert_close(weights[t] * (eps - eps_theta).square().sum(), kl, atol=1e-9, rtol=1e-9)


def test_vlb_weight_is_half_the_fall_of_the_signal_to_noise_ratio() -> None:
    """Kingma et al. 2021, eq. 13: the weight of |x_0 - x_0_theta|^2 is (SNR(t-1) - SNR(t)) / 2."""
    _, alpha_bar = schedule()
    snr = alpha_bar / (1 - alpha_bar)
    weight_of_x0 = vlb_weights(alpha_bar)[1:] * snr[1:]              # |eps error|^2 = SNR |x_0 error|^2
    torch.testing.assert_close(weight_of_x0, (snr[:-1] - snr[1:]) / 2, atol=1e-9, rtol=1e-9)


def test_vlb_weight_with_the_large_variance_is_the_papers_expression() -> None:
    beta, alpha_bar = schedule()
    expected = beta / (2 * (1 - beta) * (1 - alpha_bar))             # sigma_t^2 = beta_t
    torch.testing.assert_close(vlb_weights(alpha_bar, "fixed_large"), expected, atol=1e-9, rtol=1e-9)
    assert vlb_weights(alpha_bar).isfinite().all()


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_of_all_predictions_are_one_weight_on_the_error_of_x0(gamma: float) -> None:
    _, alpha_bar = schedule()
    snr = alpha_bar / (1 - alpha_bar)
    x_0, prediction = torch.randn(2, 8, dtype=torch.float64)         # prediction: of x_0
    for t in range(len(snr)):
        a, s = alpha_bar[t].sqrt(), (1 - alpha_bar[t]).sqrt()
        error_x0 = (x_0 - prediction).square().mean()
        error_eps = (a / s * (x_0 - prediction)).square().mean()     # eps = (x_t - a x_0) / s
        error_v = ((x_0 - prediction) / s).square().mean()           # v = (a x_t - x_0) / s
        expected = snr[t].clamp(max=gamma) * error_x0
        for kind, error in (("epsilon", error_eps), ("sample", error_x0), ("v_prediction", error_v)):
            weighted = min_snr_weights(snr, kind, gamma)[t] * error
            torch.testing.assert_close(weighted, expected, atol=1e-9, rtol=1e-9)

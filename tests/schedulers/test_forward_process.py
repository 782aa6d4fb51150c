"""The forward process, its posterior and its changes of variables, against diffusers and closed forms."""

import math

import diffusers
import numpy as np
import pytest
import torch

from hfgen.schedulers.ddpm import DDPMScheduler
from tests.schedulers.helpers import SCHEDULES, close


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_add_noise_and_velocity_equal_those_of_diffusers(schedule):
    ours, stock = DDPMScheduler(beta_schedule=schedule), diffusers.DDPMScheduler(beta_schedule=schedule)
    for shape in ((64, 3, 4, 4), (64, 2), (64, 1, 2, 4, 4)):
        x_0, eps = torch.randn(shape), torch.randn(shape)
        t = torch.randint(0, 1000, (64,))
        t[:4] = torch.tensor([0, 1, 998, 999])
        kept = x_0.clone(), eps.clone()
        close(ours.add_noise(x_0, eps, t), stock.add_noise(x_0, eps, t))
        close(ours.get_velocity(x_0, eps, t), stock.get_velocity(x_0, eps, t))
        assert torch.equal(ours.add_noise(x_0, eps, t[:1]), ours.add_noise(x_0, eps, t[0].expand(64)))
        torch.testing.assert_close(ours.add_noise(x_0, eps, 7), stock.add_noise(x_0, eps, torch.tensor([7])))
        assert torch.equal(x_0, kept[0])
        assert torch.equal(eps, kept[1])


def test_the_forward_process_has_the_mean_and_variance_of_its_closed_form():
    ours, count = DDPMScheduler(), 40_000
    for t in (0, 10, 250, 999):
        alpha_bar = math.prod(1 - np.linspace(1e-4, 0.02, 1000)[: t + 1])
        x_0 = torch.tensor([1.5, -0.5]).expand(count, 2)
        x_t = ours.add_noise(x_0, torch.randn(count, 2), torch.full((count,), t)).double()
        sigma2 = 1 - alpha_bar
        assert (x_t.mean(0) - math.sqrt(alpha_bar) * x_0[0]).abs().max() < 5 * math.sqrt(sigma2 / count)
        assert (x_t.var(0) / sigma2 - 1).abs().max() < 5 * math.sqrt(2 / count)


def test_half_precision_forward_process_keeps_the_coefficients_and_the_dtype():
    ours, t = DDPMScheduler(), torch.arange(0, 1000, 10)
    x_0, eps = torch.randn(100, 3, 4, 4).bfloat16(), torch.randn(100, 3, 4, 4).bfloat16()
    signal, sigma = (ours.alpha_bar[t] ** 0.5).view(-1, 1, 1, 1), ((1 - ours.alpha_bar[t]) ** 0.5).view(-1, 1, 1, 1)
    noisy, velocity = ours.add_noise(x_0, eps, t), ours.get_velocity(x_0, eps, t)
    assert noisy.dtype == velocity.dtype == torch.bfloat16
    close(noisy, signal * x_0.double() + sigma * eps.double(), 2**-8)
    close(velocity, signal * eps.double() - sigma * x_0.double(), 2**-8)
    assert ours.add_noise(x_0.float(), eps.double(), t).dtype == torch.float32


def test_float64_samples_are_computed_in_float64():
    ours, t = DDPMScheduler(clip_sample=False), torch.tensor([0, 1, 500, 999])
    x_0, eps = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    x_t = ours.add_noise(x_0, eps, t)
    torch.testing.assert_close(ours.predict_x0(eps, t, x_t), x_0, atol=1e-12, rtol=0)
    assert ours.step(eps, 500, x_t).prev_sample.dtype == torch.float64


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_posterior_is_bayes_rule(schedule):
    """Product of the Gaussians q(x_t | x_prev) and q(x_prev | x_0): precisions add, means weigh by precision."""
    ours = DDPMScheduler(beta_schedule=schedule)
    x_0, x_t = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    for t, prev_t in ((1, 0), (2, 1), (500, 499), (999, 998), (999, 500), (40, 20)):
        a, a_prev = ours.alpha_bar[t].item(), ours.alpha_bar[prev_t].item()
        alpha, beta = a / a_prev, 1 - a / a_prev
        variance = 1 / (alpha / beta + 1 / (1 - a_prev))
        mean = variance * (math.sqrt(alpha) / beta * x_t + math.sqrt(a_prev) / (1 - a_prev) * x_0)
        got_mean, got_variance = ours.posterior(x_0, x_t, t, prev_t)
        torch.testing.assert_close(got_mean, mean, atol=1e-9, rtol=1e-9)
        assert got_variance.item() == pytest.approx(variance, rel=1e-9)
        if prev_t == t - 1:
            torch.testing.assert_close(ours.posterior(x_0, x_t, t)[0], mean, atol=1e-9, rtol=1e-9)


def test_the_posterior_of_a_batch_of_timesteps_is_that_of_each():
    ours, t = DDPMScheduler(), torch.tensor([0, 1, 500, 999])
    x_0, x_t = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    mean, variance = ours.posterior(x_0, x_t, t)
    assert variance.shape == (4, 1, 1, 1)
    for i, each in enumerate(t.tolist()):
        alone = ours.posterior(x_0[i : i + 1], x_t[i : i + 1], each)
        torch.testing.assert_close(mean[i : i + 1], alone[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(variance[i, 0, 0, 0], alone[1], atol=0, rtol=1e-6)
    assert torch.equal(mean[0], x_0[0])
    assert variance[0].item() == 0
    toward_data = ours.posterior(x_0, x_t, 500, -1)
    torch.testing.assert_close(toward_data[0], x_0, atol=1e-7, rtol=0)
    assert toward_data[1] == 0


def test_a_step_is_the_posterior_at_the_predicted_x0_plus_noise():
    ours = DDPMScheduler(clip_sample=False)
    ours.set_timesteps(10)
    x_t, output = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    mean, variance = ours.posterior(ours.predict_x0(output, 600, x_t), x_t, 600, prev_t=500)
    expected = mean + variance.sqrt() * torch.randn(x_t.shape, generator=torch.Generator().manual_seed(3))
    close(ours.step(output, 600, x_t, torch.Generator().manual_seed(3)).prev_sample, expected, 1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_predict_x0_undoes_the_forward_process_unclipped(kind):
    ours, t = DDPMScheduler(prediction_type=kind), torch.tensor([0, 1, 300, 999])
    x_0, eps = 3 * torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4)
    x_t = ours.add_noise(x_0, eps, t)
    output = {"epsilon": eps, "sample": x_0, "v_prediction": ours.get_velocity(x_0, eps, t)}[kind]
    error = (ours.predict_x0(output, t, x_t) - x_0).abs().amax((1, 2, 3))
    assert bool((error < 5e-7 / ours.alpha_bar[t].sqrt()).all())
    for i, each in enumerate(t.tolist()):
        alone = ours.predict_x0(output[i : i + 1], each, x_t[i : i + 1])
        torch.testing.assert_close(alone[0], x_0[i], atol=float(5e-7 / ours.alpha_bar[each].sqrt()), rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_snr_is_the_ratio_of_signal_to_noise_power(schedule):
    ours = DDPMScheduler(beta_schedule=schedule)
    t = torch.arange(1000).view(10, 100)
    a = np.cumprod(1 - ours.betas.double().numpy())
    torch.testing.assert_close(ours.snr(t).double().flatten(), torch.tensor(a / (1 - a)), atol=0, rtol=3e-5)
    assert ours.snr(t).shape == t.shape
    assert ours.snr(t).dtype == torch.float32
    assert ours.snr(7) == ours.snr(torch.tensor(7)) == ours.snr(t).flatten()[7]

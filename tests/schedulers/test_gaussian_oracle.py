"""Sampling where everything is known: data N(mu, diag(s^2)) and its exact predictor of the noise.

With x_t = signal x_0 + sigma eps, E[eps | x_t] = sigma (x_t - signal mu) / (signal^2 s^2 + sigma^2) is affine in x_t.
So every state of the sampler is Gaussian, and its mean and variance follow from the scheduler's coefficients alone.
"""

import math

import pytest
import torch

from hfgen.schedulers.ddpm import DDPMScheduler

MU = torch.tensor([0.8, -0.3], dtype=torch.float64)
S = torch.tensor([0.5, 0.2], dtype=torch.float64)
COUNT = 20_000


def optimal(scheduler, x_t, t, mu=MU, s=S):
    """Return what a perfect model outputs at x_t: the mean of its target given x_t."""
    signal, sigma = scheduler.alpha_bar[t].sqrt(), (1 - scheduler.alpha_bar[t]).sqrt()
    mu, s = mu.to(x_t.dtype), s.to(x_t.dtype)
    eps = sigma * (x_t - signal * mu) / (signal**2 * s**2 + sigma**2)
    x_0 = (x_t - sigma * eps) / signal
    kind = scheduler.config.prediction_type
    return {"epsilon": eps, "sample": x_0, "v_prediction": signal * eps - sigma * x_0}[kind].to(x_t.dtype)


def chain(scheduler):
    timesteps = scheduler.timesteps.tolist()
    return zip(timesteps, [*timesteps[1:], -1], strict=True)


def reverse_variance(scheduler, t, prev_t, kind):
    """Return the variance of the step t -> prev_t as `kind` says; "exact" is that of the true q(x_prev | x_t)."""
    a, a_prev = (scheduler.alpha_bar[i] if i >= 0 else torch.tensor(1.0, dtype=torch.float64) for i in (t, prev_t))
    beta = 1 - a / a_prev
    small = beta * (1 - a_prev) / (1 - a)
    if kind == "exact":  # the posterior's, plus what x_0 itself adds through the posterior's mean
        left = S**2 * (1 - a) / (a * S**2 + 1 - a)  # Var[x_0 | x_t]
        return small + a_prev * beta**2 / (1 - a) ** 2 * left
    return (small if kind == "fixed_small" else beta) * (t > 0)


def moments(scheduler, kind, mu=MU, s=S, start=None):
    """Return the exact (mean, variance) of the sampler's last state, float64, from `start` (default N(0, I))."""
    zeros = torch.zeros_like(mu)
    mean, variance = start or (zeros, zeros + 1)
    for t, prev_t in chain(scheduler):

        def next_mean(x, t=t, prev_t=prev_t):
            x = x[None]
            x_0 = scheduler.predict_x0(optimal(scheduler, x, t, mu, s), t, x)
            return scheduler.posterior(x_0, x, t, prev_t)[0][0]

        slope = next_mean(zeros + 1) - next_mean(zeros)
        mean, variance = next_mean(mean), slope**2 * variance + reverse_variance(scheduler, t, prev_t, kind)
    return mean, variance


def make(num_steps, kind="fixed_small", spacing="leading", **settings):
    scheduler = DDPMScheduler(clip_sample=False, variance_type=kind, timestep_spacing=spacing, **settings)
    scheduler.set_timesteps(num_steps)
    return scheduler


def sample(scheduler, dtype=torch.float32, count=COUNT, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator, dtype=dtype)
    for t, _ in chain(scheduler):
        x = scheduler.step(optimal(scheduler, x, t), t, x, generator=generator).prev_sample
    return x


def assert_moments(x, mean, variance):
    """Assert sample moments within five standard errors: sqrt(v / N) of a mean, v sqrt(2 / N) of a variance."""
    assert bool(((x.double().mean(0) - mean).abs() < 5 * (variance / len(x)).sqrt()).all())
    assert bool(((x.double().var(0) / variance - 1).abs() < 5 * math.sqrt(2 / len(x))).all())


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
def test_the_full_chain_reproduces_the_data(kind):
    """The derived error of 1000 steps: less than 0.1 % of s in the mean, less than 4 % of s^2 in the variance."""
    scheduler = make(1000, kind)
    mean, variance = moments(scheduler, kind)
    assert bool(((mean - MU).abs() < 0.001 * S).all())
    assert bool(((variance / S**2 - 1).abs() < 0.04).all())
    assert_moments(sample(scheduler), mean, variance)


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_strided_chains_have_exactly_the_derived_moments(kind, spacing):
    for num_steps in (50, 10):
        scheduler = make(num_steps, kind, spacing)
        assert_moments(sample(scheduler), *moments(scheduler, kind))


def test_the_strided_variance_error_shrinks_like_one_over_the_number_of_steps():
    gaps = torch.stack([S**2 - moments(make(n), "fixed_small")[1] for n in (50, 100, 200, 500)])
    assert bool((gaps > 0).all())
    halving = gaps[:-1] / gaps[1:]
    assert bool(((halving[:2] > 1.5) & (halving[:2] < 2.5)).all())
    assert bool((halving[2] > 1.8).all())


def test_small_and_large_variance_bracket_the_truth_between_their_two_exact_cases():
    """Ho et al. 2020, section 3.2: beta is right for x_0 ~ N(0, I), beta-tilde for an x_0 that is one point."""
    for num_steps in (1000, 50, 5):
        low, high = (moments(make(num_steps, k), k)[1] for k in ("fixed_small", "fixed_large"))
        assert bool((low < S**2).all())
        assert bool((high > S**2).all())
        nothing, unit = torch.zeros_like(MU), torch.ones_like(S)
        normal = moments(make(num_steps, "fixed_large"), "fixed_large", nothing, unit)
        # every step keeps N(0, I), but the last one adds no noise: it leaves out beta_0 = 1e-4
        torch.testing.assert_close(normal[1], unit - 1e-4, atol=1e-9, rtol=0)
        point = moments(make(num_steps), "fixed_small", MU, nothing)
        torch.testing.assert_close(point[0], MU, atol=1e-9, rtol=0)
        torch.testing.assert_close(point[1], nothing, atol=1e-12, rtol=0)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_the_exact_reverse_variance_makes_every_strided_chain_exact(spacing):
    """From the true q(x_T), with Var[x_prev | x_t], two steps are as good as a thousand: each posterior is right."""
    for num_steps in (2, 10, 1000):
        scheduler = make(num_steps, spacing=spacing)
        a = scheduler.alpha_bar[int(scheduler.timesteps[0])]
        start = a.sqrt() * MU, a * S**2 + 1 - a
        mean, variance = moments(scheduler, "exact", start=start)
        torch.testing.assert_close(mean, MU, atol=1e-9, rtol=0)
        torch.testing.assert_close(variance, S**2, atol=1e-9, rtol=0)


def test_a_learned_variance_that_is_exact_samples_the_data_in_ten_steps():
    scheduler = make(10, "learned", "trailing", rescale_betas_zero_snr=True, prediction_type="sample")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(COUNT, 2, generator=generator)
    for t, prev_t in chain(scheduler):
        a, s = scheduler.alpha_bar[t], S
        x_0 = MU + a.sqrt() * s**2 * (x - a.sqrt() * MU) / (a * s**2 + 1 - a)
        variance = reverse_variance(scheduler, t, prev_t, "exact").expand_as(x)
        x = scheduler.step(torch.cat([x_0, variance], 1).float(), t, x, generator=generator).prev_sample
    assert_moments(x, MU, S**2)


def test_every_prediction_type_gives_the_same_samples():
    kinds = ("epsilon", "sample", "v_prediction")
    results = [sample(make(50, prediction_type=kind), torch.float64, 100) for kind in kinds]
    torch.testing.assert_close(results[1], results[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(results[2], results[0], atol=1e-9, rtol=0)
    single = [sample(make(50, prediction_type=kind), count=100) for kind in kinds]
    torch.testing.assert_close(single[1], single[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(single[2], single[0], atol=1e-5, rtol=0)

"""The model's reverse steps as distributions: against the sampler's own steps, diffusers, and closed forms."""

import math

import diffusers
import pytest
import torch

from hfgen import DDPMScheduler
from hfgen.errors import ConfigError
from hfgen.losses.diffusion import vlb_weights
from hfgen.losses.elbo import log_discretised_gaussian
from hfgen.schedulers.reverse import decoder_term, kl_term, prior_term, reverse_moments, vlb_term


def given(channels=1, seed=0):
    """Return x_0 in [-1, 1] and noise, (6, 1, 4, 4), and a raw variance in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    eps = torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x_0, eps, torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("clip", [False, True])
def test_a_step_of_the_sampler_has_these_moments(kind, clip):
    scheduler = DDPMScheduler(variance_type=kind, clip_sample=clip)
    x_0, eps, raw = given()
    for t in (1, 2, 500, 999):
        x_t = scheduler.add_noise(x_0, eps, t)
        output = torch.cat([eps * 1.1, raw], 1) if kind == "learned_range" else eps * 1.1
        mean, log_variance = reverse_moments(scheduler, output, torch.full((6,), t), x_t)
        stepped = scheduler.step(output, t, x_t, torch.Generator().manual_seed(3)).prev_sample
        z = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        torch.testing.assert_close(mean + (log_variance / 2).exp() * z, stepped, atol=1e-6, rtol=0)


@pytest.mark.parametrize("t", [1, 2, 40, 999])
def test_the_learned_log_variance_is_that_of_diffusers(t):
    x_0, eps, raw = given()
    ours, stock = (cls(variance_type="learned_range") for cls in (DDPMScheduler, diffusers.DDPMScheduler))
    output = torch.cat([eps, raw], 1)
    _, log_variance = reverse_moments(ours, output, torch.full((6,), t), ours.add_noise(x_0, eps, t))
    theirs = stock._get_variance(t, predicted_variance=raw)
    torch.testing.assert_close(log_variance, theirs, atol=2e-4, rtol=0)        # its tables are float32


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
def test_the_kl_is_the_weighted_error_of_the_noise_and_a_constant(kind):
    """Ho et al. 2020, eq. 8 and 12."""
    scheduler = DDPMScheduler(variance_type=kind, clip_sample=False)
    x_0, eps, _ = given()
    t = torch.tensor([1, 2, 10, 100, 500, 999])
    x_t = scheduler.add_noise(x_0, eps, t)
    predicted = eps + 0.1 * torch.randn(eps.shape, dtype=torch.float64)
    gap = kl_term(scheduler, predicted, t, x_t, x_0) - kl_term(scheduler, eps, t, x_t, x_0)
    expected = vlb_weights(scheduler.alpha_bar, kind)[t] * (predicted - eps).square().flatten(1).sum(1)
    torch.testing.assert_close(gap, expected, atol=1e-9, rtol=1e-4)
    if kind == "fixed_small":
        torch.testing.assert_close(kl_term(scheduler, eps, t, x_t, x_0), torch.zeros(6).double(), atol=1e-9, rtol=0)


def test_terms_of_all_timesteps_are_a_kl_or_the_decoders():
    scheduler = DDPMScheduler(variance_type="learned_range")
    x_0, eps, raw = given()
    t = torch.tensor([0, 1, 0, 5, 700, 0])
    x_t = scheduler.add_noise(x_0, eps, t)
    output = torch.cat([eps * 0.9, raw], 1)
    terms = vlb_term(scheduler, output, t, x_t, x_0)
    torch.testing.assert_close(terms[t == 0], decoder_term(scheduler, output, t, x_t, x_0)[t == 0])
    torch.testing.assert_close(terms[t > 0], kl_term(scheduler, output, t, x_t, x_0)[t > 0])
    coarse = vlb_term(scheduler, output, t, x_t, x_0, 17)
    torch.testing.assert_close(coarse[t == 0], decoder_term(scheduler, output, t, x_t, x_0, 17)[t == 0])
    assert bool((coarse[t == 0] < terms[t == 0]).all())                      # wider bins hold more


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
def test_a_known_pixel_costs_the_bits_of_a_gaussian_as_wide_as_the_second_steps_posterior(kind, schedule):
    """The mass within half a level of the mean, 2 Phi(1 / (255 sigma)) - 1: 1.306 bits for the linear schedule."""
    scheduler = DDPMScheduler(variance_type=kind, beta_schedule=schedule)
    x_0 = torch.full((1, 1, 4, 4), 1 / 255, dtype=torch.float64)
    eps = torch.randn(x_0.shape, dtype=torch.float64)
    first = torch.zeros(1, dtype=torch.long)
    found = decoder_term(scheduler, eps, first, scheduler.add_noise(x_0, eps, first), x_0)
    before, after = scheduler.alpha_bar[:2].tolist()
    sigma = math.sqrt((1 - after / before) * (1 - before) / (1 - after))
    bits = -math.log2(math.erf(1 / (255 * sigma * math.sqrt(2))))
    assert float(found) / 16 / math.log(2) == pytest.approx(bits, abs=1e-4)
    assert schedule != "linear" or bits == pytest.approx(1.306, abs=1e-3)


def test_a_learned_range_ends_at_the_variance_of_each_forward_step():
    scheduler = DDPMScheduler(variance_type="learned_range")
    x_0, eps, _ = given()
    t = torch.tensor([0, 1, 10, 100, 500, 999])
    x_t = scheduler.add_noise(x_0, eps, t)
    _, log_variance = reverse_moments(scheduler, torch.cat([eps, torch.ones_like(eps)], 1), t, x_t)
    expected = scheduler.betas.double()[t].log().view(-1, 1, 1, 1)
    torch.testing.assert_close(log_variance, expected.expand_as(log_variance), atol=1e-6, rtol=0)


def test_gradients_reach_the_variance_at_every_timestep_and_are_finite():
    scheduler = DDPMScheduler(variance_type="learned_range")
    x_0, eps, raw = (x.float() for x in given())
    raw.requires_grad_()
    t = torch.tensor([0, 1, 5, 100, 700, 999])
    x_t = scheduler.add_noise(x_0, eps, t)
    vlb_term(scheduler, torch.cat([eps + 0.3, raw], 1), t, x_t, x_0).sum().backward()
    gradient = raw.grad.flatten(1)
    assert bool(gradient.isfinite().all())
    assert bool((gradient.abs().sum(1)[:5] > 0).all())


def test_the_prior_term_is_what_signal_is_left():
    scheduler = DDPMScheduler(num_train_timesteps=100)
    x_0 = given()[0]
    a = scheduler.alpha_bar[-1]
    q = torch.distributions.Normal(a.sqrt() * x_0, (1 - a).sqrt())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros_like(x_0), 1.0))
    torch.testing.assert_close(prior_term(scheduler, x_0), kl.flatten(1).sum(1), atol=1e-9, rtol=0)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_discretised_gaussians_are_distributions_over_the_levels(levels):
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]
    for mu, log_sigma in ((0.3, -1.0), (-0.99, -5.0), (2.0, 0.5), (0.0, -9.0)):
        log_p = log_discretised_gaussian(x, torch.full_like(x, mu), torch.full_like(x, log_sigma), levels)
        torch.testing.assert_close(log_p.logsumexp(0), torch.zeros(()).double(), atol=1e-6, rtol=0)
    mu, sigma, half = torch.tensor([[0.1]]).double(), 0.2, 1 / (levels - 1)
    normal = torch.distributions.Normal(mu, sigma)
    mass = normal.cdf(x + half) - normal.cdf(x - half)
    log_p = log_discretised_gaussian(x, mu, torch.full_like(x, sigma).log(), levels)
    torch.testing.assert_close(log_p[1:-1].exp(), mass[1:-1, 0], atol=1e-9, rtol=0)


def test_discretised_gaussians_are_finite_far_from_their_mean():
    x = torch.tensor([[-1.0], [0.0], [1.0]])
    log_sigma = torch.full_like(x, -5.0, requires_grad=True)
    log_p = log_discretised_gaussian(x, torch.full_like(x, 0.9), log_sigma)
    log_p.sum().backward()
    assert bool(log_p.isfinite().all()) and bool(log_sigma.grad.isfinite().all())
    leading = -((0.9 - 1 / 255) * torch.tensor(5.0).exp()).square() / 2                  # of the nearer edge of the bin
    torch.testing.assert_close(log_p[1].detach(), leading, atol=0, rtol=0.01)


def test_a_model_without_the_channels_of_its_variance_is_refused():
    scheduler, x = DDPMScheduler(variance_type="learned_range"), torch.zeros(1, 1, 2, 2)
    with pytest.raises(ConfigError, match="2 output channels, got 1"):
        reverse_moments(scheduler, x, torch.tensor([3]), x)

"""Every sampler where everything is known: Gaussian data of a full covariance, and the exact predictor of the noise.

With x_t = gamma x_0 + sigma eps, x_0 ~ N(mu, C): E[eps | x_t] = sigma (gamma^2 C + sigma^2 I)^-1 (x_t - gamma mu). The
probability flow leads x_T to m_t + S_t^(1/2) S_T^(-1/2) (x_T - m_T), m = gamma mu, S = gamma^2 C + sigma^2 I.
"""

import math
from itertools import pairwise

import pytest
import torch

from hfgen import DDPMScheduler, VPSDEScheduler
from hfgen.schedulers.langevin import langevin
from hfgen.schedulers.samplers import SAMPLERS, make_sampler

MU = torch.tensor([0.8, -0.3], dtype=torch.float64)
C = torch.tensor([[0.25, 0.09], [0.09, 0.09]], dtype=torch.float64)
VALUES, VECTORS = torch.linalg.eigh(C)
COUNT = 20_000


def noise_level(scheduler, timestep):
    """Return gamma and sigma at a timestep, of any scheduler here."""
    if isinstance(scheduler, VPSDEScheduler):
        t = scheduler.time_of(float(timestep))
        return float(scheduler.gamma(t)), float(scheduler.sigma(t))
    alpha_bar = float(scheduler.alphas_cumprod[int(timestep)])
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)


def perfect(gamma, sigma, x_t):
    """Return E[eps | x_t], rows of x_t."""
    centred = (x_t - gamma * MU) @ VECTORS
    return sigma * (centred / (gamma**2 * VALUES + sigma**2)) @ VECTORS.T


def states(scheduler, x, **choices):
    """Return the last state of the scheduler from x, with the perfect predictor."""
    for timestep in scheduler.timesteps:
        eps = perfect(*noise_level(scheduler, timestep), x)
        x = scheduler.step(eps, timestep, x, **choices).prev_sample
    return x


def flowed(x, start, end):
    """Return where the probability flow leads x, from (gamma, sigma) `start` to `end`."""
    variances = [gamma**2 * VALUES + sigma**2 for gamma, sigma in (start, end)]
    centred = (x - start[0] * MU) @ VECTORS * (variances[1] / variances[0]).sqrt()
    return end[0] * MU + centred @ VECTORS.T


def assert_moments(x, bias=0.02):
    """Assert mean and covariance within five standard errors, and within `bias` of the data's scale for the steps."""
    scale = C.diagonal().sqrt()
    assert bool(((x.mean(0) - MU).abs() < (5 / math.sqrt(len(x)) + bias) * scale).all()), x.mean(0)
    error = (torch.cov(x.T) - C).abs() / torch.outer(scale, scale)
    assert bool((error < 5 * math.sqrt(2 / len(x)) + bias).all()), error


STEPS = {"ddpm": 1000, "ddim": 250, "dpmpp_2m": 100, "dpmpp_2m_sde": 200, "unipc": 100, "reverse_sde": 500}
STEPS |= {"ode_euler": 400, "ode_heun": 60, "predictor_corrector": 400}
NOISY = ("ddpm", "dpmpp_2m_sde", "reverse_sde", "predictor_corrector")


@pytest.mark.parametrize("trained", [DDPMScheduler, VPSDEScheduler])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_gives_the_mean_and_covariance_of_the_data_whatever_the_training(name, trained):
    scheduler = make_sampler(name, trained(clip_sample=False))
    scheduler.set_timesteps(STEPS[name])
    generator = torch.Generator().manual_seed(0)
    choices = {"generator": generator} if name in NOISY else {}
    x = torch.randn(COUNT, 2, generator=generator, dtype=torch.float64)
    assert_moments(states(scheduler, x, **choices), bias=0.05 if name == "ddim" else 0.03)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_with_noise_gives_the_mean_and_covariance_of_the_data(eta):
    scheduler = make_sampler("ddim", DDPMScheduler(clip_sample=False))
    scheduler.set_timesteps(500)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(COUNT, 2, generator=generator, dtype=torch.float64)
    assert_moments(states(scheduler, x, eta=eta, generator=generator), bias=0.05)


@pytest.mark.parametrize("spacing", ["log_snr", "linspace"])
@pytest.mark.parametrize(
    ("method", "order"), [("ode_euler", 1), ("ode_heun", 2), ("ddim", 1), ("dpmpp_2m", 2)]
)
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_the_error_of_the_flow_falls_with_the_order_of_the_method(method, order, schedule, spacing):
    sde = VPSDEScheduler(method=method, beta_schedule=schedule, denoise=False, spacing=spacing, t_min=0.01,
                         clip_sample=False)  # fmt: skip
    x = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth = flowed(x, noise_level(sde, 999), noise_level(sde, 0))
    errors = []
    for n in (100, 200, 400):
        sde.set_timesteps(n)
        errors.append(float((states(sde, x) - truth).square().mean().sqrt()))
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(rate - order) < 0.25 for rate in rates), (errors, rates)


@pytest.mark.parametrize("trained", [DDPMScheduler, VPSDEScheduler])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_at_its_usual_steps_every_sampler_keeps_the_variance_of_the_data_within_three_percent(name, schedule, trained):
    """Scalar data N(0, 0.09), as spread as pixels: an evaluation too far from the data ends in E[x_0 | x_t]."""
    scheduler = make_sampler(name, trained(beta_schedule=schedule, clip_sample=False))
    scheduler.set_timesteps(SAMPLERS[name].steps)
    generator = torch.Generator().manual_seed(0)
    count = 200_000 if name in NOISY else 1                             # a flow is linear in x: one number says it all
    choices = {"generator": generator} if name in NOISY else {}
    x = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    start = x.square().mean()
    for timestep in scheduler.timesteps.tolist():
        gamma, sigma = noise_level(scheduler, timestep)
        x = scheduler.step(sigma * x / (gamma**2 * 0.09 + sigma**2), timestep, x, **choices).prev_sample
    assert abs(float(x.square().mean() / start / 0.09) - 1) < 0.03


@pytest.mark.parametrize("method", ["ode_euler", "ode_heun"])
def test_the_flow_leads_data_to_noise_and_back(method):
    sde = VPSDEScheduler(method=method, denoise=False, clip_sample=False)
    x = MU + torch.randn(COUNT, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) @ (
        VECTORS * VALUES.sqrt()
    ).T
    errors = []
    for n in (100, 200):
        sde.set_timesteps(n, inverse=True)
        noise = states(sde, x)
        sde.set_timesteps(n)
        errors.append(float((states(sde, noise) - x).square().mean().sqrt()))
    assert errors[1] < errors[0] / (1.8 if method == "ode_euler" else 3.5), errors
    assert errors[1] < (0.02 if method == "ode_euler" else 5e-4), errors
    covariance = torch.cov(noise.T)
    torch.testing.assert_close(covariance, torch.eye(2, dtype=torch.float64), atol=0.08, rtol=0)


def test_the_reverse_sde_and_its_corrector_converge_to_the_variance_of_the_data():
    """A linear step x -> a x + b + s z has moments in closed form; they are read off the scheduler's own steps."""

    def variance(method, n):
        sde = VPSDEScheduler(method=method, clip_sample=False)
        sde.set_timesteps(n)
        total = torch.ones(2, dtype=torch.float64)                    # of x_T along the eigenvectors
        for timestep in sde.timesteps:
            index = sde._next
            ends = []
            for x in (torch.zeros(1, 2, dtype=torch.float64), VECTORS.sum(1)[None]):
                sde._next = index
                generator = torch.Generator().manual_seed(1)
                eps = perfect(*noise_level(sde, timestep), x)
                ends.append(sde.step(eps, timestep, x, generator=generator).prev_sample @ VECTORS)
            slope = (ends[1] - ends[0])[0]
            sde._next = index
            z = torch.randn(1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            still = perfect(*noise_level(sde, timestep), x * 0)
            drawn = sde.step(still, timestep, x * 0, generator=torch.Generator().manual_seed(1)).prev_sample
            sde._next = index
            again = sde.step(still, timestep, x * 0, generator=torch.Generator().manual_seed(2)).prev_sample
            z2 = torch.randn(1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
            spread = ((drawn - again) / (z - z2))[0, 0]
            total = slope**2 * total + spread**2
        return total

    for method in ("reverse_sde", "predictor_corrector"):
        errors = [float((variance(method, n) / VALUES - 1).abs().max()) for n in (100, 200, 400)]
        assert all(1.6 < a / b < 4 for a, b in pairwise(errors)), (method, errors)
        assert errors[-1] < 0.04, (method, errors)


def test_langevin_dynamics_samples_the_density_of_a_score():
    generator = torch.Generator().manual_seed(0)
    precision = torch.linalg.inv(C)
    start = torch.randn(COUNT, 2, generator=generator, dtype=torch.float64)
    *_, x = langevin(lambda x: (MU - x) @ precision, start, 400, 1e-3, generator)
    for _ in range(2):
        *_, x = langevin(lambda x: (MU - x) @ precision, x, 400, 1e-3, generator)
    assert_moments(x, bias=0.03)
    assert len(list(langevin(lambda x: -x, start[:2], 3, 0.1))) == 4

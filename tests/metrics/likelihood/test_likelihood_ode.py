"""Exact likelihood through the probability-flow ODE, on data whose likelihood is known; the solver on known ODEs."""

import math

import pytest
import torch

from hfgen import MLPDenoiser, VPSDEScheduler
from hfgen.errors import ConfigError, NonFiniteError
from hfgen.losses.elbo import log_discretised_gaussian
from hfgen.metrics.likelihood import ode_bits_per_dim, ode_log_likelihood, predictor
from hfgen.metrics.runge_kutta import solve

MU = torch.tensor([0.2, -0.3, 0.1], dtype=torch.float64)
ROOT = torch.tensor([[0.3, 0.0, 0.0], [0.2, 0.15, 0.0], [-0.1, 0.1, 0.2]], dtype=torch.float64)
C = ROOT @ ROOT.T


def perfect(sde, covariance=C, mu=MU):
    """Return E[eps | x_t] for data of this mean and covariance, in float64."""

    def predict(x_t, timesteps):
        t = sde.time_of(timesteps[0])
        gamma, sigma = sde.gamma(t), sde.sigma(t)
        S = gamma**2 * covariance + sigma**2 * torch.eye(len(mu), dtype=torch.float64)
        return (sigma * (x_t - gamma * mu) @ torch.linalg.inv(S)).to(x_t.dtype)

    return predict


def items(n, seed=0):
    return MU + torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) @ ROOT.T


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_log_likelihoods_of_gaussian_data_are_exact_with_the_whole_trace(schedule):
    sde, x = VPSDEScheduler(beta_schedule=schedule, t_min=1e-6), items(50)
    found = ode_log_likelihood(perfect(sde), sde, x, probes=None, rtol=1e-7, atol=1e-7)
    density = torch.distributions.MultivariateNormal(MU, C).log_prob(x)
    torch.testing.assert_close(found.log_prob, density, atol=0.02, rtol=0)             # for the signal left at t = 1
    assert abs(float(found.log_prob.mean() / density.mean()) - 1) < 0.01
    torch.testing.assert_close(found.latents.mean(0), torch.zeros(3).double(), atol=0.5, rtol=0)
    assert 50 < found.evaluations < 2000


def test_hutchinsons_estimate_is_unbiased_and_its_variance_falls_with_the_number_of_probes():
    sde, x = VPSDEScheduler(t_min=1e-5), items(4000)
    density = torch.distributions.MultivariateNormal(MU, C).log_prob(x)
    generator = torch.Generator().manual_seed(0)
    one = ode_log_likelihood(perfect(sde), sde, x, generator, 1)
    several = ode_log_likelihood(perfect(sde), sde, x, generator, 8)
    for found in (one, several):
        error = found.log_prob - density
        assert abs(float(error.mean())) < 5 * float(error.std()) / math.sqrt(len(x))
    ratio = float((one.log_prob - density).var() / (several.log_prob - density).var())
    assert 6 < ratio < 10.5, ratio                                   # eight probes have an eighth of the variance


def test_bits_of_pixels_are_within_one_percent_by_dequantisation():
    sde, s = VPSDEScheduler(t_min=1e-5), torch.tensor([0.3, 0.2, 0.25], dtype=torch.float64)
    x = MU + s * torch.randn(3000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    bits = -log_discretised_gaussian(x, MU, s.log().expand_as(x)) / 3 / math.log(2)
    found = ode_bits_per_dim(perfect(sde, torch.diag(s**2)), sde, x, torch.Generator().manual_seed(0))
    assert abs(float(found.mean() / bits.mean()) - 1) < 0.01, (found.mean(), bits.mean())


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_likelihood_does_not_depend_on_what_the_network_predicts(kind):
    sde, x = VPSDEScheduler(prediction_type=kind), items(5)

    def predict(x_t, timesteps):
        eps = perfect(sde)(x_t, timesteps)
        gamma, sigma = sde._rows(float(timesteps[0]), x_t)[:2]
        x_0 = (x_t - sigma * eps) / gamma
        return {"epsilon": eps, "sample": x_0, "v_prediction": gamma * eps - sigma * x_0}[kind]

    reference = VPSDEScheduler()
    expected = ode_log_likelihood(perfect(reference), reference, x, probes=None).log_prob
    found = ode_log_likelihood(predict, sde, x, probes=None).log_prob
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_a_networks_likelihood_is_the_volume_of_its_flow():
    """log N(x_T) + log|det dx_T/dx|, by autograd through a fixed grid of Heun, against the integrated divergence."""
    torch.manual_seed(0)
    net = MLPDenoiser(hidden=16, layers=2, time_embedding_dim=16, num_class_embeds=2).double().eval()
    sde, predict = VPSDEScheduler(method="ode_heun", clip_sample=False), predictor(net, torch.tensor([1]))
    x = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    found = ode_log_likelihood(predict, sde, x, probes=None, rtol=1e-7, atol=1e-7)

    def flowed(x):
        sde.set_timesteps(500, inverse=True)
        for tau in sde.timesteps.tolist():
            x = sde.step(predict(x, torch.tensor([tau])), tau, x).prev_sample
        return x

    J = torch.autograd.functional.jacobian(flowed, x).view(2, 2)
    latents = flowed(x).detach()
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(latents).sum() + torch.linalg.slogdet(J)[1]
    torch.testing.assert_close(found.log_prob[0], expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.latents, latents, atol=1e-3, rtol=0)


def test_the_solver_keeps_its_tolerance_and_is_of_fifth_order():
    y = torch.tensor([[1.0, 0.0]], dtype=torch.float64)

    def turn(t, y):
        return torch.stack([-y[:, 1], y[:, 0]], 1)

    for tolerance in (1e-4, 1e-6, 1e-8):
        found, evaluations = solve(turn, 0.0, 10.0, y, tolerance, tolerance)
        exact = torch.tensor([[math.cos(10), math.sin(10)]], dtype=torch.float64)
        assert float((found - exact).abs().max()) < 20 * tolerance
    _, cheap = solve(turn, 0.0, 10.0, y, 1e-4, 1e-4)
    assert 1.8 < (evaluations / cheap) < 9                           # 1e4 ^ (1 / 5) = 6.3 times the steps
    back, _ = solve(turn, 10.0, 0.0, exact, 1e-8, 1e-8)
    torch.testing.assert_close(back, y, atol=1e-6, rtol=0)
    with pytest.raises(NonFiniteError, match="use larger tolerances"):
        solve(lambda t, y: y.square(), 0.0, 2.0, torch.ones(1, 1, dtype=torch.float64), 1e-6, 1e-6)


def test_pixels_outside_their_range_and_no_probes_are_refused():
    sde = VPSDEScheduler()
    with pytest.raises(ConfigError, match=r"x must be in \[-1, 1\], found 2 to 2"):
        ode_bits_per_dim(perfect(sde), sde, torch.full((1, 3), 2.0))
    with pytest.raises(ConfigError, match="probes"):
        ode_log_likelihood(perfect(sde), sde, items(1), probes=0)

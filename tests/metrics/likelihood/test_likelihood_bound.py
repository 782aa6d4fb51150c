"""The variational bound of a diffusion model on data whose likelihood is known."""

import math

import pytest
import torch

from hfgen import DDPMScheduler, VPSDEScheduler
from hfgen.errors import ConfigError
from hfgen.losses.elbo import log_discretised_gaussian
from hfgen.metrics.likelihood import predictor, variational_bound
from hfgen.metrics.likelihood.bound import stretches
from hfgen.models.mlp import MLPDenoiser

MU = torch.tensor([0.2, -0.3, 0.0, 0.1], dtype=torch.float64)
S = torch.tensor([0.3, 0.2, 0.25, 0.15], dtype=torch.float64)


def perfect(scheduler, learned=False):
    """Return E[eps | x_t] for data N(MU, diag S^2); if `learned`, with the raw variance of the true reverse step."""

    def predict(x_t, t):
        a = scheduler.alpha_bar[t][:, None]
        before = torch.where(t[:, None] > 0, scheduler.alpha_bar[(t - 1).clamp(min=0)][:, None], 1.0)
        eps = (1 - a).sqrt() * (x_t - a.sqrt() * MU) / (a * S**2 + 1 - a)
        if not learned:
            return eps
        beta = 1 - a / before
        small = beta * (1 - before) / (1 - a)
        left = S**2 * (1 - a) / (a * S**2 + 1 - a)                       # Var[x_0 | x_t]
        exact = small + before * beta**2 / (1 - a) ** 2 * left
        raw = torch.where(t[:, None] > 0, (exact / small).log() / (beta / small).log() * 2 - 1, 1.0)
        return torch.cat([eps, raw], 1)

    return predict


def test_with_a_learned_variance_the_bound_on_a_density_is_within_one_percent():
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    x = MU + S * torch.randn(2000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bound = variational_bound(perfect(scheduler, True), scheduler, x, None, torch.Generator().manual_seed(1))
    density = torch.distributions.Normal(MU, S).log_prob(x).sum(1)
    gaps = density + bound.nats
    assert bound.steps.shape == (2000, 999) and bound.dim == 4
    assert -3 * float(gaps.std()) / 2000**0.5 < float(gaps.mean()) < 0.01 * abs(float(density.mean())), gaps.mean()


def test_the_bound_on_pixels_is_within_one_percent_of_their_bits():
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    x = MU + S * torch.randn(2000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    bits = -log_discretised_gaussian(x, MU, S.log().expand_as(x)) / 4 / math.log(2)
    bound = variational_bound(perfect(scheduler, True), scheduler, x, 256, torch.Generator().manual_seed(1))
    assert abs(float(bound.bits_per_dim.mean() / bits.mean()) - 1) < 0.01, (bound.bits_per_dim.mean(), bits.mean())


def test_a_bound_from_a_few_draws_of_its_terms_has_the_same_mean_and_evaluations_as_many_as_there_are_stretches():
    scheduler = DDPMScheduler(variance_type="fixed_large", clip_sample=False)
    x = MU + S * torch.randn(4000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    asked = []

    def predict(x_t, t):
        asked.append(t)
        return perfect(scheduler)(x_t, t)

    expected = float(expected_terms(scheduler, "fixed_large")[0][1:].sum())
    for draws in (20, 100):
        asked.clear()
        bound = variational_bound(predict, scheduler, x, None, torch.Generator().manual_seed(1), draws)
        assert bound.steps.shape == (4000, len(asked) - 1) and len(asked) <= draws + 1
        assert len(asked[-1].unique()) > 50                                             # each item has its own draw
        steps = bound.steps.sum(1)
        error = float(steps.std()) / 4000**0.5
        assert abs(float(steps.mean()) - expected) < 3 * error < 0.05 * expected, (expected, error)
    everything = [(t, t + 1) for t in range(5)]
    assert stretches(5) == stretches(5, 4) == stretches(5, 100) == everything
    assert [t for first, end in stretches(1000, 100) for t in range(first, end)] == list(range(1000))


def expected_terms(scheduler, kind):
    """Return the expectations of L_0, ..., L_{T-1} and of the prior, in nats: all Gaussian integrals."""
    a = scheduler.alpha_bar[:, None]
    before = torch.cat([torch.ones(1, 1).double(), a[:-1]])
    beta = 1 - a / before
    small = beta * (1 - before) / (1 - a)
    v = beta if kind == "fixed_large" else torch.cat([small[1:2], small[1:]])
    left = S**2 * (1 - a) / (a * S**2 + 1 - a)                           # Var[x_0 | x_t]
    missed = before * beta**2 / (1 - a) ** 2 * left                      # E|difference of the means|^2
    terms = ((small / v - 1 - (small / v).log()) / 2 + missed / (2 * v)).sum(1)
    terms[0] = ((2 * math.pi * v[0]).log() / 2 + left[0] / (2 * v[0])).sum()
    end = a[-1]
    prior = ((end * (MU.square() + S**2) - end - torch.log1p(-end)) / 2).sum()
    return terms, prior


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
def test_every_term_of_a_fixed_variance_is_the_gaussian_integral(kind):
    scheduler = DDPMScheduler(variance_type=kind, clip_sample=False)
    x = MU + S * torch.randn(4000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bound = variational_bound(perfect(scheduler), scheduler, x, None, torch.Generator().manual_seed(1))
    terms, prior = expected_terms(scheduler, kind)
    torch.testing.assert_close(bound.prior.mean(), prior, atol=1e-6, rtol=0.05)
    torch.testing.assert_close(bound.decoder.mean(), terms[0], atol=0.05, rtol=0)
    torch.testing.assert_close(bound.steps.mean(0), terms[1:], atol=1e-5, rtol=0.1)
    gap = float(bound.nats.mean() + torch.distributions.Normal(MU, S).log_prob(x).sum(1).mean())
    assert 0 < gap < {"fixed_small": 3.0, "fixed_large": 0.4}[kind], gap


def test_the_discretised_sde_has_the_bound_of_ddpm():
    x = MU + S * torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for scheduler in (DDPMScheduler(clip_sample=False), VPSDEScheduler(clip_sample=False).discretised()):
        bound = variational_bound(perfect(scheduler), scheduler, x, None, torch.Generator().manual_seed(1))
        torch.testing.assert_close(bound.nats, bound.prior + bound.steps.sum(1) + bound.decoder)
        found.append(bound.nats.mean())
    torch.testing.assert_close(*found, atol=0.05, rtol=0)


def test_a_network_is_a_predictor_and_wrong_arguments_are_refused():
    net, scheduler = MLPDenoiser(num_class_embeds=3), DDPMScheduler(num_train_timesteps=3)
    labels = torch.tensor([0, 2])
    bound = variational_bound(predictor(net, labels), scheduler, torch.zeros(2, 2), None)
    assert bound.nats.shape == (2,) and bool(bound.nats.isfinite().all())
    with pytest.raises(ConfigError, match="at least 2 timesteps, got 1"):
        variational_bound(predictor(net, labels), DDPMScheduler(num_train_timesteps=1), torch.zeros(2, 2))
    with pytest.raises(ConfigError, match=r"x must be in \[-1, 1\], found 0 to 3"):
        variational_bound(predictor(net, labels), scheduler, torch.tensor([[0.0, 3.0]] * 2))

"""Bounds and likelihoods against torch's distributions, sums and integrals over all there is, and closed forms."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, ContinuousBernoulli, Independent, Normal, kl_divergence

from hfgen.losses import elbo as loss

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(a: Tensor, b: Tensor | float, atol: float = 1e-9) -> None:
    torch.testing.assert_close(a.double(), torch.as_tensor(b, dtype=F64).expand_as(a), atol=atol, rtol=0)


def test_kl_divergences_are_those_of_torchs_normals_by_dimension() -> None:
    mu, log_var, prior_mu, prior_log_var = (draw(5, 3, seed=i) for i in range(4))
    q, p = Normal(mu, (log_var / 2).exp()), Normal(prior_mu, (prior_log_var / 2).exp())
    close(loss.kl_to_standard_normal(mu, log_var), kl_divergence(q, Normal(0.0, 1.0)))
    close(loss.kl_of_normals(mu, log_var, prior_mu, prior_log_var), kl_divergence(q, p))
    close(loss.kl_of_normals(mu, log_var, mu, log_var), 0.0)
    close(loss.log_normal(draw(5, 3, seed=9), mu, log_var), q.log_prob(draw(5, 3, seed=9)))
    close(loss.log_normal(mu), Normal(0.0, 1.0).log_prob(mu))


def test_a_kl_that_is_almost_nothing_keeps_its_digits_in_float32() -> None:
    tiny = torch.tensor([1e-4])
    close(loss.kl_to_standard_normal(torch.zeros(1), tiny), 1e-8 / 4, atol=1e-11)      # expm1(v) - v = v^2 / 2
    assert loss.kl_to_standard_normal(torch.zeros(1, dtype=torch.bfloat16), tiny.bfloat16()).dtype == torch.float32


def test_the_kl_is_the_mean_of_the_sampled_log_ratio() -> None:
    mu, log_var = torch.tensor([0.7, -1.0]).double(), torch.tensor([-1.0, 0.5]).double()
    eps = draw(400_000, 2)
    z = mu + (log_var / 2).exp() * eps
    ratio = loss.log_normal(z, mu, log_var) - loss.log_normal(z)
    close(ratio.mean(0), loss.kl_to_standard_normal(mu, log_var), atol=0.01)


def test_likelihoods_are_torchs_summed_over_the_last_axis_and_broadcast() -> None:
    logits = 3 * draw(4, 6, 10)
    binary, grey = (draw(4, 1, 10, seed=1) > 0).double(), torch.rand(4, 1, 10, dtype=F64)
    expected = Independent(Bernoulli(logits=logits), 1).log_prob(binary.expand_as(logits))
    close(loss.log_bernoulli(binary, logits), expected)
    theirs = ContinuousBernoulli(logits=logits, lims=(0.4999, 0.5001)).log_prob(grey.expand_as(logits)).sum(-1)
    close(loss.log_continuous_bernoulli(grey, logits), theirs, atol=1e-6)
    log_sigma = torch.tensor(-0.7).double()
    gaussian = Normal(logits, log_sigma.exp()).log_prob(grey.expand_as(logits)).sum(-1)
    close(loss.log_gaussian(grey, logits, log_sigma), gaussian)


@pytest.mark.parametrize("logit", [0.0, 1e-6, 0.3, 0.4999, 0.5, -0.5001, 2.0, -7.0, 40.0])
def test_the_continuous_bernoulli_integrates_to_one_and_has_the_mean_it_says(logit: float) -> None:
    nodes = 20_001
    x = torch.linspace(0, 1, nodes, dtype=F64)
    density = loss.log_continuous_bernoulli(x[:, None], torch.full((1, 1), logit, dtype=F64)).exp()
    mean = loss.continuous_bernoulli_mean(torch.tensor(logit, dtype=F64))
    close(torch.trapezoid(density, x), 1.0, atol=1e-6)
    close(mean, torch.trapezoid(density * x, x), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_normaliser_is_smooth_through_one_half_with_the_gradient_of_its_formula(dtype: torch.dtype) -> None:
    """d/dl log(l coth(l / 2)) = 1/l - 1/sinh(l), which tends to l / 6 at 0."""
    logits = torch.tensor([0.0, 1e-20, 1e-4, 0.49, 0.51, 3.0, 90.0], dtype=dtype, requires_grad=True)
    x = torch.zeros(7, 1, dtype=dtype)
    value = loss.log_continuous_bernoulli(x, logits[:, None]) - loss.log_bernoulli(x, logits[:, None])
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    wide = logits.detach().double()
    small = wide.abs() < 1e-2
    formula = torch.where(small, wide / 6, 1 / wide.where(~small, 1.0) - 1 / torch.sinh(wide.where(~small, 1.0)))
    close(gradient, formula, atol=1e-6)
    ends = torch.where(small, math.log(2), torch.log(wide.where(~small, 1.0) / torch.tanh(wide.where(~small, 1.0) / 2)))
    close(value.detach(), ends, atol=1e-5 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize(("mu", "log_s"), [(0.1, -1.0), (-1.4, -3.0), (0.99, -6.0), (0.0, 2.0)])
def test_the_discretised_logistic_is_a_distribution_over_its_levels(levels: int, mu: float, log_s: float) -> None:
    x = torch.arange(levels, dtype=F64) * 2 / (levels - 1) - 1
    place, scale = torch.tensor([[mu]], dtype=F64), torch.tensor(log_s, dtype=F64)
    log_p = loss.log_discretised_logistic(x[:, None], place, scale, levels)
    close(log_p.exp().sum(), 1.0)
    edges = (x[:-1] + x[1:]) / 2
    below = ((edges - mu) / scale.exp()).sigmoid()
    masses = torch.cat([below, torch.ones(1)]) - torch.cat([torch.zeros(1), below])
    close(log_p.exp(), masses, atol=1e-7)


def test_far_from_its_mean_the_discretised_logistic_is_exact_in_float32_with_a_gradient() -> None:
    """At distance d its mass is exp(-d / s) 2 sinh(h / s): at d = 1 and s = e^-5, e^-148, below float32's smallest."""
    mu = torch.zeros(1, 1, requires_grad=True)
    s, half, d = math.exp(-5.0), 1 / 255, 253 / 255
    log_p = loss.log_discretised_logistic(torch.full((1, 1), d), mu, torch.tensor(-5.0))
    close(log_p.detach(), -d / s + math.log(2 * math.sinh(half / s)), atol=1e-3)
    log_p.sum().backward()
    assert float(mu.grad) == pytest.approx(1 / s, rel=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(loss.LIKELIHOODS))
def test_every_likelihood_is_finite_in_bfloat16_at_extremes_and_its_mean_inverts_its_link(name: str) -> None:
    likelihood = loss.LIKELIHOODS[name]
    x = torch.tensor([[-1.0, 1.0, 0.0]]).bfloat16()
    location = torch.tensor([[60.0, -60.0, 0.0]]).bfloat16().requires_grad_()
    log_p = likelihood.log_prob(x, location, torch.tensor(-1.0).bfloat16(), 256)
    log_p.sum().backward()
    assert log_p.dtype == torch.float32 and log_p.isfinite().all()
    assert location.grad is not None and location.grad.isfinite().all()
    pictures = torch.linspace(-0.9, 0.9, 7)
    if name != "continuous_bernoulli":                                     # whose mean is not lambda
        close(likelihood.mean(likelihood.link(pictures)), pictures.double(), atol=1e-5)
    assert likelihood.mean(likelihood.link(pictures)).diff().min() > 0


def test_densities_over_pixels_in_minus_one_to_one_integrate_to_one() -> None:
    x = torch.linspace(-1, 1, 20_001, dtype=F64)
    for name, location in (("continuous_bernoulli", 1.3), ("gaussian", 0.1)):
        found = loss.LIKELIHOODS[name].log_prob(x[:, None], torch.full((1, 1), location), torch.tensor(-3.0), 256)
        close(torch.trapezoid(found.exp(), x), 1.0, atol=1e-6)


def test_the_bound_rises_with_k_from_the_mean_of_log_w_to_the_log_of_its_mean() -> None:
    log_w = 1.5 * draw(20_000, 8) - 100
    means = [float(loss.log_mean_exp(log_w[:, :k]).mean()) for k in (1, 2, 4, 8)]
    assert means[0] == pytest.approx(float(log_w[:, 0].mean()), abs=1e-9)
    assert means == sorted(means) and means[-1] < -100 + 1.5**2 / 2
    close(loss.log_mean_exp(log_w[0]), torch.log(torch.exp(log_w[0] + 100).mean()) - 100)
    assert loss.log_mean_exp(torch.tensor([-1e4, -1e4])).item() == pytest.approx(-1e4)


def test_the_gradient_of_the_bound_weighs_samples_by_their_importance() -> None:
    """grad L_k = sum_i w_i / sum_j w_j grad log w_i (Burda et al. 2016, eq. 13)."""
    log_w = (2 * draw(3, 5)).requires_grad_()
    (gradient,) = torch.autograd.grad(loss.log_mean_exp(log_w).sum(), log_w)
    close(gradient, log_w.detach().softmax(-1))


def test_beta_weighs_the_kl_and_free_bits_make_small_ones_free() -> None:
    log_px, kl = torch.tensor([-3.0]), torch.tensor([[0.1, 2.0, 0.4]], requires_grad=True)
    close(loss.elbo(log_px, kl.detach().sum(-1)), -5.5, atol=1e-6)
    close(loss.elbo(log_px, kl.detach().sum(-1), beta=4.0), -13.0, atol=1e-6)
    cost = loss.free_bits(kl, 0.5)
    close(cost.detach(), 0.5 + 2.0 + 0.5, atol=1e-6)
    cost.sum().backward()
    assert kl.grad is not None and kl.grad.tolist() == [[0.0, 1.0, 0.0]]


def test_binarised_pixels_are_white_as_often_as_they_are_bright() -> None:
    x = torch.tensor([-1.0, -0.5, 0.2, 1.0]).expand(100_000, 4)
    found = loss.binarised(x, torch.rand(100_000, 4, generator=torch.Generator().manual_seed(0)))
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    close(found.mean(0), x[0].double(), atol=0.01)
    assert (found[:, 0] == -1).all() and (found[:, 3] == 1).all()

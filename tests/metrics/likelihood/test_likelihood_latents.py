"""Likelihood estimates against a model whose log p(x) is known: probabilistic PCA, x = W z + b + sigma n."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from hfgen.errors import ConfigError
from hfgen.metrics.likelihood import (
    active_units,
    bits_per_dim,
    dequantised,
    elbo,
    log_likelihood,
    nats_of_bits,
    reconstruction_error,
)
from hfgen.models.vae import VAE
from tests.helpers import seed

P, D, SIGMA = 5, 2, 0.6


def pca(posterior):
    """Return a linear VAE, the exact log p(x) and, by item, KL(q(z|x) || p(z|x)); q exact, or too wide and off."""
    net = VAE(dim=P, hidden=(), latent_dim=D, likelihood="gaussian", sigma=SIGMA).double()
    W, b = torch.randn(P, D, generator=seed(1)).double(), torch.randn(P, generator=seed(2)).double()
    M = torch.linalg.inv(W.T @ W / SIGMA**2 + torch.eye(D))                # the exact posterior's covariance
    with torch.no_grad():
        net.decoder[0].weight.copy_(W), net.decoder[0].bias.copy_(b)
        A = M @ W.T / SIGMA**2
        shift = 0.0 if posterior == "best" else 0.3
        net.encoder[0].weight.copy_(torch.cat([A, torch.zeros_like(A)]))
        log_var = -torch.linalg.inv(M).diag().log() + shift                # of the best diagonal q
        net.encoder[0].bias.copy_(torch.cat([-A @ b + shift, log_var]))
    x = torch.randn(8, D, generator=seed(3)).double() @ W.T + b + SIGMA * torch.randn(8, P, generator=seed(4))
    log_p = MultivariateNormal(b, W @ W.T + SIGMA**2 * torch.eye(P)).log_prob(x)
    mu, v = (part.detach() for part in net.encode(x))
    q = [MultivariateNormal(m, torch.diag(s.exp())) for m, s in zip(mu, v, strict=True)]
    exact = [MultivariateNormal(A @ (item - b), M) for item in x]
    kl = torch.stack([torch.distributions.kl_divergence(a, c) for a, c in zip(q, exact, strict=True)])
    return net, x, log_p, kl


@pytest.mark.parametrize(("posterior", "atol"), [("best", 2e-3), ("off", 0.02)])
def test_the_estimate_converges_to_log_p_and_the_elbo_lies_below_it_by_the_kl(posterior, atol):
    net, x, log_p, kl = pca(posterior)
    assert kl.min() > 3 * atol
    torch.testing.assert_close(log_likelihood(net, x, 50_000, seed(0)), log_p, atol=atol, rtol=0)
    torch.testing.assert_close(elbo(net, x, 50_000, seed(0)), log_p - kl, atol=atol, rtol=0)


def test_the_estimate_rises_with_n_from_the_elbo_to_log_p():
    net, x, log_p, kl = pca("off")
    many = x.repeat(500, 1)
    means = [float(log_likelihood(net, many, n, seed(0)).mean()) for n in (1, 4, 16, 64)]
    assert means[0] == pytest.approx(float((log_p - kl).mean()), abs=0.05)
    assert means == sorted(means) and means[-1] == pytest.approx(float(log_p.mean()), abs=0.02)


@pytest.mark.parametrize(("n", "batch"), [(1, 1), (1, 3), (7, 1), (7, 3), (7, 7), (7, 20), (7, 1000)])
def test_exactly_n_draws_weigh_each_item_however_they_are_divided(n, batch):
    """The same generator is read by hand, part by part; the log-mean-exp of all n weights is then one formula."""
    net, x, _, _ = pca("off")
    found, mean = log_likelihood(net, x, n, seed(0), batch), elbo(net, x, n, seed(0), batch)
    generator, items, draws = seed(0), max(1, batch // n), min(n, batch)
    for first in range(0, len(x), items):
        part = x[first : first + items]
        sizes = [draws] * (n // draws) + [n % draws] * (n % draws > 0)
        with torch.no_grad():
            log_w = torch.cat([net.log_weights(part, k, generator) for k in sizes], 1)
        assert log_w.shape == (len(part), n)
        expected = log_w.exp().mean(1).log()
        torch.testing.assert_close(found[first : first + items], expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(mean[first : first + items], log_w.mean(1), atol=1e-10, rtol=0)


def test_sums_are_float64_and_keep_weights_far_below_one():
    net = VAE(dim=P, hidden=(), latent_dim=D, likelihood="gaussian", sigma=1e-3)
    found = log_likelihood(net, 10 * torch.ones(2, P), 3, seed(0), batch=1)
    assert found.dtype == torch.float64 and (found < -1e6).all() and found.isfinite().all()


def test_labels_go_with_their_items():
    net = VAE(dim=P, hidden=(), latent_dim=D, likelihood="gaussian", sigma=3.0, num_classes=3)
    torch.nn.init.normal_(net.decoder[0].weight), torch.nn.init.zeros_(net.encoder[0].weight)
    net.decoder[0].weight.data[:, D:] *= 4                                 # what the class does to x
    x, labels = torch.randn(4, P), torch.tensor([0, 1, 2, 1])
    together = log_likelihood(net, x, 20_000, seed(0), class_labels=labels, batch=40_000)
    alone = torch.cat([log_likelihood(net, x[i : i + 1], 20_000, seed(0), class_labels=labels[i : i + 1])
                       for i in range(4)])  # fmt: skip
    torch.testing.assert_close(together, alone, atol=0.05, rtol=0)
    others = log_likelihood(net, x, 20_000, seed(0), class_labels=(labels + 1) % 3)
    assert (together - others).abs().min() > 0.1


def test_bits_per_dimension_of_known_distributions():
    assert bits_per_dim(-784 * math.log(2), 784) == pytest.approx(1.0)
    assert bits_per_dim(10 * math.log(1 / 256), 10) == pytest.approx(8.0)  # even over 256 levels
    density = torch.tensor([10 * math.log(1 / (256 * 2 / 255))])           # even over the 256 bins in [-1, 1]
    torch.testing.assert_close(bits_per_dim(density, 10, 2 / 255), torch.tensor([8.0]), atol=1e-5, rtol=0)
    for width in (1.0, 2 / 255):
        assert nats_of_bits(bits_per_dim(-123.4, 7, width), 7, width) == pytest.approx(-123.4)


def test_dequantised_pixels_stay_in_their_bins_and_fill_them():
    levels = torch.arange(17) / 8 - 1
    x = levels[torch.randint(17, (50_000,), generator=seed(0))]
    moved = dequantised(x, torch.rand(50_000, generator=seed(1)), 17)
    assert torch.equal(((moved + 1) * 8).round() / 8 - 1, x)
    offset = (moved - x) * 8
    assert float(offset.min()) == pytest.approx(-0.5, abs=1e-3) and float(offset.max()) == pytest.approx(0.5, abs=1e-3)
    assert float(offset.var()) == pytest.approx(1 / 12, abs=2e-3)


def test_units_are_active_whose_posterior_mean_varies_by_more_than_a_hundredth():
    means = torch.randn(20_000, 4, generator=seed(0)) * torch.tensor([1.0, 0.11, 0.09, 0.0]) + 3
    assert active_units(means) == 2 and active_units(means, 0.005) == 3 and active_units(means, 2.0) == 0


def test_the_reconstruction_error_is_the_mean_square_of_each_item():
    x = torch.zeros(2, 1, 2, 2)
    wrong = torch.tensor([0.5, 2.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert reconstruction_error(x, wrong).tolist() == [0.25, 4.0]


@pytest.mark.parametrize(("n", "batch", "items"), [(0, 10, 2), (1.5, 10, 2), (5, 0, 2), (5, 10, 0)])
def test_nothing_to_average_is_refused(n, batch, items):
    net = VAE(dim=P, hidden=(), latent_dim=D, likelihood="gaussian")
    for estimate in (log_likelihood, elbo):
        with pytest.raises(ConfigError, match=r"n must be|batch must be|x must hold"):
            estimate(net, torch.zeros(items, P), n, batch=batch)

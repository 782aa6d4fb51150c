"""Variational autoencoders against their joint density written out, sampled KLs, and round trips."""

import pytest
import torch
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from hfgen.errors import ConfigError
from hfgen.losses.elbo import LIKELIHOODS
from hfgen.models.vae import VAE, HierarchicalVAE

TINY = {"resolution": 8, "hidden": (12,), "latent_dim": 3}
TWO = {"resolution": 8, "hidden": ((12,), (6, 5)), "latent_dims": (4, 2)}


def lively(net):
    """Return the model in float64 with weights whose every part matters."""
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    net.centre.normal_()
    return net.double()


def pixels(batch=5, channels=1, side=8, levels=2):
    return torch.randint(levels, (batch, channels, side, side)).double() * 2 / (levels - 1) - 1


def halves(net, h):
    mu, log_var = net(h).chunk(2, -1)
    return Normal(mu, (log_var / 2).exp())


def test_the_terms_of_one_layer_are_torchs_densities_and_kl():
    net, x = lively(VAE(**TINY)), pixels()
    eps = net.normals(5, 7)
    with torch.no_grad():
        terms = net(x, [e.double() for e in eps])
        q = halves(net.encoder, (x - net.centre).flatten(1)[:, None])
        z = q.mean + q.stddev * eps[0]
        p_x = Bernoulli(logits=net.decoder(z))
        log_px = p_x.log_prob(((x + 1) / 2).flatten(1)[:, None].expand(-1, 7, -1)).sum(-1)
        ratio = (q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(-1)
    torch.testing.assert_close(terms.log_px_z, log_px, atol=1e-5, rtol=0)
    torch.testing.assert_close(terms.log_ratio, ratio, atol=1e-5, rtol=0)
    torch.testing.assert_close(terms.log_weights, log_px - ratio, atol=1e-5, rtol=0)
    torch.testing.assert_close(terms.kl[0], kl_divergence(q, Normal(0.0, 1.0)), atol=1e-5, rtol=0)


def test_the_terms_of_two_layers_are_the_chain_of_their_conditionals():
    net, x = lively(HierarchicalVAE(**TWO)), pixels()
    eps = [e.double() for e in net.normals(5, 7)]
    with torch.no_grad():
        terms = net(x, eps)
        q1 = halves(net.encoder, (x - net.centre).flatten(1)[:, None])
        z1 = q1.mean + q1.stddev * eps[0]
        q2 = halves(net.inference[0], z1)
        z2 = q2.mean + q2.stddev * eps[1]
        p1, standard = halves(net.generation[0], z2), Normal(0.0, 1.0)
        log_q = q1.log_prob(z1).sum(-1) + q2.log_prob(z2).sum(-1)
        log_p = p1.log_prob(z1).sum(-1) + standard.log_prob(z2).sum(-1)
    torch.testing.assert_close(terms.log_ratio, log_q - log_p, atol=1e-9, rtol=0)
    torch.testing.assert_close(terms.kl[0], q1.log_prob(z1) - p1.log_prob(z1), atol=1e-9, rtol=0)
    torch.testing.assert_close(terms.kl[1], kl_divergence(q2, standard), atol=1e-9, rtol=0)


@pytest.mark.parametrize("net", [VAE(**TINY), HierarchicalVAE(**TWO)], ids=["one layer", "two layers"])
def test_the_kl_terms_and_the_log_ratio_have_the_same_mean(net):
    net = lively(net)
    with torch.no_grad():
        terms = net(pixels(2), [e.double() for e in net.normals(2, 40_000)])
    sums = torch.stack([kl.sum(-1).mean(1) for kl in terms.kl]).sum(0)
    torch.testing.assert_close(sums, terms.log_ratio.mean(1), atol=0.05, rtol=0)


@pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
@pytest.mark.parametrize("body", ["mlp", "conv"])
def test_every_likelihood_and_body_gets_gradients_everywhere(likelihood, body):
    net = VAE((8, 16), 3, body=body, hidden=(6, 10), latent_dim=4, likelihood=likelihood, learned_sigma=True, levels=5)
    x = torch.randint(5, (3, 3, 8, 16)) / 2.0 - 1
    terms = net(x, net.normals(3, 2))
    assert terms.log_px_z.shape == (3, 2) and terms.kl[0].shape == (3, 1, 4)
    terms.log_weights.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())
    assert (net.log_scale is not None) == LIKELIHOODS[likelihood].has_scale
    assert net.decode(torch.zeros(2, 4)).shape == (2, 3, 8, 16)


def test_the_learned_sigma_of_a_gaussian_goes_to_the_size_of_the_residual():
    """The sigma that maximises the likelihood is the root mean square of x - mu (Rybkin et al. 2021, eq. 4)."""
    net = VAE(dim=6, hidden=(), latent_dim=1, likelihood="gaussian", learned_sigma=True)
    torch.nn.init.zeros_(net.decoder[0].weight)
    x, optimizer = 0.37 * torch.randn(4000, 6), torch.optim.Adam([net.log_scale], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (-net.log_likelihood(x, torch.zeros(4000, 1, 1)).mean()).backward()
        optimizer.step()
    assert float(net.log_sigma.detach().exp()) == pytest.approx(float(x.square().mean().sqrt()), abs=1e-3)


@pytest.mark.parametrize("body", ["mlp", "conv"])
def test_a_gaussian_with_a_scale_for_each_pixel_is_torchs_with_a_diagonal_covariance(body):
    net = lively(VAE((8, 12), 3, body=body, hidden=(6,), latent_dim=4, likelihood="gaussian", sigma_per_pixel=True,
                     min_sigma=0.05))  # fmt: skip
    x, z = torch.randn(5, 3, 8, 12).double(), torch.randn(5, 7, 4).double()
    with torch.no_grad():
        log_px = net.log_likelihood(x, z)
        mu, sigma = net.decode(z.flatten(0, 1)), net.pixel_scales(z.flatten(0, 1))
    assert mu.shape == sigma.shape == (35, 3, 8, 12) and sigma.std(0).min() > 1e-3 and sigma.min() > 0.05
    p_x = MultivariateNormal(mu.flatten(1), torch.diag_embed(sigma.flatten(1).square()))
    expected = p_x.log_prob(x.flatten(1).repeat_interleave(7, 0)).unflatten(0, (5, 7))
    torch.testing.assert_close(log_px, expected, atol=1e-6, rtol=1e-6)


def test_scales_of_pixels_learn_where_the_data_vary_and_stop_at_the_floor_where_they_do_not():
    """The best sigma_p is the deviation of pixel p; without the floor that of a constant pixel would go to 0."""
    data_sigma = torch.tensor([0.0, 0.1, 0.5, 1.0])
    net = VAE(dim=4, hidden=(), latent_dim=1, likelihood="gaussian", sigma=0.3, sigma_per_pixel=True, min_sigma=0.02)
    torch.nn.init.zeros_(net.decoder[0].weight)
    torch.testing.assert_close(net.pixel_scales(torch.randn(1, 1)), torch.full((1, 4), 0.3), atol=1e-6, rtol=0)
    x, optimizer = data_sigma * torch.randn(4000, 4), torch.optim.Adam([net.decoder[0].bias], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        (-net.log_likelihood(x, torch.zeros(4000, 1, 1)).mean()).backward()
        optimizer.step()
    sigma = net.pixel_scales(torch.zeros(1, 1))[0].detach()
    assert 0.02 < float(sigma[0]) < 0.021
    torch.testing.assert_close(sigma[1:], x.std(0)[1:], atol=5e-3, rtol=0)


@pytest.mark.parametrize("body", ["mlp", "conv"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "per pixel"])
def test_a_model_starts_from_the_mean_of_the_data(body, likelihood):
    choice = {"likelihood": likelihood}
    if likelihood == "per pixel":
        choice = {"likelihood": "gaussian", "sigma_per_pixel": True}
    net = VAE(8, 2, body=body, hidden=(4,), latent_dim=3, **choice)
    mean = torch.rand(2, 8, 8) - 0.5 if body == "mlp" else torch.tensor([-0.4, 0.3])[:, None, None].expand(2, 8, 8)
    net.start_at(mean)
    for layer in net.decoder:
        if hasattr(layer, "weight"):
            torch.nn.init.zeros_(layer.weight)
    torch.testing.assert_close(net.generate(torch.randn(1, 3))[0], mean, atol=1e-5, rtol=0)
    mu, _ = net.encode(mean[None])
    at_zero = net.encoder(torch.zeros(1, 2, 8, 8) if body == "conv" else torch.zeros(1, 128)).chunk(2, -1)[0]
    torch.testing.assert_close(mu, at_zero, atol=1e-6, rtol=0)


def test_latents_of_all_layers_lead_back_to_the_layers_they_came_from():
    """generate(infer(x)) is p(x|z_1) at the z_1 that q gave: the coordinates of z_1 under p(z_1|z_2) are inverted."""
    net, x = lively(HierarchicalVAE(**TWO)), pixels()
    for eps in (None, [e.double() for e in net.normals(5, 1)]):
        with torch.no_grad():
            latents = net.infer(x, eps=eps)
            mu, log_var = net.encode(x)
            z1 = mu if eps is None else mu + (log_var / 2).exp() * eps[0][:, 0]
            expected = torch.sigmoid(net.decode(z1)) * 2 - 1
            torch.testing.assert_close(net.generate(latents), expected, atol=1e-9, rtol=0)
        assert latents.shape == (5, 6) and net.latent_size == 6


def test_the_prior_of_two_layers_is_what_standard_normal_latents_generate():
    net = lively(HierarchicalVAE(**TWO))
    latents = torch.randn(3, 6, dtype=torch.float64)
    with torch.no_grad():
        p1 = halves(net.generation[0], latents[:, :2])                     # the last layer comes first
        expected = torch.sigmoid(net.decode(p1.mean + p1.stddev * latents[:, 2:])) * 2 - 1
        torch.testing.assert_close(net.generate(latents), expected, atol=1e-9, rtol=0)


def test_means_are_those_of_each_layer_at_the_mean_below():
    net, x = lively(HierarchicalVAE(**TWO)), pixels()
    with torch.no_grad():
        first, second = net.means(x)
        torch.testing.assert_close(first, net.encode(x)[0], atol=1e-9, rtol=0)
        torch.testing.assert_close(second, halves(net.inference[0], first).mean, atol=1e-9, rtol=0)


@pytest.mark.parametrize("body", ["mlp", "conv"])
def test_the_class_reaches_encoder_and_decoder_beside_each_draw(body):
    net, x = lively(VAE(**{**TINY, "body": body}, num_classes=3)), pixels(2)
    labels, eps = torch.tensor([2, 0]), [e.double() for e in net.normals(2, 4)]
    with torch.no_grad():
        together = net(x, eps, labels).log_weights
        alone = torch.cat([net(x[i : i + 1], [eps[0][i : i + 1]], labels[i : i + 1]).log_weights for i in range(2)])
        torch.testing.assert_close(together, alone, atol=1e-9, rtol=0)
        other = torch.tensor([1, 1])
        assert (net.encode(x, labels)[0] - net.encode(x, other)[0]).abs().max() > 1e-3
        assert (net.decode(eps[0][:, 0], labels) - net.decode(eps[0][:, 0], other)).abs().max() > 1e-3
    for given in (None, torch.tensor([0, 1])):
        wrong = net if given is None else VAE(**TINY)
        with pytest.raises(ConfigError, match="class_labels must be"):
            wrong.encode(x.float() if given is not None else x, given)


def test_sizes_of_the_papers_networks():
    one, two = VAE(), HierarchicalVAE()
    shapes = [tuple(p.shape) for p in two.parameters() if p.ndim == 2]
    assert [tuple(p.shape) for p in one.parameters() if p.ndim == 2] == [
        (200, 784), (200, 200), (100, 200), (200, 50), (200, 200), (784, 200)]  # fmt: skip
    assert shapes == [(200, 784), (200, 200), (200, 200), (200, 100), (200, 200), (784, 200),
                      (100, 100), (100, 100), (100, 100), (100, 50), (100, 100), (200, 100)]  # fmt: skip


@pytest.mark.parametrize(
    "net",
    [VAE(**TINY, num_classes=4, likelihood="gaussian", learned_sigma=True), HierarchicalVAE(**TWO),
     HierarchicalVAE(**TWO, likelihood="gaussian", sigma_per_pixel=True),
     VAE((8, 12), 3, body="conv", hidden=(4, 6), latent_dim=2, likelihood="discretised_logistic", levels=17)],
    ids=["classes", "two layers", "scales of pixels", "conv"],
)  # fmt: skip
def test_the_saved_folder_gives_the_same_model(net, tmp_path):
    net.centre.normal_()
    net.save_pretrained(tmp_path)
    loaded = type(net).from_pretrained(tmp_path)
    x = torch.randn(2, *net.shape).sign()
    labels = torch.tensor([1, 3]) if net.config["num_classes"] else None
    eps = net.normals(2, 3)
    with torch.no_grad():
        assert torch.equal(loaded(x, eps, labels).log_weights, net(x, eps, labels).log_weights)


def test_the_meta_device_holds_the_same_tensors_without_memory():
    for make in (lambda: HierarchicalVAE(**TWO), lambda: VAE(**{**TINY, "body": "conv"})):
        with torch.device("meta"):
            empty = make()
        shapes = {key: value.shape for key, value in empty.state_dict().items()}
        assert shapes == {key: value.shape for key, value in make().state_dict().items()}
        assert all(value.is_meta for value in empty.state_dict().values())


def test_in_bfloat16_terms_stay_float32_and_agree():
    net = VAE(**TINY)
    x, eps = pixels().float(), net.normals(5, 2)
    with torch.no_grad():
        full = net(x, eps)
        half = net.bfloat16()(x.bfloat16(), eps)
        with torch.autocast("cpu", torch.bfloat16):
            cast = net.float()(x, eps)
    for terms in (half, cast):
        assert terms.log_px_z.dtype == terms.log_ratio.dtype == torch.float32
        torch.testing.assert_close(terms.log_weights, full.log_weights, atol=1.0, rtol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resolution", 0), ("resolution", (8, 8, 8)), ("channels", 0), ("dim", 0), ("body", "rnn"), ("hidden", 12),
        ("hidden", (0,)), ("hidden", (True,)), ("activation", "sin"), ("latent_dim", 0), ("likelihood", "poisson"),
        ("sigma", 0.0), ("sigma", float("nan")), ("levels", 1), ("num_classes", 0), ("posterior", "cauchy"),
        ("flow_steps", 0), ("flow_width", 0), ("sigma_per_pixel", 1), ("sigma_per_pixel", True),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        VAE(**{field: value})


def test_a_floor_above_the_initial_scale_is_refused():
    with pytest.raises(ConfigError, match=r"min_sigma must be below sigma \(0.1\)"):
        VAE(likelihood="gaussian", sigma=0.1, sigma_per_pixel=True, min_sigma=0.1)


def test_bodies_and_layers_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="body must be mlp for vectors"):
        VAE(dim=3, body="conv")
    with pytest.raises(ConfigError, match="resolution must have height and width divisible by 8"):
        VAE(resolution=28, body="conv", hidden=(4, 4, 4))
    with pytest.raises(ConfigError, match="hidden must be a list of widths for each of the 3 layers"):
        HierarchicalVAE(latent_dims=(4, 3, 2))
    with pytest.raises(ConfigError, match=r"latent_dims must be a list of 1 to 32"):
        HierarchicalVAE(latent_dims=())
    with pytest.raises(ConfigError, match=r"x must have shape \(B, 1, 8, 8\)"):
        VAE(**TINY).encode(torch.zeros(2, 1, 8, 9))

"""The two-dimensional toy sets and their densities."""

import math

import numpy as np
import pytest
import torch

from hfgen.data import load_dataset
from hfgen.data.toy import DISTRIBUTIONS
from hfgen.errors import ConfigError


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_density_integrates_to_one(name):
    toy = load_dataset(name)
    sigma = max(toy.sigma, 0.15)
    points = toy.tensor().double()
    low, high = points.min(0).values - 8 * sigma, points.max(0).values + 8 * sigma
    axes = [torch.arange(float(a), float(b), sigma * 0.9, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes)
    total = toy.log_prob(grid, sigma=sigma).exp().sum() * (sigma * 0.9) ** 2
    assert abs(total - 1) < 1e-7                                                      # trapezoid of Gaussians: exact


@pytest.mark.parametrize("name", ["ring8", "grid25"])
def test_a_mixtures_density_is_that_of_torch_distributions(name):
    toy = load_dataset(name)
    modes = toy.modes.double()
    component = torch.distributions.Independent(torch.distributions.Normal(modes, toy.sigma), 1)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(len(modes))), component)
    points = toy.sample(500, seed=3) + 0.05
    torch.testing.assert_close(toy.log_prob(points), mixture.log_prob(points.double()), atol=2e-4, rtol=0)


def test_a_circles_density_is_the_bessel_formula():
    sigma, radius = 0.3, math.sqrt(2)
    r = torch.linspace(0.01, 3, 50, dtype=torch.float64)
    ours = load_dataset("circle").log_prob(torch.stack([r, torch.zeros_like(r)], 1), sigma=sigma)
    z = r * radius / sigma**2
    bessel = torch.special.i0e(z).log() + z                                           # I_0(r R / sigma^2)
    exact = bessel - (r**2 + radius**2) / (2 * sigma**2) - math.log(2 * math.pi * sigma**2)
    torch.testing.assert_close(ours, exact, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["moons", "swissroll"])
def test_a_curves_quadrature_agrees_with_a_much_finer_sum(name):
    toy = load_dataset(name)
    points = toy.sample(40, seed=1)
    u = (np.arange(400_000) + 0.5) / 400_000
    centres = torch.from_numpy(DISTRIBUTIONS[name].centres(u))
    squared = torch.cdist(points.double(), centres, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    fine = torch.logsumexp(-squared / (2 * toy.sigma**2), 1) - math.log(len(u) * 2 * math.pi * toy.sigma**2)
    torch.testing.assert_close(toy.log_prob(points), fine, atol=1e-7, rtol=0)                # the fine sum's own error


@pytest.mark.parametrize(("name", "count", "spacing"), [("ring8", 8, 2 * math.sin(math.pi / 8)), ("grid25", 25, 2.0)])
def test_samples_lie_around_the_modes_with_the_stated_sigma(name, count, spacing):
    toy = load_dataset(name)
    assert toy.describe() == f"{name}: 100,000 points, {count} modes"
    distances = torch.cdist(toy.modes, toy.modes) + 99 * torch.eye(count)
    torch.testing.assert_close(distances.min(1).values, torch.full((count,), spacing), atol=1e-5, rtol=0)
    points = toy.tensor()
    nearest = torch.cdist(points, toy.modes).argmin(1)
    shares = torch.bincount(nearest, minlength=count) / len(points)
    assert (shares - 1 / count).abs().max() < 0.005
    noise = (points - toy.modes[nearest]) / toy.sigma
    torch.testing.assert_close(noise.T.cov(), torch.eye(2), atol=0.02, rtol=0)


def test_the_line_has_the_courses_variances_and_the_circle_its_radius():
    line, circle = load_dataset("line"), load_dataset("circle")
    x, y = line.tensor().T
    assert len(line) == 600 and torch.allclose(y, 0.5 * x + 5, atol=1e-5)
    assert abs(x.var(correction=0) - 33.44) < 0.01 and abs(y.var(correction=0) - 8.36) < 0.01
    assert torch.allclose(circle.tensor().norm(dim=1), torch.tensor(math.sqrt(2)), atol=1e-5)


def test_points_without_noise_have_no_density():
    for name in ("line", "circle"):
        with pytest.raises(ConfigError, match="no density"):
            load_dataset(name).log_prob(torch.zeros(1, 2))


def test_a_sample_is_a_function_of_seed_and_index():
    toy = load_dataset("swissroll")
    assert torch.equal(toy.sample(23, seed=4), toy.sample(40, seed=4)[:23])
    assert torch.equal(toy.sample(50, seed=0), toy.tensor(50))
    assert not torch.isclose(toy.sample(50, seed=0), toy.sample(50, seed=1)).any()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_batches_are_standardised_points_of_the_set(name):
    toy = load_dataset(name)
    x = next(toy.batches(seed=0, batch_size=len(toy)))["x"]                           # one whole epoch
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)
    back, data = x * toy.std + toy.mean, toy.tensor()
    torch.testing.assert_close(back.sort(0).values, data.sort(0).values, atol=1e-4, rtol=0)


def test_what_is_for_images_is_refused_for_points():
    for option in [{"resolution": 8}, {"channels": 1}, {"flip": True}, {"caption_column": "c"}, {"split": "test"}]:
        with pytest.raises(ConfigError, match="ring8"):
            load_dataset("ring8", **option)

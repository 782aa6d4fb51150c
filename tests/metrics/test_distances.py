"""Fréchet distance, nearest neighbours and precision against closed forms and brute force."""

from typing import Any

import pytest
import torch

from hfgen.errors import DataError
from hfgen.metrics import distances
from hfgen.metrics.distances import frechet_distance, frechet_ratio, kid, nearest_distances
from hfgen.metrics.prdc import knn_radii, prdc, precision


def spd(dim: int, generator: torch.Generator) -> torch.Tensor:
    a = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return a @ a.T / dim


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form() -> None:
    mean_a, mean_b = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([0.0, 2.0, 3.0]).double()
    s_a, s_b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([2.0, 2.0, 0.0]).double()
    expected = float((mean_a - mean_b).square().sum() + (s_a - s_b).square().sum())
    found = distances.frechet_distance_of_moments(mean_a, s_a.square().diag(), mean_b, s_b.square().diag())
    assert found == pytest.approx(expected, abs=1e-10)


def test_frechet_distance_agrees_with_the_matrix_square_root_of_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(0)
    mean_a, mean_b = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    cov_a, cov_b = spd(20, generator), spd(20, generator)
    root = torch.from_numpy(linalg.sqrtm((cov_a @ cov_b).numpy()).real)
    expected = float((mean_a - mean_b).square().sum() + (cov_a + cov_b - 2 * root).trace())
    found = distances.frechet_distance_of_moments(mean_a, cov_a, mean_b, cov_b)
    assert found == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_agrees_with_torchmetrics_formula_on_random_features() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = torch.randn(300, 10), torch.randn(200, 10) * 1.5 + 0.3
    (mean_a, cov_a), (mean_b, cov_b) = distances.moments(a), distances.moments(b)
    expected = float(fid._compute_fid(mean_a, cov_a, mean_b, cov_b))
    assert distances.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_two_samples_of_one_distribution_score_about_the_split_floor() -> None:
    x = torch.randn(4000, 6)
    assert distances.frechet_ratio(x[:2000], x[2000:]) < 1.0
    assert distances.frechet_ratio(x[:2000], x[2000:] + 0.5) > 5.0


def test_random_halves_are_fixed_and_divide_the_range() -> None:
    first, again = distances.random_halves(11, 3), distances.random_halves(11, 3)
    for (a, b), (c, d) in zip(first, again, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)
        assert sorted([*a.tolist(), *b.tolist()]) == list(range(11))


def test_nearest_distances_equal_brute_force_and_find_a_planted_copy() -> None:
    queries, references = torch.randn(30, 5).double(), torch.randn(40, 5).double()
    queries[7] = references[3]
    expected = torch.stack([(references - q).norm(dim=1).min() for q in queries])
    found = distances.nearest_distances(queries, references)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert found[7] == 0
    assert (distances.nearest_distances(references, references, exclude_self=True) > 0).all()


def test_precision_and_radii_equal_brute_force() -> None:
    real, generated, k = torch.randn(60, 3).double(), torch.randn(50, 3).double() * 2, 5
    radii = [sorted((real - r).norm(dim=1).tolist())[k] for r in real]
    torch.testing.assert_close(knn_radii(real, k), torch.tensor(radii, dtype=torch.float64), atol=1e-12, rtol=0)
    inside = [any((g - r).norm() <= radius for r, radius in zip(real, radii, strict=True)) for g in generated]
    assert precision(real, generated, k) == pytest.approx(sum(inside) / len(inside))
    assert 0.2 < precision(real, generated, k) < 0.9


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("measure", [frechet_distance, kid, prdc, precision, nearest_distances, frechet_ratio])
def test_every_measure_refuses_features_that_are_not_finite(measure: Any, value: float) -> None:
    good = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    bad = good.clone()
    bad[7, 1] = value
    with pytest.raises(DataError, match=r"1 of 50 .*feature vectors are not finite"):
        measure(good, bad)
    with pytest.raises(DataError, match=r"1 of \d+ .*feature vectors are not finite"):
        measure(bad, good)

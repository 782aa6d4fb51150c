"""Streamed moments, the kernel distance and precision, recall, density, coverage against oracles."""

import math
import warnings

import pytest
import torch
from torch import nn

from hfgen.errors import ConfigError
from hfgen.metrics import distances
from hfgen.metrics.distances import Moments, frechet_distance, frechet_distance_of_moments, kid, moments, nearest
from hfgen.metrics.prdc import PRDC, knn_radii, prdc, precision


class Flat(nn.Module):
    """A feature module for torchmetrics: images (B, 1, 1, D) flattened."""

    num_features = 6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).double()


def two_sets(n: int = 120, m: int = 90, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(n, dim, generator=generator), torch.rand(m, dim, generator=generator) ** 2


def test_moments_streamed_in_uneven_parts_and_merged_equal_those_of_all_at_once() -> None:
    features = torch.randn(500, 7, dtype=torch.float64) * 3 + 1000
    streams = [Moments(7) for _ in range(3)]
    for i, part in enumerate(features.split([1, 99, 0, 130, 170, 100])):
        streams[i % 3].update(part)
    whole = Moments(7)
    for stream in streams:
        whole.merge(Moments.unpacked(stream.packed()))
    mean, covariance = moments(features)
    assert whole.count == 500
    torch.testing.assert_close(whole.mean, features.mean(0), atol=1e-10, rtol=0)
    torch.testing.assert_close(whole.covariance, features.T.cov(), atol=1e-10, rtol=0)
    torch.testing.assert_close(covariance, features.T.cov(), atol=1e-10, rtol=0)
    torch.testing.assert_close(mean, features.mean(0), atol=1e-10, rtol=0)


def test_moments_refuse_other_dimensions_and_a_covariance_of_one_item() -> None:
    with pytest.raises(ConfigError, match=r"features must be \(N, 7\)"):
        Moments(7).update(torch.zeros(3, 6))
    with pytest.raises(ConfigError, match="at least 2 items, got 1"):
        _ = Moments.of(torch.zeros(1, 6)).covariance


def test_frechet_distance_of_samples_tends_to_the_closed_form_of_their_gaussians() -> None:
    a, b = torch.randn(200_000, 3, dtype=torch.float64), torch.randn(200_000, 3, dtype=torch.float64) * 2 + 1
    assert frechet_distance(a, b) == pytest.approx(3 * (1.0 + 1.0), abs=0.05)           # |mu|^2 + (s_a - s_b)^2
    pieces = [Moments(3), Moments(3)]
    pieces[0].update(a[:70_000])
    pieces[1].update(a[70_000:])
    pieces[0].merge(pieces[1])
    sharded = frechet_distance_of_moments(pieces[0].mean, pieces[0].covariance, *moments(b))
    assert sharded == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_frechet_distance_and_kid_equal_torchmetrics_with_the_same_feature_module() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    kernel = pytest.importorskip("torchmetrics.image.kid")
    a, b = two_sets()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                     # that it keeps all features in memory
        theirs = [
            fid.FrechetInceptionDistance(Flat(), normalize=True),
            kernel.KernelInceptionDistance(Flat(), subsets=1, subset_size=90, normalize=True),
        ]
    for metric in theirs:
        metric.update((a if metric is theirs[0] else a[:90])[:, None, None].double(), real=True)
        metric.update(b[:, None, None].double(), real=False)
    assert frechet_distance(a, b) == pytest.approx(float(theirs[0].compute()), rel=1e-6)
    assert kid(a[:90], b) == pytest.approx(float(theirs[1].compute()[0]), rel=1e-6)


def test_kid_equals_two_loops_in_blocks_of_any_size_and_on_average_in_subsets(monkeypatch) -> None:
    a, b = (x.double() for x in two_sets(30, 25, 4))

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return (float(x @ y) / 4 + 1) ** 3

    loops = sum(k(a[i], a[j]) for i in range(30) for j in range(30) if i != j) / (30 * 29)
    loops += sum(k(b[i], b[j]) for i in range(25) for j in range(25) if i != j) / (25 * 24)
    loops -= 2 * sum(k(x, y) for x in a for y in b) / (30 * 25)
    assert kid(a, b) == pytest.approx(loops, rel=1e-10)
    monkeypatch.setattr(distances, "ELEMENTS", 70)
    assert kid(a, b) == pytest.approx(loops, rel=1e-10)
    assert kid(a, b, subset_size=25, subsets=400) == pytest.approx(loops, abs=0.01)


def gaussian_kernel_mean(mean: torch.Tensor, scale: float, other: torch.Tensor, other_scale: float) -> float:
    """Return E (x . y / D + 1)^3 of independent x ~ N(mean, scale^2 I), y ~ N(other, other_scale^2 I), closed form."""
    dim, eye = len(mean), torch.eye(len(mean), dtype=torch.float64)

    def tensors(m: torch.Tensor, s: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        third = torch.einsum("i,j,k->ijk", m, m, m)
        for which in ("ij,k->ijk", "ik,j->ijk", "jk,i->ijk"):
            third = third + s**2 * torch.einsum(which, eye, m)
        return m, s**2 * eye + torch.outer(m, m), third

    products = [float((x * y).sum()) for x, y in zip(tensors(mean, scale), tensors(other, other_scale), strict=True)]
    return 1 + sum(math.comb(3, j) * product / dim**j for j, product in enumerate(products, 1))


def test_kid_of_gaussians_is_unbiased_for_the_closed_form_even_of_five_samples() -> None:
    m, o = torch.tensor([0.5, 0.0, -0.2]).double(), torch.zeros(3).double()
    expected = gaussian_kernel_mean(o, 1, o, 1) + gaussian_kernel_mean(m, 0.7, m, 0.7)
    expected -= 2 * gaussian_kernel_mean(o, 1, m, 0.7)
    found = torch.tensor([kid(torch.randn(5, 3), torch.randn(6, 3) * 0.7 + m) for _ in range(4000)])
    assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / 4000**0.5)
    assert float(found.std()) / 4000**0.5 < 0.05 * abs(expected) + 0.05


def test_kid_refuses_subsets_larger_than_a_set() -> None:
    with pytest.raises(ConfigError, match=r"subsets of 2 to 90.*subset_size=100"):
        kid(*two_sets(), subset_size=100)


def brute_force(real: torch.Tensor, generated: torch.Tensor, k: int) -> PRDC:
    """Return the four numbers by loops in plain Python."""
    real_rows, generated_rows = real.tolist(), generated.tolist()

    def radii(rows: list[list[float]]) -> list[float]:
        return [sorted(math.dist(a, b) for b in rows)[k] for a in rows]

    r, g = radii(real_rows), radii(generated_rows)
    in_real = [[math.dist(x, y) <= r[i] for i, x in enumerate(real_rows)] for y in generated_rows]
    in_generated = [[math.dist(x, y) <= g[j] for j, y in enumerate(generated_rows)] for x in real_rows]
    return PRDC(
        sum(map(any, in_real)) / len(generated_rows),
        sum(map(any, in_generated)) / len(real_rows),
        sum(map(sum, in_real)) / (k * len(generated_rows)),
        sum(any(row[i] for row in in_real) for i in range(len(real_rows))) / len(real_rows),
    )


@pytest.mark.parametrize("k", [1, 5])
def test_prdc_equals_brute_force_whatever_the_blocks(monkeypatch, k) -> None:
    real, generated = torch.randn(60, 3).double(), torch.randn(50, 3).double() * 1.6 + 0.5
    expected = brute_force(real, generated, k)
    assert prdc(real, generated, k) == pytest.approx(expected, abs=1e-12)
    assert min(expected) > 0.05 and expected.precision < 1
    monkeypatch.setattr(distances, "ELEMENTS", 130)
    assert prdc(real, generated, k) == pytest.approx(expected, abs=1e-12)
    assert precision(real, generated, k) == pytest.approx(expected.precision, abs=1e-12)


def test_items_at_the_very_radius_lie_inside_far_from_the_origin_and_beside_an_outlier() -> None:
    real = torch.arange(6.0).double()[:, None] * torch.tensor([[0.3, 0.1]]).double() + 1000
    generated = torch.cat([real + torch.tensor([0.3, 0.1]).double(), torch.full((1, 2), 1e9).double()])
    balls = 4 * 3 + 2 + 1                                                    # each step meets the balls left and right
    assert prdc(real, generated, 1) == pytest.approx((6 / 7, 1.0, balls / 7, 1.0), abs=1e-12)
    found = prdc(real, real.clone(), 1)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density == pytest.approx((4 * 3 + 2 * 2) / 6)              # each lies in its own and the next balls


def test_radii_of_duplicates_are_zero_and_k_must_be_less_than_the_items() -> None:
    assert knn_radii(torch.ones(4, 2), 2).tolist() == [0.0] * 4
    with pytest.raises(ConfigError, match=r"k must be in \[1, 3\] for 4 items, got 4"):
        knn_radii(torch.randn(4, 2), 4)


def test_of_two_samples_of_one_distribution_density_is_one_and_coverage_as_naeem_et_al_say() -> None:
    found = prdc(torch.randn(1500, 8), torch.randn(1500, 8), k=5)
    assert found.density == pytest.approx(1.0, abs=0.06)
    assert found.coverage == pytest.approx(1 - 2**-5, abs=0.02)


def test_the_nearest_item_is_named_and_a_copy_has_distance_zero_in_any_block(monkeypatch) -> None:
    queries, references = torch.randn(30, 5), torch.randn(40, 5)
    queries[7] = references[3]
    monkeypatch.setattr(distances, "ELEMENTS", 90)
    found, indices = nearest(queries, references)
    expected = torch.cdist(queries.double(), references.double(), compute_mode="donot_use_mm_for_euclid_dist").min(1)
    torch.testing.assert_close(found, expected.values, atol=1e-12, rtol=0)
    assert indices.tolist() == expected.indices.tolist() and (found[7], indices[7]) == (0, 3)
    itself, own = nearest(references, references, exclude_self=True)
    assert (own != torch.arange(40)).all() and (itself > 0).all()

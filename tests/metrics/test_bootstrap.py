"""Intervals: resamples against recomputation from copies, coverage in simulations, and the floor of real data."""

import math

import pytest
import torch

from hfgen.errors import DataError
from hfgen.metrics import bootstrap
from hfgen.metrics.bootstrap import (
    Estimate,
    counts,
    estimates,
    frechet_estimate,
    kid_estimate,
    mean_interval,
    prdc_estimates,
)
from hfgen.metrics.distances import frechet_distance, kid, polynomial_kernel
from hfgen.metrics.prdc import prdc

NAMES = ("frechet", "kid", "precision", "recall", "density", "coverage")


def sets(n: int = 40, m: int = 30, shift: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3), torch.randn(m, 3) * 1.3 + shift


def test_values_are_the_statistics_and_lie_in_their_intervals() -> None:
    real, generated = sets()
    found = estimates(real, generated, k=3, resamples=50, splits=3)
    assert tuple(found) == NAMES
    assert found["frechet"].value == pytest.approx(frechet_distance(real, generated), rel=1e-10)
    assert found["kid"].value == pytest.approx(kid(real, generated), rel=1e-10)
    assert tuple(found[name].value for name in NAMES[2:]) == pytest.approx(prdc(real, generated, 3), abs=1e-12)
    assert all(one.low <= one.value <= one.high and one.low < one.high and one.count == 20 for one in found.values())


def test_a_resample_of_the_frechet_distance_equals_that_of_copies_of_the_features() -> None:
    real, generated = (x.double() for x in sets())
    weights = counts(40, 5, torch.Generator().manual_seed(1)), counts(30, 5, torch.Generator().manual_seed(2))
    found = bootstrap.frechet_distances(
        *bootstrap._weighted_moments(real, weights[0]), *bootstrap._weighted_moments(generated, weights[1])
    )
    for i in range(5):
        copies = [x.repeat_interleave(w[i].long(), 0) for x, w in zip((real, generated), weights, strict=True)]
        assert float(found[i]) == pytest.approx(frechet_distance(*copies), rel=1e-9)


def test_a_resample_of_the_kernel_leaves_out_pairs_of_one_item_with_its_own_copy() -> None:
    x = torch.randn(12, 3).double()
    w = counts(12, 1, torch.Generator().manual_seed(1))
    copies = torch.arange(12).repeat_interleave(w[0].long())
    kernel = polynomial_kernel(x, x)
    pairs = [float(kernel[i, j]) for i in copies for j in copies if i != j]
    assert float(bootstrap._mean_kernels(x, x, w, w)) == pytest.approx(sum(pairs) / len(pairs), rel=1e-10)


def test_floor_and_matched_are_statistics_of_halves_at_one_count() -> None:
    real, generated = sets(41, 15)
    for one, statistic in ((frechet_estimate, frechet_distance), (kid_estimate, kid)):
        found = one(real, generated, resamples=10, splits=2, seed=3)
        halves = bootstrap.random_halves(41, 2, 3)
        floors = [statistic(real[a[:15]], real[b[:15]]) for a, b in halves]
        matched = [statistic(real[a[:15]], generated) for a, _ in halves]
        assert found.count == 15
        assert found.floor == pytest.approx(sum(floors) / 2, rel=1e-9)
        assert found.matched == pytest.approx(sum(matched) / 2, rel=1e-9)


def test_blocks_do_not_change_an_estimate(monkeypatch) -> None:
    from hfgen.metrics import distances

    real, generated = sets()
    whole = estimates(real, generated, k=3, resamples=20, splits=2)
    monkeypatch.setattr(distances, "ELEMENTS", 200)
    parts = estimates(real, generated, k=3, resamples=20, splits=2)
    for name in NAMES:
        assert tuple(vars(parts[name]).values()) == pytest.approx(tuple(vars(whole[name]).values()), rel=1e-9, abs=1e-9)


def test_intervals_cover_the_expected_value_and_without_bias_the_true_distance_of_gaussians() -> None:
    trials, dim, n = 120, 3, 150
    truth = dim * (0.5**2 + (1.5 - 1) ** 2)
    found = [
        {
            "frechet": frechet_estimate(x, y, 150, 2, seed),
            "kid": kid_estimate(x, y, 150, 2, seed),
            **prdc_estimates(x, y, 5, 50, 2, seed),
        }
        for seed in range(trials)
        for x, y in [(torch.randn(n, dim), torch.randn(n, dim) * 1.5 + 0.5)]
    ]
    for name in NAMES:
        expected = sum(one[name].value for one in found) / trials
        covered = sum(one[name].low <= expected <= one[name].high for one in found) / trials
        assert covered >= 0.89, (name, covered)                             # 0.95 less three standard errors
    widths = sum(one["frechet"].high - one["frechet"].low for one in found) / trials
    spread = float(torch.tensor([one["frechet"].value for one in found]).std())
    assert widths == pytest.approx(3.92 * spread, rel=0.25)
    assert sum(low <= truth <= high for _, low, high in (one["frechet"].without_bias for one in found)) >= 0.89 * trials
    naive = [(one["frechet"].low + one["frechet"].bias, one["frechet"].high + one["frechet"].bias) for one in found]
    assert sum(low <= truth <= high for low, high in naive) < 0.91 * trials   # what the correction is for


def test_two_samples_of_one_distribution_score_at_the_floor_and_another_does_not() -> None:
    inside: dict[str, int] = dict.fromkeys(NAMES, 0)
    for seed in range(12):
        real, same = torch.randn(160, 3), torch.randn(160, 3)
        for name, one in estimates(real, same, resamples=2, splits=20, seed=seed).items():
            inside[name] += one.floor_low <= one.matched <= one.floor_high
    assert all(number >= 10 for number in inside.values()), inside
    other = estimates(torch.randn(160, 3), torch.randn(160, 3) + 1, resamples=2)
    assert other["frechet"].matched > 5 * other["frechet"].floor_high
    assert other["kid"].matched > other["kid"].floor_high
    assert all(other[name].matched < other[name].floor_low for name in ("precision", "recall", "density", "coverage"))


def test_an_estimate_is_a_function_of_its_seed() -> None:
    real, generated = sets()
    first, again = (frechet_estimate(real, generated, 30, 2, seed=4) for _ in range(2))
    assert first == again != frechet_estimate(real, generated, 30, 2, seed=5)
    assert isinstance(first, Estimate)


def test_the_interval_of_a_mean_is_nearly_the_normal_one() -> None:
    values = torch.randn(2000) * 3 + 1
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(float(values.double().mean()))
    error = 1.96 * float(values.std()) / math.sqrt(2000)
    assert (low, high) == pytest.approx((mean - error, mean + error), abs=0.15 * error)


def test_features_that_are_not_finite_are_counted_in_the_error() -> None:
    real, generated = sets()
    generated[3, 0], generated[5, 2] = float("nan"), float("inf")
    with pytest.raises(DataError, match="2 of 30 generated feature vectors are not finite"):
        frechet_estimate(real, generated)

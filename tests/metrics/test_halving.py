"""Intervals from halves: against the statistics of the halves themselves, closed forms, and coverage in simulations."""

import math

import pytest
import torch

from hfgen.metrics import distances, halving
from hfgen.metrics.halving import half_prdc, log_normal_interval, prdc_intervals, wilson_interval
from hfgen.metrics.prdc import PRDC, prdc


def halves_of(features: torch.Tensor, k: int, halvings: int, generator: torch.Generator) -> torch.Tensor:
    """Return which of (N, D) features are in the first half of each halving, (N, S)."""
    return halving._Halves(features, k, halvings, generator).first


def test_every_half_scores_as_its_features_alone(monkeypatch) -> None:
    real, generated = torch.randn(41, 3), torch.randn(30, 3) * 1.3 + 0.5
    real[7] = real[3]                                                       # a tie
    found = half_prdc(real, generated, 3, 6, seed=5)
    generator = torch.Generator().manual_seed(5)
    a, b = (halves_of(x, 3, 6, generator) for x in (real, generated))
    assert a.sum(0).tolist() == [20] * 6 and b.sum(0).tolist() == [15] * 6
    for s in range(6):
        for half, (i, j) in enumerate(((a[:, s], b[:, s]), (~a[:, s], ~b[:, s]))):
            assert found[half, :, s].tolist() == pytest.approx(prdc(real[i], generated[j], 3), abs=1e-12)
    monkeypatch.setattr(distances, "ELEMENTS", 100)
    assert torch.equal(half_prdc(real, generated, 3, 6, seed=5), found)     # in small blocks


def test_the_score_interval_holds_the_shares_that_a_test_does_not_refuse() -> None:
    """Wilson 1927: its ends are the p with |share - p| = z sqrt(p (1 - p) / n)."""
    for share, count, effect in ((0.3, 50, 1.0), (0.98, 300, 2.5), (0.0, 20, 1.0), (1.0, 20, 3.0)):
        ends = wilson_interval(share, count, effect)
        for p in (end for end in ends if 0 < end < 1):
            error = math.sqrt(p * (1 - p) * effect / count)
            assert abs(share - p) == pytest.approx(1.959964 * error, rel=1e-5)
        assert ends[0] <= share <= ends[1] and ends[0] < ends[1]


def test_a_log_normal_interval_reaches_as_far_up_as_down_in_ratio() -> None:
    low, high = log_normal_interval(2.0, 0.1)
    assert (low * high, high / 2) == pytest.approx((4.0, math.exp(0.1959964)))
    assert log_normal_interval(0.0, 0.1) == (0.0, 0.0)


def test_smallest_sets_have_intervals_that_hold_their_values() -> None:
    real, generated = torch.randn(12, 2), torch.randn(6, 2)
    values = prdc(real, generated, 5)
    for name, (low, high) in prdc_intervals(values, real, generated, 5, 20).items():
        assert low <= getattr(values, name) <= high


def test_what_all_halves_agree_on_is_no_surer_than_as_many_independent_items() -> None:
    real, generated = torch.randn(100, 2), torch.randn(60, 2) + 1000
    found = prdc_intervals(PRDC(0.0, 0.0, 0.0, 0.0), real, generated, 5, 20)
    assert found["precision"] == wilson_interval(0.0, 60)
    assert found["recall"] == found["coverage"] == wilson_interval(0.0, 100)


def test_intervals_of_recall_are_as_wide_as_it_varies_where_samples_are_few() -> None:
    """Recall of 60 samples varies with where their balls lie, which all real items share."""
    generator = torch.Generator().manual_seed(0)
    widths, values = [], []
    for seed in range(60):
        real = torch.randn(300, 16, generator=generator)
        generated = torch.randn(60, 16, generator=generator) * 0.9 + 0.2
        found = prdc(real, generated)
        low, high = prdc_intervals(found, real, generated, 5, 50, seed)["recall"]
        widths.append(high - low)
        values.append(found.recall)
    spread = 3.92 * float(torch.tensor(values).std())
    assert 0.85 < sum(widths) / len(widths) / spread < 1.25

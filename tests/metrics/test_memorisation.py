"""Memorisation: planted copies are found, and samples of the distribution itself are not accused."""

import pytest
import torch

from hfgen.data import load_dataset
from hfgen.metrics import distances
from hfgen.metrics.memorisation import memorisation


def test_planted_copies_of_digits_are_found_and_paired_with_their_originals() -> None:
    digits = load_dataset("digits").tensor().flatten(1)
    train, held_out, fresh = digits[:900], digits[900:1300], digits[1300:1700].clone()
    clean = memorisation(fresh, train, held_out)
    fresh[[5, 50, 77]] = train[[10, 20, 30]]
    fresh[100:160] = train[300:360] + 0.02 * torch.randn(60, 64)
    copied = memorisation(fresh, train, held_out)
    assert [pair[:2] for pair in copied.pairs[:3]] == [(5, 10), (50, 20), (77, 30)]
    assert [pair[2] for pair in copied.pairs[:3]] == [0, 0, 0]
    assert copied.indices[100:160].tolist() == list(range(300, 360))
    assert copied.near_copies == pytest.approx(clean.near_copies + 63 / 400, abs=0.01)
    assert clean.near_copies < 0.03 and clean.expected == 0.01
    assert copied.ratio_high < 0.97 and copied.ratio < copied.ratio_high


def test_the_interval_of_the_ratio_covers_one_for_samples_of_the_distribution_whatever_the_counts() -> None:
    covered = 0
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        train, held_out, fresh = (torch.randn(n, 4, generator=g) for n in (1200, 200, 300))
        found = memorisation(fresh, train, held_out, resamples=200)
        assert found.ratio == pytest.approx(1.0, abs=0.1)
        covered += found.ratio_low <= 1.0 <= found.ratio_high
    assert covered >= 8                                            # the sets are held fixed, so fewer than 19
    everything = memorisation(train[:100], train, held_out)
    assert everything.near_copies == 1.0 and everything.ratio < 0.9


def test_distances_ratio_and_share_equal_brute_force_in_any_block(monkeypatch) -> None:
    generated, train, held_out = torch.randn(20, 3).double(), torch.randn(30, 3).double(), torch.randn(30, 3).double()
    monkeypatch.setattr(distances, "ELEMENTS", 70)
    found = memorisation(generated, train, held_out, pairs=4, quantile=0.2)
    to_train, to_held_out = (torch.cdist(generated, real).min(1).values for real in (train, held_out))
    torch.testing.assert_close(found.distances, to_train, atol=1e-6, rtol=0)
    assert found.ratio == pytest.approx(float(to_train.mean() / to_held_out.mean()), rel=1e-6)
    usual = torch.cdist(held_out, train).min(1).values.sort().values
    assert found.threshold == pytest.approx(float(usual[5]), rel=1e-6)              # 0.2 of 29 steps, rounded down
    assert found.near_copies == float((to_train < usual[5]).double().mean())
    assert [pair[2] for pair in found.pairs] == pytest.approx(sorted(to_train.tolist())[:4], rel=1e-6)


def test_without_held_out_data_the_threshold_is_that_of_training_data_among_themselves() -> None:
    train = torch.randn(200, 4)
    found = memorisation(torch.cat([train[:10], torch.randn(10, 4)]), train)
    assert found.ratio is None and found.ratio_low is None
    own = torch.cdist(train.double(), train.double()).fill_diagonal_(9e9).min(1).values
    assert found.threshold == pytest.approx(float(own.sort().values[1]), rel=1e-6)  # 0.01 of 199 steps, rounded down
    assert 0.5 <= found.near_copies <= 0.6

"""The mutual information gap: brute force on small tables, and codes whose gap is known."""

import math

import pytest
import torch

from hfgen.errors import ConfigError
from hfgen.metrics.disentanglement import (
    discretised,
    entropy,
    mutual_information,
    mutual_information_gap,
    mutual_information_gaps,
)

N = 20_000


def factors_of(*counts):
    return torch.stack([torch.randint(count, (N,)) for count in counts], 1)


def test_mutual_information_is_the_double_sum_over_the_table():
    a, b = torch.randint(3, (500,)), torch.randint(4, (500,))
    b = torch.where(torch.rand(500) < 0.4, a, b)
    total = 0.0
    for i in range(3):
        for j in range(4):
            p, q, r = ((a == i) & (b == j)).double().mean(), (a == i).double().mean(), (b == j).double().mean()
            total += float(p * (p / (q * r)).log()) if p > 0 else 0.0
    assert mutual_information(a, b) == pytest.approx(total, abs=1e-12)
    assert mutual_information(b, a) == pytest.approx(total, abs=1e-12)
    assert mutual_information(a * 7 - 5, b + 100) == pytest.approx(total, abs=1e-12)    # names of values do not matter


def test_entropies_of_known_distributions():
    assert entropy(torch.arange(8)) == pytest.approx(math.log(8), abs=1e-12)
    assert entropy(torch.tensor([0, 0, 0, 9])) == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3), abs=1e-12)
    assert entropy(torch.zeros(5)) == 0
    values = torch.randint(5, (1000,))
    assert mutual_information(values, values) == pytest.approx(entropy(values), abs=1e-12)


def test_independent_values_share_no_more_than_the_estimators_bias():
    a, b = factors_of(5, 6).T
    assert 0 <= mutual_information(a, b) < 3 * 4 * 5 / (2 * N)


def test_intervals_are_equally_wide_and_hold_the_ends():
    codes = torch.stack([torch.arange(-24.0, 57.0), torch.full((81,), 2.0)], 1)
    bins = discretised(codes, 8)
    assert bins[:, 0].tolist() == [min(i // 10, 7) for i in range(81)]
    assert (bins[:, 1] == 0).all()


def test_one_code_for_each_factor_has_a_gap_of_one():
    factors = factors_of(3, 6, 4)
    codes = torch.cat([factors[:, [2, 0, 1]] * torch.tensor([1.0, -2.0, 0.1]), torch.randn(N, 2)], 1)
    assert mutual_information_gap(codes, factors) == pytest.approx(1.0, abs=0.01)


def test_a_noisy_code_has_the_gap_of_its_channel():
    factor = torch.randint(2, (N,))
    flipped = torch.where(torch.rand(N) < 0.1, 1 - factor, factor)                      # binary symmetric channel
    codes = torch.stack([flipped.double(), torch.randn(N).double()], 1)
    capacity = 1 + (0.1 * math.log2(0.1) + 0.9 * math.log2(0.9))
    assert mutual_information_gap(codes, factor[:, None]) == pytest.approx(capacity, abs=0.02)


def test_a_factor_told_twice_has_no_gap():
    factors = factors_of(4, 4)
    codes = torch.cat([factors, factors], 1).double()
    assert mutual_information_gap(codes, factors) == pytest.approx(0.0, abs=1e-12)


def test_rotated_codes_have_nearly_none():
    factors = factors_of(5, 5)
    turn = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
    straight = mutual_information_gap(factors.float(), factors)
    rotated = mutual_information_gap(factors.float() @ turn, factors)
    assert straight > 0.99 and rotated < 0.1


def test_noise_has_nearly_none():
    assert mutual_information_gap(torch.randn(N, 10), factors_of(4, 6, 3)) < 0.002


def test_gaps_are_those_of_each_factor_and_constant_ones_are_left_out():
    factors = torch.cat([factors_of(4, 3), torch.zeros(N, 1, dtype=torch.int64)], 1)
    codes = torch.stack([factors[:, 0].double(), torch.randn(N).double(), torch.zeros(N)], 1)
    gaps = mutual_information_gaps(codes, factors)
    assert gaps[0] == pytest.approx(1.0, abs=0.01) and gaps[1] < 0.002 and gaps[2].isnan()
    assert mutual_information_gap(codes, factors) == pytest.approx(float(gaps[:2].mean()), abs=1e-12)


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (torch.zeros(3, 1), torch.zeros(3, 1).long(), r"codes must be \(N, D\) with D >= 2"),
        (torch.zeros(3, 2), torch.zeros(3).long(), r"and factors \(N, K\)"),
        (torch.zeros(3, 2), torch.zeros(4, 1).long(), "same number of items"),
        (torch.zeros(0, 2), torch.zeros(0, 1).long(), "at least one"),
        (torch.full((3, 2), float("nan")), torch.zeros(3, 1).long(), "must be finite"),
        (torch.randn(3, 2), torch.zeros(3, 1).long(), "no factor varies"),
    ],
)
def test_what_has_no_gap_is_refused_by_reason(codes, factors, message):
    with pytest.raises(ConfigError, match=message):
        mutual_information_gap(codes, factors)

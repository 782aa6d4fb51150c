"""Mode coverage against brute force and closed forms."""

import math

import pytest
import torch

from hfgen.errors import ConfigError
from hfgen.metrics.modes import (
    high_quality,
    high_quality_share,
    label_kl,
    label_modes,
    modes_captured,
    reverse_kl,
)

RING = torch.tensor([[math.cos(math.pi * i / 4), math.sin(math.pi * i / 4)] for i in range(8)])


def brute_force(points, modes, sigma):
    """Return (captured modes, share of high quality, counts of nearest modes) by two loops in plain Python."""
    captured, good, counts = set(), 0, [0] * len(modes)
    for point in points.tolist():
        distances = [math.dist(point, mode) for mode in modes.tolist()]
        nearest = distances.index(min(distances))
        counts[nearest] += 1
        if min(distances) <= 3 * sigma:
            good += 1
            captured.add(nearest)
    return len(captured), good / len(points), counts


@pytest.mark.parametrize("spread", [0.02, 0.2, 1.0])
def test_all_metrics_equal_two_loops_in_plain_python(spread):
    generator = torch.Generator().manual_seed(0)
    points = RING[torch.randint(0, 6, (500,), generator=generator)] + spread * torch.randn(500, 2, generator=generator)
    captured, share, counts = brute_force(points, RING, 0.05)
    assert modes_captured(points, RING, 0.05) == captured
    assert high_quality_share(points, RING, 0.05) == pytest.approx(share, abs=1e-12)
    p = [count / 500 for count in counts if count]
    assert reverse_kl(points, RING) == pytest.approx(sum(q * math.log(8 * q) for q in p), abs=1e-12)


@pytest.mark.parametrize("modes", [1, 2, 4, 8])
def test_the_reverse_kl_of_evenly_filled_modes_is_the_log_of_the_share_that_is_missing(modes):
    points = RING[:modes].repeat(25, 1)
    assert reverse_kl(points, RING) == pytest.approx(math.log(8 / modes), abs=1e-12)
    assert modes_captured(points, RING, 0.01) == modes
    assert high_quality_share(points, RING, 0.01) == 1.0


def test_real_points_are_of_high_quality_as_often_as_a_rayleigh_variable_is_below_three():
    generator = torch.Generator().manual_seed(1)
    points = RING[torch.randint(0, 8, (100_000,), generator=generator)]
    points = points + 0.01 * torch.randn(100_000, 2, generator=generator)
    assert high_quality_share(points, RING, 0.01) == pytest.approx(1 - math.exp(-4.5), abs=0.002)
    assert high_quality_share(points, RING, 0.01, k=1) == pytest.approx(1 - math.exp(-0.5), abs=0.01)
    assert reverse_kl(points, RING) < 0.001


def test_points_between_the_modes_count_for_the_kl_but_capture_nothing():
    points = torch.cat([RING[:1], 0.5 * RING])
    assert high_quality(points, RING, 0.1).tolist() == [True] + 8 * [False]
    assert modes_captured(points, RING, 0.1) == 1
    p = [2 / 9] + 7 * [1 / 9]
    assert reverse_kl(points, RING) == pytest.approx(sum(q * math.log(8 * q) for q in p), abs=1e-12)
    assert reverse_kl(points[high_quality(points, RING, 0.1)], RING) == pytest.approx(math.log(8), abs=1e-12)


def test_points_that_are_nan_are_near_no_mode():
    points = torch.cat([RING, torch.full((8, 2), float("nan"))])
    assert (high_quality_share(points, RING, 0.1), modes_captured(points, RING, 0.1)) == (0.5, 8)
    assert reverse_kl(points, RING) == pytest.approx(0.0, abs=1e-12)


def test_labels_are_counted_as_classes_and_their_kl_has_the_closed_forms():
    labels = torch.arange(1000)
    assert label_modes(labels, 1000) == 1000 and label_kl(labels, 1000) == pytest.approx(0.0, abs=1e-12)
    assert label_modes(labels[:500], 1000) == 500
    assert label_kl(labels[:500], 1000) == pytest.approx(math.log(2), abs=1e-12)
    assert label_kl(torch.zeros(7, dtype=torch.long), 1000) == pytest.approx(math.log(1000), abs=1e-12)


def test_the_kl_to_real_frequencies_equals_torchs_and_takes_counts_too():
    labels, counts = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([10, 50, 40])
    p = torch.tensor([3, 1, 2]).double() / 6
    theirs = torch.nn.functional.kl_div((counts / 100).double().log(), p, reduction="sum")
    assert label_kl(labels, counts) == pytest.approx(float(theirs), abs=1e-7)
    assert label_kl(labels, [0.1, 0.5, 0.4]) == pytest.approx(float(theirs), abs=1e-7)
    assert label_kl(labels, [0.5, 0.0, 0.5]) == float("inf")
    assert label_kl(labels[:3], [1.0, 0.0, 0.0]) == 0.0


def test_fair_draws_have_the_kl_that_their_number_gives():
    labels = torch.randint(0, 1000, (26_000,), generator=torch.Generator().manual_seed(2))
    assert label_kl(labels, 1000) == pytest.approx(999 / 52_000, abs=0.003)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ConfigError, match=r"labels must be in \[0, 2\], found 0 to 3"):
        label_kl(torch.tensor([0, 3]), 3)
    with pytest.raises(ConfigError, match="labels must hold at least one"):
        label_kl(torch.tensor([], dtype=torch.long), 3)
    with pytest.raises(ConfigError, match="points must hold at least one"):
        high_quality_share(torch.empty(0, 2), RING, 0.1)
    for target in ([0.5, -0.5], [0.0, 0.0], 0):
        with pytest.raises(ConfigError, match="target must be"):
            label_kl(torch.tensor([0]), target)

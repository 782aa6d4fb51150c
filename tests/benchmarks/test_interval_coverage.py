"""The benchmark of intervals, short: its true values, and rows that add up."""

import sys

import pytest
import torch

from tests.benchmarks.interval_coverage import COUNTS, DISTRIBUTIONS, METRICS, main, measure, modes, true_values


def test_recall_and_precision_of_few_samples_are_held_by_most_intervals() -> None:
    found = measure(DISTRIBUTIONS["near"], 300, 60, 40, 100, 20)
    assert tuple(found) == METRICS
    for row in found.values():
        assert row.covered + row.above + row.below == pytest.approx(1)
    assert min(found[name].covered for name in ("recall", "precision")) >= 0.84        # 0.95 less three standard errors


def test_true_values_of_the_frechet_distance_come_near_that_of_the_gaussians() -> None:
    values = true_values(DISTRIBUTIONS["narrow"], 2000, 2000, 3, 0)
    assert float(values["frechet"].mean()) == pytest.approx(8 * (0.3**2 + 0.2**2), rel=0.05)


def test_generated_points_lack_two_modes() -> None:
    real, generated = modes(4000, 4000, torch.Generator().manual_seed(0))
    last = torch.tensor([0.0, -2.0])                                               # the centre of the seventh
    assert 300 < int(((real - last).norm(dim=1) < 0.6).sum()) < 600
    assert int(((generated - last).norm(dim=1) < 0.6).sum()) < 20


def test_the_table_has_a_row_for_each_metric_and_pair_of_counts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "x --repeats 2 --truth 3 --resamples 3 --distributions modes".split()
    monkeypatch.setattr(sys, "argv", words)
    main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(COUNTS) * len(METRICS) and all(line.count("|") == 10 for line in lines)

"""What the benchmarks share: means with their deviation."""

import math
import statistics

from tests.benchmarks.harness import spread, table


def test_a_spread_is_the_mean_and_the_deviation_of_the_sample() -> None:
    assert spread([1.0, 2.0, 6.0]) == f"3 ± {statistics.stdev([1.0, 2.0, 6.0]):.3g}" == "3 ± 2.65"
    assert spread([2.5]) == "2.5"


def test_a_spread_of_what_is_not_finite_has_no_deviation() -> None:
    assert spread([1.0, math.inf]) == "inf"
    assert spread([1.0, math.nan]) == spread([math.inf, -math.inf]) == "nan"
    rows = [{"model": "diverged", "loss": value} for value in (math.nan, 1.0)]
    assert table(rows, ["model"], ["loss"]).splitlines()[-1] == "| diverged | 2 | nan |"

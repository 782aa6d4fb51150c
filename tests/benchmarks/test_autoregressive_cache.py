"""The benchmark of the cache: equal samples, each input once, and less time."""

from tests.benchmarks.autoregressive_cache import compare


def test_the_cache_draws_the_same_images_with_one_input_for_each_entry() -> None:
    found = compare(side=12, images=2, width=32, layers=1)
    n = 12 * 12
    assert found.equal
    assert (found.inputs_with, found.inputs_without) == (n, n * (n + 1) // 2)
    assert found.seconds_with > 0 and found.ratio == found.seconds_without / found.seconds_with

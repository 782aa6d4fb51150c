"""The seeded order."""

import subprocess
import sys

import numpy as np

from hfgen.data.order import _mix, derive_seed, permutation, stretch, uniforms


def test_the_hash_is_the_published_splitmix64():
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + (i + 1) * golden) % 2**64 for i in range(3)], np.uint64)
    assert _mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_derived_seed_is_the_same_in_every_process_and_depends_on_every_part():
    code = "from hfgen.data.order import derive_seed; print(derive_seed(3, 'noise', 7))"
    other = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    different = [(3, "noise", 7), (3, "noise", 8), (3, "nois", 7), ("3", "noise", 7), (3,)]
    seeds = {derive_seed(*parts) for parts in different}
    assert other == derive_seed(3, "noise", 7) == derive_seed(np.int64(3), "noise", 7)
    assert len(seeds) == 5 and all(0 <= seed < 2**63 for seed in seeds)


def test_an_epoch_is_a_permutation_and_every_seed_and_epoch_has_another():
    orders = [permutation(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert all((a != b).mean() > 0.95 for i, a in enumerate(orders) for b in orders[:i])


def test_a_stretch_is_the_concatenation_of_epochs_and_straddles_them():
    endless = np.concatenate([permutation(5, epoch, 7) for epoch in range(6)])
    for start in range(20):
        epochs, indices = stretch(5, 7, start, 17)
        assert np.array_equal(indices, endless[start : start + 17])
        assert np.array_equal(epochs, np.arange(start, start + 17) // 7)


def test_a_stretch_may_start_where_no_loop_would_ever_come():
    epochs, indices = stretch(0, 1797, 10**18, 4)
    assert epochs.tolist() == [p // 1797 for p in range(10**18, 10**18 + 4)]
    assert indices[0] == permutation(0, 10**18 // 1797, 1797)[10**18 % 1797]


def test_every_position_of_the_order_is_equally_likely():
    firsts = np.bincount([permutation(seed, 0, 8)[0] for seed in range(4000)], minlength=8)
    assert np.abs(firsts - 500).max() < 5 * np.sqrt(500)


def test_uniforms_are_uniform_uncorrelated_and_a_function_of_their_element_alone():
    epochs, indices = np.divmod(np.arange(100_000), 1000)
    u, other = uniforms(1, epochs, indices, "flip"), uniforms(1, epochs, indices, "crop")
    assert u.min() >= 0 and u.max() < 1 and u.dtype == np.float64
    counts = np.histogram(u, 20, (0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 50                                  # chi-squared, 19 degrees
    for pair in [(u, other), (u[:-1], u[1:]), (u[:-1000], u[1000:])]:
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.015
    picked = [5, 99_999, 70_003]
    assert np.array_equal(uniforms(1, epochs[picked], indices[picked], "flip"), u[picked])

"""The seeded order: the item at each position of an endless run, as pure functions without state.

All randomness of data is a function of (seed, epoch, index, name). So one process or eight, interrupted or not, read
the same items in the same order. The hash is splitmix64, implemented here: it gives the same numbers on every machine
and with every version of NumPy.
"""

import hashlib
import json
from functools import lru_cache

import numpy as np
import numpy.typing as npt

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Increment of splitmix64: 2^64 over the golden ratio."""

Ints = npt.NDArray[np.int64]


@lru_cache(maxsize=256)
def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2**63), a function of all `parts` and their order, equal in all processes (BLAKE2b)."""
    text = json.dumps([part if isinstance(part, str) else int(part) for part in parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return 64 mixed bits of 64 bits (Steele, Lea and Flood 2014, "Fast splittable generators", SplitMix64)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _hash(key: int, *counters: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Return uint64 hashes of (key, counter, counter, ...); the integer counters broadcast."""
    state = np.atleast_1d(np.uint64(key))
    for counter in counters:
        state = _mix(state + GOLDEN * (np.atleast_1d(counter).astype(np.uint64) + np.uint64(1)))
    return state


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> Ints:
    """Return the order of `n` items in an epoch, int64 (n,): the indices 0..n-1 sorted by their hash.

    The array is cached and read-only.
    """
    order = np.argsort(_hash(derive_seed(seed, "order"), epoch, np.arange(n)), kind="stable")
    order.setflags(write=False)
    return order


def stretch(seed: int, n: int, start: int, count: int) -> tuple[Ints, Ints]:
    """Return `(epochs, indices)`, int64 (count,) each, of `count` positions of the endless permutation from `start` on.

    Position p is item `permutation(seed, p // n, n)[p % n]`. The cost does not grow with `start`.
    """
    epochs, indices = [], []
    while count > 0:
        epoch, offset = divmod(start, n)
        taken = min(count, n - offset)
        epochs.append(np.full(taken, epoch, np.int64))
        indices.append(permutation(seed, epoch, n)[offset : offset + taken])
        start, count = start + taken, count - taken
    return np.concatenate(epochs), np.concatenate(indices)


def uniforms(seed: int, epochs: npt.ArrayLike, indices: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    """Return independent uniform float64 in [0, 1), elementwise pure functions of (seed, epoch, index, name)."""
    bits = _hash(derive_seed(seed, "uniform", name), epochs, indices)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

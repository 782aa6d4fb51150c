"""Allocation of CPU tensors: freed memory is kept by the process for later tensors."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of mallopt, as in glibc's malloc.h."""

KEPT = {M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 * 2**20, M_MMAP_MAX: 0}
"""Values: free bytes at the end of the heap before memory is returned; bytes of one request; number of mappings."""


def keep_memory() -> bool:
    """Return whether glibc keeps freed memory until the process ends; without glibc nothing is changed.

    glibc's default returns the memory of every large activation to the system and requests zeroed pages for the next,
    tens of thousands in a training step on the CPU. Peak memory grows by a few percent.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(parameter, value) == 1 for parameter, value in KEPT.items())

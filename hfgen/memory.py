"""Memory that tensors on the CPU give back stays with the process, for the next tensors."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of mallopt, as in glibc's malloc.h."""

KEPT = {M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 * 2**20, M_MMAP_MAX: 0}
"""Free bytes at the heap's end from which they go back to the system; bytes asked for at a time; no mapping for one
tensor alone."""


def keep_memory() -> bool:
    """Tell glibc to keep freed memory until the process ends; return whether it could be told.

    By default it gives the memory of every large activation back to the system and asks for zeroed pages for the next,
    tens of thousands a training step on the CPU. The peak grows by a few percent. Nothing happens without glibc.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(parameter, value) == 1 for parameter, value in KEPT.items())

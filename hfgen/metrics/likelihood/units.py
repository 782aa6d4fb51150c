"""Units of likelihoods, nats and bits per dimension, and pixels whose rounding to levels is undone."""

import math
from typing import Any

from torch import Tensor


def bits_per_dim(nats: Any, dim: int, bin_width: float = 1.0) -> Any:
    """Return -log2 P(x) / dim for log-likelihoods in nats (a number or a tensor) of data of `dim` dimensions.

    A density becomes the probability of a bin by `bin_width`, the distance of two levels, 2 / 255 for 8 bits in
    [-1, 1]; with `dequantised` pixels the result is an upper bound for the levels (Theis et al. 2016, section 3.1).
    """
    return -(nats / dim + math.log(bin_width)) / math.log(2)


def nats_of_bits(bits: Any, dim: int, bin_width: float = 1.0) -> Any:
    """Return the log-likelihood in nats that is `bits` per dimension: the inverse of `bits_per_dim`."""
    return -dim * (bits * math.log(2) + math.log(bin_width))


def dequantised(x: Tensor, u: Tensor, levels: int = 256) -> Tensor:
    """Return pixels at `levels` steps in [-1, 1] moved within their bins by `u`, uniform on [0, 1), shaped like x."""
    return x + (u - 0.5) * 2 / (levels - 1)

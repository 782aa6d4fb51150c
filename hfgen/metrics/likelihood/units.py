"""Units of likelihoods, nats and bits per dimension, and pixels whose rounding to levels is undone."""

import math
from typing import Any

from torch import Tensor


def bits_per_dim(nats: Any, dim: int, bin_width: float = 1.0) -> Any:
    """Return -log2 P(x) / dim, in bits per dimension, of log-likelihoods in nats (a number or a tensor).

    `dim`: number of dimensions of an item. `bin_width`: distance of two levels, 2 / 255 for 8 bits in [-1, 1], which
    turns a density into the probability of a bin. With `dequantised` pixels the result is an upper bound for the levels
    (Theis et al. 2016, section 3.1).
    """
    return -(nats / dim + math.log(bin_width)) / math.log(2)


def nats_of_bits(bits: Any, dim: int, bin_width: float = 1.0) -> Any:
    """Return the log-likelihood in nats of `bits` per dimension: the inverse of `bits_per_dim`."""
    return -dim * (bits * math.log(2) + math.log(bin_width))


def dequantised(x: Tensor, u: Tensor, levels: int = 256) -> Tensor:
    """Return pixels x at `levels` even levels in [-1, 1], moved within their bins: x + (u - 1/2) * 2 / (levels - 1).

    `u`: uniform on [0, 1), of the shape of x. Uniform dequantisation (Theis et al. 2016, section 3.1).
    """
    return x + (u - 0.5) * 2 / (levels - 1)

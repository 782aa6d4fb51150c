"""Disentanglement by mutual information of codes (N, D) and true factors (N, K), in nats.

Estimates are those of the empirical distribution (plug-in). For N pairs of a and b different values, the mutual
information is too large by about (a - 1)(b - 1) / 2N.
"""

import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor

from hfgen.errors import ConfigError

BINS = 20
"""Default number of intervals of a code dimension."""


def entropy(values: Tensor) -> float:
    """Return the entropy of integers (N,) in nats: -sum_v p(v) log p(v), at least 0; it is I(v; v)."""
    return mutual_information(values, values)


def mutual_information(a: Tensor, b: Tensor) -> float:
    """Return the mutual information of integers (N,) and (N,) in nats, at least 0: that of scikit-learn.

    Raises ConfigError for different lengths or no items.
    """
    _require_same(a, b)
    return float(mutual_info_score(a.long().cpu(), b.long().cpu()))


def discretised(codes: Tensor, bins: int = BINS) -> Tensor:
    """Return the interval of each code (N, D), an integer in [0, bins), (N, D) int64.

    `bins`: number of intervals of equal width between the smallest and the largest value of a dimension. A constant
    dimension is 0.
    """
    codes = codes.double()
    low, high = codes.min(0).values, codes.max(0).values
    width = torch.where(high > low, (high - low) / bins, 1.0)
    return ((codes - low) / width).long().clamp(max=bins - 1)


def mutual_information_gaps(codes: Tensor, factors: Tensor, bins: int = BINS) -> Tensor:
    """Return the mutual information gap of each factor, (K,) float64 in [0, 1], NaN for a constant factor.

    (I(z_1; v_k) - I(z_2; v_k)) / H(v_k); z_1 and z_2 are the two code dimensions with the most information about v_k
    (Chen et al. 2018, eq. 6). `codes` (N, D >= 2) are discretised into `bins` intervals: use samples of the posterior
    for the paper's quantity, its means for the common variant (Locatello et al. 2019). `factors` (N, K): integers.
    Raises ConfigError for other shapes and for codes that are not finite.
    """
    # check codes and factors
    _require_same(codes, factors)
    if codes.ndim != 2 or codes.shape[1] < 2 or factors.ndim != 2:
        shapes = f"{tuple(codes.shape)} and {tuple(factors.shape)}"
        raise ConfigError(f"codes must be (N, D) with D >= 2 and factors (N, K), got {shapes}")
    if not codes.isfinite().all():
        raise ConfigError("codes must be finite, found NaN or infinity")
    # compare the two best codes of each factor
    binned = discretised(codes, bins)
    gaps = []
    for v in factors.T:
        information = sorted((mutual_information(z, v) for z in binned.T), reverse=True)
        total = entropy(v)
        gaps.append((information[0] - information[1]) / total if total else float("nan"))
    return torch.tensor(gaps, dtype=torch.float64)


def mutual_information_gap(codes: Tensor, factors: Tensor, bins: int = BINS) -> float:
    """Return the mutual information gap (MIG), in [0, 1]: mean of `mutual_information_gaps` over factors that vary.

    It is 1 if each factor is determined by one code dimension of its own, and 0 if the two best dimensions have equal
    information. Raises ConfigError for shapes that do not fit, codes that are not finite, or if no factor varies.
    """
    gaps = mutual_information_gaps(codes, factors, bins)
    if gaps.isnan().all():
        raise ConfigError("no factor varies; the mutual information gap needs at least one that does")
    return float(gaps.nanmean())


def _require_same(a: Tensor, b: Tensor) -> None:
    """Raise ConfigError unless both hold the same number of items, at least one."""
    if len(a) != len(b) or not len(a):
        raise ConfigError(f"both must have the same number of items, at least one; got {len(a)} and {len(b)}")

"""Disentanglement by mutual information: codes (N, D) and true factors (N, K) in, numbers out. All in nats.

Estimates are those of the empirical distribution (plug-in): of N pairs with a and b values each, mutual information is
too large by about (a - 1)(b - 1) / 2N.
"""

import torch
from torch import Tensor

from hfgen.errors import ConfigError

BINS = 20


def entropy(values: Tensor) -> float:
    """Return the entropy of integers (N,) in nats: -sum_v p(v) log p(v)."""
    p = values.unique(return_counts=True)[1].double() / len(values)
    return float(-(p * p.log()).sum())


def mutual_information(a: Tensor, b: Tensor) -> float:
    """Return the mutual information of integers (N,) and (N,) in nats: H(a) + H(b) - H(a, b), at least 0."""
    _require_same(a, b)
    a, b = (values.unique(return_inverse=True)[1] for values in (a, b))
    return max(0.0, entropy(a) + entropy(b) - entropy(a * (int(b.max()) + 1) + b))


def discretised(codes: Tensor, bins: int = BINS) -> Tensor:
    """Return in which of `bins` equally wide intervals between its smallest and largest value each code lies, (N, D).

    Integers in [0, bins); a dimension that does not vary is 0 throughout.
    """
    codes = codes.double()
    low, high = codes.min(0).values, codes.max(0).values
    width = torch.where(high > low, (high - low) / bins, 1.0)
    return ((codes - low) / width).long().clamp(max=bins - 1)


def mutual_information_gaps(codes: Tensor, factors: Tensor, bins: int = BINS) -> Tensor:
    """Return for each factor the gap between the two codes that tell most of it, relative to its entropy, (K,) float64.

    (I(z_1; v_k) - I(z_2; v_k)) / H(v_k) with z_1, z_2 the code dimensions of largest information (Chen et al. 2018,
    eq. 6), in [0, 1]; NaN for a factor that does not vary. `codes` (N, D >= 2) are discretised into `bins` intervals:
    give the posterior's samples for the paper's quantity, or its means for the common variant (Locatello et al. 2019).
    """
    _require_same(codes, factors)
    if codes.ndim != 2 or codes.shape[1] < 2 or factors.ndim != 2:
        shapes = f"{tuple(codes.shape)} and {tuple(factors.shape)}"
        raise ConfigError(f"codes must be (N, D) with D >= 2 and factors (N, K), got {shapes}")
    if not codes.isfinite().all():
        raise ConfigError("codes must be finite, found NaN or infinity")
    binned = discretised(codes, bins)
    gaps = []
    for v in factors.T:
        known = sorted((mutual_information(z, v) for z in binned.T), reverse=True)
        uncertainty = entropy(v)
        gaps.append((known[0] - known[1]) / uncertainty if uncertainty else float("nan"))
    return torch.tensor(gaps, dtype=torch.float64)


def mutual_information_gap(codes: Tensor, factors: Tensor, bins: int = BINS) -> float:
    """Return the mutual information gap (MIG): the mean of `mutual_information_gaps` over the factors that vary.

    1 where each factor has a code dimension of its own that determines it, 0 where none tells more than another.
    Raises ConfigError for shapes that do not fit, codes that are not finite, or if no factor varies.
    """
    gaps = mutual_information_gaps(codes, factors, bins)
    if gaps.isnan().all():
        raise ConfigError("no factor varies; the mutual information gap needs at least one that does")
    return float(gaps.nanmean())


def _require_same(a: Tensor, b: Tensor) -> None:
    """Raise ConfigError unless both hold the same number of items, at least one."""
    if len(a) != len(b) or not len(a):
        raise ConfigError(f"both must have the same number of items, at least one; got {len(a)} and {len(b)}")

"""95 % intervals of precision, recall, density and coverage from disjoint halves of both samples.

The bootstrap does not apply: a sample with replacement holds copies, and copies shrink the k-NN balls (balls of fixed
radii would not vary from sample to sample as they should). Two disjoint halves hold no copies and are independent.
Half of their mean squared difference is an unbiased estimate of the variance of the statistic at half the counts, with
all nonlinear parts (the jackknife and overlapping subsamples count those several times; Efron and Stein 1981).

The design effect (Kish 1965), that variance over the binomial variance of as many independent items, is carried over to
the full counts. A share with its design effect has the score interval (Wilson 1927), which is also valid near 0 and 1.
Density, a mean of counts, has a log-normal interval. The intervals cover the mean of the statistic over new samples of
the same counts, not its limit for infinite counts.
"""

import math
from collections.abc import Iterator
from statistics import NormalDist

import torch
from torch import Tensor

from hfgen.metrics.distances import rounding, row_blocks, squared_distance_blocks
from hfgen.metrics.prdc import PRDC

HALVINGS = 100
"""Default number of random divisions into halves."""

Z = NormalDist().inv_cdf(0.975)
"""Half width of a 95 % interval in standard errors."""


def prdc_intervals(
    values: PRDC, reference: Tensor, generated: Tensor, k: int = 5, halvings: int = HALVINGS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval (low, high) of each of the `values` of (M, D) generated and (N, D) reference features.

    `halvings`: number of random divisions of both sets into halves. N and M must be >= 4. Halves of k items or
    fewer use a smaller k. Intervals of precision, recall and coverage are in [0, 1], those of the density >= 0.
    """
    # mean and variance of the statistics of halves
    halves = half_prdc(reference, generated, k, halvings, seed)
    means, variances = halves.mean((0, 2)).tolist(), ((halves[0] - halves[1]).square().mean(1) / 2).tolist()
    # interval at the full counts
    counts = PRDC(len(generated), len(reference), len(generated), len(reference))
    intervals = {}
    for name, mean, variance in zip(PRDC._fields, means, variances, strict=True):
        value, count = getattr(values, name), getattr(counts, name)
        if name == "density":
            intervals[name] = log_normal_interval(value, math.sqrt(variance / 2) / mean if mean else 0.0)
        else:
            binomial = mean * (1 - mean) / (count / 2)
            intervals[name] = wilson_interval(value, count, variance / binomial if binomial else 1.0)
    return intervals


def wilson_interval(share: float, count: int, design_effect: float = 1.0) -> tuple[float, float]:
    """Return the 95 % score interval (low, high) of a share of `count` items (Wilson 1927), in [0, 1].

    The items have the weight of `count` / `design_effect` independent items (Kish 1965, section 8.2).
    """
    c = Z**2 * design_effect / count
    middle, reach = share + c / 2, math.sqrt(share * (1 - share) * c + c**2 / 4)
    low, high = (middle - reach) / (1 + c), (middle + reach) / (1 + c)
    # keep the share inside: rounding moves an end of 0 or 1 past it
    return max(min(low, share), 0.0), min(max(high, share), 1.0)


def log_normal_interval(value: float, error: float) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of a log-normal `value` >= 0 with the relative standard error `error`."""
    return value * math.exp(-Z * error), value * math.exp(Z * error)


def half_prdc(reference: Tensor, generated: Tensor, k: int, halvings: int, seed: int = 0) -> Tensor:
    """Return precision, recall, density and coverage of halves of (M, D) generated and (N, D) reference features.

    (2, 4, S) float64 on the CPU: first and second halves, four statistics, S `halvings`.
    """
    # divide both sets
    generator = torch.Generator().manual_seed(seed)
    k = max(1, min(k, len(reference) // 2 - 1, len(generated) // 2 - 1))
    a = _Halves(reference, k, halvings, generator)
    b = _Halves(generated, k, halvings, generator)
    # count, per halving: balls that hold a sample (M, S), balls that hold an item (N, S), samples in a ball (N, S)
    in_reference = torch.zeros_like(b.limits)
    in_generated, filled = torch.zeros_like(a.limits), torch.zeros_like(a.limits)
    reference_slack, slack = rounding(reference, reference), rounding(generated, reference)[:, None]
    for rows, squared in squared_distance_blocks(generated, reference):
        # reference balls, for pairs that are near enough in at least one halving
        within = squared - slack[rows]
        for j, i, distances in _pairs(within, a.limits.amax(1), halvings):
            inside = (distances <= a.limits[i]) & (a.first[i] == b.first[j + rows.start])
            in_reference.index_add_(0, j + rows.start, inside.to(in_reference))
            filled.index_add_(0, i, inside.to(filled))
        # generated balls
        within = squared - reference_slack
        for j, i, distances in _pairs(within, b.limits[rows].amax(1, keepdim=True), halvings):
            inside = (distances <= b.limits[j + rows.start]) & (a.first[i] == b.first[j + rows.start])
            in_generated.index_add_(0, i, inside.to(in_generated))
    # average over the items of each half
    statistics = [b.mean(in_reference > 0), a.mean(in_generated > 0), b.mean(in_reference) / k, a.mean(filled > 0)]
    return torch.stack(statistics, 1).cpu()


def _pairs(within: Tensor, widest: Tensor, columns: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield rows (P,), columns (P,) and values (P, 1) of the entries of `within` that are at most `widest`, in blocks.

    A table of a block's entries and `columns` columns has bounded size.
    """
    samples, items = (within <= widest).nonzero(as_tuple=True)
    for part in row_blocks(len(samples), columns):
        j, i = samples[part], items[part]
        yield j, i, within[j, i, None]


class _Halves:
    """Random halves of (N, D) features.

    `first` (N, S) bool: True where an item is in the first half. `limits` (N, S): squared distance of an item to the
    k-th nearest other item of its own half, with its rounding error added.
    """

    def __init__(self, features: Tensor, k: int, halvings: int, generator: torch.Generator) -> None:
        # draw the halves
        n = len(features)
        order = torch.rand(halvings, n, generator=generator).argsort(1)
        self.first = (order < n // 2).T.contiguous().to(features.device)
        # find the k-th neighbour of the own half; among `most` neighbours fewer than k are with probability below 1e-8
        most = min(8 * k + 20, n - 1)
        limits = []
        for rows, squared in squared_distance_blocks(features, features):
            squared[:, rows].fill_diagonal_(float("inf"))
            near, neighbours = squared.topk(most, largest=False)
            mates = self.first[neighbours] == self.first[rows, None]                     # (b, most, S)
            passed = (mates.cumsum(1, dtype=torch.int16) < k).sum(1)
            limits.append(near.gather(1, passed.clamp(max=most - 1)))
        self.limits = torch.cat(limits) + rounding(features, features)[:, None]

    def mean(self, values: Tensor) -> Tensor:
        """Return the means of (N, S) values over the first and over the second halves, (2, S) float64."""
        halves = torch.stack([self.first, ~self.first]).double()
        return (values * halves).sum(1) / halves.sum(1)

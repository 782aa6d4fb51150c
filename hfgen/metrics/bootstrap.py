"""95 % bootstrap intervals of statistics of generated samples, and the floor: reference data at the same count.

Both reference and generated features are resampled with replacement, as multinomial counts w. Each statistic of a
resample is computed from w and from sums taken once, without copies of the features. Duplicates in a resample bias
statistics that are not linear: they add the bias of the Fréchet distance a second time. Therefore an interval is the
95 % percentile interval of (statistic of a resample - their mean + value): the bootstrap's estimate of the bias, mean -
value (Efron and Tibshirani 1993, section 10.2), is removed. It covers the mean of the statistic over new samples of
these counts, not its limit for infinite counts. Duplicates change precision, recall, density and coverage too much;
their intervals come from `hfgen.metrics.halving`.

Near the floor, where the distance is about 0, its distribution is not normal, and the bootstrap of a degenerate
statistic is not consistent (Arcones and Giné 1992): there compare `matched` with the interval of the floor.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.errors import ConfigError
from hfgen.metrics.distances import (
    check_finite,
    frechet_distances,
    polynomial_kernel,
    random_halves,
    row_blocks,
)
from hfgen.metrics.halving import HALVINGS, prdc_intervals
from hfgen.metrics.prdc import PRDC, prdc

RESAMPLES, SPLITS = 1000, 20
"""Default numbers of bootstrap resamples and of random halves for the floor."""

TAILS = (0.025, 0.975)
"""Quantiles at the ends of a 95 % interval."""


@dataclass(frozen=True)
class Estimate:
    """A statistic of generated and reference features with its 95 % interval, and its floor at `count` items per side.

    `value`, in [`low`, `high`]: the statistic of all features. `bias`: mean change by resampling, 0 for intervals that
    are not from the bootstrap. `floor`: mean of the statistic of two random halves of the reference features;
    `floor_low`, `floor_high`: their middle 95 %. `matched`: the statistic of generated features at the floor's count
    and the same halves; generated features are as good as reference features if it lies in the floor's interval.
    """

    value: float
    low: float
    high: float
    bias: float
    floor: float
    floor_low: float
    floor_high: float
    matched: float
    count: int

    @property
    def without_bias(self) -> tuple[float, float, float]:
        """Return value, low and high less the bootstrap's estimate of bias (Efron and Tibshirani 1993, eq. 10.11).

        For the Fréchet distance it is an interval of the distance of the distributions, for N and M many times D. It
        removes the bias of order 1/N; bias of higher order remains.
        """
        return self.value - self.bias, self.low - self.bias, self.high - self.bias


def percentile_interval(resampled: Tensor) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % percentiles of (R,) statistics of resamples (Efron and Tibshirani 1993, eq. 13.5)."""
    low, high = resampled.double().quantile(resampled.new_tensor(TAILS, dtype=torch.float64)).tolist()
    return low, high


def mean_interval(values: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """Return (mean, low, high) of (N,) values with the 95 % percentile bootstrap interval.

    The mean is unbiased, so the interval needs no correction. Examples: bits per dimension, paired differences.
    """
    values = values.double().cpu()
    weights = counts(len(values), resamples, torch.Generator().manual_seed(seed))
    return float(values.mean()), *percentile_interval(weights @ values / len(values))


def estimates(
    reference: Tensor, generated: Tensor, k: int = 5, resamples: int = RESAMPLES, splits: int = SPLITS, seed: int = 0
) -> dict[str, Estimate]:
    """Return `frechet`, `kid`, `precision`, `recall`, `density` and `coverage` of (N, D) and (M, D) features.

    Precision, recall and coverage are in [0, 1], `frechet` and `density` >= 0; `kid` can be negative.
    Raises ConfigError for fewer than 4 items, DataError for features that are not finite.
    """
    distances = {
        "frechet": frechet_estimate(reference, generated, resamples, splits, seed),
        "kid": kid_estimate(reference, generated, resamples, splits, seed),
    }
    return distances | prdc_estimates(reference, generated, k, min(resamples, HALVINGS), splits, seed)


def frechet_estimate(
    reference: Tensor, generated: Tensor, resamples: int = RESAMPLES, splits: int = SPLITS, seed: int = 0
) -> Estimate:
    """Return the Fréchet distance of (M, D) generated to (N, D) reference features with its interval and its floor.

    Value, interval and floor are >= 0. The bias is about 1/N + 1/M upwards (`bias` estimates it, `without_bias` removes
    it). The cost is `resamples` + 2 `splits` covariances and roots of D x D matrices: use 200 resamples for D >= 768.
    """
    # centre the features
    plan = _Plan(reference, generated, resamples, splits, seed)
    centre = plan.reference.mean(0)
    reference, generated = plan.reference - centre, plan.generated - centre
    # distances to generated features
    values = []
    for u, v in plan.against_generated(reference.shape[1] * max(len(reference), len(generated), reference.shape[1])):
        values.append(frechet_distances(*_weighted_moments(reference, u), *_weighted_moments(generated, v)))
    # distances of reference halves
    floors = []
    for u, v in plan.halves(reference.shape[1] * max(reference.shape)):
        floors.append(frechet_distances(*_weighted_moments(reference, u), *_weighted_moments(reference, v)))
    return plan.estimate(torch.cat(values), torch.cat(floors), lowest=0.0)


def kid_estimate(
    reference: Tensor, generated: Tensor, resamples: int = RESAMPLES, splits: int = SPLITS, seed: int = 0
) -> Estimate:
    """Return the kernel distance of (M, D) generated to (N, D) reference features with its interval and its floor.

    The distance is unbiased, so floor and bias are about 0, and values < 0 are possible. Pairs of an item and its own
    copy in a resample are left out, because they would bias it upwards. Memory: (`resamples` + `splits`) (N + M)
    numbers. Time grows with N^2, N M and M^2.
    """
    # weights of all items in one block
    plan = _Plan(reference, generated, resamples, splits, seed)
    [(u, v)] = plan.against_generated(0)
    [(a, b)] = plan.halves(0)
    # mean kernels
    within = _mean_kernels(plan.reference, plan.reference, torch.cat([u, a, b, a]), torch.cat([u, a, b, b]))
    of_u, of_a, of_b, between = within.split([len(u), len(a), len(b), len(a)])
    of_v = _mean_kernels(plan.generated, plan.generated, v, v)
    across = _mean_kernels(plan.reference, plan.generated, u, v)
    return plan.estimate(of_u + of_v - 2 * across, of_a + of_b - 2 * between)


def prdc_estimates(
    reference: Tensor, generated: Tensor, k: int = 5, halvings: int = HALVINGS, splits: int = SPLITS, seed: int = 0
) -> dict[str, Estimate]:
    """Return precision, recall, density and coverage of (M, D) generated to (N, D) reference features, with intervals.

    All are in [0, 1] except the density, which is >= 0. `hfgen.metrics.prdc.prdc` defines the numbers and their bias,
    `hfgen.metrics.halving` the intervals from `halvings` divisions of both sets.
    """
    # values and intervals of all features
    plan = _Plan(reference, generated, 0, splits, seed)
    values = prdc(plan.reference, plan.generated, k)
    intervals = prdc_intervals(values, plan.reference, plan.generated, k, halvings, seed)
    # values of halves, (S, 4) float64
    floors, matched = [], []
    for (a, b), c in zip(plan.pairs, plan.subsets, strict=True):
        floors.append(prdc(plan.reference[a], plan.reference[b], k))
        matched.append(prdc(plan.reference[a], plan.generated[c], k))
    floor_table, matched_table = torch.tensor(floors).double(), torch.tensor(matched).double()
    # one estimate per number
    estimates = {}
    for number, name in enumerate(PRDC._fields):
        low, high = intervals[name]
        floor = plan.floor_fields(floor_table[:, number], matched_table[:, number])
        estimates[name] = Estimate(values[number], low, high, 0.0, *floor)
    return estimates


def counts(n: int, resamples: int, generator: torch.Generator) -> Tensor:
    """Return the counts of n items in each of `resamples` samples of n with replacement, (R, n) float64 in [0, n]."""
    drawn = torch.randint(n, (resamples, n), generator=generator)
    return torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


class _Plan:
    """Resamples, halves and subsets of reference and generated features, equal for all statistics with one seed."""

    def __init__(self, reference: Tensor, generated: Tensor, resamples: int, splits: int, seed: int) -> None:
        for name, features in (("reference", reference), ("generated", generated)):
            if features.ndim != 2 or len(features) < 4:
                raise ConfigError(f"{name} features must be (N, D) with N >= 4, got {tuple(features.shape)}")
        check_finite(reference=reference, generated=generated)
        # divide the reference features and choose as many generated ones
        self.reference, self.generated = reference.double(), generated.double()
        self.count = min(len(reference) // 2, len(generated))
        generator = torch.Generator().manual_seed(seed)
        halves = random_halves(len(reference), splits, seed)
        self.pairs = [(a[: self.count], b[: self.count]) for a, b in halves]
        self.subsets = [torch.randperm(len(generated), generator=generator)[: self.count] for _ in range(splits)]
        # draw the resamples
        self.weights = counts(len(reference), resamples, generator), counts(len(generated), resamples, generator)

    def against_generated(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the weights of reference and generated items: all, then resamples, then first halves and subsets.

        `size`: numbers in memory per row of weights, which bounds the rows of a block; 0 for one block.
        """
        # rows of weights: all items, resamples, halves
        firsts = [a for a, _ in self.pairs]
        n, m = len(self.reference), len(self.generated)
        u = torch.cat([torch.ones(1, n), self.weights[0], _ones_at(firsts, n)])
        v = torch.cat([torch.ones(1, m), self.weights[1], _ones_at(self.subsets, m)])
        return self._in_blocks(u, v, size)

    def halves(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the weights of the reference items in the first and in the second halves."""
        firsts, seconds = zip(*self.pairs, strict=True)
        return self._in_blocks(_ones_at(firsts, len(self.reference)), _ones_at(seconds, len(self.reference)), size)

    def _in_blocks(self, u: Tensor, v: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.reference.device
        for rows in row_blocks(len(u), size):
            yield u[rows].to(device, torch.float64), v[rows].to(device, torch.float64)

    def estimate(self, values: Tensor, floors: Tensor, lowest: float = -float("inf")) -> Estimate:
        """Return the estimate from the statistic of (all, resamples, halves), (1 + R + S,), and of halves, (S,)."""
        # divide the rows into all items, resamples and halves
        values, floors = values.double().cpu(), floors.double().cpu()
        matched = values[1 + len(self.weights[0]) :]
        value, resampled = float(values[0]), values[1 : 1 + len(self.weights[0])]
        # subtract the bootstrap's estimate of the bias
        bias = float(resampled.mean()) - value
        low, high = (max(edge - bias, lowest) for edge in percentile_interval(resampled))
        return Estimate(value, low, high, bias, *self.floor_fields(floors, matched))

    def floor_fields(self, floors: Tensor, matched: Tensor) -> tuple[float, float, float, float, int]:
        """Return the last five fields of an estimate, from the statistic of halves and of halves and subsets."""
        return float(floors.mean()), *percentile_interval(floors), float(matched.mean()), self.count


def _ones_at(indices: list[Tensor] | tuple[Tensor, ...], n: int) -> Tensor:
    """Return (S, n): row s is 1 for the items in the set of indices s, else 0."""
    return torch.stack([torch.zeros(n).index_fill_(0, chosen, 1.0) for chosen in indices])


def _weighted_moments(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return means (R, D) and unbiased covariances (R, D, D) of (N, D) features with counts `weights` (R, N)."""
    total = weights.sum(1, keepdim=True)
    mean = weights @ features / total
    second = (weights[:, None, :] * features.T) @ features                              # (R, D, D)
    return mean, (second - total[..., None] * mean[:, :, None] * mean[:, None, :]) / (total[..., None] - 1)


def _mean_kernels(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return the mean kernel of pairs, sum_ij u_i v_j k(x_i, y_j) / sum_ij u_i v_j, for each row of u and v, (R,).

    If `x` is `y`, the sums are over pairs with i != j.
    """
    sums, pairs = x.new_zeros(len(u)), u.sum(1) * v.sum(1)
    if x is y:
        pairs = pairs - (u * v).sum(1)
    for rows in row_blocks(len(x), len(y)):
        block = polynomial_kernel(x[rows], y)
        if x is y:
            block[:, rows].fill_diagonal_(0)
        sums += ((u[:, rows] @ block) * v).sum(1)
    return sums / pairs

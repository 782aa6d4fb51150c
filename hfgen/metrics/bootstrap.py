"""How sure a number about generated samples is: 95 % bootstrap intervals, and what real data score at the same count.

Real and generated features are both drawn again with replacement, as multinomial counts w; every statistic is then
computed from w and sums taken once, never from copies of the features. Duplicates in a resample bias the statistics
that are not linear: the Fréchet distance upwards (its own bias once more). Each interval is therefore the 95 %
percentile interval of (statistic of a resample - mean of them + value): the bootstrap's estimate of bias, mean - value
(Efron and Tibshirani 1993, section 10.2), is taken out. It covers what the statistic would be on average over new
samples of these counts, not its limit for infinitely many. Precision, recall, density and coverage, which duplicates
change beyond repair, have their intervals from `hfgen.metrics.halving`.

Near the floor, where the distance is about 0, its distribution is not normal and the bootstrap of a degenerate
statistic is not consistent (Arcones and Giné 1992): there `matched` against the floor's interval decides.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.errors import ConfigError, DataError
from hfgen.metrics.distances import (
    frechet_distances,
    polynomial_kernel,
    random_halves,
    row_blocks,
)
from hfgen.metrics.halving import HALVINGS, prdc_intervals
from hfgen.metrics.prdc import PRDC, prdc

RESAMPLES, SPLITS = 1000, 20
TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A statistic of real against generated features with its 95 % interval, and its floor at `count` items a side.

    `value`, in [`low`, `high`]: on all features. `bias`: what resampling adds on average, 0 where the interval is no
    bootstrap's. `floor`: mean over random halves of the real features of one half against the other; `floor_low`,
    `floor_high`: the middle 95 % of them. `matched`: the generated features at the floor's count, against the same
    halves; as good as real is a `matched` within the floor's interval.
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

        Of the Fréchet distance: an interval for the distance of the distributions themselves. Meant for N, M many times
        D; the bias of order 1/N goes, what is left is of higher order.
        """
        return self.value - self.bias, self.low - self.bias, self.high - self.bias


def percentile_interval(resampled: Tensor) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % percentiles of (R,) statistics of resamples (Efron and Tibshirani 1993, eq. 13.5)."""
    low, high = resampled.double().quantile(resampled.new_tensor(TAILS, dtype=torch.float64)).tolist()
    return low, high


def mean_interval(values: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean of (N,) values and its 95 % percentile bootstrap interval; unbiased, so there is no correction.

    Such as the bits per dimension of held-out images, or paired differences.
    """
    values = values.double().cpu()
    weights = counts(len(values), resamples, torch.Generator().manual_seed(seed))
    return float(values.mean()), *percentile_interval(weights @ values / len(values))


def estimates(
    real: Tensor, generated: Tensor, k: int = 5, resamples: int = RESAMPLES, splits: int = SPLITS, seed: int = 0
) -> dict[str, Estimate]:
    """Return `frechet`, `kid`, `precision`, `recall`, `density` and `coverage` of (M, D) against (N, D) features."""
    found = {
        "frechet": frechet_estimate(real, generated, resamples, splits, seed),
        "kid": kid_estimate(real, generated, resamples, splits, seed),
    }
    return found | prdc_estimates(real, generated, k, min(resamples, HALVINGS), splits, seed)


def frechet_estimate(
    real: Tensor, generated: Tensor, resamples: int = RESAMPLES, splits: int = SPLITS, seed: int = 0
) -> Estimate:
    """Return the Fréchet distance of (M, D) generated to (N, D) real features with its interval and its floor.

    Biased upwards by about 1/N + 1/M (`bias` estimates by how much, `without_bias` takes it off). Costs
    `resamples` + 2 `splits` covariances of both and roots of D x D matrices: for D >= 768 ask for 200 resamples.
    """
    plan = _Plan(real, generated, resamples, splits, seed)
    centre = plan.real.mean(0)
    real, generated = plan.real - centre, plan.generated - centre
    values = torch.cat([
        frechet_distances(*_weighted_moments(real, u), *_weighted_moments(generated, v))
        for u, v in plan.against_generated(real.shape[1] * max(len(real), len(generated), real.shape[1]))
    ])  # fmt: skip
    floors = torch.cat([
        frechet_distances(*_weighted_moments(real, u), *_weighted_moments(real, v))
        for u, v in plan.halves(real.shape[1] * max(real.shape))
    ])  # fmt: skip
    return plan.estimate(values, floors, lowest=0.0)


def kid_estimate(
    real: Tensor, generated: Tensor, resamples: int = RESAMPLES, splits: int = SPLITS, seed: int = 0
) -> Estimate:
    """Return the kernel distance of (M, D) generated to (N, D) real features with its interval and its floor.

    Unbiased, so floor and bias are about 0. In a resample, pairs of one item with its own copy are left out, or they
    would bias it upwards. Memory: (`resamples` + `splits`) (N + M) numbers; time grows with N^2, N M and M^2.
    """
    plan = _Plan(real, generated, resamples, splits, seed)
    [(u, v)] = plan.against_generated(0)
    [(a, b)] = plan.halves(0)
    within = _mean_kernels(plan.real, plan.real, torch.cat([u, a, b, a]), torch.cat([u, a, b, b]))
    of_u, of_a, of_b, between = within.split([len(u), len(a), len(b), len(a)])
    of_v = _mean_kernels(plan.generated, plan.generated, v, v)
    across = _mean_kernels(plan.real, plan.generated, u, v)
    return plan.estimate(of_u + of_v - 2 * across, of_a + of_b - 2 * between)


def prdc_estimates(
    real: Tensor, generated: Tensor, k: int = 5, halvings: int = HALVINGS, splits: int = SPLITS, seed: int = 0
) -> dict[str, Estimate]:
    """Return precision, recall, density and coverage of (M, D) against (N, D) features with intervals and floors.

    What they mean and how they are biased is said at `hfgen.metrics.prdc.prdc`, how sure they are at
    `hfgen.metrics.halving`, which takes `halvings` divisions of both samples.
    """
    plan = _Plan(real, generated, 0, splits, seed)
    values = prdc(plan.real, plan.generated, k)
    intervals = prdc_intervals(values, plan.real, plan.generated, k, halvings, seed)
    floors = [prdc(plan.real[a], plan.real[b], k) for a, b in plan.pairs]
    matched = [prdc(plan.real[a], plan.generated[c], k) for (a, _), c in zip(plan.pairs, plan.subsets, strict=True)]
    found = {}
    for name in PRDC._fields:
        floor, same = (torch.tensor([getattr(one, name) for one in some]).double() for some in (floors, matched))
        low, high = intervals[name]
        found[name] = Estimate(getattr(values, name), low, high, 0.0, *plan.beside(floor, same))
    return found


def counts(n: int, resamples: int, generator: torch.Generator) -> Tensor:
    """Return how often each of n items is in each of `resamples` samples of n with replacement, (R, n) float64."""
    drawn = torch.randint(n, (resamples, n), generator=generator)
    return torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


class _Plan:
    """Which items are in which resample, in which half and in which subset, the same for every statistic of a seed."""

    def __init__(self, real: Tensor, generated: Tensor, resamples: int, splits: int, seed: int) -> None:
        for name, features in (("real", real), ("generated", generated)):
            if features.ndim != 2 or len(features) < 4:
                raise ConfigError(f"{name} features must be (N, D) with N >= 4, got {tuple(features.shape)}")
            if not features.isfinite().all():
                bad = int((~features.isfinite()).any(1).sum())
                raise DataError(f"{bad} of {len(features)} {name} feature vectors are not finite")
        self.real, self.generated = real.double(), generated.double()
        self.count = min(len(real) // 2, len(generated))
        generator = torch.Generator().manual_seed(seed)
        halves = random_halves(len(real), splits, seed)
        self.pairs = [(a[: self.count], b[: self.count]) for a, b in halves]
        self.subsets = [torch.randperm(len(generated), generator=generator)[: self.count] for _ in range(splits)]
        self.weights = counts(len(real), resamples, generator), counts(len(generated), resamples, generator)

    def against_generated(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the weights of real and generated items: of all, then of the resamples, then of halves and subsets.

        At most as many at once as fit in a block of `ELEMENTS` when each takes `size` numbers; 0: all at once.
        """
        firsts = [a for a, _ in self.pairs]
        n, m = len(self.real), len(self.generated)
        u = torch.cat([torch.ones(1, n), self.weights[0], _ones_at(firsts, n)])
        v = torch.cat([torch.ones(1, m), self.weights[1], _ones_at(self.subsets, m)])
        return self._in_blocks(u, v, size)

    def halves(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the weights of the real items in the first and in the second halves."""
        firsts, seconds = zip(*self.pairs, strict=True)
        return self._in_blocks(_ones_at(firsts, len(self.real)), _ones_at(seconds, len(self.real)), size)

    def _in_blocks(self, u: Tensor, v: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.real.device
        for rows in row_blocks(len(u), size):
            yield u[rows].to(device, torch.float64), v[rows].to(device, torch.float64)

    def estimate(self, values: Tensor, floors: Tensor, lowest: float = -float("inf")) -> Estimate:
        """Return the estimate from a statistic of (everything, resamples, halves) and of the real halves."""
        values, floors = values.double().cpu(), floors.double().cpu()
        matched = values[1 + len(self.weights[0]) :]
        value, resampled = float(values[0]), values[1 : 1 + len(self.weights[0])]
        bias = float(resampled.mean()) - value
        low, high = (max(edge - bias, lowest) for edge in percentile_interval(resampled))
        return Estimate(value, low, high, bias, *self.beside(floors, matched))

    def beside(self, floors: Tensor, matched: Tensor) -> tuple[float, float, float, float, int]:
        """Return the last fields of an estimate, from a statistic of the real halves and of halves and subsets."""
        return float(floors.mean()), *percentile_interval(floors), float(matched.mean()), self.count


def _ones_at(indices: list[Tensor] | tuple[Tensor, ...], n: int) -> Tensor:
    """Return a row for each set of indices: 1 where an item is in it, else 0, (S, n)."""
    return torch.stack([torch.zeros(n).index_fill_(0, chosen, 1.0) for chosen in indices])


def _weighted_moments(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return means (R, D) and unbiased covariances (R, D, D) of (N, D) features counted `weights` (R, N) times each."""
    total = weights.sum(1, keepdim=True)
    mean = weights @ features / total
    second = (weights[:, None, :] * features.T) @ features                              # (R, D, D)
    return mean, (second - total[..., None] * mean[:, :, None] * mean[:, None, :]) / (total[..., None] - 1)


def _mean_kernels(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return the mean kernel of pairs, sum_ij u_i v_j k(x_i, y_j) / sum_ij u_i v_j, for each row of u and v, (R,).

    Where `x` is `y`, over the pairs i != j.
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

"""How sure precision, recall, density and coverage are: 95 % intervals from disjoint halves of both samples.

A sample drawn with replacement holds copies, which the k-NN balls of a fixed k do not survive: either copies shrink the
balls, or balls keep radii that would vary from sample to sample. Two disjoint halves hold none and are independent:
half their mean squared difference is, without bias, the variance of the statistic at half the counts, every nonlinear
part included (the jackknife, and subsamples that overlap, count such parts several times; Efron and Stein 1981).

What is carried over to the full counts is the design effect (Kish 1965): that variance over the binomial one of as many
independent items. A share with its design effect has the score interval (Wilson 1927), which holds near 0 and 1 too;
density, a mean of counts, has a log-normal one. All cover what the statistic is on average over new samples of the same
counts, not its limit for infinitely many.
"""

import math
from statistics import NormalDist

import torch
from torch import Tensor

from hfgen.metrics.distances import rounding, row_blocks, squared_distance_blocks
from hfgen.metrics.prdc import PRDC

HALVINGS = 100
Z = NormalDist().inv_cdf(0.975)


def prdc_intervals(
    values: PRDC, real: Tensor, generated: Tensor, k: int = 5, halvings: int = HALVINGS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval (low, high) of each of the `values` of (M, D) generated against (N, D) real features.

    `halvings`: random divisions of both into halves. N, M >= 4; in halves of k items or fewer, balls have smaller k.
    """
    halves = half_prdc(real, generated, k, halvings, seed)
    means, variances = halves.mean((0, 2)).tolist(), ((halves[0] - halves[1]).square().mean(1) / 2).tolist()
    counts = PRDC(len(generated), len(real), len(generated), len(real))
    found = {}
    for name, mean, variance in zip(PRDC._fields, means, variances, strict=True):
        value, count = getattr(values, name), getattr(counts, name)
        if name == "density":
            found[name] = log_normal_interval(value, math.sqrt(variance / 2) / mean if mean else 0.0)
        else:
            binomial = mean * (1 - mean) / (count / 2)
            found[name] = wilson_interval(value, count, variance / binomial if binomial else 1.0)
    return found


def wilson_interval(share: float, count: int, design_effect: float = 1.0) -> tuple[float, float]:
    """Return the 95 % score interval of a share of `count` items (Wilson 1927), in [0, 1].

    The items count as `count` / `design_effect` independent ones (Kish 1965, section 8.2).
    """
    c = Z**2 * design_effect / count
    middle, reach = share + c / 2, math.sqrt(share * (1 - share) * c + c**2 / 4)
    # rounding moves an end of 0 or 1 past the share
    return max(min((middle - reach) / (1 + c), share), 0.0), min(max((middle + reach) / (1 + c), share), 1.0)


def log_normal_interval(value: float, error: float) -> tuple[float, float]:
    """Return the 95 % interval of a `value` >= 0 whose logarithm is normal; `error`: its relative standard error."""
    return value * math.exp(-Z * error), value * math.exp(Z * error)


def half_prdc(real: Tensor, generated: Tensor, k: int, halvings: int, seed: int = 0) -> Tensor:
    """Return precision, recall, density and coverage of half the generated against half the real features.

    (2, 4, S) float64, on the CPU: of the first halves and of the others, for each of S `halvings`.
    """
    generator = torch.Generator().manual_seed(seed)
    k = max(1, min(k, len(real) // 2 - 1, len(generated) // 2 - 1))
    sides = [_Halves(features, k, halvings, generator) for features in (real, generated)]
    a, b = sides
    in_real, in_generated = torch.zeros_like(b.limits), torch.zeros_like(a.limits)       # balls that an item lies in
    filled = torch.zeros_like(a.limits)                                                  # samples in a real ball
    real_slack, slack = rounding(real, real), rounding(generated, real)[:, None]
    for rows, squared in squared_distance_blocks(generated, real):
        for within, of_real in ((squared - slack[rows], True), (squared - real_slack, False)):
            # only pairs that are near in some halving
            widest = a.limits.amax(1) if of_real else b.limits[rows].amax(1, keepdim=True)
            samples, items = (within <= widest).nonzero(as_tuple=True)
            for part in row_blocks(len(samples), halvings):
                j, i = samples[part] + rows.start, items[part]
                inside = within[samples[part], i, None] <= (a.limits[i] if of_real else b.limits[j])
                inside = (inside & (a.first[i] == b.first[j])).to(in_real)
                if of_real:
                    in_real.index_add_(0, j, inside)
                    filled.index_add_(0, i, inside)
                else:
                    in_generated.index_add_(0, i, inside)
    found = [b.mean(in_real > 0), a.mean(in_generated > 0), b.mean(in_real) / k, a.mean(filled > 0)]
    return torch.stack(found, 1).cpu()


class _Halves:
    """Random halves of (N, D) features: `first` (N, S) says which items are in the first of each halving, `limits`
    (N, S) how far an item's k-th nearest other one of its own half is, squared, rounding included."""

    def __init__(self, features: Tensor, k: int, halvings: int, generator: torch.Generator) -> None:
        n = len(features)
        order = torch.rand(halvings, n, generator=generator).argsort(1)
        self.first = (order < n // 2).T.contiguous().to(features.device)
        most = min(8 * k + 20, n - 1)                       # fewer than k of so many are of one half: chance below 1e-8
        limits = []
        for rows, squared in squared_distance_blocks(features, features):
            squared[:, rows].fill_diagonal_(float("inf"))
            near, which = squared.topk(most, largest=False)
            mates = self.first[which] == self.first[rows, None]                          # (b, most, S)
            passed = (mates.cumsum(1, dtype=torch.int16) < k).sum(1)
            limits.append(near.gather(1, passed.clamp(max=most - 1)))
        self.limits = torch.cat(limits) + rounding(features, features)[:, None]

    def mean(self, values: Tensor) -> Tensor:
        """Return the means of (N, S) values over the first halves and over the others, (2, S) float64."""
        halves = torch.stack([self.first, ~self.first]).double()
        return (values * halves).sum(1) / halves.sum(1)

"""Whether generated samples are copies of training data: (N, D) features in, numbers out, a block at a time.

Distances are Euclidean between features, pixels or an extractor's. A model that has learned the distribution is as near
to its training data as to real data that it has never seen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.metrics.bootstrap import RESAMPLES, counts, percentile_interval
from hfgen.metrics.distances import nearest, nearest_distances

COPY_QUANTILE = 0.01


@dataclass(frozen=True)
class Memorisation:
    """The result of `memorisation`. `distances`, `indices` (M,): to the nearest training item, and which that is.

    `ratio`, with its 95 % interval `ratio_low`, `ratio_high`: mean distance to the training data over mean distance to
    held-out data, at equal counts; 1 without memorisation, less for copies: 0 where there are at most as many training
    as held-out items, above that where there are more, since of the sets that are averaged one alone has the original;
    None without held-out data. `threshold`: the distance below which a sample is a near-copy; `near_copies`: the share
    of samples that are; `expected`: the share of held-out data that are, by the choice of the threshold. `pairs`: the
    closest (sample, training item, distance), the closest first.
    """

    distances: Tensor
    indices: Tensor
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    threshold: float
    near_copies: float
    expected: float
    pairs: list[tuple[int, int, float]]


def memorisation(
    generated: Tensor,
    train: Tensor,
    held_out: Tensor | None = None,
    pairs: int = 16,
    quantile: float = COPY_QUANTILE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Memorisation:
    """Return how near (M, D) generated features are to (N, D) training and (H, D) held-out features.

    A near-copy lies nearer to its nearest training item than all but the share `quantile` of held-out items lie to
    theirs; without held-out data, of training items to their nearest other one. The ratio compares n = min(N, H) items
    of each, averaged over the whole disjoint sets of n that a seeded order divides the larger into, for the nearest of
    more items is nearer. Its interval is the 95 % percentile bootstrap over generated samples, the real data fixed.

    Bias: samples that are worse than real data are far from both sets, which hides copies in the mean (the ratio tends
    to 1) but not in the share; samples with less detail than real data lie nearer to everything, so that the share is
    too high without a copy: look at the pairs.
    """
    distances, indices = nearest(generated, train)
    itself = held_out is None
    usual = nearest_distances(train if held_out is None else held_out, train, exclude_self=itself)
    threshold = float(usual.quantile(quantile, interpolation="lower"))
    ratio, low, high = None, None, None
    if held_out is not None:
        n = min(len(train), len(held_out))
        ratio, low, high = _ratio(_mean_nearest(generated, train, n, seed), _mean_nearest(generated, held_out, n, seed),
                                  resamples, seed)  # fmt: skip
    closest = distances.argsort(stable=True)[:pairs].tolist()
    return Memorisation(
        distances, indices, ratio, low, high, threshold, float((distances < threshold).double().mean()), quantile,
        [(i, int(indices[i]), float(distances[i])) for i in closest],
    )  # fmt: skip


def _mean_nearest(queries: Tensor, references: Tensor, n: int, seed: int) -> Tensor:
    """Return the distance of each query to its nearest of n references, averaged over disjoint sets of n, (M,)."""
    order = torch.randperm(len(references), generator=torch.Generator().manual_seed(seed)).to(references.device)
    sets = [order[start : start + n] for start in range(0, len(order) - n + 1, n)]
    return torch.stack([nearest_distances(queries, references[chosen]) for chosen in sets]).mean(0)


def _ratio(to_train: Tensor, to_held_out: Tensor, resamples: int, seed: int) -> tuple[float, float, float]:
    """Return the ratio of the means of (M,) distances and its 95 % percentile bootstrap interval."""
    weights = counts(len(to_train), resamples, torch.Generator().manual_seed(seed)).to(to_train.device)
    ratio = float(to_train.mean() / to_held_out.mean())
    return ratio, *percentile_interval((weights @ to_train) / (weights @ to_held_out))

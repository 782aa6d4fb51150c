"""Memorisation: distances of generated features (M, D) to training features (N, D), computed a block at a time.

Distances are Euclidean, between pixels or an extractor's features. Samples of a model that has learned the distribution
are as near to its training data as to held-out data.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.metrics.bootstrap import RESAMPLES, counts, percentile_interval
from hfgen.metrics.distances import nearest, nearest_distances

COPY_QUANTILE = 0.01


@dataclass(frozen=True)
class Memorisation:
    """The result of `memorisation`. `distances` and `indices` (M,): distance and index of the nearest training item.

    `ratio`, with its 95 % interval `ratio_low`, `ratio_high`: mean distance to the training data over mean distance to
    held-out data, at equal counts. It is 1 without memorisation and less for copies. Exact copies give 0 if there are
    at most as many training as held-out items; otherwise more, because only one of the averaged training sets holds the
    original. None without held-out data.
    `threshold`: distance below which a sample is a near-copy. `near_copies`: share of samples below the threshold.
    `expected`: share of held-out data below the threshold, by its choice. `pairs`: the closest (sample, training item,
    distance), in ascending order of distance.
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
    """Return the distances of (M, D) generated features to (N, D) training and (H, D) held-out features.

    The threshold of near-copies is the quantile `quantile` of the distances of held-out items to their nearest training
    item; without held-out data, of training items to their nearest other training item.
    The ratio compares n = min(N, H) items of each set, because the nearest of more items is nearer: the larger set is
    divided, in a seeded order, into disjoint sets of n, and their distances are averaged. Its interval is the 95 %
    percentile bootstrap over generated samples with the other sets fixed. Distances are Euclidean, >= 0; shares and
    `quantile` are in [0, 1].

    Bias: samples worse than reference data are far from both sets. This hides copies in the ratio, which tends to 1,
    but not in the share. Samples with less detail than reference data are nearer to all images, so the share is too
    high without copies: look at the pairs. Raises ConfigError for empty sets.
    """
    # distances to the training data, and the threshold of near-copies
    distances, indices = nearest(generated, train)
    if held_out is None:
        usual = nearest_distances(train, train, exclude_self=True)
    else:
        usual = nearest_distances(held_out, train)
    threshold = float(usual.quantile(quantile, interpolation="lower"))
    near_copies = float((distances < threshold).double().mean())
    # ratio to the distances to held-out data, at equal counts
    ratio, low, high = None, None, None
    if held_out is not None:
        n = min(len(train), len(held_out))
        to_train = _mean_nearest(generated, train, n, seed)
        to_held_out = _mean_nearest(generated, held_out, n, seed)
        ratio, low, high = _ratio(to_train, to_held_out, resamples, seed)
    # closest pairs
    order = distances.argsort(stable=True)[:pairs].tolist()
    closest = [(i, int(indices[i]), float(distances[i])) for i in order]
    return Memorisation(distances, indices, ratio, low, high, threshold, near_copies, quantile, closest)


def _mean_nearest(queries: Tensor, references: Tensor, n: int, seed: int) -> Tensor:
    """Return the distance of each query to its nearest reference, averaged over disjoint sets of n references, (M,)."""
    order = torch.randperm(len(references), generator=torch.Generator().manual_seed(seed)).to(references.device)
    sets = [order[start : start + n] for start in range(0, len(order) - n + 1, n)]
    return torch.stack([nearest_distances(queries, references[chosen]) for chosen in sets]).mean(0)


def _ratio(to_train: Tensor, to_held_out: Tensor, resamples: int, seed: int) -> tuple[float, float, float]:
    """Return the ratio of the means of (M,) distances and its 95 % percentile bootstrap interval."""
    weights = counts(len(to_train), resamples, torch.Generator().manual_seed(seed)).to(to_train.device)
    ratio = float(to_train.mean() / to_held_out.mean())
    return ratio, *percentile_interval((weights @ to_train) / (weights @ to_held_out))

"""Fidelity and diversity of generated samples as separate numbers, by nearest neighbours of (N, D) features.

The ball of an item reaches to its k-th nearest other item. All four numbers depend on the sample counts and on k (none
estimates a quantity of the distributions alone): compare only at equal counts, and with the values of reference data.
An item whose distance equals the radius, up to rounding, lies inside.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hfgen.errors import ConfigError
from hfgen.metrics.distances import rounding, squared_distance_blocks


class PRDC(NamedTuple):
    """Precision, recall and coverage in [0, 1]; density >= 0, about 1 for reference data."""

    precision: float
    recall: float
    density: float
    coverage: float


def knn_radii(features: Tensor, k: int) -> Tensor:
    """Return the distance of each of (N, D) features to its k-th nearest other item, (N,) float64 >= 0.

    Raises ConfigError unless 1 <= k < N, DataError unless all are finite.
    """
    if not 1 <= k < len(features):
        raise ConfigError(f"k must be in [1, {len(features) - 1}] for {len(features)} items, got {k}")
    radii = []
    for rows, squared in squared_distance_blocks(features, features):
        squared[:, rows].fill_diagonal_(0)
        radii.append(squared.kthvalue(k + 1, dim=1).values.sqrt())
    return torch.cat(radii)


def precision(reference: Tensor, generated: Tensor, k: int = 5) -> float:
    """Return the share of (M, D) generated features inside the manifold of (N, D) reference features, in [0, 1].

    A sample is inside if it lies in the k-NN ball of at least one reference item (Kynkäänniemi et al. 2019, eq. 2).
    Raises ConfigError unless 1 <= k < N, DataError unless all are finite.
    """
    limits, slack = _limits(reference, k, reference), rounding(generated, reference)[:, None]
    blocks = squared_distance_blocks(generated, reference)
    return float(torch.cat([(squared - slack[rows] <= limits).any(1) for rows, squared in blocks]).double().mean())


def prdc(reference: Tensor, generated: Tensor, k: int = 5) -> PRDC:
    """Return precision, recall, density and coverage of (M, D) generated against (N, D) reference features.

    Precision: share of generated samples in at least one reference ball. Recall: share of reference items in at least
    one generated ball (Kynkäänniemi et al. 2019, eqs. 2, 3). Density: mean number of reference balls that hold a
    generated sample, over k. Coverage: share of reference balls that hold at least one generated sample (Naeem et al.
    2020, eqs. 3, 4). All are in [0, 1] except the density, which is >= 0.

    Bias: more samples shrink the balls, so precision and recall of imperfect models fall with N and M. The ball of an
    outlier is large, so outliers make both too high (density and coverage less so). For two samples of one
    distribution with N = M large, density is 1 and coverage 1 - 2^-k on average. Raises ConfigError unless k < N, M,
    DataError unless all are finite.
    """
    hits, insiders = 0, 0
    covered = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    recalled = torch.zeros_like(covered)
    # count a block of generated samples at a time
    for _, in_reference, in_generated in Neighbours(reference, generated, k):
        insiders += int(in_reference.any(1).sum())
        hits += int(in_reference.sum())
        covered |= in_reference.any(0)
        recalled |= in_generated.any(0)
    # divide by the numbers of items
    n, m = len(reference), len(generated)
    return PRDC(insiders / m, int(recalled.sum()) / n, hits / (k * m), int(covered.sum()) / n)


class Neighbours:
    """Iterable over blocks of generated samples: (rows, in_reference (b, N), in_generated (b, N)), the tables bool.

    `rows` is the slice of generated samples. in_reference[j, i]: sample j lies in the ball of reference item i.
    in_generated[j, i]: item i lies in the ball of sample j.
    """

    def __init__(self, reference: Tensor, generated: Tensor, k: int = 5) -> None:
        self.reference, self.generated, self.k = reference, generated, k
        self._limits = _limits(reference, k, reference), _limits(generated, k, reference)[:, None]
        self._slack = rounding(reference, reference), rounding(generated, reference)[:, None]

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield the rows and the two tables of each block."""
        reference, generated = self._limits
        reference_slack, generated_slack = self._slack
        for rows, squared in squared_distance_blocks(self.generated, self.reference):
            yield rows, squared - generated_slack[rows] <= reference, squared - reference_slack <= generated[rows]


def _limits(features: Tensor, k: int, references: Tensor) -> Tensor:
    """Return the squared radii of the balls of (N, D) features, with their rounding error added, (N,) float64."""
    return knn_radii(features, k).square() + rounding(features, references)

"""Fidelity and diversity of generated samples apart, by nearest neighbours: (N, D) features in, numbers out.

A ball is drawn around each item, out to its k-th nearest other one. All four numbers depend on the sample counts and on
k (none estimates a quantity of the distributions alone): compare only at equal counts, and with what real data score.
An item at the very radius lies inside, rounding allowed for.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hfgen.errors import ConfigError
from hfgen.metrics.distances import rounding, squared_distance_blocks


class PRDC(NamedTuple):
    """Precision, recall and coverage in [0, 1]; density >= 0, about 1 for real data."""

    precision: float
    recall: float
    density: float
    coverage: float


def knn_radii(features: Tensor, k: int) -> Tensor:
    """Return the distance of each of (N, D) features to its k-th nearest other one, shape (N,), float64.

    Raises ConfigError unless 1 <= k < N.
    """
    if not 1 <= k < len(features):
        raise ConfigError(f"k must be in [1, {len(features) - 1}] for {len(features)} items, got {k}")
    radii = []
    for rows, squared in squared_distance_blocks(features, features):
        squared[:, rows].fill_diagonal_(0)
        radii.append(squared.kthvalue(k + 1, dim=1).values.sqrt())
    return torch.cat(radii)


def precision(real: Tensor, generated: Tensor, k: int = 5) -> float:
    """Return the share of generated samples inside the real manifold (Kynkäänniemi et al. 2019, eq. 2), in [0, 1].

    A sample counts when it lies within the k-NN ball of at least one real item. `real` (N, D), `generated` (M, D).
    """
    limits, slack = _limits(real, k, real), rounding(generated, real)[:, None]
    blocks = squared_distance_blocks(generated, real)
    return float(torch.cat([(squared - slack[rows] <= limits).any(1) for rows, squared in blocks]).double().mean())


def prdc(real: Tensor, generated: Tensor, k: int = 5) -> PRDC:
    """Return precision, recall, density and coverage of (M, D) generated against (N, D) real features.

    precision: share of generated samples in at least one real ball; recall: share of real items in at least one
    generated ball (Kynkäänniemi et al. 2019, eqs. 2, 3). density: real balls that a generated sample lies in, over k,
    on average; coverage: share of real balls with a generated sample in them (Naeem et al. 2020, eqs. 3, 4).

    Bias: more samples shrink the balls, so precision and recall of imperfect models fall with N and M; and an outlier's
    ball is large, so they are too high where there are outliers (density and coverage less so). Of two samples of one
    distribution, N = M large, density is 1 on average, coverage 1 - 2^-k. Raises ConfigError unless k < N, M.
    """
    neighbours = Neighbours(real, generated, k)
    hits, insiders = 0, 0
    covered, recalled = (torch.zeros(len(real), dtype=torch.bool, device=real.device) for _ in range(2))
    for _, in_real, in_generated in neighbours:
        insiders += int(in_real.any(1).sum())
        hits += int(in_real.sum())
        covered |= in_real.any(0)
        recalled |= in_generated.any(0)
    n, m = len(real), len(generated)
    return PRDC(insiders / m, int(recalled.sum()) / n, hits / (k * m), int(covered.sum()) / n)


class Neighbours:
    """Which samples lie in which balls: iterating yields (rows, in_real (b, N), in_generated (b, N)), bool, by blocks.

    For the generated samples `rows` (a slice): in_real[j, i] says that sample j lies in the ball of real item i,
    in_generated[j, i] that item i lies in the ball of sample j.
    """

    def __init__(self, real: Tensor, generated: Tensor, k: int = 5) -> None:
        self.real, self.generated, self.k = real, generated, k
        self._limits = _limits(real, k, real), _limits(generated, k, real)[:, None]
        self._slack = rounding(real, real), rounding(generated, real)[:, None]

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield the rows of a block and the two tables."""
        real, generated = self._limits
        real_slack, generated_slack = self._slack
        for rows, squared in squared_distance_blocks(self.generated, self.real):
            yield rows, squared - generated_slack[rows] <= real, squared - real_slack <= generated[rows]


def _limits(features: Tensor, k: int, references: Tensor) -> Tensor:
    """Return the squared radii (N,) of the items' balls, rounding of theirs included."""
    return knn_radii(features, k).square() + rounding(features, references)

"""Distances between sets of feature vectors: (N, D) tensors in, numbers out, sums in float64 and in bounded memory."""

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from hfgen.errors import ConfigError, DataError

ELEMENTS = 2**24
"""Largest number of entries of a table of distances or kernels in memory: 128 MiB in float64."""

ROUNDING = 1e-12
"""Rounding error of a squared distance, relative to the squared norms; distances that differ by less are ties."""


def check_finite(**features: Tensor) -> None:
    """Raise DataError, naming the set, for feature vectors (N, D) with NaN or infinity."""
    for name, vectors in features.items():
        bad = int((~vectors.isfinite()).any(1).sum())
        if bad:
            raise DataError(f"{bad} of {len(vectors)} {name} feature vectors are not finite")


class Moments:
    """Running mean (D,) and covariance (D, D) in float64 of features that arrive in parts; the parts are not kept.

    Two sets of n_a and n_b items are joined by mean = mean_a + delta n_b / n and scatter = scatter_a + scatter_b +
    delta delta^T n_a n_b / n with delta = mean_b - mean_a (Chan, Golub and LeVeque 1979, eq. 2.1). A mean far from 0
    costs no digits. The order and the sizes of the parts change only the rounding.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Return the moments of (N, D) features."""
        moments = cls(features.shape[1], features.device)
        moments.update(features)
        return moments

    def update(self, features: Tensor) -> None:
        """Add (N, D) features. Raises ConfigError for another shape, DataError unless all are finite."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ConfigError(f"features must be (N, {len(self.mean)}), got {tuple(features.shape)}")
        check_finite(given=features)
        if len(features):
            features = features.to(self.mean)
            mean = features.mean(0)
            centred = features - mean
            self._join(len(features), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> None:
        """Add the moments of another process."""
        if other.count:
            self._join(other.count, other.mean.to(self.mean), other.scatter.to(self.mean))

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.scatter = self.scatter + scatter + torch.outer(delta, delta) * (self.count * count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """Return the unbiased covariance (D, D), float64; its diagonal is >= 0.

        Raises ConfigError for fewer than two items.
        """
        if self.count < 2:
            raise ConfigError(f"a covariance needs at least 2 items, got {self.count}")
        return self.scatter / (self.count - 1)

    def packed(self) -> Tensor:
        """Return count, mean and scatter in one float64 tensor (1 + D + D^2,), to send to another process."""
        return torch.cat([self.mean.new_tensor([self.count]), self.mean, self.scatter.flatten()])

    @classmethod
    def unpacked(cls, packed: Tensor) -> Self:
        """Return the moments of a float64 tensor (1 + D + D^2,) made by `packed`."""
        # solve 1 + D + D^2 = length
        dim = (round((4 * len(packed) - 3) ** 0.5) - 1) // 2
        moments = cls(dim, packed.device)
        moments.count, moments.mean = int(packed[0]), packed[1 : dim + 1].clone()
        moments.scatter = packed[dim + 1 :].reshape(dim, dim).clone()
        return moments


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and the unbiased covariance (D, D) of (N, D) features, in float64; variances are >= 0.

    Raises ConfigError for fewer than 2 items.
    """
    result = Moments.of(features)
    return result.mean, result.covariance


def frechet_distance_of_moments(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Return the squared Fréchet distance of two Gaussians from their means (D,) and covariances (D, D), >= 0.

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson and Landau 1982; Heusel et al. 2017, eq. 6). The trace
    of the root is the sum of the square roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2). That matrix is symmetric,
    so singular covariances need no added diagonal.
    """
    return float(frechet_distances(mean_a, cov_a, mean_b, cov_b))


def frechet_distances(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """Return `frechet_distance_of_moments` of a batch, (...,) >= 0: means (..., D), covariances (..., D, D)."""
    # square root of C_a
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT
    # trace of (C_a C_b)^(1/2)
    eigenvalues = torch.linalg.eigvalsh(root_a @ cov_b @ root_a)
    trace_of_root = eigenvalues.clamp(min=0).sqrt().sum(-1)
    # equation 6
    traces = (cov_a + cov_b).diagonal(dim1=-2, dim2=-1).sum(-1)
    return ((mean_a - mean_b).square().sum(-1) + traces - 2 * trace_of_root).clamp(min=0)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance of Gaussians fitted to (N, D) and (M, D) features, >= 0.

    The estimate is biased upwards by about 1/N + 1/M: compare only at equal sample counts, and with `split_floor`.
    For features that do not fit in memory use `Moments` and `frechet_distance_of_moments`. Raises ConfigError for fewer
    than 2 items, DataError unless all are finite.
    """
    return frechet_distance_of_moments(*moments(a), *moments(b))


def polynomial_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return k(x, y) = (x . y / D + 1)^3 of (N, D) and (M, D) features, (N, M) float64.

    Source: Bińkowski et al. 2018, section 3.1.
    """
    return (a.double() @ b.double().T / a.shape[1] + 1) ** 3


def kid(
    reference: Tensor, generated: Tensor, subset_size: int | None = None, subsets: int = 100, seed: int = 0
) -> float:
    """Return the kernel distance of (N, D) reference and (M, D) generated features (Bińkowski et al. 2018, sec. 3.1).

    MMD^2 with the polynomial kernel, mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)
    (Gretton et al. 2012, eq. 3). The estimate is unbiased at any sample counts, so values < 0 are possible.
    `subset_size`: size of `subsets` random subsets of both sets, over which the result is averaged, also without bias
    (published numbers use 100 subsets of 1,000). Default: None (all pairs, a block at a time).
    Raises ConfigError for fewer than 2 items or subsets larger than a set, DataError unless all are finite.
    """
    # check the values and the sizes
    check_finite(reference=reference, generated=generated)
    n, m = len(reference), len(generated)
    smallest = min(n, m)
    if smallest < 2 or (subset_size is not None and not 2 <= subset_size <= smallest):
        raise ConfigError(f"the kernel distance needs 2 items of both, or subsets of 2 to {smallest}; "
                          f"got {n} reference, {m} generated, subset_size={subset_size}")
    # all pairs
    if subset_size is None:
        within = sum(_kernel_sum(x, x) / (len(x) * (len(x) - 1)) for x in (reference, generated))
        return within - 2 * _kernel_sum(reference, generated) / (n * m)
    # mean over random subsets
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(subsets):
        rows = torch.randperm(n, generator=generator)[:subset_size]
        columns = torch.randperm(m, generator=generator)[:subset_size]
        distances.append(kid(reference[rows.to(reference.device)], generated[columns.to(generated.device)]))
    return sum(distances) / len(distances)


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    """Return the sum of k(a_i, b_j) over all pairs, or over pairs with i != j if `a` is `b`."""
    total = 0.0
    for rows in row_blocks(len(a), len(b)):
        block = polynomial_kernel(a[rows], b)
        total += float(block.sum()) - (float(block.diagonal(rows.start).sum()) if a is b else 0.0)
    return total


def random_halves(n: int, splits: int = 20, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Return `splits` random divisions of range(n) into two halves, fixed by `seed`.

    Each is a pair of int64 index tensors, (n // 2,) and (n - n // 2,), in [0, n - 1].
    """
    generator = torch.Generator().manual_seed(seed)
    halves = []
    for _ in range(splits):
        order = torch.randperm(n, generator=generator)
        halves.append((order[: n // 2], order[n // 2 :]))
    return halves


def split_floor(features: Tensor, splits: int = 20, seed: int = 0) -> float:
    """Return the mean Fréchet distance between the halves of (N, D) reference features over fixed random splits, >= 0.

    It is the distance of reference data to themselves, and the unit of a model's distance in `frechet_ratio`.
    """
    distances = [frechet_distance(features[a], features[b]) for a, b in random_halves(len(features), splits, seed)]
    return sum(distances) / len(distances)


def frechet_ratio(reference: Tensor, generated: Tensor, splits: int = 20, seed: int = 0) -> float:
    """Return the Fréchet distance of (M, D) generated to (N, D) reference features over their `split_floor`, >= 0."""
    return frechet_distance(reference, generated) / split_floor(reference, splits, seed)


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield consecutive slices of range(rows); a table of a slice and `columns` columns has at most `ELEMENTS` entries.

    A slice has at least one row.
    """
    step = max(1, ELEMENTS // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def squared_distance_blocks(queries: Tensor, references: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, squared distances (b, N) float64 >= 0) of (M, D) queries to (N, D) references, a slice at a time.

    |x|^2 + |y|^2 - 2 x . y, taken about the median of the references, which outliers do not move. The error is less
    than the sum of the `rounding` of both. Raises DataError unless all are finite.
    """
    check_finite(reference=references, generated=queries)
    centre = references.double().median(0).values
    y = references.double() - centre
    for rows in row_blocks(len(queries), len(references)):
        x = queries[rows].double() - centre
        squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        yield rows, squared.clamp_(min=0)


def rounding(features: Tensor, references: Tensor) -> Tensor:
    """Return a bound >= 0 on the rounding error of squared distances of (N, D) features to references, (N,) float64."""
    return ROUNDING * (features.double() - references.double().median(0).values).square().sum(1)


def nearest(queries: Tensor, references: Tensor, exclude_self: bool = False) -> tuple[Tensor, Tensor]:
    """Return Euclidean distance (M,) float64 >= 0 and index (M,) of the nearest reference of each of (M, D) queries.

    `exclude_self`: both arguments are the same set, and an item is not its own neighbour. An exact copy has distance 0.
    Raises ConfigError if there is no neighbour.
    """
    if not len(queries) or len(references) < 1 + exclude_self:
        raise ConfigError(f"nearest neighbours of {len(queries)} items among {len(references)}: there are none")
    # find the nearest references
    parts = []
    for rows, squared in squared_distance_blocks(queries, references):
        if exclude_self:
            squared[:, rows].fill_diagonal_(float("inf"))
        parts.append(squared.argmin(1))
    indices = torch.cat(parts)
    # compute their distances again, exactly
    distances = []
    for rows in row_blocks(len(queries), queries.shape[1]):
        distances.append((queries[rows].double() - references[indices[rows]].double()).norm(dim=1))
    return torch.cat(distances), indices


def nearest_distances(queries: Tensor, references: Tensor, exclude_self: bool = False) -> Tensor:
    """Return the Euclidean distance of each of (M, D) queries to its nearest of (N, D) references, (M,) float64 >= 0.

    `exclude_self`: both arguments are the same set, and an item is not its own neighbour. Raises ConfigError if there
    is no neighbour.
    """
    return nearest(queries, references, exclude_self)[0]

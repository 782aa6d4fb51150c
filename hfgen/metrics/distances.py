"""Distances between sets of feature vectors: (N, D) tensors in, numbers out, moments in float64."""

import torch


def moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean (D,) and the unbiased covariance (D, D) of (N, D) features, in float64."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance_of_moments(
    mean_a: torch.Tensor, cov_a: torch.Tensor, mean_b: torch.Tensor, cov_b: torch.Tensor
) -> float:
    """Return |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson & Landau 1982; Heusel et al. 2017, eq. 6).

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric, so
    that singular covariances need no added diagonal.
    """
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors * values.clamp(min=0).sqrt() @ vectors.T
    eigenvalues = torch.linalg.eigvalsh(root_a @ cov_b @ root_a)
    trace_of_root = eigenvalues.clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * trace_of_root
    return max(0.0, float(distance))


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance between Gaussians fitted to (N, D) and (M, D) features.

    The estimate is biased upwards by about 1/N + 1/M: compare only at equal sample counts, and with `split_floor`.
    """
    return frechet_distance_of_moments(*moments(a), *moments(b))


def random_halves(n: int, splits: int = 20, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return `splits` fixed random divisions of range(n) into two halves, as pairs of index tensors."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(n, generator=generator) for _ in range(splits)]
    return [(order[: n // 2], order[n // 2 :]) for order in orders]


def split_floor(features: torch.Tensor, splits: int = 20, seed: int = 0) -> float:
    """Return the mean Fréchet distance between the halves of (N, D) real features over fixed random splits.

    What real data scores against itself: the unit in which a model's distance is read (`frechet_ratio`).
    """
    distances = [frechet_distance(features[a], features[b]) for a, b in random_halves(len(features), splits, seed)]
    return sum(distances) / len(distances)


def frechet_ratio(real: torch.Tensor, generated: torch.Tensor, splits: int = 20, seed: int = 0) -> float:
    """Return the Fréchet distance of (M, D) generated to (N, D) real features over the real data's `split_floor`."""
    return frechet_distance(real, generated) / split_floor(real, splits, seed)


def nearest_distances(queries: torch.Tensor, references: torch.Tensor, exclude_self: bool = False) -> torch.Tensor:
    """Return the Euclidean distance of each of (M, D) queries to its nearest of (N, D) references, shape (M,).

    With `exclude_self` both are the same set and an item is not its own neighbour: the distances of held-out data.
    """
    distances = torch.cdist(queries.double(), references.double(), compute_mode="donot_use_mm_for_euclid_dist")
    if exclude_self:
        distances.fill_diagonal_(float("inf"))
    return distances.min(1).values

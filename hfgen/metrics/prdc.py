"""Precision of generated samples by nearest neighbours: (N, D) features in, numbers out."""

import torch


def knn_radii(features: torch.Tensor, k: int) -> torch.Tensor:
    """Return the distance of each of (N, D) features to its k-th nearest other one, shape (N,), float64."""
    features = features.double()
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.kthvalue(k + 1, dim=1).values


def precision(real: torch.Tensor, generated: torch.Tensor, k: int = 5) -> float:
    """Return the share of generated samples inside the real manifold (Kynkäänniemi et al. 2019, eq. 2), in [0, 1].

    A sample counts when it lies within the k-NN ball of at least one real item. `real` (N, D), `generated` (M, D).
    """
    distances = torch.cdist(generated.double(), real.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return float((distances <= knn_radii(real, k)).any(1).double().mean())

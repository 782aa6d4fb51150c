"""Mode coverage: number of modes of a known mixture, or of classes, among generated samples, and their evenness.

Reports first, then the numbers that they consist of: high quality and captured modes (VEEGAN, Srivastava et al. 2017,
sec. 4.1), KL over the modes (PacGAN, Lin et al. 2018, sec. 4.1 and 4.2). Points (N, D) and modes (K, D) are in the same
coordinates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.errors import ConfigError


@dataclass(frozen=True)
class Coverage:
    """Mode coverage: `covered` of `modes` modes or classes; `missing` lists the indices of the others.

    `kl`: KL divergence in nats to the reference or uniform distribution over modes. `kl_floor`: its mean for as many
    draws from that distribution. `high_quality`: share of points within 3 sigma of a mode, `high_quality_floor`: the
    same of reference points; both None for classes.
    """

    covered: int
    modes: int
    missing: list[int]
    kl: float
    kl_floor: float
    high_quality: float | None = None
    high_quality_floor: float | None = None


def label_report(labels: Tensor, num_classes: int, reference_labels: Tensor | None = None) -> Coverage:
    """Return the coverage of the classes of `reference_labels` (N,) by a classifier's labels (M,) of generated images.

    `kl` = KL(generated || reference) in nats (`label_kl`), to the uniform distribution without `reference_labels`.
    `kl_floor` = (K - 1) / 2M: for draws from the reference, 2M KL tends to chi-squared with K - 1 degrees of freedom
    (Wilks 1938). One sample covers a class, so mistakes of the classifier cover classes that no image shows: read the
    KL too. Classes without reference data are not expected; a sample of one makes the KL infinite. Raises ConfigError
    for labels outside [0, num_classes).
    """
    # count the classes of both
    labels = labels.cpu()
    if reference_labels is None:
        reference = torch.ones(num_classes)
    else:
        reference = torch.bincount(reference_labels.cpu(), minlength=num_classes)
    kl, expected = label_kl(labels, reference), reference > 0
    counts = torch.bincount(labels, minlength=num_classes)
    # find the classes without samples
    missing = (expected & (counts == 0)).nonzero().flatten().tolist()
    modes = int(expected.sum())
    return Coverage(modes - len(missing), modes, missing, kl, (modes - 1) / (2 * len(labels)))


def toy_report(points: Tensor, modes: Tensor, sigma: float, reference: Tensor | None = None) -> Coverage:
    """Return the coverage of the modes (K, 2) of a toy mixture by points (M, 2) in data coordinates.

    A mode is covered if it is the nearest mode of a point of high quality, within 3 `sigma`. `kl` is the KL divergence
    of all points to equal shares. `high_quality_floor` is the share of `reference` points (N, 2). Default:
    1 - exp(-9/2) = 98.9 % (its expectation in the plane). Raises ConfigError for no points.
    """
    # find the modes that no point of high quality reaches
    _, closest = nearest_modes(points, modes)
    reached = closest[high_quality(points, modes, sigma)].unique().tolist()
    missing = sorted(set(range(len(modes))) - set(reached))
    # compare the shares with their floors
    floor = 1 - math.exp(-4.5) if reference is None else high_quality_share(reference, modes, sigma)
    kl, kl_floor = reverse_kl(points, modes), (len(modes) - 1) / (2 * len(points))
    quality = high_quality_share(points, modes, sigma)
    return Coverage(len(reached), len(modes), missing, kl, kl_floor, quality, floor)


def nearest_modes(points: torch.Tensor, modes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Euclidean distance (N,) float64 >= 0 and index (N,) of the nearest of modes (K, D) of points (N, D)."""
    modes = modes.to(points.device).double()
    distances = torch.cdist(points.double(), modes, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.min(dim=1)
    return nearest.values, nearest.indices


def high_quality(points: torch.Tensor, modes: torch.Tensor, sigma: float, k: float = 3) -> torch.Tensor:
    """Return a mask (N,) bool: True where a point lies within k sigma of its nearest mode.

    `sigma`: standard deviation > 0 of a mode along each coordinate (Srivastava et al. 2017, sec. 4.1). Not all
    reference points qualify: in the plane the share within 3 sigma is 1 - exp(-9/2) = 98.9 %. NaN never qualifies.
    """
    return nearest_modes(points, modes)[0] <= k * sigma


def high_quality_share(points: torch.Tensor, modes: torch.Tensor, sigma: float, k: float = 3) -> float:
    """Return the share of points (N, D) of high quality, in [0, 1]. Raises ConfigError for no points."""
    _require_some(points, "points")
    return float(high_quality(points, modes, sigma, k).double().mean())


def modes_captured(points: torch.Tensor, modes: torch.Tensor, sigma: float, k: float = 3) -> int:
    """Return the number of modes (K, D) that are the nearest of at least one point of high quality, in [0, K].

    Source: Srivastava et al. 2017, sec. 4.1.
    """
    distances, nearest = nearest_modes(points, modes)
    return len(nearest[distances <= k * sigma].unique())


def reverse_kl(points: torch.Tensor, modes: torch.Tensor) -> float:
    """Return KL(p || uniform) in nats, in [0, log K]; p_j is the share of points whose nearest mode is j.

    Points are (N, D), modes (K, D). The result is sum_j p_j log(K p_j) (Lin et al. 2018, sec. 4.1), "reverse" because
    the generated distribution comes first. All points count; to count only points of high quality, pass
    `points[high_quality(...)]`. NaN is left out. Raises ConfigError for no points.
    """
    distances, nearest = nearest_modes(points, modes)
    return label_kl(nearest[~distances.isnan()], len(modes))


def label_modes(labels: torch.Tensor, num_classes: int) -> int:
    """Return the number of classes among `labels` (N,), in [0, num_classes]. Raises ConfigError for other labels."""
    return int((_counts(labels, num_classes) > 0).sum())


def label_kl(labels: torch.Tensor, target: int | Sequence[float] | torch.Tensor) -> float:
    """Return KL(generated || target) = sum_j p_j log(p_j / q_j) in nats, >= 0; p_j is the share of class j.

    `labels` (N,) are the classes of generated samples. `target`: the number of classes K, for q_j = 1 / K, or the
    probabilities or counts (K,) of the reference data, which are scaled to sum to 1. It is the mode metric of stacked
    MNIST with K = 1000 (Lin et al. 2018, sec. 4.2). For N draws from the target the estimate is about (K - 1) / 2N, not
    0. It is infinite if a class with q_j = 0 was generated. Raises ConfigError for a target that is no distribution,
    for no labels and for labels outside [0, K).
    """
    # check the target
    q = torch.ones(target) if isinstance(target, int) else torch.as_tensor(target)
    q = q.to(labels.device, torch.float64)
    if q.ndim != 1 or not len(q) or not (q >= 0).all() or not 0 < float(q.sum()) < float("inf"):
        raise ConfigError(f"target must be a number of classes or (K,) probabilities or counts >= 0, got {target!r}")
    # compare the shares
    _require_some(labels, "labels")
    p = _counts(labels, len(q)).double() / len(labels)
    return max(0.0, float((torch.xlogy(p, p) - torch.xlogy(p, q / q.sum())).sum()))


def _counts(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the number of occurrences of each class in `labels`, (K,). Raises ConfigError for other labels."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        low, high = int(labels.min()), int(labels.max())
        raise ConfigError(f"labels must be in [0, {num_classes - 1}], found {low} to {high}")
    return torch.bincount(labels, minlength=num_classes)


def _require_some(samples: torch.Tensor, name: str) -> None:
    if not len(samples):
        raise ConfigError(f"{name} must hold at least one sample, got none")

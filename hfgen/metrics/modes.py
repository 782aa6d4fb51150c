"""Mode coverage: how many modes of a known mixture, or how many classes, the generated samples reach, and how evenly.

High quality and captured modes as in Srivastava et al. 2017 (VEEGAN, sec. 4.1), KL over the modes as in Lin et al. 2018
(PacGAN, sec. 4.1 and 4.2). Points (N, D) and modes (K, D) in the same coordinates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.errors import ConfigError


@dataclass(frozen=True)
class Coverage:
    """How many of `modes` modes or classes are `covered`, and the numbers of those `missing`.

    `kl`: in nats, to the real or even distribution over them; `kl_floor`: of as many fair draws, on average.
    `high_quality`: share of points within 3 sigma of a mode; `high_quality_floor`: of real points; None of classes.
    """

    covered: int
    modes: int
    missing: list[int]
    kl: float
    kl_floor: float
    high_quality: float | None = None
    high_quality_floor: float | None = None


def label_report(labels: Tensor, num_classes: int, real_labels: Tensor | None = None) -> Coverage:
    """Return how labels (M,) of generated images, by a classifier, cover the classes of the real ones (N,).

    `kl` = KL(generated || real) in nats (`label_kl`), against equal shares without `real_labels`. `kl_floor` =
    (K - 1) / 2M: of fair draws 2M KL is chi-squared with K - 1 degrees of freedom as M grows (Wilks 1938). A class
    counts as covered from one sample on, so that a classifier's mistakes cover classes that are not there: look at the
    KL too. Classes that the real data lack are not asked for; a sample in one makes the KL infinite.
    """
    labels = labels.cpu()
    real = torch.ones(num_classes) if real_labels is None else torch.bincount(real_labels.cpu(), minlength=num_classes)
    kl, wanted = label_kl(labels, real), real > 0
    counts = torch.bincount(labels, minlength=num_classes)
    missing = (wanted & (counts == 0)).nonzero().flatten().tolist()
    modes = int(wanted.sum())
    return Coverage(modes - len(missing), modes, missing, kl, (modes - 1) / (2 * len(labels)))


def toy_report(points: Tensor, modes: Tensor, sigma: float, real: Tensor | None = None) -> Coverage:
    """Return how points (M, 2) in data coordinates cover the modes (K, 2) of a toy mixture (see hfgen.metrics.modes).

    A mode is covered if it is nearest to a point of high quality, within 3 `sigma`; `kl` is that of all points to equal
    shares. `real` points give the floor of high quality, 1 - exp(-9/2) = 98.9 % in the plane without them.
    """
    _, closest = nearest_modes(points, modes)
    reached = closest[high_quality(points, modes, sigma)].unique().tolist()
    missing = sorted(set(range(len(modes))) - set(reached))
    floor = 1 - math.exp(-4.5) if real is None else high_quality_share(real, modes, sigma)
    return Coverage(
        len(reached), len(modes), missing, reverse_kl(points, modes),
        (len(modes) - 1) / (2 * len(points)), high_quality_share(points, modes, sigma), floor,
    )  # fmt: skip


def nearest_modes(points: torch.Tensor, modes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the Euclidean distance of each point to its nearest mode, (N,) float64, and that mode's number, (N,)."""
    modes = modes.to(points.device).double()
    distances = torch.cdist(points.double(), modes, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.min(dim=1)
    return nearest.values, nearest.indices


def high_quality(points: torch.Tensor, modes: torch.Tensor, sigma: float, k: float = 3) -> torch.Tensor:
    """Return which points lie within k sigma of the nearest mode, (N,) bool (Srivastava et al. 2017, sec. 4.1).

    `sigma` is the standard deviation of a mode along each coordinate. Real points do not all qualify: in the plane
    the share within 3 sigma is 1 - exp(-9/2) = 98.9 %. NaN never qualifies.
    """
    return nearest_modes(points, modes)[0] <= k * sigma


def high_quality_share(points: torch.Tensor, modes: torch.Tensor, sigma: float, k: float = 3) -> float:
    """Return the share of points of high quality, in [0, 1]."""
    _require_some(points, "points")
    return float(high_quality(points, modes, sigma, k).double().mean())


def modes_captured(points: torch.Tensor, modes: torch.Tensor, sigma: float, k: float = 3) -> int:
    """Return the number of modes that are nearest to at least one point of high quality, in [0, K]."""
    distances, nearest = nearest_modes(points, modes)
    return len(nearest[distances <= k * sigma].unique())


def reverse_kl(points: torch.Tensor, modes: torch.Tensor) -> float:
    """Return KL(p || uniform) in nats, p being the share of points nearest to each mode (Lin et al. 2018, sec. 4.1).

    "Reverse" since the generated distribution comes first: sum_j p_j log(K p_j), natural logarithm, in [0, log K].
    All points count, of high quality or not; where only those shall, pass `points[high_quality(...)]`. NaN counts
    nowhere.
    """
    distances, nearest = nearest_modes(points, modes)
    return label_kl(nearest[~distances.isnan()], len(modes))


def label_modes(labels: torch.Tensor, num_classes: int) -> int:
    """Return how many of the classes 0, ..., num_classes - 1 are among `labels` (N,)."""
    return int((_counts(labels, num_classes) > 0).sum())


def label_kl(labels: torch.Tensor, target: int | Sequence[float] | torch.Tensor) -> float:
    """Return KL(generated || target) in nats, sum_j p_j log(p_j / q_j), p_j the share of class j among `labels` (N,).

    `target`: the number of classes K, for q_j = 1 / K, or the probabilities or counts (K,) of the real data, which are
    scaled to sum to 1. The mode metric of stacked MNIST (Lin et al. 2018, sec. 4.2), K = 1000. Of N fair draws from
    the target the estimate is about (K - 1) / 2N, not 0. It is infinite where a class with q_j = 0 was generated.
    """
    q = torch.ones(target) if isinstance(target, int) else torch.as_tensor(target)
    q = q.to(labels.device, torch.float64)
    if q.ndim != 1 or not len(q) or not (q >= 0).all() or not 0 < float(q.sum()) < float("inf"):
        raise ConfigError(f"target must be a number of classes or (K,) probabilities or counts >= 0, got {target!r}")
    _require_some(labels, "labels")
    p = _counts(labels, len(q)).double() / len(labels)
    return max(0.0, float((torch.xlogy(p, p) - torch.xlogy(p, q / q.sum())).sum()))


def _counts(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return how often each class is among `labels`, (K,); ConfigError for a label that is none."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        low, high = int(labels.min()), int(labels.max())
        raise ConfigError(f"labels must be in [0, {num_classes - 1}], found {low} to {high}")
    return torch.bincount(labels, minlength=num_classes)


def _require_some(samples: torch.Tensor, name: str) -> None:
    if not len(samples):
        raise ConfigError(f"{name} must hold at least one sample, got none")

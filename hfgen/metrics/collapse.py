"""Diversity in one report: which classes or modes generated samples reach, how evenly, beside what real data score."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hfgen.metrics.modes import high_quality, high_quality_share, label_kl, nearest_modes, reverse_kl


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

"""Points in the plane: a dataset in memory, whose batches are standardised."""

import numpy as np
import numpy.typing as npt
import torch

from hfgen.data.coordinates import Coordinates
from hfgen.data.dataset import Batch, Dataset
from hfgen.data.order import Ints
from hfgen.data.source import Labels
from hfgen.errors import DataError


class Points(Dataset):
    """Points (N, 2) in memory, with labels or without.

    Attributes: `mean` and `std` of the points, (2,) each. Batches hold (point - mean) / std; all other points are in
    data coordinates. Raises DataError for points whose coordinates are all equal.
    """

    def __init__(
        self, name: str, points: npt.NDArray[np.float64], fingerprint: str, labels: Labels | None = None
    ) -> None:
        self.name, self.shape, self.fingerprint = name, (2,), fingerprint
        # points in data coordinates
        mean, std = points.mean(0), points.std(0)
        if not (std > 0).all():
            raise DataError(f"{name}: all points have the same coordinate; a set of points must vary in both")
        self._points = torch.from_numpy(points).float()
        # points in model coordinates
        self.mean, self.std = torch.from_numpy(mean).float(), torch.from_numpy(std).float()
        self._standard = Coordinates(self.mean, self.std).to_model(self._points)
        # labels
        self._labels: torch.Tensor | None = None
        if labels is not None:
            self.num_classes, self.class_names = labels.num_classes, labels.names
            self._labels = torch.from_numpy(labels.values)

    def __len__(self) -> int:
        """Return the number of points in memory."""
        return len(self._points)

    def describe(self) -> str:
        """Return e.g. `points.npy: 1,000 points, 2 classes`."""
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        return f"{self.name}: {len(self):,} points{classes}"

    def labels(self) -> torch.Tensor | None:
        """Return the labels of all points in order, int64 (N,) in [0, num_classes - 1]; None without labels."""
        return self._labels

    def tensor(self, n: int | None = None) -> torch.Tensor:
        """Return the first `n` points in data coordinates, float32 (n, 2). Default: None (all points)."""
        return self._points[:n].clone()

    def take(self, seed: int, epochs: Ints, indices: Ints, device: torch.device) -> Batch:
        """Return the points `indices` (b,) in model coordinates, `x` float32 (b, 2), and their labels, if any."""
        if self._standard.device != device:
            self._standard = self._standard.to(device)
        rows = torch.from_numpy(indices)
        batch: Batch = {"x": self._standard.index_select(0, rows.to(device))}
        if self._labels is not None:
            batch["label"] = self._labels[rows].to(device)
        return batch

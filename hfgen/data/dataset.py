"""The interface of all datasets: name, shape, fingerprint, and endless batches in the seeded order."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch

from hfgen.checks import require_int
from hfgen.data.coordinates import Coordinates
from hfgen.data.order import Ints, stretch
from hfgen.errors import ConfigTypeError, DataError

Batch = dict[str, Any]
"""`x`: float32, images (b, C, H, W) in [-1, 1] or standardised points (b, 2). `label`: int64 (b,), for labelled data.
`caption`: list of b strings, if a caption column is requested."""


class Dataset(ABC):
    """Base of all datasets: items by index, batches by number.

    Attributes. `shape`: shape of an item, (C, H, W) or (2,). `num_classes`, `class_names`: None without labels
    (`class_names` also for classes with numbers only). `captions`: of all items, if requested; None for streams.
    `fingerprint`: sha256 of the content and of all preprocessing choices, compared when a run resumes. `mean`, `std`:
    (2,) each for points, None for images; batches hold (point - mean) / std. `top`: the integer of white, 16 for
    `digits`; pixels have `top` + 1 levels.
    """

    name: str
    shape: tuple[int, ...]
    fingerprint: str
    num_classes: int | None = None
    class_names: list[str] | None = None
    captions: list[str] | None = None
    top: int = 255
    mean: torch.Tensor | None = None
    std: torch.Tensor | None = None

    @property
    def coordinates(self) -> Coordinates | None:
        """Return the map between data coordinates and the coordinates of batches; None for images."""
        return None if self.mean is None or self.std is None else Coordinates(self.mean, self.std)

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of items. Raises TypeError for a stream, which has no length."""

    @abstractmethod
    def describe(self) -> str:
        """Return a description of one line: name, number of items, shape, classes."""

    @abstractmethod
    def tensor(self, n: int | None = None) -> torch.Tensor:
        """Return the first `n` items (n, ...) in order, float32, not augmented. Default: None (all items).

        Images are in [-1, 1], points in data coordinates.
        """

    def labels(self) -> torch.Tensor | None:
        """Return the labels of all items in order, int64 (N,) in [0, num_classes - 1]; None without labels."""
        return None

    def take(self, seed: int, epochs: Ints, indices: Ints, device: torch.device) -> Batch:
        """Return the batch of the items `indices` (b,), augmented as a function of (seed, epoch, index).

        Raises ConfigTypeError for data whose items have no index: streams, and two datasets in one.
        """
        raise ConfigTypeError(f"{self.name}: is read batch by batch, no item can be taken by its number")

    def batches(
        self,
        *,
        seed: int,
        batch_size: int,
        first: int = 0,
        rows: slice = slice(None),
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        """Return the endless sequence of global batches `first`, `first + 1`, ... on `device`.

        Batch k consists of positions [k * batch_size, (k + 1) * batch_size) of the endless seeded permutation, so all
        batches are full. `rows`: the rows of each batch to return; the slices of all ranks joined are the global batch,
        bit for bit. Raises ConfigError for a batch size below 1, DataError for fewer items than `batch_size`.
        """
        require_batch(self, batch_size)
        return self._batches(seed, batch_size, first, rows, torch.device(device))

    def _batches(self, seed: int, batch_size: int, first: int, rows: slice, device: torch.device) -> Iterator[Batch]:
        for k in count(first):
            epochs, indices = stretch(seed, len(self), k * batch_size, batch_size)
            yield self.take(seed, epochs[rows], indices[rows], device)


def require_batch(dataset: Dataset, batch_size: int) -> None:
    """Raise ConfigError unless `batch_size` is an int >= 1, DataError unless the dataset can fill one batch."""
    require_int("batch_size", batch_size, 1, None)
    # a stream has no length and checks itself
    try:
        n = len(dataset)
    except TypeError:
        return
    if n < batch_size:
        raise DataError(
            f"{dataset.name}: {n:,} items are fewer than one batch of {batch_size:,}; "
            f"choose a batch size of at most {n} or give more data"
        )


def fingerprint_of(*parts: Any) -> str:
    """Return the hex sha256 of `parts`: arrays and bytes by content, other parts by `repr`, with their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = np.ascontiguousarray(part)
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(part.data)
        else:
            data = part if isinstance(part, bytes) else repr(part).encode()
            digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()

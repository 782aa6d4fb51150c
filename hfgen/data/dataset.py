"""The interface of every dataset: a name, a shape, a fingerprint, and endless batches in the seeded order."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch

from hfgen.data.order import Ints, stretch
from hfgen.errors import ConfigError, ConfigTypeError, DataError

Batch = dict[str, Any]
"""`x`: float32, images (b, C, H, W) in [-1, 1] or standardised points (b, 2); `label`: int64 (b,), only of labelled
data; `caption`: list of b strings, only where a caption column was asked for."""


class Dataset(ABC):
    """Base of all datasets: items by index, batches by number.

    Attributes: `name`; `shape` of an item, (C, H, W) or (2,); `num_classes` and `class_names`, None without labels
    (`class_names` also where classes have numbers only); `captions` of all items where they were asked for, else None,
    as of streams; `fingerprint`, the sha256 of the content and of every preprocessing choice, which a resumed run
    compares; `mean` and `std`, (2,) each, of 2-D sets: the model sees (point - mean) / std; None for images; `top`, the
    integer that is white, 16 of `digits`: pixels have `top` + 1 grey levels.
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

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of items; a stream raises TypeError, for it has no length."""

    @abstractmethod
    def describe(self) -> str:
        """Return one line for people: name, number of items, shape, classes."""

    @abstractmethod
    def tensor(self, n: int | None = None) -> torch.Tensor:
        """Return the first `n` items (default: all) in order, unaugmented: float32, [-1, 1] or data coordinates."""

    def labels(self) -> torch.Tensor | None:
        """Return the labels of all items in order, int64 (N,); None without labels."""
        return None

    def take(self, seed: int, epochs: Ints, indices: Ints, device: torch.device) -> Batch:
        """Return the batch of the items `indices`, augmented by f(seed, epoch, index).

        Raises ConfigTypeError where items have no number: of streams, and of two datasets in one.
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
        """Return the endless sequence of global batches number `first`, `first + 1`, ... on `device`.

        Batch k is positions [k * batch_size, (k + 1) * batch_size) of the endless seeded permutation, so it is always
        full. Only its `rows` are returned: the slices of all ranks together are the whole batch, bit for bit.
        Raises DataError where there are fewer items than `batch_size`.
        """
        require_batch(self, batch_size)
        return self._batches(seed, batch_size, first, rows, torch.device(device))

    def _batches(self, seed: int, batch_size: int, first: int, rows: slice, device: torch.device) -> Iterator[Batch]:
        for k in count(first):
            epochs, indices = stretch(seed, len(self), k * batch_size, batch_size)
            yield self.take(seed, epochs[rows], indices[rows], device)


def require_batch(dataset: Dataset, batch_size: int) -> None:
    """Raise ConfigError unless `batch_size` is a positive int, DataError unless the dataset can fill one batch."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be a positive int, got {batch_size!r}")
    try:
        n = len(dataset)
    except TypeError:                                  # a stream: it checks itself what it can know
        return
    if n < batch_size:
        raise DataError(
            f"{dataset.name}: {n:,} items are fewer than one batch of {batch_size:,}; "
            f"choose a batch size of at most {n} or give more data"
        )


def fingerprint_of(*parts: Any) -> str:
    """Return the hex sha256 of `parts`: arrays and bytes by content, everything else by `repr`, lengths included."""
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

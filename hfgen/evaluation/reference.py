"""Real data to judge by: items by position of a seeded order, in the coordinates that samples come in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfgen.data import load_dataset
from hfgen.data.dataset import Dataset
from hfgen.data.order import derive_seed, permutation
from hfgen.data.toy import Toy
from hfgen.errors import ConfigError

MOST_REAL = 50_000
"""Real items that are looked at, at most: as many as published Fréchet distances of CIFAR-10 take."""


class Real:
    """A dataset in a seeded order, of which the first `count` items are looked at, at most 50,000.

    `indices` (count,): which items of the dataset they are. Any first few of them are a fair sample.
    """

    def __init__(self, data: Dataset, seed: int, count: int | None = None) -> None:
        self.data = data
        n = len(data)
        self.count = min(n, MOST_REAL, count or n)
        self.indices = torch.from_numpy(permutation(derive_seed(seed, "real"), 0, n)[: self.count].copy())

    @property
    def in_plane(self) -> bool:
        """Return whether items are points (2,), not images."""
        return len(self.data.shape) == 1

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Return the items at positions `rows`: images (B, C, H, W) in [-1, 1], or points (B, 2) in their data's."""
        chosen = self.indices[list(rows)].numpy()
        x: Tensor = self.data.take(0, np.zeros_like(chosen), chosen, torch.device("cpu"))["x"]
        if self.data.mean is None or self.data.std is None:
            return x
        return x * self.data.std + self.data.mean

    def labels(self, count: int | None = None) -> Tensor | None:
        """Return the labels of the first `count` items, (count,); None of data without labels."""
        found = self.data.labels()
        return None if found is None else found[self.indices[:count]]

    def captions(self, count: int) -> list[str] | None:
        """Return the captions of the first `count` items; None of data without."""
        found = self.data.captions
        return None if found is None else [found[i] for i in self.indices[:count].tolist()]

    def key(self) -> dict[str, Any]:
        """Return what identifies these items, as plain JSON."""
        return {"data": self.data.fingerprint, "count": self.count}


class Fresh(Real):
    """Points of a toy set that nobody has seen: drawn anew, in data coordinates."""

    def __init__(self, data: Toy, seed: int, count: int) -> None:
        super().__init__(data, seed, count)
        self._points = data.sample(self.count, derive_seed(seed, "fresh"))

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Return the points `rows` (B, 2)."""
        return self._points[list(rows)]


def open_data(data: Any, split: str = "train", **options: Any) -> Dataset:
    """Return a dataset: itself, or the one that a name, folder or Hub id means; errors as of `load_dataset`."""
    if not isinstance(data, Dataset):
        if not isinstance(data, str | Path):
            raise ConfigError(f"dataset must be a name, a folder, a Hub id or a Dataset, got {type(data).__name__}")
        data = load_dataset(data, split=split, **options)
    elif late := [name for name, value in options.items() if value is not None] + ["split"] * (split != "train"):
        raise ConfigError(f"{data.name}: is a Dataset, loaded already; leave out {', '.join(late)}")
    if getattr(data, "flip", False):
        raise ConfigError(f"{data.name}: was loaded with flip=True; real data are judged by as they are")
    try:
        len(data)
    except TypeError:
        raise ConfigError(f"{data.name}: is a stream; load it without streaming, for its items are counted") from None
    return data


def held_out_of(data: Any, split: str, held_out: Any, held_out_split: str | None) -> tuple[Any, str] | None:
    """Return dataset and split of the held-out data, as asked for, or None. ConfigError where it is the same data."""
    if held_out is None and held_out_split is None:
        return None
    chosen, part = data if held_out is None else held_out, held_out_split or "train"
    if isinstance(chosen, Dataset) and held_out_split is not None:
        raise ConfigError(f"held_out_split is for datasets by name, {chosen.name} is loaded already; give held_out")
    same = chosen is data if isinstance(chosen, Dataset) else (str(chosen), part) == (str(data), split)
    if same:
        name = chosen.name if isinstance(chosen, Dataset) else f"{chosen} {part}"
        raise ConfigError(f"held_out is the same as dataset, {name}; give data that the model has not seen")
    return chosen, part

"""Reference data: items by position in a seeded order, in the coordinates of samples."""

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
from hfgen.evaluation.settings import ReferenceSettings, most_samples

MOST_ITEMS = 50_000
"""Largest number of reference items: that of published Fréchet distances of CIFAR-10."""


class ReferenceData:
    """The first `count` items of a dataset in a seeded order, at most 50,000.

    `indices` (count,) int64: the positions of these items in the dataset. Any first few items are a fair sample.
    """

    fresh = False

    def __init__(self, data: Dataset, seed: int, count: int | None = None) -> None:
        self.data = data
        n = len(data)
        self.count = min(n, MOST_ITEMS, count or n)
        self.indices = torch.from_numpy(permutation(derive_seed(seed, "real"), 0, n)[: self.count].copy())

    @property
    def points(self) -> bool:
        """Return whether items are points (2,); otherwise they are images."""
        return len(self.data.shape) == 1

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Return the items `rows`: images (B, C, H, W) in [-1, 1], or points (B, 2) in data coordinates."""
        chosen = self.indices[list(rows)].numpy()
        x: Tensor = self.data.take(0, np.zeros_like(chosen), chosen, torch.device("cpu"))["x"]
        if self.data.mean is None or self.data.std is None:
            return x
        return x * self.data.std + self.data.mean

    def labels(self, count: int | None = None) -> Tensor | None:
        """Return the labels of the first `count` items, (count,) int64 from 0 on; None for data without labels."""
        labels = self.data.labels()
        return None if labels is None else labels[self.indices[:count]]

    def captions(self, count: int) -> list[str] | None:
        """Return the captions of the first `count` items; None for data without captions."""
        captions = self.data.captions
        return None if captions is None else [captions[i] for i in self.indices[:count].tolist()]

    def key(self) -> dict[str, Any]:
        """Return the identity of these items, as plain JSON."""
        return {"data": self.data.fingerprint, "count": self.count}


class FreshReferenceData(ReferenceData):
    """Points of a toy set that are drawn anew, and that no model was trained on, in data coordinates."""

    fresh = True

    def __init__(self, data: Toy, seed: int, count: int) -> None:
        super().__init__(data, seed, count)
        self._points = data.sample(self.count, derive_seed(seed, "fresh"))

    def __call__(self, rows: Sequence[int]) -> Tensor:
        """Return the points `rows` (B, 2) in data coordinates."""
        return self._points[list(rows)]


def open_data(data: Any, split: str = "train", **options: Any) -> Dataset:
    """Return a dataset: the object itself, or that of a name or another object; errors as in `load_dataset`."""
    # load it, unless it is loaded
    if not isinstance(data, Dataset):
        data = load_dataset(data, split=split, **options)
    elif late := [name for name, value in options.items() if value is not None] + ["split"] * (split != "train"):
        raise ConfigError(f"{data.name}: is a Dataset, loaded already; leave out {', '.join(late)}")
    # check that its items are fixed and can be counted
    if getattr(data, "flip", False):
        raise ConfigError(f"{data.name}: was loaded with flip=True; load reference data without augmentation")
    try:
        len(data)
    except TypeError:
        raise ConfigError(f"{data.name}: is a stream; load it without streaming, since its items are counted") from None
    return data


def open_held_out(
    dataset: Any, reference: ReferenceData, seed: int, settings: ReferenceSettings, options: dict[str, Any]
) -> ReferenceData | None:
    """Return the held-out data, in the shape of the reference data. Default: None (fresh points for toy sets).

    `options`: arguments of `load_dataset`, which a dataset by name is read with. Raises ConfigError for the same data
    as the reference data, and for another shape.
    """
    # take the default
    data = reference.data
    chosen = held_out_of(dataset, settings.split, settings.held_out, settings.held_out_split)
    if chosen is None:
        return FreshReferenceData(data, seed, most_samples()) if isinstance(data, Toy) else None
    # give a dataset by name the shape of the reference data
    source, split = chosen
    if isinstance(source, Dataset):
        options = {}
    elif not reference.points:
        options = {**options, "resolution": tuple(data.shape[1:]), "channels": data.shape[0]}
    held_out = open_data(source, split, **options)
    if held_out.shape != data.shape:
        words = f"{held_out.describe()}, and the dataset is {data.describe()}"
        raise ConfigError(f"held_out: {words}; their shapes must agree")
    return ReferenceData(held_out, seed)


def held_out_of(data: Any, split: str, held_out: Any, held_out_split: str | None) -> tuple[Any, str] | None:
    """Return the dataset and the split of the held-out data, None if neither is given.

    Raises ConfigError for the same data as `data`.
    """
    if held_out is None and held_out_split is None:
        return None
    # choose the dataset and its split
    chosen, part = data if held_out is None else held_out, held_out_split or "train"
    if isinstance(chosen, Dataset) and held_out_split is not None:
        raise ConfigError(f"held_out_split is for datasets by name, {chosen.name} is loaded already; give held_out")
    # check that it is not the reference data
    named = isinstance(chosen, str | Path) and isinstance(data, str | Path)
    same, name = chosen is data and part == split, getattr(chosen, "name", type(chosen).__name__)
    if named:
        same, name = (str(chosen), part) == (str(data), split), f"{chosen} {part}"
    if same:
        raise ConfigError(f"held_out is the same as dataset, {name}; give data that the model has not seen")
    return chosen, part

"""Two datasets read together: images of a domain A and of a domain B, for translation between them."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfgen.data.dataset import Batch, Dataset, fingerprint_of
from hfgen.data.order import Ints, derive_seed, stretch, uniforms
from hfgen.data.shapes.dataset import DOMAINS, Shapes
from hfgen.errors import ConfigError, DataError

SAME_IN_PAIRS = (0, 3, 4, 5)
"""Factors that are equal in both images of a pair of drawn shapes: size, shape, place, background."""


class Unpaired(Dataset):
    """Images of two datasets: a batch has `a` (b, C, H, W) and `b` (b, C', H, W), float32 in [-1, 1].

    Unpaired datasets have a seeded order each, and epochs of their own. `paired`: image i of A comes with image i of B,
    and both are flipped and cropped alike. `crop`: int or (height, width) of a random box of each image, a function of
    (seed, epoch, index), or of (seed, position) for a stream.

    Attributes: `a` and `b`, the datasets; `shape_a` and `shape_b`, the shapes of their images in a batch; `shape`, that
    of A. Raises ConfigError for points, a crop that does not fit and pairs from streams; DataError for different sizes
    and, with `paired`, for different numbers of images.
    """

    def __init__(self, a: Dataset, b: Dataset, *, paired: bool = False, crop: int | tuple[int, int] | None = None):
        # check the datasets
        self.a, self.b, self.paired = a, b, paired
        if isinstance(crop, int):
            crop = (crop, crop)
        self.crop = None if crop is None else (crop[0], crop[1])
        for dataset in (a, b):
            _check_images(dataset, self.crop)
        if self.crop is None and a.shape[1:] != b.shape[1:]:
            raise DataError(
                f"images of both domains must have one size: {a.name} has {_sides(a.shape[1:])}, {b.name} "
                f"{_sides(b.shape[1:])} (height x width); set a resolution, or a crop"
            )
        if paired:
            _check_pairs(a, b)
        # shapes and fingerprint
        self.shape_a, self.shape_b = a.shape, b.shape
        if self.crop is not None:
            self.shape_a, self.shape_b = (a.shape[0], *self.crop), (b.shape[0], *self.crop)
        self.name, self.shape = f"{a.name} and {b.name}", self.shape_a
        self.fingerprint = fingerprint_of("unpaired", a.fingerprint, b.fingerprint, paired, self.crop)

    def __len__(self) -> int:
        """Return the number of images of the smaller dataset. Raises TypeError if one is a stream."""
        return min(len(self.a), len(self.b))

    def describe(self) -> str:
        """Return one line for each domain, and one for pairs and crops."""
        cropped = f", random crops of {_sides(self.crop)}" if self.crop else ""
        kind = "pairs" if self.paired else "unpaired"
        return f"A: {self.a.describe()}\nB: {self.b.describe()}\n{kind}{cropped}"

    def tensor(self, n: int | None = None) -> Tensor:
        """Return the first `n` images of A, or the middle of each with a crop, float32 (n, C, H, W) in [-1, 1].

        Default: None (all images).
        """
        return self.middle(self.a.tensor(n))

    def middle(self, x: Tensor) -> Tensor:
        """Return the centred box of images (B, C, H, W), of the size of the crop in pixels; x without a crop."""
        if self.crop is None:
            return x
        height, width = self.crop
        top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
        return x[:, :, top : top + height, left : left + width]

    def seeds(self, seed: int) -> tuple[int, int]:
        """Return the seeds of order and augmentation of A and B: one for both with `paired`."""
        first = derive_seed(seed, "a")
        return first, first if self.paired else derive_seed(seed, "b")

    def _batches(self, seed: int, batch_size: int, first: int, rows: slice, device: torch.device) -> Iterator[Batch]:
        options: dict[str, Any] = {"batch_size": batch_size, "first": first, "rows": rows, "device": device}
        seeds = self.seeds(seed)
        both = [d.batches(seed=one, **options) for d, one in zip((self.a, self.b), seeds, strict=True)]
        for k, batch_a, batch_b in zip(count(first), *both, strict=False):
            crops = []
            for dataset, one, batch in zip((self.a, self.b), seeds, (batch_a, batch_b), strict=True):
                epochs, indices = _spots(dataset, one, k * batch_size, batch_size)
                crops.append(self._cropped(batch["x"], one, epochs, indices, rows))
            yield {"a": crops[0], "b": crops[1]}

    def _cropped(self, x: Tensor, seed: int, epochs: Ints, indices: Ints, rows: slice) -> Tensor:
        """Return a box of each image (b, C, H, W), at a uniform place that is a function of (seed, epoch, index).

        The place is drawn relative to the free space, so that images of pairs are cropped alike.
        """
        if self.crop is None:
            return x
        # draw the corners
        corners = []
        for name, side, cropped in zip(("crop/top", "crop/left"), x.shape[2:], self.crop, strict=True):
            share = uniforms(seed, epochs[rows], indices[rows], name)
            corners.append((share * (side - cropped + 1)).astype(np.int64))
        # cut the boxes
        height, width = self.crop
        boxes = zip(x, *corners, strict=True)
        return torch.stack([image[:, top : top + height, left : left + width] for image, top, left in boxes])


def known_pairs(a: Dataset, b: Dataset) -> bool:
    """Return whether image i of B is known to be the true translation of image i of A.

    This is true for the two domains of drawn shapes with equal scenes, such as their test items.
    """
    if not (isinstance(a, Shapes) and isinstance(b, Shapes)):
        return False
    domains = {drawn.name.partition(" ")[0] for drawn in (a, b)}
    return domains == set(DOMAINS) and torch.equal(_scenes(a), _scenes(b))


def _scenes(drawn: Shapes) -> Tensor:
    """Return the common part of the images of a pair, (N, 7): size, shape, place, background, exact geometry."""
    return torch.cat([drawn.factors()[:, SAME_IN_PAIRS], drawn.placed()], 1)


def _spots(dataset: Dataset, seed: int, start: int, number: int) -> tuple[Ints, Ints]:
    """Return epochs and indices of positions of the endless order; for a stream, 0 and the positions."""
    n = _length(dataset)
    if n is None:
        return np.zeros(number, np.int64), np.arange(start, start + number)
    return stretch(seed, n, start, number)


def _length(dataset: Dataset) -> int | None:
    """Return the number of images; None for a stream."""
    try:
        return len(dataset)
    except TypeError:
        return None


def _check_images(dataset: Dataset, crop: tuple[int, int] | None) -> None:
    if len(dataset.shape) != 3:
        raise ConfigError(f"{dataset.name} is a set of points; translation is between images")
    sides = dataset.shape[1:]
    if crop is not None and not all(0 < cropped <= side for cropped, side in zip(crop, sides, strict=True)):
        raise ConfigError(f"{dataset.name}: a crop of {_sides(crop)} does not fit into images of {_sides(sides)}")


def _check_pairs(a: Dataset, b: Dataset) -> None:
    """Raise ConfigError or DataError unless images i of both datasets can be pairs."""
    # numbers and sizes
    if _length(a) is None or _length(b) is None:
        raise ConfigError(f"{a.name} and {b.name}: pairs cannot be read as streams")
    if len(a) != len(b):
        raise DataError(f"pairs need as many images in A as in B: {a.name} has {len(a):,}, {b.name} has {len(b):,}")
    if a.shape[1:] != b.shape[1:]:
        raise DataError(f"pairs must have one size: {a.name} has {_sides(a.shape[1:])}, {b.name} "
                        f"{_sides(b.shape[1:])} (height x width); set a resolution")  # fmt: skip
    # scenes
    if isinstance(a, Shapes) and isinstance(b, Shapes):
        differing = (_scenes(a) != _scenes(b)).any(1)
        if differing.any():
            raise DataError(f"{a.name} and {b.name} are no pairs: image {int(differing.int().argmax())} shows another "
                            "scene in each; the items of the split test are pairs")  # fmt: skip


def _sides(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))

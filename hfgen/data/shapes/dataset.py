"""`shapes`: images of one shape with known factors, drawn by rule at any resolution.

Item i is a function of (seed, i). 500 of the 2,592 combinations of factors are only in the split `test`, not in
`train`. `shapes:a` and `shapes:b` are two domains for translation: filled red shapes and outlined blue shapes.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from hfgen.checks import require_size
from hfgen.data.dataset import Batch, fingerprint_of
from hfgen.data.images import Images
from hfgen.data.load import ImageSpec
from hfgen.data.order import Ints, permutation, uniforms
from hfgen.data.shapes.captions import captions_of
from hfgen.data.shapes.scene import COMBINATIONS, FACTORS, combined, geometry, render
from hfgen.data.source import NO_LABELS, Labels
from hfgen.data.splits import Split, require_split
from hfgen.errors import ConfigError
from hfgen.images import from_integers

TRAIN, TEST, HELD_OUT = 50_000, 5_000, 500
"""Numbers of items of the splits, and of combinations that are only in the test split."""

DOMAINS = {"shapes:a": {"fill": "filled", "colour": "red"}, "shapes:b": {"fill": "outlined", "colour": "blue"}}
"""Factors that all images of a domain share."""

NAMES = ("shapes", *DOMAINS)
"""Names of the datasets of drawn shapes."""


class Shapes(Images):
    """Scenes drawn at the first request, and kept in memory if all of them take at most `max_resident_bytes`.

    `items` (N,): numbers that determine the jitter. `factors` (N, 6): values of the factors. `label`: name of the
    factor that is the label; None for no labels.
    """

    def __init__(
        self,
        name: str,
        items: Ints,
        factors: Ints,
        resolution: tuple[int, int] = (32, 32),
        *,
        seed: int = 0,
        label: str | None = "shape",
        captioned: bool = False,
        max_resident_bytes: int = 2**31,
    ) -> None:
        # the first images are part of the fingerprint
        self._factors, self._placed = factors, geometry(seed, items, factors)
        labels = None if label is None else _labels(factors, label)
        shown = render(factors[:16], self._placed[:16], *resolution)
        super().__init__(
            name,
            (3, *resolution),
            255,
            labels=labels,
            captions=captions_of(factors) if captioned else None,
            fingerprint=fingerprint_of("shapes", factors, self._placed, shown, resolution, label, captioned),
        )
        # room for the drawn images
        resident = len(items) * 3 * resolution[0] * resolution[1] <= max_resident_bytes
        self._kept = np.empty((len(items) if resident else 0, *self.shape), np.uint8)
        self._drawn = np.zeros(len(self._kept), bool)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._factors)

    def factors(self) -> torch.Tensor:
        """Return the true factors of all images in order, int64 (N, 6) >= 0; the columns are the keys of `FACTORS`."""
        return torch.from_numpy(self._factors)

    def placed(self) -> torch.Tensor:
        """Return centre x, centre y and radius of all shapes in order, float32 (N, 3) in [0, 1], see `geometry`."""
        return torch.from_numpy(self._placed)

    def tensor(self, n: int | None = None) -> torch.Tensor:
        """Return the first `n` images (default: all): float32 (n, 3, H, W) in [-1, 1]."""
        return from_integers(self.pixels(range(len(self))[:n]))

    def take(self, seed: int, epochs: Ints, indices: Ints, device: torch.device) -> Batch:
        """Return the images `indices` on `device`."""
        return self.finish(self.pixels(indices).to(device), seed, epochs, indices)

    def pixels(self, indices: Iterable[int]) -> torch.Tensor:
        """Return the images `indices` as uint8 (b, 3, H, W)."""
        numbers = np.fromiter(indices, np.int64)
        if not len(self._kept):
            return torch.from_numpy(self._draw(numbers))
        # draw the missing images
        missing = np.unique(numbers[~self._drawn[numbers]])
        self._kept[missing], self._drawn[missing] = self._draw(missing), True
        return torch.from_numpy(self._kept[numbers])

    def _draw(self, indices: Ints) -> np.ndarray:
        return render(self._factors[indices], self._placed[indices], *self.shape[1:])


def shapes(name: str, spec: ImageSpec, split: Split, max_resident_bytes: int = 2**31, **columns: str | None) -> Shapes:
    """Return a split of `shapes`, or of one of the domains `shapes:a` and `shapes:b`.

    `spec.resolution`. Default: 32x32. `columns`: label_column, the name of a factor (default: shape) or "none";
    caption_column, "caption". The training items of the domains have different numbers, and therefore different
    geometries; their test items are pairs. Raises ConfigError for other splits and columns.
    """
    # check the request
    require_split(name, split, ["train", "test"])
    _refuse(name, spec, columns)
    # choose the items
    items, factors = _items(name, split)
    label = columns.get("label_column") or "shape"
    return Shapes(
        f"{name} {split.text}" if split.text not in ("", "train") else name,
        items,
        factors,
        spec.resolution or (32, 32),
        label=None if label == NO_LABELS else label,
        captioned=columns.get("caption_column") is not None,
        max_resident_bytes=max_resident_bytes,
    )


def domain_pair(split: str = "test", resolution: int | tuple[int, int] = 32, seed: int = 0) -> tuple[Shapes, Shapes]:
    """Return the two domains with equal geometries: image i of B is the true translation of image i of A.

    `translated` gives its factors. The geometries of the split `test` are in no training split. Datasets that are
    loaded by name have seed 0; other seeds draw other scenes. Raises ConfigError for another split.
    """
    sides = require_size("resolution", resolution)
    part = Split.parse("shapes:a", split)
    require_split("shapes:a", part, ["train", "test"])
    # draw the same items twice
    items, factors = _items("shapes:a", part, seed)
    a, b = (Shapes(f"{name} {split}", items, translated(factors, name), sides, seed=seed) for name in DOMAINS)
    return a, b


def translated(factors: Ints, domain: str) -> Ints:
    """Return factors (N, 6) with the fill and the colour of a domain, "shapes:a" or "shapes:b"."""
    result = factors.copy()
    for factor, value in DOMAINS[domain].items():
        result[:, list(FACTORS).index(factor)] = FACTORS[factor].index(value)
    return result


def held_out() -> Ints:
    """Return the factors (500, 6) of the combinations that are not in the split `train`."""
    return combined(_order()[:HELD_OUT])


def _order() -> Ints:
    """Return the numbers of the combinations in a fixed random order; the first 500 are held out."""
    return permutation(0, 0, COMBINATIONS)


def _items(name: str, split: Split, seed: int = 0) -> tuple[Ints, Ints]:
    """Return the numbers (N,) and the factors (N, 6) of the items of a split or a slice of it."""
    # numbers of the items
    items = np.arange(TRAIN) if split.name == "train" else TRAIN + np.arange(TEST)
    if name != "shapes" and split.name == "train":
        items = items[list(DOMAINS).index(name) :: len(DOMAINS)]
    chosen = split.indices(name, len(items))
    if chosen is not None:
        items = items[chosen]
    # their factors
    if name != "shapes":
        return items, translated(combined(_drawn(seed, items, np.arange(COMBINATIONS))), name)
    if split.name == "test":
        return items, combined(_order()[(items - TRAIN) % HELD_OUT])
    return items, combined(_drawn(seed, items, _order()[HELD_OUT:]))


def _drawn(seed: int, items: Ints, among: Ints) -> Ints:
    """Return one of the numbers `among` for each item, all equally likely."""
    return among[(uniforms(seed, 0, items, "shapes/combination") * len(among)).astype(np.int64)]


def _labels(factors: Ints, name: str) -> Labels:
    values = np.ascontiguousarray(factors[:, list(FACTORS).index(name)])
    return Labels(values, len(FACTORS[name]), list(FACTORS[name]))


def _refuse(name: str, spec: ImageSpec, columns: dict[str, Any]) -> None:
    """Raise ConfigError for columns and image settings that drawn scenes do not have."""
    # columns
    allowed = {"label_column": (None, *FACTORS, NO_LABELS), "caption_column": (None, "caption")}
    for option, value in columns.items():
        known = allowed.get(option, (None,))
        if value not in known:
            there = ", ".join(one for one in known if one is not None)
            hint = f"it can be {there}" if there else "leave it out"
            raise ConfigError(f"{name}: {option}={value!r} does not apply; {hint}")
    # form of the images
    if spec.channels not in (None, 3):
        raise ConfigError(f"{name}: channels={spec.channels} does not apply, because colour is a factor; use 3")
    if spec.flip:
        raise ConfigError(f"{name}: flip does not apply, because left and right are factors")
    if min(spec.resolution or (32, 32)) < 8:
        raise ConfigError(f"{name}: resolution must be at least 8, got {spec.resolution}")

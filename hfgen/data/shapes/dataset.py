"""`shapes`: pictures of one shape, with all that stands in them known; drawn by rule, at any resolution.

Item i is a function of (seed, i) alone. 500 of the 2,592 combinations of factors are never in the split `train` and
make up the split `test`. `shapes:a` and `shapes:b` are two domains for translation: filled red shapes and outlined blue
ones.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from hfgen.data.dataset import Batch, fingerprint_of
from hfgen.data.images import Images
from hfgen.data.load import Wanted
from hfgen.data.order import Ints, permutation, uniforms
from hfgen.data.shapes.captions import captions_of
from hfgen.data.shapes.scene import COMBINATIONS, FACTORS, combined, geometry, render
from hfgen.data.source import NO_LABELS, Labels
from hfgen.data.splits import Split, require_split
from hfgen.errors import ConfigError
from hfgen.images import from_integers

TRAIN, TEST, HELD_OUT = 50_000, 5_000, 500
"""Items of the splits, and combinations that only the test split shows."""

DOMAINS = {"shapes:a": {"fill": "filled", "colour": "red"}, "shapes:b": {"fill": "outlined", "colour": "blue"}}
NAMES = ("shapes", *DOMAINS)


class Shapes(Images):
    """Scenes drawn when they are first asked for, and kept where all of them take at most `max_resident_bytes`.

    `items` (N,) are the numbers that the jitter depends on, `factors` (N, 6) what is drawn. The labels are the factor
    `label`, or None.
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
        resident = len(items) * 3 * resolution[0] * resolution[1] <= max_resident_bytes
        self._kept = np.empty((len(items) if resident else 0, *self.shape), np.uint8)
        self._drawn = np.zeros(len(self._kept), bool)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._factors)

    def factors(self) -> torch.Tensor:
        """Return the true factors of all images in order, int64 (N, 6); the columns are the keys of `FACTORS`."""
        return torch.from_numpy(self._factors)

    def placed(self) -> torch.Tensor:
        """Return centre x, centre y and radius of all shapes in order, float32 (N, 3), as `geometry` has them."""
        return torch.from_numpy(self._placed)

    def tensor(self, n: int | None = None) -> torch.Tensor:
        """Return the first `n` images (default: all): float32 (n, 3, H, W) in [-1, 1]."""
        return from_integers(self.pixels(range(len(self) if n is None else min(n, len(self)))))

    def take(self, seed: int, epochs: Ints, indices: Ints, device: torch.device) -> Batch:
        """Return the images `indices` on `device`."""
        return self.finish(self.pixels(indices).to(device), seed, epochs, indices)

    def pixels(self, indices: Iterable[int]) -> torch.Tensor:
        """Return the images `indices` as uint8 (b, 3, H, W)."""
        wanted = np.fromiter(indices, np.int64)
        if not len(self._kept):
            return torch.from_numpy(self._draw(wanted))
        missing = np.unique(wanted[~self._drawn[wanted]])
        self._kept[missing], self._drawn[missing] = self._draw(missing), True
        return torch.from_numpy(self._kept[wanted])

    def _draw(self, indices: Ints) -> np.ndarray:
        return render(self._factors[indices], self._placed[indices], *self.shape[1:])


def shapes(name: str, wanted: Wanted, split: Split, max_resident_bytes: int = 2**31, **columns: str | None) -> Shapes:
    """Return the `shapes` of a split, or one of the domains `shapes:a` and `shapes:b`; 32x32 unless wanted otherwise.

    `columns`: label_column, a factor's name in place of `shape`, or "none"; caption_column, "caption". Unpaired: the
    two domains' training items have different numbers and so different geometries; their test items are pairs.
    """
    require_split(name, split, ["train", "test"])
    _refuse(name, wanted, columns)
    items, factors = _items(name, split)
    label = columns.get("label_column") or "shape"
    return Shapes(
        f"{name} {split.text}" if split.text not in ("", "train") else name,
        items,
        factors,
        wanted.resolution or (32, 32),
        label=None if label == NO_LABELS else label,
        captioned=columns.get("caption_column") is not None,
        max_resident_bytes=max_resident_bytes,
    )


def domain_pair(split: str = "test", resolution: int | tuple[int, int] = 32, seed: int = 0) -> tuple[Shapes, Shapes]:
    """Return the two domains with the same geometries: image i of the second is the true translation of the first's.

    The truth in factors is `translated`. The split `test` has geometries of which neither domain's `train` has any. All
    datasets that are loaded by name have seed 0; other seeds draw other scenes.
    """
    sides = (resolution, resolution) if isinstance(resolution, int) else resolution
    part = Split.parse("shapes:a", split)
    require_split("shapes:a", part, ["train", "test"])
    items, factors = _items("shapes:a", part, seed)
    a, b = (Shapes(f"{name} {split}", items, translated(factors, name), sides, seed=seed) for name in DOMAINS)
    return a, b


def translated(factors: Ints, domain: str) -> Ints:
    """Return factors (N, 6) with the fill and the colour of a domain, "shapes:a" or "shapes:b", all else unchanged."""
    result = factors.copy()
    for factor, value in DOMAINS[domain].items():
        result[:, list(FACTORS).index(factor)] = FACTORS[factor].index(value)
    return result


def held_out() -> Ints:
    """Return the factors (500, 6) of the combinations that the split `train` never shows."""
    return combined(_order()[:HELD_OUT])


def _order() -> Ints:
    """Return the combinations' numbers in a fixed random order; the first 500 are held out."""
    return permutation(0, 0, COMBINATIONS)


def _items(name: str, split: Split, seed: int = 0) -> tuple[Ints, Ints]:
    """Return the numbers (N,) and the factors (N, 6) of the items of a split or a slice of it."""
    items = np.arange(TRAIN) if split.name == "train" else TRAIN + np.arange(TEST)
    if name != "shapes" and split.name == "train":
        items = items[list(DOMAINS).index(name) :: len(DOMAINS)]
    chosen = split.indices(name, len(items))
    items = items if chosen is None else items[chosen]
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


def _refuse(name: str, wanted: Wanted, columns: dict[str, Any]) -> None:
    """Raise ConfigError for what drawn scenes do not have."""
    allowed = {"label_column": (None, *FACTORS, NO_LABELS), "caption_column": (None, "caption")}
    for option, value in columns.items():
        known = allowed.get(option, (None,))
        if value not in known:
            there = ", ".join(one for one in known if one is not None)
            hint = f"it can be {there}" if there else "leave it out"
            raise ConfigError(f"{name}: {option}={value!r} does not apply; {hint}")
    if wanted.channels not in (None, 3):
        raise ConfigError(f"{name}: channels={wanted.channels} does not apply, for colour is a factor; take 3")
    if wanted.flip:
        raise ConfigError(f"{name}: flip does not apply, for left and right are factors")
    if min(wanted.resolution or (32, 32)) < 8:
        raise ConfigError(f"{name}: resolution must be at least 8, got {wanted.resolution}")

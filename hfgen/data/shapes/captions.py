"""Captions of scenes, and what stands in a picture: a grammar and a checker by pixel rules, without learning.

A caption is `a SIZE FILL COLOUR SHAPE PLACE on BACKGROUND`, for instance "a large filled red circle at the top left on
white"; all but the shape may be left out.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch

from hfgen.data.order import Ints
from hfgen.data.shapes.scene import (
    AT_ONCE,
    COLOURS,
    COUNTS,
    FACTORS,
    GROUNDS,
    INRADII,
    PLACES,
    RADII,
    STROKE,
    Array,
    gauge,
    grid,
    inside,
)
from hfgen.errors import ConfigError

UNSEEN = -1
"""The value of a factor that a caption does not name, or that cannot be made out in a picture."""

FAINT = 0.2
"""Share of the way from background to colour below which a pixel counts as background; as near to the colour, as
colour. So blurred edges are steep again, and faint noise vanishes."""

LARGEST_MISFIT = 0.5
"""Squared error of the best shape, relative to that shape's own square, above which there is no shape."""


def _grammar() -> re.Pattern[str]:
    size, fill, colour, shape, place, background = ("|".join(values) for values in FACTORS.values())
    return re.compile(
        rf"an? (?:({size}) )?(?:({fill}) )?(?:({colour}) )?({shape})(?: ({place}))?(?: on ({background}))?"
    )


GRAMMAR = _grammar()


def captions_of(factors: Ints) -> list[str]:
    """Return the caption of each row of a matrix of factors (N, 6), full but for those that are -1."""
    tables = [list(table) for table in FACTORS.values()]
    tables[-1] = [f"on {background}" for background in tables[-1]]
    rows = [zip(tables, row, strict=True) for row in factors.tolist()]
    texts = [" ".join(table[value] for table, value in row if value != UNSEEN) for row in rows]
    return [f"{'an' if text.startswith('outlined') else 'a'} {text}" for text in texts]


def factors_of(captions: Sequence[str]) -> torch.Tensor:
    """Return the factors that captions name, int64 (N, 6), -1 for those left out. ConfigError for other sentences."""
    rows = []
    for caption in captions:
        found = GRAMMAR.fullmatch(caption)
        if found is None:
            example = captions_of(np.zeros((1, len(FACTORS)), np.int64))[0]
            raise ConfigError(f"cannot read the caption {caption!r}; one that can be read is {example!r}")
        named = zip(FACTORS.values(), found.groups(), strict=True)
        rows.append([UNSEEN if word is None else table.index(word) for table, word in named])
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, len(FACTORS))


def check(images: torch.Tensor, captions: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return for each factor which images (N, 3, H, W) in [-1, 1] show what their caption says, bool (N,).

    A factor that the caption does not name is right whatever the image shows.
    """
    if len(images) != len(captions):
        raise ConfigError(f"each image needs its caption, got {len(images)} images and {len(captions)} captions")
    said, seen = factors_of(captions), describe_images(images)
    right = (said == seen) | (said == UNSEEN)
    return {name: right[:, i] for i, name in enumerate(FACTORS)}


def describe_images(images: torch.Tensor) -> torch.Tensor:
    """Return the factors seen in images (N, 3, H, W) in [-1, 1], int64 (N, 6): columns as in `FACTORS`, -1 for unseen.

    Background: the median of the border. Colour: the hue of what differs from the background. Place: its centre of
    mass. Shape, size and fill together: the shape drawn at that centre which differs least in its squared error.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ConfigError(f"images must be (N, 3, H, W) in [-1, 1], got {tuple(images.shape)}")
    parts = [_described(part.detach().float().cpu().numpy()) for part in images.split(AT_ONCE) if len(part)]
    return torch.from_numpy(np.concatenate([np.empty((0, len(FACTORS)), np.int64), *parts]))


def _described(x: Array) -> Ints:
    """Return the factors of images (n, 3, H, W), (n, 6)."""
    x = np.clip(np.nan_to_num(x, nan=-1.0) / 2 + np.float32(0.5), 0, 1)
    background = _background(x)
    ground = GROUNDS[background, None] / 255                                             # (n, 1)
    away = x - ground[:, :, None, None]                                                  # (n, 3, H, W)
    colour = _colour(away, ground)
    towards = COLOURS[colour] / 255 - ground                                             # (n, 3)
    ink = np.einsum("nchw,nc->nhw", away, towards) / (towards**2).sum(1)[:, None, None]
    ink = np.clip((ink - np.float32(FAINT)) / np.float32(1 - 2 * FAINT), 0, 1)
    centre, seen = _centre(ink)
    size, fill, shape, misfit = _best_shape(ink, centre)
    row, across = (np.abs(centre[:, i, None] - PLACES).argmin(1) for i in (1, 0))
    found = np.stack([size, fill, colour, shape, 3 * row + across, background], 1)       # the order of FACTORS
    known = seen & (misfit < LARGEST_MISFIT)
    found[~known, :2], found[~known, 3] = UNSEEN, UNSEEN
    found[~seen, 2:5] = UNSEEN
    return found.astype(np.int64)


def _background(x: Array) -> Ints:
    """Return the number of the background whose brightness is nearest to the border's median, (n,)."""
    grey = x.mean(1)
    border = np.concatenate([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], 1)
    return np.abs(np.median(border, 1)[:, None] - GROUNDS / 255).argmin(1)


def _colour(away: Array, ground: Array) -> Ints:
    """Return the number of the colour of the most similar direction from the background, (n,).

    Pixels count by the cube of how far they are from the background, so that faint noise hardly does.
    """
    far = np.abs(away).max(1, keepdims=True)
    mean = (away * far**3).sum((2, 3))                                      # (n, 3)
    directions = COLOURS / 255 - ground[:, None]                                         # (n, 6, 3)
    cosines = (directions * mean[:, None]).sum(2) / np.linalg.norm(directions, axis=2)
    return cosines.argmax(1)


def _centre(ink: Array) -> tuple[Array, np.ndarray]:
    """Return the centre of mass (n, 2) of ink (n, H, W) as fractions x, y, and where there is any, (n,) bool."""
    _, height, width = ink.shape
    mass = ink.sum((1, 2))
    x = (ink.sum(1) * (np.arange(width) + 0.5)).sum(1) / np.maximum(mass, 1e-9) / width
    y = (ink.sum(2) * (np.arange(height) + 0.5)).sum(1) / np.maximum(mass, 1e-9) / height
    smallest = STROKE * RADII[0] * min(height, width) ** 2
    return np.stack([x, y], 1).astype(np.float32), mass > smallest


def _best_shape(ink: Array, centre: Array) -> tuple[Ints, Ints, Ints, Array]:
    """Return size, fill and shape that differ least from ink (n, H, W), and the relative misfit, (n,) each."""
    _, height, width = ink.shape
    side, x_y = min(height, width), grid(centre, height, width)
    errors = np.empty((len(ink), *(COUNTS[i] for i in (0, 1, 3))), np.float32)
    squares = np.empty_like(errors)
    for shape in range(COUNTS[3]):
        distance = gauge(shape, *x_y)
        for size, radius in enumerate(RADII):
            inradius = radius * INRADII[shape]
            full = inside(distance, inradius, side)
            for fill, drawn in enumerate((full, full - inside(distance, inradius - np.float32(STROKE), side))):
                errors[:, size, fill, shape] = ((ink - drawn) ** 2).sum((1, 2))
                squares[:, size, fill, shape] = (drawn**2).sum((1, 2))
    best = errors.reshape(len(ink), -1).argmin(1)
    size, fill, shape = np.unravel_index(best, errors.shape[1:])
    rows = np.arange(len(ink))
    return size, fill, shape, (errors / squares).reshape(len(ink), -1)[rows, best]

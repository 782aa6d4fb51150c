"""Captions of scenes: a grammar, and a checker that reads the factors of an image by pixel rules, without learning.

A caption is `a SIZE FILL COLOUR SHAPE PLACE on BACKGROUND`, for example "a large filled red circle at the top left on
white"; only the shape is required.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch

from hfgen.data.order import Ints
from hfgen.data.shapes.scene import (
    BATCH_SIZE,
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
"""Value of a factor that a caption does not name, or that is not visible in an image."""

FAINT = 0.2
"""Share of the colour below which a pixel is background; above 1 minus this share it is fully coloured. This sharpens
blurred edges and removes faint noise."""

LARGEST_MISFIT = 0.5
"""Largest squared error of a recognised shape, relative to the sum of its squares."""


def _grammar() -> re.Pattern[str]:
    size, fill, colour, shape, place, background = ("|".join(values) for values in FACTORS.values())
    return re.compile(
        rf"an? (?:({size}) )?(?:({fill}) )?(?:({colour}) )?({shape})(?: ({place}))?(?: on ({background}))?"
    )


GRAMMAR = _grammar()


def captions_of(factors: Ints) -> list[str]:
    """Return the caption of each row of factors (N, 6); factors that are -1 are left out."""
    # words of each factor
    tables = [list(table) for table in FACTORS.values()]
    tables[-1] = [f"on {background}" for background in tables[-1]]
    # join them
    captions = []
    for row in factors.tolist():
        text = " ".join(table[value] for table, value in zip(tables, row, strict=True) if value != UNSEEN)
        captions.append(f"{'an' if text.startswith('outlined') else 'a'} {text}")
    return captions


def factors_of(captions: Sequence[str]) -> torch.Tensor:
    """Return the factors in captions, int64 (N, 6) >= 0, or -1 for factors that are left out.

    Raises ConfigError for a text that is not in the grammar.
    """
    rows = []
    for caption in captions:
        match = GRAMMAR.fullmatch(caption)
        if match is None:
            example = captions_of(np.zeros((1, len(FACTORS)), np.int64))[0]
            raise ConfigError(f"cannot read the caption {caption!r}; a valid caption is {example!r}")
        named = zip(FACTORS.values(), match.groups(), strict=True)
        rows.append([UNSEEN if word is None else table.index(word) for table, word in named])
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, len(FACTORS))


def check_captions(images: torch.Tensor, captions: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return, by factor, a mask (N,) bool: True where the image agrees with its caption.

    `images`: (N, 3, H, W) in [-1, 1]. A factor that the caption does not name always agrees. Raises ConfigError for
    different counts and for a caption that is not in the grammar.
    """
    if len(images) != len(captions):
        raise ConfigError(f"each image needs its caption, got {len(images)} images and {len(captions)} captions")
    expected, visible = factors_of(captions), describe_images(images)
    agrees = (expected == visible) | (expected == UNSEEN)
    return {name: agrees[:, i] for i, name in enumerate(FACTORS)}


def describe_images(images: torch.Tensor) -> torch.Tensor:
    """Return the factors visible in images (N, 3, H, W) in [-1, 1], int64 (N, 6), columns as in `FACTORS`, or -1.

    Background: the median of the border. Colour: the hue of the difference from the background. Place: its centre of
    mass. Shape, size and fill: those of the shape at that centre with the least squared error. Raises ConfigError for
    another shape of images.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ConfigError(f"images must be (N, 3, H, W) in [-1, 1], got {tuple(images.shape)}")
    parts = [_described(part.detach().float().cpu().numpy()) for part in images.split(BATCH_SIZE) if len(part)]
    return torch.from_numpy(np.concatenate([np.empty((0, len(FACTORS)), np.int64), *parts]))


def _described(x: Array) -> Ints:
    """Return the factors (n, 6) of images (n, 3, H, W)."""
    # background and colour
    x = np.clip(np.nan_to_num(x, nan=-1.0) / 2 + np.float32(0.5), 0, 1)
    background = _background(x)
    ground = GROUNDS[background, None] / 255                                             # (n, 1)
    away = x - ground[:, :, None, None]                                                  # (n, 3, H, W)
    colour = _colour(away, ground)
    towards = COLOURS[colour] / 255 - ground                                             # (n, 3)
    # share of the colour in each pixel
    ink = np.einsum("nchw,nc->nhw", away, towards) / (towards**2).sum(1)[:, None, None]
    ink = np.clip((ink - np.float32(FAINT)) / np.float32(1 - 2 * FAINT), 0, 1)
    # place, shape, size and fill
    centre, visible = _centre(ink)
    size, fill, shape, misfit = _best_shape(ink, centre)
    row, across = (np.abs(centre[:, i, None] - PLACES).argmin(1) for i in (1, 0))
    # factors in the order of FACTORS, without those that are not visible
    factors = np.stack([size, fill, colour, shape, 3 * row + across, background], 1)
    known = visible & (misfit < LARGEST_MISFIT)
    factors[~known, :2], factors[~known, 3] = UNSEEN, UNSEEN
    factors[~visible, 2:5] = UNSEEN
    return factors.astype(np.int64)


def _background(x: Array) -> Ints:
    """Return the index of the background with the brightness nearest to the median of the border, (n,)."""
    grey = x.mean(1)
    border = np.concatenate([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], 1)
    return np.abs(np.median(border, 1)[:, None] - GROUNDS / 255).argmin(1)


def _colour(away: Array, ground: Array) -> Ints:
    """Return the index of the colour with the most similar direction from the background, (n,).

    Pixels are weighted by the cube of their distance from the background, so faint noise has almost no weight.
    """
    far = np.abs(away).max(1, keepdims=True)
    mean = (away * far**3).sum((2, 3))                                      # (n, 3)
    directions = COLOURS / 255 - ground[:, None]                                         # (n, 6, 3)
    cosines = (directions * mean[:, None]).sum(2) / np.linalg.norm(directions, axis=2)
    return cosines.argmax(1)


def _centre(ink: Array) -> tuple[Array, np.ndarray]:
    """Return the centre of mass (n, 2) of ink (n, H, W) as fractions x, y, and whether there is any ink, (n,) bool."""
    # centre of mass
    _, height, width = ink.shape
    mass = ink.sum((1, 2))
    x = (ink.sum(1) * (np.arange(width) + 0.5)).sum(1) / np.maximum(mass, 1e-9) / width
    y = (ink.sum(2) * (np.arange(height) + 0.5)).sum(1) / np.maximum(mass, 1e-9) / height
    # less than the stroke of the smallest shape is no ink
    smallest = STROKE * RADII[0] * min(height, width) ** 2
    return np.stack([x, y], 1).astype(np.float32), mass > smallest


def _best_shape(ink: Array, centre: Array) -> tuple[Ints, Ints, Ints, Array]:
    """Return size, fill and shape with the least squared error to ink (n, H, W), and its relative misfit, (n,) each."""
    # errors of all shapes, sizes and fills
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
    # the best of them
    best = errors.reshape(len(ink), -1).argmin(1)
    size, fill, shape = np.unravel_index(best, errors.shape[1:])
    rows = np.arange(len(ink))
    return size, fill, shape, (errors / squares).reshape(len(ink), -1)[rows, best]

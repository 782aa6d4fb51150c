"""Images of one shape on a plain background, drawn from their factors: the scenes of the dataset `shapes`.

A scene has six factors (`FACTORS`) and a small jitter. Lengths are fractions of the shorter side of the image.
"""

from math import pi, prod, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from hfgen.data.order import Ints, uniforms

Array = npt.NDArray[np.floating[Any]]

FACTORS: dict[str, tuple[str, ...]] = {
    "size": ("small", "medium", "large"),
    "fill": ("filled", "outlined"),
    "colour": ("red", "yellow", "green", "cyan", "blue", "magenta"),
    "shape": ("circle", "square", "triangle", "diamond"),
    "place": (
        "at the top left", "at the top", "at the top right",
        "at the left", "in the centre", "at the right",
        "at the bottom left", "at the bottom", "at the bottom right",
    ),
    "background": ("white", "black"),
}  # fmt: skip
"""The factors of a scene and their values, in the order of the columns of a matrix of factors (N, 6)."""

COUNTS = tuple(len(values) for values in FACTORS.values())
COMBINATIONS = prod(COUNTS)
"""2,592 combinations of values; number k is `np.unravel_index(k, COUNTS)`."""

COLOURS = np.array(
    [[225, 25, 25], [225, 225, 25], [25, 225, 25], [25, 225, 225], [25, 25, 225], [225, 25, 225]], np.float32
)
"""Red, green and blue, in 0..255, of hues 60 degrees apart."""

GROUNDS = np.array([255, 0], np.float32)
"""Grey levels of the backgrounds."""

RADII = np.array([0.095, 0.135, 0.18], np.float32)
"""Radii of the circles of each size; other shapes of that size have the same area."""

INRADII = np.array([1, sqrt(pi) / 2, sqrt(pi / sqrt(27)), sqrt(pi) / 2], np.float32)
"""Radius of the largest circle inside each shape, for shapes with the area of a circle of radius 1."""

PLACES = np.array([0.3, 0.5, 0.7], np.float32)
"""Coordinates of the centres of places."""

STROKE = 0.04
"""Width of the line of outlined shapes."""

JITTER = {"x": 0.02, "y": 0.02, "radius": 0.03}
"""Largest shift of the centre, and largest relative change of the radius."""

BATCH_SIZE = 256
"""Images that are drawn or described at once."""


def column(factors: Ints, name: str) -> Ints:
    """Return one factor (N,) of a matrix of factors (N, 6)."""
    return factors[:, list(FACTORS).index(name)]


def combined(numbers: Ints) -> Ints:
    """Return the factors (N, 6) of the combinations with these `numbers` (N,)."""
    return np.stack(np.unravel_index(numbers, COUNTS), 1).astype(np.int64)


def geometry(seed: int, items: Ints, factors: Ints) -> Array:
    """Return centre x, centre y and radius of scenes, float32 (N, 3): place and size, with jitter of (seed, item)."""
    # jitter in [-1, 1)
    x, y, radius = (2 * uniforms(seed, 0, items, f"shapes/{name}") - 1 for name in JITTER)
    # centres and radii
    row, across = np.divmod(column(factors, "place"), 3)
    centre_x, centre_y = PLACES[across] + JITTER["x"] * x, PLACES[row] + JITTER["y"] * y
    radii = RADII[column(factors, "size")] * (1 + JITTER["radius"] * radius)
    return np.stack([centre_x, centre_y, radii], 1).astype(np.float32)


def render(factors: Ints, placed: Array, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return the images of scenes, uint8 (N, 3, height, width); `factors` (N, 6), `placed` (N, 3) of `geometry`."""
    pictures = np.empty((len(factors), 3, height, width), np.uint8)
    for first in range(0, len(factors), BATCH_SIZE):
        part = slice(first, first + BATCH_SIZE)
        ink = coverage(factors[part], placed[part], height, width)[:, None]              # (n, 1, H, W)
        ground = GROUNDS[column(factors[part], "background"), None, None, None]
        colour = COLOURS[column(factors[part], "colour"), :, None, None]                 # (n, 3, 1, 1)
        pictures[part] = ground + ink * (colour - ground) + np.float32(0.5)              # rounds values >= 0
    return pictures


def coverage(factors: Ints, placed: Array, height: int, width: int) -> Array:
    """Return the share of each pixel that the shape covers, (N, height, width) in [0, 1]."""
    # distance of each pixel from the centre, by shape
    shape = column(factors, "shape")
    distance = np.empty((len(factors), height, width), np.float32)
    for kind in range(len(INRADII)):
        rows = np.flatnonzero(shape == kind)
        distance[rows] = gauge(kind, *grid(placed[rows], height, width))
    # filled shapes, minus their inside for outlined ones
    inradius = (placed[:, 2] * INRADII[shape])[:, None, None]
    hollow = column(factors, "fill") == FACTORS["fill"].index("outlined")
    ink = inside(distance, inradius, min(height, width))
    ink[hollow] -= inside(distance[hollow], inradius[hollow] - np.float32(STROKE), min(height, width))
    return ink


def grid(placed: Array, height: int, width: int) -> tuple[Array, Array]:
    """Return the coordinates of pixels relative to the centre of each scene: x (N, 1, W) and y (N, H, 1), y down."""
    side = min(height, width)
    x = (np.arange(width, dtype=np.float32) + np.float32(0.5) - width * placed[:, :1]) / side
    y = (np.arange(height, dtype=np.float32) + np.float32(0.5) - height * placed[:, 1:2]) / side
    return x[:, None, :], y[:, :, None]


def gauge(kind: int, x: Array, y: Array) -> Array:
    """Return the inradius of the shape around the origin with (x, y) on its outline; shapes are its level sets.

    Its gradient has length 1, so its differences are distances from the sides.
    """
    if kind == 0:
        return np.sqrt(x * x + y * y)
    if kind == 1:
        return np.maximum(np.abs(x), np.abs(y))
    if kind == 2:
        return np.maximum(np.float32(sqrt(3) / 2) * np.abs(x) - y / 2, y)
    return (np.abs(x) + np.abs(y)) * np.float32(sqrt(0.5))


def inside(distance: Array, inradius: Array, side: int) -> Array:
    """Return the share of a pixel of 1 / side that lies inside a straight edge at `inradius`, in [0, 1]."""
    return np.clip((inradius - distance) * np.float32(side) + np.float32(0.5), 0, 1)

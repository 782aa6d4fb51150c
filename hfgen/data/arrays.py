"""Arrays and tensors as data, by rules that refuse whatever could mean two things.

- Images: (N, H, W) is grey; (N, C, H, W) and (N, H, W, C) have 1, 3 or 4 channels. An array in which both axes, or
  neither, could be the channels is refused, and so is a single image.
- Values: uint8 in [0, 255], uint16 in [0, 65535], bool. Floats are in [0, 1] if none is negative, and in [-1, 1] if the
  smallest is at most -0.5. Other floats, NaN and other integers are refused.
- Depth: floats that are k / 255 become 8 bits. Other grey floats keep 16 bits, like grey images of 16 bits; other
  colours are rounded to 8 bits.
- Points: (N, 2) floats, in data coordinates.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from hfgen.data.order import Ints
from hfgen.data.source import Source
from hfgen.data.splits import Split
from hfgen.errors import DataError
from hfgen.images import from_integers

Array = npt.NDArray[Any]

CHANNELS = (1, 3, 4)
TOPS = {"bool": 1, "uint8": 255, "uint16": 65535}
"""Numbers of channels, and the largest value of integer pixels by their type."""

DARK = -0.5
"""Largest minimum of floats in [-1, 1]: images without a darker pixel are not told from images in [0, 1]."""

CHUNK = 2**22
"""Numbers that are checked at once, so that a file need not fit in memory."""


@dataclass(frozen=True)
class Form:
    """Form of an array of images: the axis of its channels (None: grey without one), and the values of black and white.

    `integers`: whether values are integers.
    """

    axis: int | None
    low: float
    high: float
    integers: bool

    def rows(self, array: Array) -> Array:
        """Return images as (b, H, W, C), with their values."""
        if self.axis is None:
            return array[..., None]
        return np.moveaxis(array, self.axis, -1)


def is_array(value: Any) -> bool:
    """Return whether a value is an array of NumPy or a tensor."""
    return isinstance(value, np.ndarray | Tensor)


def as_array(value: Any) -> Array:
    """Return an array, or a tensor of any device as an array; floats of 16 bits become float32."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        if value.dtype in (torch.bfloat16, torch.float16):
            value = value.float()
        return value.numpy()
    array: Array = value
    return array.astype(np.float32) if array.dtype == np.float16 else array


def is_points(array: Array) -> bool:
    """Return whether an array has the shape of points, (N, 2)."""
    return array.ndim == 2 and array.shape[1] == 2


def require_points(name: str, array: Array) -> npt.NDArray[np.float64]:
    """Return a copy of points (N, 2) in float64. Raises DataError unless all are finite floats."""
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise DataError(f"{name}: points must be finite floats (N, 2), got {array.dtype}")
    return np.array(array, np.float64)


def form_of(name: str, array: Array) -> Form:
    """Return the form of an array of images by the rules above. Raises DataError, naming the remedy, for any other."""
    # layout
    axis = _channel_axis(name, array)
    if not array.size:
        raise DataError(f"{name}: it holds no images")
    # integers
    kind = array.dtype.name
    if kind in TOPS:
        return Form(axis, 0.0, float(TOPS[kind]), True)
    if array.dtype.kind != "f":
        raise DataError(f"{name}: pixels of type {kind} have no known range; convert them to uint8 in [0, 255], or to "
                        "floats in [0, 1]")  # fmt: skip
    # floats
    bounds = np.array([(chunk.min(), chunk.max()) for chunk in _chunks(array)])
    low, high = float(bounds[:, 0].min()), float(bounds[:, 1].max())
    if not np.isfinite(bounds).all():
        raise DataError(f"{name}: holds NaN or infinite values")
    if low >= 0 and high <= 1:
        return Form(axis, 0.0, 1.0, False)
    if -1 <= low <= DARK and high <= 1:
        return Form(axis, -1.0, 1.0, False)
    hint = "scale them to [0, 1], or to [-1, 1]"
    if DARK < low < 0 and high <= 1:
        hint = f"images in [-1, 1] have pixels below {DARK}, images in [0, 1] none below 0; clip them to [0, 1]"
    raise DataError(f"{name}: float pixels are in [{low:g}, {high:g}], which is neither [0, 1] nor [-1, 1]; {hint}")


def _channel_axis(name: str, array: Array) -> int | None:
    """Return the axis of the channels, 1 or 3; None for (N, H, W). Raises DataError for ambiguous shapes."""
    shape = "x".join(map(str, array.shape))
    if array.ndim == 3:
        if array.shape[0] in CHANNELS or array.shape[2] in CHANNELS:
            raise DataError(f"{name}: {shape} may be one image; images are (N, C, H, W), (N, H, W, C) or (N, H, W), so "
                            "add the missing axis")  # fmt: skip
        return None
    if array.ndim != 4:
        raise DataError(f"{name}: {shape} are no images; they are (N, C, H, W), (N, H, W, C) or (N, H, W), and points "
                        "are (N, 2)")  # fmt: skip
    axes = [axis for axis in (1, 3) if array.shape[axis] in CHANNELS]
    if len(axes) == 1:
        return axes[0]
    which = "both axis 1 and axis 3" if axes else "neither axis 1 nor axis 3"
    raise DataError(f"{name}: {shape}: {which} can be the channels, which are 1, 3 or 4")


def images_of(form: Form, array: Array) -> Tensor:
    """Return images of a form as float32 (B, C, H, W) in [-1, 1], their values unrounded."""
    pixels = torch.from_numpy(np.array(np.moveaxis(form.rows(array), -1, 1), order="C"))
    if form.integers:
        return from_integers(pixels, int(form.high))
    if form.low < 0:
        return pixels.float()
    return pixels.float() * 2 - 1


class ArraySource(Source):
    """Images of an array, each a PIL image of 8 bits, or of 16 bits if it is grey and has more levels than 8 bits."""

    def __init__(self, name: str, array: Array, split: Split) -> None:
        super().__init__(name, None, None)
        self.array, self.form = array, form_of(name, array)
        self.deep = self._is_deep()
        self.rows = split.indices(name, len(array))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.array) if self.rows is None else len(self.rows)

    def read(self, i: int) -> Image.Image:
        """Return image i."""
        # take its values as shares of white
        row = i if self.rows is None else int(self.rows[i])
        pixels, form = self.form.rows(self.array[row : row + 1])[0], self.form
        if not (form.integers and form.high == 255):
            share = (pixels.astype(np.float64) - form.low) / (form.high - form.low)
            top = 65535 if self.deep else 255
            pixels = np.rint(share * top).astype(np.uint16 if self.deep else np.uint8)
        # make an image of them
        if pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        return Image.fromarray(np.ascontiguousarray(pixels))

    def where(self, i: int) -> str:
        """Return the array and the row."""
        return f"{self.name}, item {i if self.rows is None else self.rows[i]}"

    def _is_deep(self) -> bool:
        """Return whether the images are grey and have more levels than 8 bits."""
        grey = self.form.axis is None or self.array.shape[self.form.axis] == 1
        if not grey or (self.form.integers and self.form.high <= 255):
            return False
        span = self.form.high - self.form.low
        for chunk in _chunks(self.array):
            levels = (chunk.astype(np.float64) - self.form.low) / span * 255
            if np.abs(levels - np.rint(levels)).max() > 1e-3:
                return True
        return False


def _chunks(array: Array) -> Iterator[Array]:
    """Yield an array in parts along its first axis."""
    rows = max(1, CHUNK // max(1, array[0].size))
    for first in range(0, len(array), rows):
        yield array[first : first + rows]


def chosen_rows(split: Split, name: str, n: int) -> Ints:
    """Return the rows of a split of `n` items."""
    rows = split.indices(name, n)
    return np.arange(n) if rows is None else rows

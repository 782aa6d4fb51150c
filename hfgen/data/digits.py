"""scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, available without a download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from hfgen.data.dataset import fingerprint_of
from hfgen.data.decode import Header, Pixels, fit, with_channels
from hfgen.data.images import ResidentImages
from hfgen.data.load import ImageSpec, choose_layout
from hfgen.data.source import Labels
from hfgen.data.splits import Split
from hfgen.errors import DataError

TOP = 16
"""Largest value of a pixel, the number of inked dots of a 4x4 block."""


def digits(spec: ImageSpec, split: Split) -> ResidentImages:
    """Return the digits of a split in the form of `spec`. Default: (1797, C, 8, 8) with values k / 8 - 1, k in 0..16.

    Raises ConfigError for a slice that leaves no digits, DataError without scikit-learn.
    """
    # choose the rows
    rows = _read()
    chosen = split.indices("digits", len(rows))
    if chosen is not None:
        rows = rows[chosen]
    pixels: Pixels = rows[:, :64].reshape(-1, 1, 8, 8).astype(np.uint8)
    labels = rows[:, 64].astype(np.int64)
    # resize
    resolution, channels = spec.resolution or (8, 8), spec.channels or 1
    top = TOP
    if resolution != (8, 8):
        choose_layout("digits", {0: Header(8, 8, True, False)}, lambda i: f"digit {i}", spec)
        pixels, top = _resized(pixels, *resolution), 65535
    pixels = np.stack([with_channels(image, channels, top) for image in pixels])
    return ResidentImages(
        "digits" if chosen is None else f"digits {split.text}",
        pixels,
        top,
        labels=Labels(labels, 10, [str(digit) for digit in range(10)]),
        flip=spec.flip,
        fingerprint=fingerprint_of("digits", pixels, labels, spec.flip),
    )


def _read() -> np.ndarray:
    """Return scikit-learn's table (1797, 65), 64 pixels and the digit, without importing scikit-learn."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("digits: they come with scikit-learn, which is not installed; pip install scikit-learn")
    return np.loadtxt(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",", encoding="utf-8")


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return digits (N, 1, 8, 8) resized, in 16 bits to keep all levels."""
    planes = [Image.fromarray(image[0].astype(np.float32) * (65535 / TOP)) for image in pixels]
    arrays = np.stack([np.asarray(fit(plane, height, width)) for plane in planes])
    return arrays[:, None].round().clip(0, 65535).astype(np.uint16)

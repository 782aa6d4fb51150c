"""scikit-learn's handwritten digits: 1,797 real 8x8 images, the dataset that is always there."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from hfgen.data.dataset import fingerprint_of
from hfgen.data.decode import Header, Pixels, fit, with_channels
from hfgen.data.images import ResidentImages
from hfgen.data.load import Wanted, choose_layout
from hfgen.data.source import Labels
from hfgen.data.splits import Split
from hfgen.errors import DataError

TOP = 16                                               # a pixel counts the inked dots of a 4x4 block


def digits(wanted: Wanted, split: Split) -> ResidentImages:
    """Return the digits of a split, (1797, C, 8, 8) with values k / 8 - 1 for k in 0..16, or resized if so wanted."""
    rows = _read()
    chosen = split.indices("digits", len(rows))
    rows = rows if chosen is None else rows[chosen]
    pixels: Pixels = rows[:, :64].reshape(-1, 1, 8, 8).astype(np.uint8)
    labels = rows[:, 64].astype(np.int64)
    resolution, channels = wanted.resolution or (8, 8), wanted.channels or 1
    top = TOP
    if resolution != (8, 8):
        choose_layout("digits", {0: Header(8, 8, True, False)}, lambda i: f"digit {i}", wanted)
        pixels, top = _resized(pixels, *resolution), 65535
    pixels = np.stack([with_channels(image, channels, top) for image in pixels])
    return ResidentImages(
        "digits" if chosen is None else f"digits {split.text}",
        pixels,
        top,
        labels=Labels(labels, 10, [str(digit) for digit in range(10)]),
        flip=wanted.flip,
        fingerprint=fingerprint_of("digits", pixels, labels, wanted.flip),
    )


def _read() -> np.ndarray:
    """Return scikit-learn's table (1797, 65), 64 pixels and the digit, without importing scikit-learn."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("digits: they come with scikit-learn, which is not installed; pip install scikit-learn")
    return np.loadtxt(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",", encoding="utf-8")


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return (N, 1, 8, 8) digits resized, in 16 bits so that no level is lost."""
    planes = [Image.fromarray(image[0].astype(np.float32) * (65535 / TOP)) for image in pixels]
    arrays = np.stack([np.asarray(fit(plane, height, width)) for plane in planes])
    return arrays[:, None].round().clip(0, 65535).astype(np.uint16)

"""Decoding of an image to an integer array in the layout of a dataset: mode, alpha, bit depth, size.

Conversion by kind of image (Pillow's modes):

- L, RGB: unchanged. 1 (bit): 0 and 255. P: the colours of its palette. CMYK, YCbCr, HSV: Pillow's conversion to RGB.
- LA, RGBA and other transparency: composited over the background colour before resizing; kept with 4 channels.
- EXIF orientation is applied. The first frame of an animation is used.
- 16-bit grey (also 12-bit TIFF): rescaled from its bit depth to 0..65535 and kept in 16 bits. Pillow reduces 16-bit
  colour to its high 8 bits.
- 32-bit integers and floats have no fixed range: rescaled from the range in the TIFF tags SMinSampleValue and
  SMaxSampleValue. Without them a float image must be in [0, 1]; other images are refused. No value is clipped.

Size: the shorter side is resized to the target (bicubic, antialiased), and the centre is kept.
"""

import hashlib
import io
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from hfgen.registry import IMAGE_SUFFIXES

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
EXTENSIONS = {*IMAGE_SUFFIXES}
GREY = ("1", "L", "LA", "La")
"""Pillow's grey modes."""

TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

S_MIN_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE, BITS_PER_SAMPLE = 340, 341, 258

Pixels = npt.NDArray[Any]
"""Integers, uint8 or uint16, (C, H, W) or (N, C, H, W)."""

Encoded = bytes | Image.Image
"""An image before decoding: the bytes of a file, or a PIL image."""

Colour = tuple[int, int, int]


class Header(NamedTuple):
    """Header of an image, read before decoding: displayed size, whether grey, whether `deep` (more than 8 bits)."""

    height: int
    width: int
    grey: bool
    deep: bool


@dataclass(frozen=True)
class Layout:
    """Form of all images of a dataset: (channels, height, width), uint16 if `deep`, else uint8."""

    channels: int
    height: int
    width: int
    background: Colour
    deep: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def top(self) -> int:
        """Return the largest pixel value: 65535 or 255."""
        return 65535 if self.deep else 255


def open_image(data: Encoded) -> Image.Image:
    """Return the image of `data` before decoding, or a copy of a PIL image.

    Raises ValueError for more pixels than Pillow's limit.
    """
    image = data.copy() if isinstance(data, Image.Image) else Image.open(io.BytesIO(data), formats=FORMATS)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width}x{image.height} pixels are more than the allowed {limit:,}")
    return image


def hash_of(data: Encoded) -> bytes:
    """Return the sha256 of the bytes of an image, or of all that decoding reads of a PIL image."""
    if not isinstance(data, Image.Image):
        return hashlib.sha256(data).digest()
    turned = data.getexif().get(ExifTags.Base.Orientation)
    parts = (data.mode, data.size, data.getpalette(), data.info.get("transparency"), turned)
    return hashlib.sha256(repr(parts).encode() + data.tobytes()).digest()


def read_header(data: Encoded, background: Colour) -> Header:
    """Return the header of an encoded image. The checksums of a PNG are verified (other formats have none)."""
    # displayed size; that of a TIFF includes its orientation
    image = open_image(data)
    width, height = image.size
    plain_png = image.format == "PNG" and "exif" not in image.info
    if image.format != "TIFF" and not plain_png and image.getexif().get(ExifTags.Base.Orientation) in TURNED:
        width, height = height, width
    # colours and bits
    deep = is_deep(image)
    coloured_by_background = image.has_transparency_data and len(set(background)) > 1
    header = Header(height, width, deep or (image.mode in GREY and not coloured_by_background), deep)
    image.verify()
    return header


def decode(data: Encoded, layout: Layout) -> Pixels:
    """Return an encoded image as integers (C, H, W) in [0, layout.top]. Errors of Pillow for bad data pass through."""
    image = open_image(data)
    ImageOps.exif_transpose(image, in_place=True)
    # more than 8 bits, always grey
    if is_deep(image):
        plane = Image.fromarray(_deep_plane(image))
        grey = np.asarray(fit(plane, layout.height, layout.width)).round().clip(0, 65535).astype(np.uint16)
        return with_channels(grey[None], layout.channels, 65535)
    # 8 bits
    flat = _flatten(image, layout.channels, layout.background)
    array = np.atleast_3d(np.asarray(fit(flat, layout.height, layout.width))).transpose(2, 0, 1)
    return array.astype(np.uint16) * np.uint16(257) if layout.deep else array


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Return the image resized to (height, width) from its centred box of that aspect ratio, bicubic, antialiased.

    The box is resampled in one step, so no intermediate image is larger.
    """
    if image.size == (width, height):
        return image
    # centred box
    scale = max(width / image.width, height / image.height)
    left = max(0.0, (image.width - width / scale) / 2)
    top = max(0.0, (image.height - height / scale) / 2)
    box = (left, top, image.width - left, image.height - top)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def with_channels(grey: Pixels, channels: int, top: int) -> Pixels:
    """Return grey pixels (1, H, W) as (channels, H, W): repeated for colours, opaque (`top`) in a fourth channel."""
    colours = np.repeat(grey, min(channels, 3), axis=0)
    if channels == 4:
        return np.concatenate([colours, np.full_like(grey, top)])
    return colours


def is_deep(image: Image.Image) -> bool:
    """Return whether pixels have more than 8 bits: 16-bit or 32-bit integers, floats."""
    return image.mode == "F" or image.mode.startswith("I")


def _flatten(image: Image.Image, channels: int, background: Colour) -> Image.Image:
    """Return an 8-bit image as RGBA (4 channels), or as L or RGB composited over the background.

    a * colour + (1 - a) * background (Porter and Duff 1984, "over"), rounded to the nearest integer.
    """
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"), np.uint32)
        alpha = rgba[..., 3:]
        over = (alpha * rgba[..., :3] + (255 - alpha) * np.asarray(background, np.uint32) + 127) // 255
        image = Image.fromarray(over.astype(np.uint8))
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    return image.convert(mode)


def _deep_plane(image: Image.Image) -> npt.NDArray[np.float32]:
    """Return a grey image of more than 8 bits as floats in [0, 65535], rescaled from its documented range."""
    values = np.asarray(image).astype(np.float64)
    low, high = _range(image, values)
    return ((values - low) * (65535 / (high - low))).astype(np.float32)


def _range(image: Image.Image, values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the values of black and white of an image of more than 8 bits. Raises ValueError if they are unknown."""
    # formats with a fixed range
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        return 0.0, 2.0 ** int(np.ravel(tags.get(BITS_PER_SAMPLE, 16))[0]) - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 0.0, 65535.0
    # range in the tags, or [0, 1] for floats
    bounds = [float(np.ravel(tags[tag])[0]) for tag in (S_MIN_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE) if tag in tags]
    low, high = bounds if len(bounds) == 2 else (0.0, 1.0)
    within = -math.inf < low <= values.min() and values.max() <= high < math.inf and low < high
    if not within or (image.mode == "I" and len(bounds) != 2):
        kind = "float" if image.mode == "F" else "32-bit"
        raise ValueError(
            f"{kind} pixels in [{values.min():g}, {values.max():g}] have no known range; store them in [0, 1] (float), "
            "with the TIFF tags SMinSampleValue and SMaxSampleValue, or with 8 or 16 bits"
        )
    return low, high

"""From encoded images to a dataset: every image is decoded once before training, and all broken ones are listed."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from hfgen.data.dataset import Dataset, fingerprint_of
from hfgen.data.decode import Colour, Header, Layout, Pixels, decode, hash_of, read_header
from hfgen.data.images import Images, LazyImages, ResidentImages
from hfgen.data.order import Ints
from hfgen.data.source import Labels, Source
from hfgen.errors import DataError, HfgenError
from hfgen.logging import is_progress_bar_enabled, warn

CHUNK = 128
"""Images that a thread takes at once."""

LISTED = 20
"""Largest number of broken images in a message."""

T = TypeVar("T")
Bad = dict[int, str]
"""Reason for each image that cannot be read, by its index."""


@dataclass(frozen=True)
class ImageSpec:
    """Requested form of images: resolution (None: unchanged), channels (None: 1 if all are grey, else 3)."""

    resolution: tuple[int, int] | None = None
    channels: int | None = None
    background: Colour = (255, 255, 255)
    skip_bad_images: bool = False
    flip: bool = False


def load_images(source: Source, spec: ImageSpec, max_resident_bytes: int, num_workers: int) -> Images:
    """Return the dataset of a source's images: in memory if they take at most `max_resident_bytes`, else lazy.

    Raises one DataError that lists all images that cannot be read; with `skip_bad_images` they are left out with a
    warning. Raises DataError for images of different sizes without a resolution.
    """
    # read the headers
    if not len(source):
        raise DataError(f"{source.name}: it holds no images")
    headers, bad, content = _read_headers(source, spec.background)
    if not headers:
        raise _unreadable(source, bad)
    # decode all images, and keep them if they fit in memory
    layout = choose_layout(source.name, headers, source.where, spec)
    good = np.fromiter(headers, np.int64)
    resident = len(good) * prod(layout.shape) * (2 if layout.deep else 1) <= max_resident_bytes
    pixels = np.empty((len(good) if resident else 0, *layout.shape), np.uint16 if layout.deep else np.uint8)
    bad |= _decode_all(source, good, layout, pixels)
    if bad:
        kept = _without(source, good, bad, spec.skip_bad_images)
        good = good[kept]
        if resident:
            pixels = pixels[kept]
    # labels, captions and fingerprint of the remaining images
    labels, captions = _labels_and_captions(source, good)
    options: dict[str, Any] = {"labels": labels, "captions": captions, "flip": spec.flip}
    values, names = (labels.values, labels.names) if labels else (None, None)
    options["fingerprint"] = fingerprint_of(content, good, layout, spec.flip, values, names, captions)
    if resident:
        return ResidentImages(source.name, pixels, layout.top, **options)
    return LazyImages(source, good, layout, num_workers, **options)


@dataclass(frozen=True)
class Reading:
    """Arguments of `load_dataset` beside the data."""

    split: str
    columns: Mapping[str, str | None]
    spec: ImageSpec
    streaming: bool
    max_resident_bytes: int
    num_workers: int

    def load(self, source: Source) -> Dataset:
        """Return the dataset of a source's images."""
        return load_images(source, self.spec, self.max_resident_bytes, self.num_workers)


def choose_layout(name: str, headers: Mapping[int, Header], where: Callable[[int], str], spec: ImageSpec) -> Layout:
    """Return the layout of all images. Raises DataError for images of different sizes without a resolution.

    Warns once about images that are smaller than the resolution and will be enlarged.
    """
    # one size
    first = next(iter(headers))
    height, width = spec.resolution or headers[first][:2]
    if spec.resolution is None:
        other = next((i for i, header in headers.items() if header[:2] != (height, width)), None)
        if other is not None:
            raise DataError(
                f"{name}: images differ in size: {where(first)} is {height}x{width} and {where(other)} is "
                f"{headers[other].height}x{headers[other].width} (height x width); set a resolution"
            )
    # warn about enlarged images
    small = [i for i, header in headers.items() if header.height < height or header.width < width]
    if small:
        warn(
            f"{name}: {len(small):,} of {len(headers):,} images are smaller than {height}x{width} and are enlarged; "
            f"the first is {where(small[0])}, {headers[small[0]].height}x{headers[small[0]].width}"
        )
    # channels and bits
    channels = spec.channels or (1 if all(header.grey for header in headers.values()) else 3)
    return Layout(channels, height, width, spec.background, any(header.deep for header in headers.values()))


def broken_images(name: str, bad: Mapping[str, str], total: int) -> DataError:
    """Return an error that lists place and reason of the first 20 broken images, and counts the others."""
    listed = [f"\n  {place}: {reason}" for place, reason in list(bad.items())[:LISTED]]
    more = f"\n  and {len(bad) - LISTED:,} more" if len(bad) > LISTED else ""
    return DataError(
        f"{name}: {len(bad):,} of {total:,} images cannot be read:{''.join(listed)}{more}\n"
        "repair or delete them, or leave them out with skip_bad_images (--skip-bad-images)"
    )


def reason(error: Exception) -> str:
    """Return the reason why an image cannot be read, in one line without the address of a buffer."""
    text = str(error).split("\n")[0] or type(error).__name__
    return "no image" if "cannot identify image file" in text else text


def _read_headers(source: Source, background: Colour) -> tuple[dict[int, Header], Bad, bytes]:
    """Return the headers of readable images, the reasons for the others, and the sha256 of all encoded bytes."""

    # Pillow raises many types of errors for damaged files
    def read(i: int) -> tuple[Header | str, bytes]:
        try:
            data = source.read(i)
            digest = hash_of(data)
        except OSError as error:
            return reason(error), b""
        try:
            return read_header(data, background), digest
        except Exception as error:
            return reason(error), digest

    # divide the images into readable and broken ones
    headers: dict[int, Header] = {}
    bad: Bad = {}
    content = hashlib.sha256()
    for i, (result, digest) in enumerate(_in_threads(read, len(source), f"reading {source.name}")):
        content.update(digest)
        if isinstance(result, Header):
            headers[i] = result
        else:
            bad[i] = result
    return headers, bad, content.digest()


def _decode_all(source: Source, good: Ints, layout: Layout, pixels: Pixels) -> Bad:
    """Decode image good[j] into pixels[j], if `pixels` is not empty, and return the images that cannot be decoded."""

    def read(j: int) -> str | None:
        try:
            array = decode(source.read(int(good[j])), layout)
        except HfgenError:
            raise
        except Exception as error:
            return reason(error)
        if len(pixels):
            pixels[j] = array
        return None

    reasons = _in_threads(read, len(good), f"decoding {source.name}")
    return {int(good[j]): text for j, text in enumerate(reasons) if text is not None}


def _in_threads(function: Callable[[int], T], n: int, title: str) -> Iterator[T]:
    """Yield function(0), ..., function(n - 1) in order, computed in threads (Pillow and hashlib release the lock)."""
    chunks = [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with (
        ThreadPoolExecutor(cores) as pool,
        tqdm(total=n, desc=title, unit=" images", delay=2, leave=False, disable=not is_progress_bar_enabled()) as bar,
    ):
        for results in pool.map(lambda chunk: [function(i) for i in chunk], chunks):
            yield from results
            bar.update(len(results))


def _without(source: Source, good: Ints, bad: Bad, skip: bool) -> np.ndarray:
    """Return a mask over `good`, False for `bad` images, and warn. DataError without `skip` or if none remain."""
    kept = ~np.isin(good, list(bad))
    if not skip or not kept.any():
        raise _unreadable(source, bad)
    first = min(bad)
    warn(
        f"{source.name}: left out {len(bad):,} of {len(source):,} images that cannot be read; the first is "
        f"{source.where(first)}: {bad[first]}"
    )
    return kept


def _unreadable(source: Source, bad: Bad) -> DataError:
    return broken_images(source.name, {source.where(i): bad[i] for i in sorted(bad)}, len(source))


def _labels_and_captions(source: Source, kept: Ints) -> tuple[Labels | None, list[str] | None]:
    """Return the labels and captions of the images `kept`."""
    labels, captions = source.conditions()
    if labels is not None:
        labels = labels.take(kept)
    return labels, captions if captions is None else [captions[i] for i in kept]

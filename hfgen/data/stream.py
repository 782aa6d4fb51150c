"""Streams: examples read in sequence from the Hub, or from files too large for the disk.

A stream is read in windows of 1,024 examples, and each window is permuted as a function of (seed, epoch, window). So
batches are a function of the seed and the batch number, as for all datasets, but the shuffling is local.
"""

from collections.abc import Iterator
from itertools import count, islice
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch

from hfgen.data.dataset import Batch, fingerprint_of
from hfgen.data.decode import Pixels, decode, read_header
from hfgen.data.images import Images
from hfgen.data.load import ImageSpec, broken_images, choose_layout, reason
from hfgen.data.order import Ints, derive_seed, permutation
from hfgen.data.source import Labels
from hfgen.data.tables import Columns, class_names, encoded, image_bytes, lists_files
from hfgen.errors import ConfigError, DataError
from hfgen.images import from_integers

WINDOW = 1024
"""Examples of a window."""

Rows = list[dict[str, Any]]


class Spot(NamedTuple):
    """A position of the endless order: row `order[j]` of the window that begins at example `start` of an epoch."""

    epoch: int
    start: int
    rows: Rows
    order: Ints
    j: int


class StreamImages(Images):
    """Images of a stream, in the order of its windows.

    It has no length (`len` raises TypeError), `labels()` is None, and `tensor` needs a number. Size, channels and
    broken images are read from the first window before training. Later broken images raise DataError; with
    `skip_bad_images` the next good image of the window replaces them, so that no position changes. The fingerprint
    covers the first window and all choices. Resuming reads the stream up to the requested batch. If its length is
    unknown and the position may be in a later epoch, the stream is first read once to count it.
    """

    def __init__(self, name: str, stream: Any, columns: Columns, spec: ImageSpec) -> None:
        self.follow = lists_files(stream)
        self.columns, self.spec, self.window = columns, spec, WINDOW
        self.name, self._stream = name, encoded(stream, columns.image)
        # read the first window
        first = list(self._stream.take(WINDOW))
        self._length = len(first) if len(first) < WINDOW else _recorded_length(stream)
        self.layout = choose_layout(name, self._headers(first), self._where, spec)
        # fingerprint it; older versions named the class of `spec` Wanted
        content = [
            (image_bytes(row[columns.image], self.follow), *self._extras(row)) for row in first if row[columns.image]
        ]
        choices = repr(spec).replace("ImageSpec", "Wanted", 1).encode()
        super().__init__(
            name,
            self.layout.shape,
            self.layout.top,
            fingerprint=fingerprint_of("stream", content, self.layout, choices, columns, WINDOW),
            labels=self._label_names(stream),
            flip=spec.flip,
        )
        # labels come with the rows
        self._labels = None

    def __len__(self) -> int:
        """Raise TypeError: a stream has no length."""
        raise TypeError(f"{self.name} is a stream and has no length")

    def labels(self) -> None:
        """Return None: the labels of a stream come with its batches."""
        return

    def describe(self) -> str:
        """Return a description such as `owner/name (stream): images 3x32x32, 10 classes`."""
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        return f"{self.name} (stream): images {'x'.join(map(str, self.shape))}{classes}"

    def tensor(self, n: int | None = None) -> torch.Tensor:
        """Return the first `n` images in stream order, float32 (n, C, H, W) in [-1, 1]; ConfigError without `n`."""
        if n is None:
            raise ConfigError(f"{self.name} is a stream: give the number of images")
        pixels = [self._pixels(spot)[0] for spot in islice(self._in_order(), n)]
        return from_integers(torch.from_numpy(np.stack(pixels)), self.top)

    def _in_order(self) -> Iterator[Spot]:
        """Yield the positions of one epoch without shuffling."""
        for number, rows in enumerate(self._windows(0)):
            for j in range(len(rows)):
                yield Spot(0, number * self.window, rows, np.arange(len(rows)), j)

    def _batches(self, seed: int, batch_size: int, first: int, rows: slice, device: torch.device) -> Iterator[Batch]:
        if self._length is not None and self._length < batch_size:
            raise DataError(f"{self.name}: {self._length:,} images are fewer than one batch of {batch_size:,}")
        walk = self._walk(seed, first * batch_size)
        return (self._batch(seed, list(islice(walk, batch_size))[rows], device) for _ in count())

    def _batch(self, seed: int, spots: list[Spot], device: torch.device) -> Batch:
        """Return the images, labels and captions of some positions."""
        # images
        epochs = np.array([spot.epoch for spot in spots], np.int64)
        indices = np.array([spot.start + spot.order[spot.j] for spot in spots], np.int64)
        pixels, rows = zip(*map(self._pixels, spots), strict=True)
        batch = self.finish(torch.from_numpy(np.stack(pixels)).to(device), seed, epochs, indices)
        # labels and captions
        labels, captions = zip(*map(self._extras, rows), strict=True)
        if self.num_classes is not None:
            batch["label"] = torch.tensor(labels, device=device)
        if self.columns.caption is not None:
            batch["caption"] = list(captions)
        return batch

    def _walk(self, seed: int, position: int) -> Iterator[Spot]:
        """Yield the positions of the endless order from `position` on."""
        # skip to the position
        first, offset = divmod(position, self._count()) if position else (0, 0)
        for epoch in count(first):
            # permute one window after the other
            seen = offset // self.window * self.window
            for rows in self._windows(seen):
                order = permutation(derive_seed(seed, "window", seen // self.window), epoch, len(rows))
                for j in range(max(0, offset - seen), len(rows)):
                    yield Spot(epoch, seen, rows, order, j)
                seen += len(rows)
            # check and keep the length
            if self._length not in (None, seen):
                raise DataError(
                    f"{self.name}: the stream ended after {seen:,} examples, but {self._length:,} are recorded or were "
                    "read before; train without streaming, or on data that do not change"
                )
            self._length, offset = seen, 0

    def _windows(self, start: int) -> Iterator[Rows]:
        """Yield the windows of one epoch from example `start` on; the last window may be shorter."""
        rows = iter(self._stream.skip(start) if start else self._stream)
        while window := list(islice(rows, self.window)):
            yield window

    def _count(self) -> int:
        """Return the number of examples; if it is unknown, read the stream once."""
        if self._length is None:
            self._length = sum(1 for _ in self._stream)
        return self._length

    def _pixels(self, spot: Spot) -> tuple[Pixels, dict[str, Any]]:
        """Return the pixels and the row of a position, or of the next good image of its window."""
        bad: dict[str, str] = {}
        for i in np.roll(spot.order, -spot.j):
            row = spot.rows[i]
            # Pillow raises many types of errors for damaged files
            try:
                return decode(image_bytes(row[self.columns.image], self.follow), self.layout), row
            except Exception as error:
                bad[self._where(spot.start + int(i))] = reason(error)
            if not self.spec.skip_bad_images:
                break
        raise broken_images(self.name, bad, len(spot.rows))

    def _headers(self, rows: Rows) -> dict[int, Any]:
        """Return the headers of the first window; DataError that lists its broken images, unless they are skipped."""
        if not rows:
            raise DataError(f"{self.name}: it holds no images")
        # Pillow raises many types of errors for damaged files
        headers, bad = {}, {}
        for i, row in enumerate(rows):
            try:
                headers[i] = read_header(image_bytes(row[self.columns.image], self.follow), self.spec.background)
            except Exception as error:
                bad[self._where(i)] = reason(error)
        if not headers or (bad and not self.spec.skip_bad_images):
            raise broken_images(self.name, bad, len(rows))
        return headers

    def _extras(self, row: dict[str, Any]) -> tuple[Any, Any]:
        """Return the label and the caption of a row, each None without a column."""
        label, caption = self.columns.label, self.columns.caption
        return row[label] if label else None, row[caption] if caption else None

    def _label_names(self, stream: Any) -> Labels | None:
        """Return the classes of the label column; ConfigError unless the column declares them."""
        if self.columns.label is None:
            return None
        names = class_names(stream.features[self.columns.label])
        if names is None:
            raise ConfigError(
                f"{self.name}: label column {self.columns.label!r} does not declare its classes, and a stream cannot "
                "count them; use a ClassLabel column, label_column='none', or no streaming"
            )
        return Labels(np.zeros(0, np.int64), len(names), names)

    def _where(self, i: int) -> str:
        return f"{self.name}, example {i}"


def _recorded_length(stream: Any) -> int | None:
    """Return the number of examples of this split that the dataset's information records, or None."""
    info = (stream.info.splits or {}).get(str(stream.split))
    if not isinstance(info, datasets.SplitInfo):
        return None
    return info.num_examples or None

"""Streams: examples read one after the other from the Hub or from files too large for the disk.

A stream is read in windows of 1,024 examples; each window is permuted by f(seed, epoch, window). So the batches are a
function of the seed and the batch number, as for any dataset, though the shuffling is local.
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
from hfgen.data.load import Wanted, broken_images, choose_layout, reason
from hfgen.data.order import Ints, derive_seed, permutation
from hfgen.data.source import Labels
from hfgen.data.tables import Columns, class_names, encoded, image_bytes
from hfgen.errors import ConfigError, DataError
from hfgen.images import from_integers

WINDOW = 1024

Rows = list[dict[str, Any]]


class Spot(NamedTuple):
    """A position of the endless order: the row `order[j]` of a window that begins at `start` in an epoch."""

    epoch: int
    start: int
    rows: Rows
    order: Ints
    j: int


class StreamImages(Images):
    """Images of a stream, in the order of its windows.

    It has no length (`len` raises TypeError), `labels()` is None and `tensor` needs a number. What can be known before
    training is known from the first window: size, channels, broken images there. Later broken images raise
    DataError, or with `skip_bad_images` give way to the next good one of their window, so that no position moves.
    The fingerprint covers the first window and every choice. Resuming reads the stream on to the batch asked
    for, and once through before that where its length is neither recorded with it nor short of the position.
    """

    def __init__(self, name: str, stream: Any, columns: Columns, wanted: Wanted) -> None:
        self.columns, self.wanted, self.window = columns, wanted, WINDOW
        self.name, self._stream = name, encoded(stream, columns.image)
        first = list(self._stream.take(WINDOW))
        self._length = len(first) if len(first) < WINDOW else _recorded_length(stream)
        self.layout = choose_layout(name, self._headers(first), self._where, wanted)
        content = [(image_bytes(row[columns.image]), *self._extras(row)) for row in first if row[columns.image]]
        super().__init__(
            name,
            self.layout.shape,
            self.layout.top,
            fingerprint=fingerprint_of("stream", content, self.layout, wanted, columns, WINDOW),
            labels=self._label_names(stream),
            flip=wanted.flip,
        )
        self._labels = None                            # they come with the rows

    def __len__(self) -> int:
        """Raise TypeError: a stream has no length."""
        raise TypeError(f"{self.name} is a stream and has no length")

    def labels(self) -> None:
        """Return None: the labels of a stream come with its batches."""
        return

    def describe(self) -> str:
        """Return e.g. `owner/name (stream): images 3x32x32, 10 classes`."""
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        return f"{self.name} (stream): images {'x'.join(map(str, self.shape))}{classes}"

    def tensor(self, n: int | None = None) -> torch.Tensor:
        """Return the first `n` images in stream order: float32 (n, C, H, W) in [-1, 1]; ConfigError without `n`."""
        if n is None:
            raise ConfigError(f"{self.name} is a stream: say how many images to take")
        spots = (
            Spot(0, w * self.window, rows, np.arange(len(rows)), j)
            for w, rows in enumerate(self._windows(0))
            for j in range(len(rows))
        )
        return from_integers(torch.from_numpy(np.stack([self._pixels(spot)[0] for spot in islice(spots, n)])), self.top)

    def _batches(self, seed: int, batch_size: int, first: int, rows: slice, device: torch.device) -> Iterator[Batch]:
        if self._length is not None and self._length < batch_size:
            raise DataError(f"{self.name}: {self._length:,} images are fewer than one batch of {batch_size:,}")
        walk = self._walk(seed, first * batch_size)
        return (self._batch(seed, list(islice(walk, batch_size))[rows], device) for _ in count())

    def _batch(self, seed: int, spots: list[Spot], device: torch.device) -> Batch:
        """Return the images, labels and captions of some positions."""
        epochs = np.array([spot.epoch for spot in spots], np.int64)
        indices = np.array([spot.start + spot.order[spot.j] for spot in spots], np.int64)
        pixels, rows = zip(*map(self._pixels, spots), strict=True)
        batch = self.finish(torch.from_numpy(np.stack(pixels)).to(device), seed, epochs, indices)
        extras = [self._extras(row) for row in rows]
        if self.num_classes is not None:
            batch["label"] = torch.tensor([label for label, _ in extras], device=device)
        if self.columns.caption is not None:
            batch["caption"] = [caption for _, caption in extras]
        return batch

    def _walk(self, seed: int, position: int) -> Iterator[Spot]:
        """Yield the positions of the endless order from `position` on."""
        first, offset = divmod(position, self._count()) if position else (0, 0)
        for epoch in count(first):
            seen = offset // self.window * self.window
            for rows in self._windows(seen):
                order = permutation(derive_seed(seed, "window", seen // self.window), epoch, len(rows))
                for j in range(max(0, offset - seen), len(rows)):
                    yield Spot(epoch, seen, rows, order, j)
                seen += len(rows)
            if self._length not in (None, seen):
                raise DataError(
                    f"{self.name}: the stream ended after {seen:,} examples, but {self._length:,} are recorded or were "
                    "there before; train without streaming, or on data that do not change"
                )
            self._length, offset = seen, 0

    def _windows(self, start: int) -> Iterator[Rows]:
        """Yield the windows of one epoch from example number `start` on; the last one may be shorter."""
        rows = iter(self._stream.skip(start) if start else self._stream)
        while window := list(islice(rows, self.window)):
            yield window

    def _count(self) -> int:
        """Return the number of examples, reading the stream once where nobody has said it."""
        if self._length is None:
            self._length = sum(1 for _ in self._stream)
        return self._length

    def _pixels(self, spot: Spot) -> tuple[Pixels, dict[str, Any]]:
        """Return the pixels and the row of a position, or of the next good one of its window."""
        bad: dict[str, str] = {}
        for i in np.roll(spot.order, -spot.j):
            row = spot.rows[i]
            try:
                return decode(image_bytes(row[self.columns.image]), self.layout), row
            except Exception as error:                 # Pillow raises a dozen types on damaged files
                bad[self._where(spot.start + int(i))] = reason(error)
            if not self.wanted.skip_bad_images:
                break
        raise broken_images(self.name, bad, len(spot.rows))

    def _headers(self, rows: Rows) -> dict[int, Any]:
        """Return the headers of the first window; DataError that lists its broken images, unless they are skipped."""
        if not rows:
            raise DataError(f"{self.name}: it holds no images")
        headers, bad = {}, {}
        for i, row in enumerate(rows):
            try:
                headers[i] = read_header(image_bytes(row[self.columns.image]), self.wanted.background)
            except Exception as error:                 # Pillow raises a dozen types on damaged files
                bad[self._where(i)] = reason(error)
        if not headers or (bad and not self.wanted.skip_bad_images):
            raise broken_images(self.name, bad, len(rows))
        return headers

    def _extras(self, row: dict[str, Any]) -> tuple[Any, Any]:
        """Return the label and the caption of a row, None where there are none."""
        label, caption = self.columns.label, self.columns.caption
        return row[label] if label else None, row[caption] if caption else None

    def _label_names(self, stream: Any) -> Labels | None:
        """Return the classes of the label column; a stream's labels must declare them."""
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
    """Return the number of examples that the dataset's information records for this split, if it does."""
    info = (stream.info.splits or {}).get(str(stream.split))
    return info.num_examples or None if isinstance(info, datasets.SplitInfo) else None

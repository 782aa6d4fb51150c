"""Encoded images before decoding: a sequence of bytes with labels and captions, and the rules of labels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hfgen.data.decode import Encoded
from hfgen.data.order import Ints
from hfgen.data.splits import Split
from hfgen.errors import ConfigError

NO_LABELS = "none"
"""Value of `label_column` for data without labels."""


@dataclass
class Labels:
    """Labels in [0, num_classes), int64 (N,), and the names of the classes, if any."""

    values: Ints
    num_classes: int
    names: list[str] | None = None

    def take(self, indices: Ints) -> "Labels":
        """Return the labels of the items `indices`, with the same classes."""
        return Labels(self.values[indices], self.num_classes, self.names)


@dataclass
class Source(ABC):
    """Base of sources of encoded images. Subclasses define `read` and `where`, and must pickle for worker processes."""

    name: str
    labels: Labels | None
    captions: list[str] | None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def read(self, i: int) -> Encoded:
        """Return encoded image i."""

    def conditions(self) -> tuple[Labels | None, list[str] | None]:
        """Return the labels and the captions of all images, after each image has been read once."""
        return self.labels, self.captions

    @abstractmethod
    def where(self, i: int) -> str:
        """Return the place of image i for messages: a path or a row."""


@dataclass
class FileSource(Source):
    """Images in one file each."""

    paths: list[Path]

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def read(self, i: int) -> bytes:
        """Return the content of file i. Raises OSError for one that cannot be read, such as a pipe or a device."""
        if not self.paths[i].is_file():
            raise OSError("is no regular file")
        return self.paths[i].read_bytes()

    def where(self, i: int) -> str:
        """Return the path of file i."""
        return str(self.paths[i])

    def slice(self, split: Split) -> "FileSource":
        """Return the files of a slice of a split; the numbers of classes do not change."""
        # all files
        kept = split.indices(self.name, len(self))
        if kept is None:
            return self
        # some files
        labels = None if self.labels is None else self.labels.take(kept)
        captions = None if self.captions is None else [self.captions[i] for i in kept]
        return FileSource(self.name, labels, captions, [self.paths[i] for i in kept])


def encode_labels(
    where: str, column: str, values: Sequence[Any], names: list[str] | None, columns: list[str]
) -> Labels:
    """Return `values` as labels. Raises ConfigError, naming the column, its range and all `columns`, for other values.

    Strings are numbered in sorted order. Integers must be in [0, len(names)) if the data name their classes, otherwise
    0..K-1 without gaps.
    """
    # missing values
    help_ = f"columns: {', '.join(columns)}; choose another with label_column, or {NO_LABELS!r} to go without"
    missing = sum(value is None for value in values)
    if missing:
        raise ConfigError(f"{where}: label column {column!r} has no value in {missing} of {len(values)} rows; {help_}")
    # strings
    if all(isinstance(value, str) for value in values):
        classes = sorted(set(values))
        numbers = {name: i for i, name in enumerate(classes)}
        return Labels(np.array([numbers[value] for value in values], np.int64), len(classes), classes)
    # integers
    if not all(isinstance(value, int) for value in values):
        kinds = sorted({type(value).__name__ for value in values})
        numeric = [value for value in values if isinstance(value, int | float)]
        span = f" in [{min(numeric)!s:.20}, {max(numeric)!s:.20}]" if numeric else ""
        raise ConfigError(f"{where}: label column {column!r} holds {' and '.join(kinds)}{span}, not integers; {help_}")
    low, high = int(min(values)), int(max(values))
    span = f"[{low!s:.20}, {high!s:.20}]"
    allowed = len(names) if names else high + 1
    if low < 0 or high >= allowed:
        rule = f"its {allowed} class names allow [0, {allowed - 1}]" if names else "labels start at 0"
        raise ConfigError(
            f"{where}: label column {column!r} has values in {span}, but {rule}; {help_}"
        )
    # gaps
    present = sorted(set(values))
    if not names and len(present) != allowed:
        absent = next(i for i, value in enumerate(present) if i != value)
        raise ConfigError(
            f"{where}: label column {column!r} has gaps: {len(present)} different values in {span}, none is "
            f"{absent}; labels must be 0..K-1; {help_}"
        )
    return Labels(np.array(values, np.int64), allowed, names)


def check_captions(where: str, column: str, values: Sequence[Any], columns: list[str]) -> list[str]:
    """Return `values` as captions. Raises ConfigError, naming all `columns`, unless all are strings."""
    wrong = [value for value in values if not isinstance(value, str)]
    if wrong:
        raise ConfigError(
            f"{where}: caption column {column!r} holds {len(wrong)} values that are not text, the first "
            f"{wrong[0]!r}; columns: {', '.join(columns)}"
        )
    return list(values)


def column_missing(where: str, option: str, column: str, columns: list[str]) -> ConfigError:
    """Return the error of a requested column that does not exist."""
    return ConfigError(f"{where}: {option} {column!r} does not exist; columns: {', '.join(columns) or 'none'}")

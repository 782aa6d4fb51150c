"""Samples that are there already, whoever made them: arrays, lists, folders and files of images, judged like a model's.

Arrays and tensors are not rounded, so the numbers are those of a pipeline that returns the same values.
"""

import glob
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfgen import runs
from hfgen.cards.markdown import last_name
from hfgen.data import ARRAYS, is_saved, load_dataset
from hfgen.data.arrays import as_array, form_of, images_of, is_array, is_points, require_points
from hfgen.data.dataset import Dataset, fingerprint_of
from hfgen.data.folder import is_image, list_files
from hfgen.data.objects import ArrayColumns, columns_of, read_arrays
from hfgen.errors import ConfigError, ConfigTypeError, DataError
from hfgen.loading.components import INDEX

TABLE = ".parquet"


class GivenSamples:
    """Samples by index: a call with a range returns images (B, C, H, W) in [-1, 1], or points (B, 2), on the CPU.

    Attributes: `name`; `shape` of a sample; `labels` (N,) int64 and `class_names`, None without; `fingerprint`, a
    sha256 of the content.
    """

    def __init__(
        self, name: str, count: int, shape: tuple[int, ...], fingerprint: str, rows: Callable[[range], Tensor]
    ) -> None:
        self.name, self.shape, self.fingerprint, self._count, self._rows = name, shape, fingerprint, count, rows
        self.labels: Tensor | None = None
        self.num_classes: int | None = None
        self.class_names: list[str] | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._count

    def __call__(self, rows: range = range(0)) -> Tensor:
        """Return the samples `rows`."""
        return self._rows(rows)


def is_path_of_samples(model: str | Path) -> bool:
    """Return whether a name is that of samples: a file or a pattern of images or arrays, a folder without a model."""
    # files
    path = Path(model).expanduser()
    if path.is_file():
        return is_image(path) or path.suffix.lower() in (TABLE, *ARRAYS)
    if not path.is_dir():
        return bool(set(str(model)) & set("*?[") and glob.glob(str(path), recursive=True))
    # folders
    if (path / INDEX).is_file() or runs.find(path) is not None:
        return False
    return is_saved(path) or any(is_image(file) or file.suffix.lower() == TABLE for file in list_files(path))


def load_samples(value: Any) -> GivenSamples:
    """Return samples: a name for which `is_path_of_samples` holds, or a Python object as `load_dataset` takes it.

    Raises ConfigTypeError for other objects, DataError for data that cannot be read.
    """
    # name them
    path = isinstance(value, str | Path)
    name = last_name(str(Path(value).absolute())) if path else type(value).__name__
    # arrays, as they are
    if isinstance(value, list) and value and all(map(is_array, value)):
        value = _stack(name, value)
    columns = None if path else columns_of(value)
    if path and Path(value).suffix.lower() in ARRAYS and Path(value).expanduser().is_file():
        columns = read_arrays(Path(value).expanduser())
    if columns is not None:
        return _of_arrays(name, columns)
    # everything else, as a dataset
    try:
        return _of_dataset(name, load_dataset(value))
    except ConfigTypeError:
        raise ConfigError(f"{name} is no model: give a folder, a Hub id, or a callable that returns images; nor is it "
                          "samples: an array, a list of images, a folder or a file of images") from None  # fmt: skip


def _stack(name: str, images: list[Any]) -> np.ndarray:
    """Return arrays of one shape as one array. Raises DataError for several shapes."""
    arrays = [as_array(image) for image in images]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise DataError(f"{name}: samples must have one shape, got {' and '.join(map(str, sorted(shapes)))}")
    return np.stack(arrays)


def _of_arrays(name: str, arrays: dict[str, np.ndarray]) -> GivenSamples:
    """Return the images or the points of arrays by name, with their labels, if any."""
    # find the columns
    columns = ArrayColumns.of(name, arrays, {})
    array, labels = as_array(arrays[columns.image]), columns.labels(name, arrays)
    content = fingerprint_of("samples", array, None if labels is None else labels.values)
    # read rows when they are needed
    if is_points(array):
        points = torch.from_numpy(require_points(name, array)).float()
        samples = GivenSamples(name, len(points), (2,), content, lambda rows: points[rows.start : rows.stop])
    else:
        form = form_of(name, array)
        shape = tuple(images_of(form, array[:1]).shape[1:])
        samples = GivenSamples(
            name, len(array), shape, content, lambda rows: images_of(form, array[rows.start : rows.stop])
        )
    # add the labels
    if labels is not None:
        samples.labels = torch.from_numpy(labels.values)
        samples.num_classes, samples.class_names = labels.num_classes, labels.names
    return samples


def _of_dataset(name: str, data: Dataset) -> GivenSamples:
    """Return the items of a dataset in order. Raises ConfigError for a stream."""
    try:
        count = len(data)
    except TypeError:
        raise ConfigError(f"{name}: is a stream; samples are counted, so load them without streaming") from None

    # take items, points in data coordinates
    def items(rows: range) -> Tensor:
        indices = np.arange(rows.start, rows.stop)
        x: Tensor = data.take(0, np.zeros_like(indices), indices, torch.device("cpu"))["x"]
        return x if data.coordinates is None else data.coordinates.to_data(x)

    samples = GivenSamples(name, count, tuple(data.shape), data.fingerprint, items)
    samples.labels, samples.num_classes, samples.class_names = data.labels(), data.num_classes, data.class_names
    return samples

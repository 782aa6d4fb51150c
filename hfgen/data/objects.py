"""Python objects as data: arrays and tensors, lists of images, datasets of torch, of `datasets`, and of hfgen.

An object is one split, `train`, of which slices can be taken; a `DatasetDict` has its own splits. Images of one size
and form are decoded like files, so an array of 8 bits is the same dataset as a folder of its images.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from hfgen.data.arrays import Array, ArraySource, as_array, chosen_rows, is_array, is_points, require_points
from hfgen.data.dataset import Dataset, fingerprint_of
from hfgen.data.decode import Encoded, hash_of
from hfgen.data.load import Reading
from hfgen.data.points import Points
from hfgen.data.source import NO_LABELS, Labels, Source, check_captions, column_missing, encode_labels
from hfgen.data.splits import Split, require_split
from hfgen.errors import ConfigError, ConfigTypeError, DataError

IMAGE_NAMES = ("image", "images", "img", "x", "arr_0")
LABEL_NAMES = ("label", "labels", "y", "arr_1")
"""Default names of the columns in arrays by name, and of the fields of an item."""

READ_TWICE = 16
"""Items of a dataset of torch that are read twice: they must not change."""


def load_object(name: str, value: Any, reading: Reading) -> Dataset:
    """Return the dataset of a Python object. Raises ConfigTypeError for an object of another kind.

    `name`: name of the object in messages. Other errors as in `hfgen.data.load_dataset`.
    """
    # datasets
    if isinstance(value, Dataset):
        return loaded(value, reading)
    if type(value).__module__.partition(".")[0] == "datasets":
        from hfgen.data.hf_datasets import load_given  # imported here, because `datasets` takes a second

        return load_given(name, value, reading)
    # arrays
    if reading.streaming:
        raise ConfigError(f"{name}: streaming is for parquet files, Hub ids and an IterableDataset of `datasets`")
    arrays = columns_of(value)
    if arrays is not None:
        return load_arrays(name, arrays, reading)
    # items by index
    if hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, str | bytes | Mapping):
        return load_items(name, value, reading)
    raise ConfigTypeError(
        "dataset must be a name, a folder, a file, a Hub id, an array or a tensor, (images, labels), arrays by name, a "
        f"list of images, or a Dataset of hfgen, `datasets` or torch, got {type(value).__name__}"
    )


def loaded(data: Dataset, reading: Reading) -> Dataset:
    """Return a dataset of hfgen that is loaded already. Raises ConfigError for arguments that ask for another one."""
    # compare the form of its images
    spec, shape = reading.spec, data.shape
    asked: dict[str, Any] = {"split": None if reading.split == "train" else reading.split, **reading.columns}
    asked |= {"streaming": reading.streaming or None, "flip": None if spec.flip in (False, flipped(data)) else True}
    if spec.resolution not in (None, shape[1:]):
        asked["resolution"] = spec.resolution
    if spec.channels not in (None, shape[0]):
        asked["channels"] = spec.channels
    # captions may be asked for that are there
    if data.captions is not None:
        asked["caption_column"] = None
    late = [name for name, value in asked.items() if value is not None]
    if late:
        raise ConfigError(f"{data.name}: is a Dataset, loaded already; leave out {', '.join(late)}")
    return data


def flipped(data: Dataset) -> bool:
    """Return whether a dataset mirrors its images at random."""
    return bool(getattr(data, "flip", False))


def read_arrays(path: Path) -> dict[str, Array]:
    """Return the arrays in a `.npy` file, which is mapped into memory, or in a `.npz` file, by name.

    Raises DataError for files that cannot be read, and for arrays of Python objects, which are pickles.
    """
    try:
        content = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"image": content}
        with content:
            return {key: content[key] for key in content.files}
    except (OSError, ValueError, EOFError) as error:
        why = str(error)
        if "pickle" in why or "Python objects" in why:
            why = "it holds Python objects, which are pickles and are not loaded"
        raise DataError(f"{path}: cannot be read: {why}") from error


@dataclass(frozen=True)
class ArrayColumns:
    """Names of the arrays of images or points, of labels and of captions; None for labels or captions without one."""

    image: str
    label: str | None
    caption: str | None

    @classmethod
    def of(cls, name: str, arrays: Mapping[str, Array], given: Mapping[str, str | None]) -> "ArrayColumns":
        """Return the given columns. Raises ConfigError, naming all arrays, for missing ones.

        Defaults: the only array of images or points, or the one named as usual; the array `label` or `y`; no captions.
        """
        return cls(
            _image_column(name, arrays, given.get("image_column")),
            _named_column(name, arrays, "label_column", given.get("label_column"), LABEL_NAMES),
            _named_column(name, arrays, "caption_column", given.get("caption_column"), ()),
        )

    def values(self, name: str, arrays: Mapping[str, Array], column: str) -> list[Any]:
        """Return the values of a column. Raises DataError unless there is one for each image."""
        values, count = arrays[column].reshape(-1).tolist(), len(arrays[self.image])
        if len(values) != count:
            raise DataError(f"{name}: {column!r} has {len(values):,} values for {count:,} items of {self.image!r}")
        return values

    def labels(self, name: str, arrays: Mapping[str, Array]) -> Labels | None:
        """Return the labels of all items; errors as in `encode_labels`."""
        if self.label is None:
            return None
        return encode_labels(name, self.label, self.values(name, arrays, self.label), None, list(arrays))

    def captions(self, name: str, arrays: Mapping[str, Array]) -> list[str] | None:
        """Return the captions of all items. Raises ConfigError unless all are texts."""
        if self.caption is None:
            return None
        return check_captions(name, self.caption, self.values(name, arrays, self.caption), list(arrays))


def load_arrays(name: str, arrays: Mapping[str, Array], reading: Reading) -> Dataset:
    """Return the images or points in one of the arrays, with the labels and captions in others."""
    # find the columns
    columns = ArrayColumns.of(name, arrays, reading.columns)
    array, part = as_array(arrays[columns.image]), Split.parse(name, reading.split)
    require_split(name, part, ["train"])
    # read labels and captions of all items, then take the split
    labels, captions = columns.labels(name, arrays), columns.captions(name, arrays)
    rows = chosen_rows(part, name, len(array))
    if labels is not None:
        labels = labels.take(rows)
    if is_points(array):
        return _points(name, require_points(name, array)[rows], labels, reading)
    source = ArraySource(name, array, part)
    source.labels = labels
    source.captions = None if captions is None else [captions[i] for i in rows]
    return reading.load(source)


def _points(name: str, points: Array, labels: Labels | None, reading: Reading) -> Points:
    """Return points as a dataset. Raises ConfigError for options of images."""
    spec = reading.spec
    options = {"resolution": spec.resolution, "channels": spec.channels, "flip": spec.flip or None}
    for option, value in options.items():
        if value is not None:
            raise ConfigError(f"{name} is a set of points; {option}={value!r} is for images")
    values = None if labels is None else labels.values
    return Points(name, points, fingerprint_of("points", points, values), labels)


def columns_of(value: Any) -> dict[str, Array] | None:
    """Return an array, (images, labels) or a mapping of arrays as arrays by name; None for other objects."""
    if is_array(value):
        value = {"image": value}
    if isinstance(value, tuple) and len(value) == 2 and is_array(value[0]) and not _is_pair_of_items(value):
        value = {"image": value[0], "label": value[1]}
    if not (isinstance(value, Mapping) and value):
        return None
    return {str(key): as_array(one) if is_array(one) else np.asarray(one) for key, one in value.items()}


def _image_column(name: str, arrays: Mapping[str, Array], given: str | None) -> str:
    """Return the name of the array of images or points. Raises ConfigError, naming all arrays, without exactly one."""
    described = [f"{key} ({'x'.join(map(str, array.shape))} {array.dtype})" for key, array in arrays.items()]
    if given is not None:
        if given not in arrays:
            raise column_missing(name, "image_column", given, described)
        return given
    # by shape, then by name
    shaped = [key for key, array in arrays.items() if array.ndim >= 3 or is_points(array)]
    usual = [key for key in IMAGE_NAMES if key in shaped]
    if len(shaped) == 1 or usual:
        return usual[0] if usual else shaped[0]
    if len(arrays) == 1:
        return next(iter(arrays))                              # its shape is refused by the rules of arrays
    raise ConfigError(f"{name}: choose the array of images with image_column; arrays: {', '.join(described)}")


def _named_column(
    name: str, arrays: Mapping[str, Array], option: str, given: str | None, usual: Sequence[str]
) -> str | None:
    """Return the name of an array of labels or captions, None without one. Raises ConfigError for a missing one."""
    if given is None:
        return next((key for key in usual if key in arrays), None)
    if (option, given) == ("label_column", NO_LABELS):
        return None
    if given not in arrays:
        raise column_missing(name, option, given, list(arrays))
    return given


class Item(NamedTuple):
    """An item of a list or of a torch Dataset: an image or a point, its label and its caption, if any."""

    image: Any
    label: Any = None
    caption: Any = None


def load_items(name: str, items: Any, reading: Reading) -> Dataset:
    """Return the images of a list or of a torch Dataset: images alone, (image, label), or mappings by name.

    PIL images are read when they are needed; arrays and tensors are read once, into memory. Raises ConfigError for
    slices, and for items that change when they are read again.
    """
    # check the split and the first items
    part = Split.parse(name, reading.split)
    require_split(name, part, ["train"])
    if part.sliced:
        raise ConfigError(f"{name}: {part.text!r} is a slice; give a list, or a Subset, of the items instead")
    if not len(items):
        raise DataError(f"{name}: it holds no images")
    source = ItemSource(name, items, reading.columns)
    source.require_fixed()
    # read PIL images one by one, stack arrays
    if isinstance(source.item(0).image, Image.Image):
        return reading.load(source)
    return _stacked(name, source, reading)


class ItemSource(Source):
    """Images of a list or of a torch Dataset. One thread reads at a time, and labels are collected on the way."""

    def __init__(self, name: str, items: Any, columns: Mapping[str, str | None]) -> None:
        super().__init__(name, None, None)
        self.items, self.columns, self.seen, self._lock = items, columns, dict[int, Item](), threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None}                    # a worker process reads alone

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.items)

    def read(self, i: int) -> Encoded:
        """Return image i. Raises DataError unless it is a PIL image."""
        item = self.item(i)
        if not isinstance(item.image, Image.Image):
            raise DataError(f"{self.where(i)}: is {type(item.image).__name__}, others are PIL images")
        return item.image

    def where(self, i: int) -> str:
        """Return the place of item i."""
        return f"{self.name}, item {i}"

    def item(self, i: int) -> Item:
        """Return item i."""
        if self._lock is None:
            return self._parts(i, self.items[i])
        with self._lock:
            item = self._parts(i, self.items[i])
            self.seen[i] = Item(None, item.label, item.caption)
        return item

    def _parts(self, i: int, item: Any) -> Item:
        """Return image, label and caption of an item. Raises ConfigError for an item of another form."""
        if isinstance(item, Mapping):
            return self._by_name(item)
        if isinstance(item, tuple | list):
            if not item or len(item) > 2:
                raise ConfigError(f"{self.where(i)}: has {len(item)} parts; an item is an image, (image, label) or a "
                                  "mapping by name")  # fmt: skip
            label = item[1] if len(item) == 2 and self.columns["label_column"] != NO_LABELS else None
            return Item(item[0], plain(label))
        return Item(item)

    def _by_name(self, item: Mapping[str, Any]) -> Item:
        """Return the parts of a mapping. Raises ConfigError, naming its keys, for a missing column."""
        keys, given, values = list(map(str, item)), self.columns, []
        for option, usual in (("image_column", IMAGE_NAMES), ("label_column", LABEL_NAMES), ("caption_column", ())):
            key = given[option] or next((name for name in usual if name in item), None)
            if (option, key) == ("label_column", NO_LABELS):
                key = None
            if (key is None and option == "image_column") or (key is not None and key not in item):
                raise column_missing(self.name, option, key or "image", keys)
            values.append(None if key is None else item[key])
        return Item(values[0], plain(values[1]), values[2])

    def require_fixed(self) -> None:
        """Raise ConfigError if one of the first items is another one when it is read again."""
        for i in range(min(len(self), READ_TWICE)):
            if _hash(self.item(i)) != _hash(self.item(i)):
                raise ConfigError(f"{self.where(i)}: changes when it is read again; leave random transforms out "
                                  "(flip=True mirrors images as a function of seed, epoch and index)")  # fmt: skip

    def conditions(self) -> tuple[Labels | None, list[str] | None]:
        """Return the labels and the captions of all items, which have been read."""
        items = [self.seen[i] for i in range(len(self))]
        labels = captions = None
        if any(item.label is not None for item in items):
            names = class_names_of(self.items)
            labels = encode_labels(self.name, "label", [item.label for item in items], names, ["image", "label"])
        if any(item.caption is not None for item in items):
            captions = check_captions(self.name, "caption", [item.caption for item in items], ["image", "caption"])
        return labels, captions


def _stacked(name: str, source: ItemSource, reading: Reading) -> Dataset:
    """Return the dataset of items that are arrays or tensors of one shape, read into memory."""
    # read them
    arrays: list[Array] = []
    for i in tqdm(range(len(source)), desc=f"reading {name}", unit=" items", delay=2, leave=False):
        image = source.item(i).image
        if not is_array(image):
            raise DataError(f"{source.where(i)}: is {type(image).__name__}; an image is a PIL image, an array or a "
                            "tensor")  # fmt: skip
        arrays.append(as_array(image))
        if arrays[i].shape != arrays[0].shape:
            raise DataError(f"{source.where(i)}: has the shape {arrays[i].shape}, item 0 has {arrays[0].shape}; resize "
                            "them in the dataset, or give PIL images and a resolution")  # fmt: skip
    # join them with their labels and captions
    labels, captions = source.conditions()
    array = np.stack(arrays)
    if is_points(array):
        return _points(name, require_points(name, array), labels, reading)
    stacked = ArraySource(name, array, Split("train"))
    stacked.labels, stacked.captions = labels, captions
    return reading.load(stacked)


def plain(value: Any) -> Any:
    """Return a label as int or str: the content of a number of NumPy or torch, any other value unchanged."""
    if isinstance(value, np.generic) or (is_array(value) and math.prod(value.shape) == 1):
        return value.item()
    return value


def class_names_of(items: Any) -> list[str] | None:
    """Return the attribute `classes` of a dataset of images, or of the one that it is a subset of; None without."""
    names = getattr(items, "classes", None)
    if names is None and hasattr(items, "dataset"):
        return class_names_of(items.dataset)
    if isinstance(names, list | tuple) and all(isinstance(one, str) for one in names):
        return list(names)
    return None


def _hash(item: Item) -> str:
    """Return a text that is equal for equal items."""
    image = item.image
    if is_array(image):
        return fingerprint_of(as_array(image), item.label, item.caption)
    return fingerprint_of(hash_of(image) if isinstance(image, Image.Image) else image, item.label, item.caption)


def _is_pair_of_items(value: tuple[Any, Any]) -> bool:
    """Return whether two arrays are two images rather than images and their labels."""
    return is_array(value[1]) and value[0].shape == value[1].shape


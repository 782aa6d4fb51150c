"""Datasets by name: digits, toy sets, folders of images, parquet files and Hub ids, with one interface."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import ImageColor

from hfgen.checks import check_dataset, path_of, require, require_size
from hfgen.data.dataset import Batch, Dataset, require_batch
from hfgen.data.decode import EXTENSIONS
from hfgen.data.digits import digits
from hfgen.data.folder import count_extensions, is_image, list_files, load_folder
from hfgen.data.load import ImageSpec, Reading
from hfgen.data.objects import load_arrays, load_object, read_arrays
from hfgen.data.order import derive_seed, permutation, stretch, uniforms
from hfgen.data.shapes.dataset import shapes
from hfgen.data.source import NO_LABELS, FileSource
from hfgen.data.splits import Split, require_split
from hfgen.data.toy import Toy
from hfgen.errors import ConfigError, DataError
from hfgen.loading.given import object_of
from hfgen.registry import DATASETS, DRAWN

__all__ = ["Batch", "Dataset", "derive_seed", "load_dataset", "permutation", "require_batch", "stretch", "uniforms"]

BUILT_IN = DATASETS
"""Names of datasets that need no files."""

ARRAYS = {".npy", ".npz"}
"""Extensions of files of arrays."""


def load_dataset(
    name: Any,
    *,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    resolution: int | tuple[int, int] | None = None,
    channels: int | None = None,
    background: str = "white",
    skip_bad_images: bool = False,
    flip: bool = False,
    streaming: bool = False,
    max_resident_bytes: int = 2**31,
    num_workers: int = 0,
) -> Dataset:
    """Return the dataset `name`. Every image is decoded once, so that errors are reported here.

    name: `digits`; `shapes`, drawn at any resolution, and its domains `shapes:a` and `shapes:b`; a toy set (`ring8`,
        `grid25`, `line`, `circle`, `moons`, `swissroll`); a folder of images or of parquet files, or one written by
        `save_to_disk`; an image or parquet file, several of them, or a pattern such as `data/*.parquet`; a `.npy` or
        `.npz` file; a Hub id `owner/name`, with `:configuration` if it has several.
        Or a Python object: an array or a tensor of images or of points (N, 2), (images, labels), or several by name
        like the arrays of a `.npz` file; a list of PIL images; a torch Dataset whose items are images, (image, label)
        or mappings; a Dataset, DatasetDict or IterableDataset of `datasets`; a dataset that is loaded already.
        `hfgen.data.arrays` has the rules of layouts and ranges; what may mean two things is refused.
    split: `train`, `test`, ...; or a slice such as `train[:80%]`, `train[80%:]`, `train[100:200]` (not for toy sets and
        streams). The classes have the numbers of the whole split.
    image_column, label_column, caption_column: names of columns. Default: the images and labels that are there, no
        captions. label_column="none": no labels. `shapes` has a label column for each factor, and the caption column
        "caption".
    resolution: int or (height, width): the shorter side is resized (bicubic, antialiased) and the centre kept.
        Default: unchanged (all images must have one size).
    channels: 1, 3 or 4 (with alpha). Default: 1 if all images are grey, else 3. background: colour behind alpha.
    skip_bad_images: leave out images that cannot be read, with a warning that counts them.
    flip: mirror each image left to right with probability 1/2, as a function of (seed, epoch, index).
    streaming: read parquet files or a Hub id in windows, without a copy on disk.
    max_resident_bytes: largest size of decoded images in memory; larger datasets are decoded batch by batch, by
        `num_workers` processes.

    Raises ConfigError for arguments that cannot be used, DataError for data that cannot be read.
    """
    # Python objects
    spec = ImageSpec(_resolution(resolution), _channels(channels), _colour(background), skip_bad_images, flip)
    columns = {"image_column": image_column, "label_column": label_column, "caption_column": caption_column}
    reading = Reading(split, columns, spec, streaming, max_resident_bytes, num_workers)
    given = object_of(name)
    if given is None and not _is_name(name):
        name, given = type(name).__name__, name
    if given is not None and not _is_name(given):
        return load_object(name, given, reading)
    # built-in datasets
    name = name if given is None else given
    if isinstance(name, str) and name in BUILT_IN:
        part = Split.parse(name, split)
        if name in DRAWN:
            return shapes(name, spec, part, max_resident_bytes, **columns, streaming="yes" if streaming else None)
        _refuse(name, part, columns | {"streaming": streaming or None})
        return digits(spec, part) if name == "digits" else _toy(name, part, spec)
    # files of arrays, and folders of `save_to_disk`
    text, files = (str(name), _locate(str(name))) if isinstance(name, str | Path) else _several(name)
    if files is not None and len(files) == 1 and (files[0].suffix.lower() in ARRAYS or is_saved(files[0])):
        return _saved(text, files[0], reading)
    # files of images
    source = _image_files(text, files, split, columns)
    if source is not None:
        if streaming:
            raise ConfigError(f"{text}: streaming is for parquet files and Hub ids; files of images need none")
        return reading.load(source)
    # tables
    return _table(text, files, reading)


def _is_name(value: Any) -> bool:
    """Return whether a value is a name or a path, or a list of paths."""
    several = isinstance(value, list | tuple) and all(isinstance(one, str | Path) for one in value)
    return several or isinstance(value, str | Path)


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` of `datasets` has written a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _saved(name: str, path: Path, reading: Reading) -> Dataset:
    """Return the data of a `.npy` or `.npz` file, or of a folder of `save_to_disk`."""
    # imported here, because `datasets` takes a second
    if path.is_dir():
        from hfgen.data.hf_datasets import load_saved

        return load_saved(path, reading)
    if reading.streaming:
        raise ConfigError(f"{name}: streaming is for parquet files and Hub ids; files of arrays need none")
    return load_arrays(name, read_arrays(path), reading)


def _toy(name: str, split: Split, spec: ImageSpec) -> Toy:
    """Return a toy set. Raises ConfigError for slices and for options of images."""
    if split.sliced:
        raise ConfigError(f"{name}: {split.text!r} is a slice, and a toy set has none; its sample(n, seed) draws anew")
    options = {"resolution": spec.resolution, "channels": spec.channels, "flip": spec.flip or None}
    for option, value in options.items():
        if value is not None:
            raise ConfigError(f"{name} is a set of points; {option}={value!r} is for images")
    return Toy(name)


def _refuse(name: str, split: Split, options: dict[str, Any]) -> None:
    """Raise ConfigError for splits and columns of data that have none."""
    require_split(name, split, ["train"])
    for option, value in options.items():
        if value is not None and (option, value) != ("label_column", NO_LABELS):
            raise ConfigError(f"{name}: {option}={value!r} does not apply, it is for folders, tables and Hub ids")


def _locate(name: str) -> list[Path] | None:
    """Return the folder, the file or the files of a pattern `name`; None for a Hub id.

    Raises DataError, with the nearest built-in name, for other names.
    """
    # folder or file
    path = path_of(name)
    if path is not None and path.exists():
        return [path]
    # pattern
    if set(name) & set("*?["):
        files = sorted(Path(file) for file in glob.glob(str(path or name), recursive=True) if Path(file).is_file())
        if files:
            return files
        raise DataError(f"{name}: no file matches this pattern")
    # Hub id
    check_dataset(name)
    return None


def _several(names: Sequence[str | Path]) -> tuple[str, list[Path]]:
    """Return a name of a list of files, and the files. Raises DataError for a file that does not exist."""
    files = [Path(name) for name in names]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise DataError(f"no such file: {', '.join(missing)}" if missing else "the list of files is empty")
    return f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else str(files[0]), files


def _image_files(
    name: str, located: list[Path] | None, split: str, columns: dict[str, str | None]
) -> FileSource | None:
    """Return images in one file each; None for tables. Raises DataError if there are neither."""
    if located is None:
        return None
    # folder of images
    folder = located[0] if located[0].is_dir() else None
    files = list_files(folder) if folder else located
    images = [file for file in files if is_image(file)]
    if folder and images:
        part = Split.parse(name, split)
        return load_folder(folder, files, part.name, **columns).slice(part)
    # list of images
    if images and len(images) == len(files):
        part = Split.parse(name, split)
        _refuse(name, part, columns)
        return FileSource(name, None, None, images).slice(part)
    # tables
    tables = [file for file in files if file.suffix.lower() == ".parquet"]
    if tables and (folder or len(tables) == len(files)):
        return None
    kinds = f"{len(files)} files ({count_extensions(files)})" if files else "no files"
    raise DataError(f"{name}: found {kinds}; images ({' '.join(sorted(EXTENSIONS))}), .parquet "
                    "files, or one .npy or .npz file are needed")


def _table(name: str, located: list[Path] | None, reading: Reading) -> Dataset:
    """Return the images of parquet files or of a Hub id."""
    # imported here, because `datasets` takes a second
    from hfgen.data.stream import StreamImages
    from hfgen.data.tables import find_columns, lists_files, open_table, table_source

    # find the columns
    files = located if located and not located[0].is_dir() else None
    table = open_table(name, files, reading.split, reading.streaming)
    chosen = find_columns(name, table.features, **reading.columns)
    # read the images
    if reading.streaming:
        return StreamImages(name, table, chosen, reading.spec)
    return reading.load(table_source(name, table, chosen, lists_files(table)))


def _resolution(value: Any) -> tuple[int, int] | None:
    """Return a resolution as (height, width); ConfigError unless it is a positive int, a pair of them or None."""
    return None if value is None else require_size("resolution", value, None)


def _channels(value: Any) -> int | None:
    """Return a number of channels; ConfigError unless it is 1, 3, 4 or None."""
    require(value in (None, 1, 3, 4), "channels", value, "1 (grey), 3 (RGB) or 4 (RGB and alpha)")
    return None if value is None else int(value)


def _colour(background: str) -> tuple[int, int, int]:
    """Return a colour (name or #rrggbb) as (red, green, blue) in 0..255; ConfigError for other texts."""
    try:
        red, green, blue = ImageColor.getrgb(background)[:3]
    except (ValueError, AttributeError):
        raise ConfigError(f"background must be a colour such as white or #ff8000, got {background!r}") from None
    return red, green, blue

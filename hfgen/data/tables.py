"""Tables with an image column: parquet files, folders of them and Hub ids, through `datasets`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
from datasets.utils.file_utils import xopen
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import httpx

from hfgen.data.source import (
    NO_LABELS,
    Labels,
    Source,
    check_captions,
    column_missing,
    encode_labels,
)
from hfgen.errors import ConfigError, DataError

TIMEOUT = 10.0
"""Seconds to wait for the first answer of the Hub."""


class Columns(NamedTuple):
    """Names of the columns of images, labels and captions."""

    image: str
    label: str | None
    caption: str | None


def open_table(name: str, files: list[Path] | None, split: str, streaming: bool) -> Any:
    """Return a split as `datasets.Dataset`, or as `datasets.IterableDataset` with `streaming`.

    `files`: parquet files, which are one split named `train`. Without them `name` is a folder or a Hub id, with
    `:configuration` if the dataset has several. Raises ConfigError for a split or configuration that does not exist,
    DataError for data that cannot be found or read.
    """
    # find the data
    path, _, configuration = (name, "", "") if files or Path(name).exists() else name.partition(":")
    where: dict[str, Any] = {"path": path, "name": configuration or None}
    if files:
        where = {"path": "parquet", "data_files": {"train": [str(path) for path in files]}}
    elif not Path(path).exists():
        _require_on_hub(name, path)
    # load the split
    try:
        return datasets.load_dataset(**where, split=split, streaming=streaming)
    except (pa.ArrowException, OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{name}: cannot be loaded: {_causes(error)}") from error
    except ValueError as error:
        if "corresponds to no data" in str(error):
            raise DataError(f"{name}: its split {split!r} holds no images") from error
        raise ConfigError(f"{name}: {error}") from error


def _require_on_hub(name: str, path: str) -> None:
    """Raise DataError unless the dataset `path` exists, after one request; `datasets` would retry for half a minute.

    Other answers are left to `datasets`, which has a local copy, a token or a message for them.
    """
    nothing = f"{name}: no such file or folder, not a built-in dataset, and"
    try:
        HfApi().dataset_info(path, timeout=TIMEOUT, expand=["sha"])
    except (GatedRepoError, OfflineModeIsEnabled):
        return
    except HfHubHTTPError as error:
        if isinstance(error, RepositoryNotFoundError) or error.response.status_code == 404:
            raise DataError(f"{nothing} no dataset of the Hub that you may read; check the spelling, and log in with "
                            "`hf auth login` for a private one") from error
    except httpx.TransportError as error:
        try:
            datasets.load.CachedDatasetModuleFactory(path).get_module()
        except FileNotFoundError:
            raise DataError(f"{nothing} the Hub is out of reach ({error})") from error


def _causes(error: BaseException) -> str:
    """Return the message of an error and of its causes."""
    cause = error.__cause__
    return f"{error}" + (f" ({_causes(cause)})" if cause is not None and str(cause) != str(error) else "")


def find_columns(
    name: str,
    features: Mapping[str, Any],
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
) -> Columns:
    """Return the columns of images, labels and captions. Raises ConfigError, naming all columns and types.

    Defaults: the only column of images (`image` or `img` if there are several); the column `label`, else the only
    column of classes; no captions.
    """
    # check that the requested columns exist
    described = [f"{column} ({_kind(feature)})" for column, feature in features.items()]
    requested = {"image_column": image_column, "label_column": label_column, "caption_column": caption_column}
    for option, column in requested.items():
        if column is not None and column not in features and (option, column) != ("label_column", NO_LABELS):
            raise column_missing(name, option, column, described)
    # choose the column of images
    images = [column for column, feature in features.items() if _holds_images(feature)]
    if image_column is None:
        known = [column for column in images if column in ("image", "img")]
        if len(images) != 1:
            images = known
    elif image_column in images:
        images = [image_column]
    else:
        raise ConfigError(f"{name}: image_column {image_column!r} holds no images; columns: {', '.join(described)}")
    if len(images) != 1:
        raise ConfigError(f"{name}: choose the column of images with image_column; columns: {', '.join(described)}")
    # choose the column of labels
    label = None if label_column == NO_LABELS else label_column or _default_label(features)
    return Columns(images[0], label, caption_column)


def encoded(table: Any, image_column: str) -> Any:
    """Return the table or stream with encoded images, {"bytes": ..., "path": ...}."""
    if isinstance(table.features[image_column], datasets.Image):
        return table.cast_column(image_column, datasets.Image(decode=False))
    return table


LISTING = ("imagefolder", "webdataset")
"""Builders of `datasets` whose cells name files that the builder itself has listed."""


def lists_files(table: Any) -> bool:
    """Return whether the paths in a table are of files that were listed, not content that somebody wrote into it.

    So it is for builders that list files, and for tables made in Python.
    """
    return table.builder_name is None or table.builder_name in LISTING


def image_bytes(cell: Any, follow: bool) -> bytes:
    """Return the encoded image of a cell: bytes, or a struct of bytes and path.

    Where cells are listed files, `follow` reads a path without bytes. Raises OSError for a cell without an image.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and not follow:
        raise OSError(f"the row names {cell!r:.80} in the place of an image, and names in tables are not followed")
    if isinstance(cell, str):
        with xopen(cell, "rb") as file:
            cell = file.read()
    if cell is None:
        raise OSError("the row has no image")
    return bytes(cell)


def class_names(feature: Any) -> list[str] | None:
    """Return the names of a column of classes; None for other columns."""
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


@dataclass
class TableSource(Source):
    """Images in a column of a memory-mapped table."""

    table: Any
    column: str
    follow: bool

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.table)

    def read(self, i: int) -> bytes:
        """Return the encoded image of row i."""
        return image_bytes(self.table.data.column(self.column)[i].as_py(), self.follow)

    def where(self, i: int) -> str:
        """Return the table and the row."""
        return f"{self.name}, row {i}"


def table_source(name: str, table: Any, columns: Columns, follow: bool) -> TableSource:
    """Return the images of a table with their labels and captions; `follow` as in `image_bytes`."""
    # images
    table = encoded(table, columns.image)
    # labels and captions
    labels: Labels | None = None
    captions = None
    if columns.label is not None and len(table):
        names = class_names(table.features[columns.label])
        values = table.data.column(columns.label).to_pylist()
        labels = encode_labels(name, columns.label, values, names, list(table.features))
    if columns.caption is not None:
        values = table.data.column(columns.caption).to_pylist()
        captions = check_captions(name, columns.caption, values, list(table.features))
    return TableSource(name, labels, captions, table, columns.image, follow)


def _holds_images(feature: Any) -> bool:
    """Return whether a column may hold encoded images: an Image, a struct with `bytes`, or binary values."""
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Image) or _kind(feature) in ("binary", "large_binary")


def _default_label(features: Mapping[str, Any]) -> str | None:
    """Return the default column of labels, or None."""
    classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if "label" in features:
        return "label"
    if len(classes) != 1:
        return None
    return classes[0]


def _kind(feature: Any) -> str:
    """Return the type of a column in words."""
    if isinstance(feature, dict):
        return f"struct of {', '.join(feature)}"
    return str(getattr(feature, "dtype", None) or type(feature).__name__)

"""Objects of the library `datasets`, and the folders that their `save_to_disk` writes."""

from pathlib import Path
from typing import Any

import datasets

from hfgen.data.dataset import Dataset
from hfgen.data.load import Reading
from hfgen.data.splits import Split, require_split
from hfgen.data.stream import StreamImages
from hfgen.data.tables import find_columns, lists_files, table_source
from hfgen.errors import ConfigError, DataError


def load_saved(folder: Path, reading: Reading) -> Dataset:
    """Return the images of a folder that `save_to_disk` has written. Raises DataError if it cannot be read."""
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: cannot be read as a folder of save_to_disk: {error}") from error
    return load_given(str(folder), saved, reading, follow=False)


def load_given(name: str, value: Any, reading: Reading, follow: bool = True) -> Dataset:
    """Return the images of a dataset of `datasets`; of a DatasetDict, those of the split.

    `follow`: False for tables that somebody else may have written, whose cells must hold the images themselves.

    Raises ConfigError for a transform, which is a function that may draw at random, for a split that does not exist and
    for streams without columns.
    """
    # choose the split
    part = Split.parse(name, reading.split)
    if isinstance(value, dict):
        require_split(name, part, list(value))
        table = value[part.name]
    else:
        require_split(name, part, [*{"train", str(value.split or "train")}])
        table = value
    # read a stream
    if isinstance(table, datasets.IterableDataset):
        if part.sliced or table.features is None:
            raise ConfigError(f"{name}: is a stream, which must have features (cast it) and has no slices")
        return StreamImages(name, table, find_columns(name, table.features, **reading.columns), reading.spec)
    # read a table
    if table.format["type"] == "custom":
        raise ConfigError(f"{name}: has a transform; map it to a column, or leave it out")
    rows = part.indices(name, len(table))
    if rows is not None:
        table = table.select(rows)
    if table._indices is not None:
        table = table.flatten_indices()
    columns = find_columns(name, table.features, **reading.columns)
    return reading.load(table_source(name, table, columns, follow and lists_files(table)))

"""Folders of images, by the conventions of imagefolder in `datasets`.

Labels are the names of the folders of images, if there are at least two and all images have the same depth. With
metadata.csv, metadata.jsonl or metadata.parquet (column `file_name`, relative to that file) images, labels and captions
are those in the metadata. If all top folders have names of splits (train, test, ...), they are splits. Hidden files are
left out. Images are in the order of their paths.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfgen.data.decode import EXTENSIONS
from hfgen.data.source import (
    NO_LABELS,
    FileSource,
    Labels,
    check_captions,
    column_missing,
    encode_labels,
)
from hfgen.errors import ConfigError, DataError

LONGEST = 255
"""Bytes of a file's name that systems allow."""

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def list_files(root: Path) -> list[Path]:
    """Return all files below `root`, sorted, without hidden ones. Links are followed; each folder is read once."""
    files: list[Path] = []
    visited: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        # skip a folder that links lead to again
        resolved = os.path.realpath(folder)
        if resolved in visited:
            subfolders.clear()
            continue
        visited.add(resolved)
        # skip hidden files and folders
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__"))]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def count_extensions(files: Sequence[Path]) -> str:
    """Return the numbers of files by extension, for messages: `.txt: 3, .md: 1`."""
    counts = Counter(path.suffix.lower() or "(no extension)" for path in files)
    return ", ".join(f"{extension}: {count}" for extension, count in counts.most_common())


def is_image(path: Path) -> bool:
    """Return whether the extension of the file is that of an image."""
    return path.suffix.lower() in EXTENSIONS


def load_folder(
    root: Path,
    files: list[Path],
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
) -> FileSource:
    """Return the images among `files` (all are below `root`) with their labels and captions.

    Raises ConfigError for splits and columns that do not exist, DataError for metadata that cannot be used.
    """
    # choose the files of the split
    if image_column not in (None, "image"):
        raise column_missing(str(root), "image_column", str(image_column), ["image"])
    root, files = _choose_split(root, files, split)
    # images in metadata
    metadata = [path for path in files if path.name in METADATA]
    if metadata:
        return _from_metadata(root, metadata, label_column, caption_column)
    # images in folders
    paths = [path for path in files if is_image(path)]
    labels = None if label_column == NO_LABELS else _folder_labels(root, paths)
    columns = ["image", "label"] if labels else ["image"]
    if label_column not in (None, NO_LABELS, "label") or (label_column == "label" and labels is None):
        raise column_missing(str(root), "label_column", str(label_column), columns)
    if caption_column is not None:
        raise column_missing(f"{root} (no metadata.csv or .jsonl)", "caption_column", caption_column, columns)
    return FileSource(str(root), labels, None, paths)


def _choose_split(root: Path, files: list[Path], split: str) -> tuple[Path, list[Path]]:
    """Return the folder of the split and its files; without split folders the whole folder is `train`."""
    # find the splits
    names = {path.relative_to(root).parts[0] for path in files if is_image(path)}
    split_of = {alias: name for name, aliases in SPLITS.items() for alias in aliases}
    structured = all(split_of.get(name.lower()) and (root / name).is_dir() for name in names)
    there = {split_of[name.lower()]: root / name for name in sorted(names)} if structured else {"train": root}
    # choose one
    requested = split_of.get(split, split)
    if requested not in there:
        raise ConfigError(f"{root}: there is no split {split!r}; splits: {', '.join(sorted(there))}")
    chosen = there[requested]
    return chosen, [path for path in files if path.is_relative_to(chosen)]


def _folder_labels(root: Path, paths: list[Path]) -> Labels | None:
    """Return the names of folders as labels; None unless there are at least two and all images have one depth."""
    depths = {len(path.relative_to(root).parts) for path in paths}
    names = [path.parent.name for path in paths]
    if len(depths) != 1 or len(set(names)) < 2:
        return None
    return encode_labels(str(root), "label", names, None, ["image", "label"])


def _from_metadata(
    root: Path, metadata: list[Path], label_column: str | None, caption_column: str | None
) -> FileSource:
    """Return the images in the metadata files, in their order, with the requested columns."""
    # read the rows
    rows = [(path.parent, row) for path in metadata for row in _read_rows(path)]
    columns = list(dict.fromkeys(key for _, row in rows for key in row))
    if "file_name" not in columns:
        raise column_missing(str(metadata[0]), "the column", "file_name", columns)
    # check the paths
    paths = [_inside(folder, row.get("file_name")) for folder, row in rows]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        listed = "\n  ".join(missing[:20])
        raise DataError(f"{metadata[0]}: {len(missing)} of {len(paths)} files that it lists do not exist:\n  {listed}")
    # check the columns
    if label_column is None and "label" in columns:
        label_column = "label"
    for option, column in (("label_column", label_column), ("caption_column", caption_column)):
        if column is not None and column != NO_LABELS and column not in columns:
            raise column_missing(str(metadata[0]), option, column, columns)
    # read labels and captions
    labels = captions = None
    if label_column is not None and label_column != NO_LABELS:
        values = [row.get(label_column) for _, row in rows]
        labels = encode_labels(str(metadata[0]), label_column, values, None, columns)
    if caption_column is not None:
        values = [row.get(caption_column) for _, row in rows]
        captions = check_captions(str(metadata[0]), caption_column, values, columns)
    return FileSource(str(root), labels, captions, paths)


def _inside(folder: Path, file_name: Any) -> Path:
    """Return the path of `file_name` in metadata of `folder`. Raises DataError for a path outside of the folder."""
    path = Path(os.path.normpath(str(file_name)))
    outside = not isinstance(file_name, str) or path.is_absolute() or path.parts[:1] in ((), ("..",))
    if outside or "\0" in str(path) or any(len(part.encode()) > LONGEST for part in path.parts):
        raise DataError(
            f"{folder}: metadata names the file {file_name!r:.80}; only paths inside the folder are allowed"
        )
    return folder / path


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metadata file. Raises DataError, with the line, if it cannot be read."""
    if not path.is_file():
        raise DataError(f"{path}: is no regular file")
    readers = {".parquet": _parquet_rows, ".jsonl": _json_rows, ".csv": _csv_rows}
    try:
        return readers[path.suffix](path)
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]} ({error})") from error


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    return rows


def _json_rows(path: Path) -> list[dict[str, Any]]:
    """Return the object of each line that is not empty."""
    rows = list[dict[str, Any]]()
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: cannot be read as JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: must be a JSON object, got {type(row).__name__}")
        rows.append(row)
    return rows


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows as text, those of numeric columns as numbers."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        rows = list[dict[str, Any]]()
        for row in reader:
            if None in row:
                raise DataError(
                    f"{path}, line {reader.line_num}: has more cells than the {len(row) - 1} columns of the first "
                    "line; is there a comma too many, or a text without quotation marks?"
                )
            rows.append(row)
    return _with_numbers(rows)


def _with_numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a CSV file with the cells of numeric columns as numbers."""
    for column in rows[0] if rows else ():
        if column != "file_name" and _is_numeric([row[column] for row in rows]):
            for row in rows:
                row[column] = _number(row[column])
    return rows


def _is_numeric(values: Any) -> bool:
    """Return whether every cell of a CSV column is a number or empty."""
    return all(not value or re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value) for value in values)


def _number(text: str | None) -> int | float | None:
    """Return a CSV cell as int or float, None for an empty cell."""
    if not text:
        return None
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)

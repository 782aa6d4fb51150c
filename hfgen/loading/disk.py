"""Files that are written whole or not at all, and errors of the disk that say how to go on."""

import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from hfgen.errors import ResourceError
from hfgen.logging import warn

T = TypeVar("T")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, a quota or a file size that is used up."""

WAITS = (0.5, 1.0, 2.0)
"""Seconds before each further attempt to write."""


class DiskWarning(UserWarning):
    """A file could not be written, and is tried again."""


def write_text(path: Path, text: str) -> None:
    """Write a text file beside `path`, flushed to the disk, then put it there: readers see the old text or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file; where the disk refuses a part of it, none of it stays."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError:
        if path.exists():
            os.truncate(path, size)
        raise


def persistent(write: Callable[[], T], folder: Path) -> T:
    """Return `write()`, which writes into `folder`, tried again a few times where the disk refuses.

    Raises ResourceError, with the cause, the bytes that are free and the next step, if it still does.
    """
    for wait in WAITS:
        try:
            return _into(folder, write)
        except (OSError, SafetensorError) as error:
            if number_of(error) is None:
                raise
            warn(f"{folder}: {_reason(error)}; trying again in {wait:g} s", DiskWarning)
            time.sleep(wait)
    try:
        return _into(folder, write)
    except (OSError, SafetensorError) as error:
        if number_of(error) is None:
            raise
        raise refusal(folder, error) from error


def _into(folder: Path, write: Callable[[], T]) -> T:
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    return write()


def number_of(error: BaseException) -> int | None:
    """Return the number of the system's error (errno) that `error` reports, also from within safetensors, or None."""
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", str(error))
        return int(found[1]) if found else None
    return error.errno if isinstance(error, OSError) else None


def refusal(folder: Path, error: BaseException, largest: int = 0) -> ResourceError:
    """Return the error of a disk that did not take a file, with the bytes that are free.

    `largest`: bytes of the largest checkpoint so far, which another one needs.
    """
    # tell a full disk from one that is gone or closed
    if number_of(error) in FULL:
        needed = f"the last one took {largest:,} bytes, " if largest else ""
        free = shutil.disk_usage(folder).free
        cause = f"no room to save: {needed}{free:,} bytes are free ({_reason(error)}). Free some space"
    elif not folder.is_dir():
        cause = "the folder was moved or deleted during the run. Put it back"
    else:
        cause = f"cannot be written: {_reason(error)}. Make it writable"
    # say how to go on
    return ResourceError(f"{folder}: {cause} and start again with --resume; older checkpoints are as they were")


def _reason(error: BaseException) -> str:
    """Return the system's words for an error."""
    number = number_of(error)
    return os.strerror(number) if number else str(error)


def sync(path: Path) -> None:
    """Flush a file to the disk; it is open for writing, as Windows requires."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk. Windows does not open folders, and journals their names."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The folder of a run before training: checked, made, with room for checkpoints."""

import os
import shutil
from pathlib import Path

from hfgen import runs
from hfgen.errors import ConfigError, ResourceError
from hfgen.training.engine.loop import Engine
from hfgen.training.engine.settings import Settings


def stored_checkpoint(settings: Settings) -> Path | None:
    """Return the checkpoint to resume from, if any; nothing is made yet, so a mistake elsewhere leaves no trace.

    Raises ConfigError for a folder with something in it and no --resume, ResourceError where nothing can be written.
    """
    # check that nothing but a run to resume is there
    folder = settings.output_dir
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not settings.resume:
        raise ConfigError(f"{folder} is not empty: use --resume to continue the run in it, or another --output-dir")
    # check that the folder can be written
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ResourceError(f"{folder}: cannot be written, {existing} is not a folder that you may write to")
    return runs.newest_checkpoint(folder) if settings.resume else None


def make_folder(folder: Path) -> None:
    """Make the folders of a run. Raises ResourceError where that is not possible."""
    try:
        for name in ("samples", "checkpoints"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be written: {error.strerror}") from error


def require_room(folder: Path, engine: Engine, keep: int) -> None:
    """Raise ResourceError if the disk has no room for `keep` checkpoints, and one in the making."""
    needed = sum(engine.sizes().values()) * 4 * 4 * (keep + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(f"{folder}: about {needed:,} bytes are needed for checkpoints, {free:,} are free")

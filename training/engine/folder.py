"""The folder of a run before training: checked, made, with room for checkpoints."""

import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from hfgen import runs
from hfgen.errors import ConfigError, ResourceError
from hfgen.logging import warn
from hfgen.training.engine.loop import Engine
from hfgen.training.engine.settings import Settings

LOCK = ".lock"
"""The file in a run's folder that says which process trains there."""


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


class Lock:
    """Keeps two runs out of one folder. The system releases it when the process ends, in whatever way."""

    def __init__(self, folder: Path, main: bool) -> None:
        self.folder, self.main = folder, main
        self._lock = FileLock(folder / LOCK)

    def take(self) -> None:
        """Take the lock of a folder that is there, in the main process. Raises ConfigError if another run has it.

        A file system that knows no locks is used without.
        """
        if not self.main or self._lock.is_locked or not self.folder.is_dir():
            return
        path = self.folder / LOCK
        try:
            self._lock.acquire(timeout=0)
            path.write_text(str(os.getpid()), encoding="utf-8")
        except Timeout as error:
            process = path.read_text(encoding="utf-8", errors="replace").strip()[:20]
            raise ConfigError(f"{self.folder}: the run in it is still going on, as process {process}: wait for it, or "
                              "choose another --output-dir") from error  # fmt: skip
        except OSError as error:
            warn(f"{self.folder}: cannot be locked ({error.strerror}); start no second run in it")

    def release(self) -> None:
        """Give the lock back, and take its file away."""
        if self._lock.is_locked:
            (self.folder / LOCK).unlink(missing_ok=True)
            self._lock.release()


def require_room(folder: Path, engine: Engine, keep: int) -> None:
    """Raise ResourceError if the disk has no room for `keep` checkpoints, and one in the making."""
    needed = sum(engine.sizes().values()) * 4 * 4 * (keep + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(f"{folder}: about {needed:,} bytes are needed for checkpoints, {free:,} are free")

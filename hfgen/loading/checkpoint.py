"""Checkpoints that exist only when they are complete.

A checkpoint is a folder `step-00000500`. It is written under a hidden name, and every file is flushed to disk. A
manifest with sizes and sha256 sums is written last; then the folder is renamed. Older checkpoints are dropped after
that, and at least two that verify remain. A folder without a manifest that verifies is not a checkpoint.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hfgen.errors import CheckpointError
from hfgen.loading.disk import FULL, number_of, refusal, sync, sync_folder
from hfgen.loading.hashing import hash_of_file
from hfgen.logging import warn

MANIFEST = "manifest.json"
STEP_NAME = re.compile(r"step-(\d{8,})")


class CheckpointWarning(UserWarning):
    """A checkpoint does not verify and is skipped."""


def save(folder: Path, step: int, write: Callable[[Path], None], about: dict[str, Any], keep: int = 2) -> Path:
    """Return the folder of a new checkpoint of `step`, whose files `write(temporary_folder)` writes.

    `about` (versions, hash of the settings) goes into the manifest. Afterwards the `keep` newest checkpoints that
    verify remain. Raises ResourceError if the disk is full; the older checkpoints are then unchanged.
    """
    # write under a hidden name
    target = folder / f"step-{step:08d}"
    temporary = folder / f".tmp-{step}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        _write_manifest(temporary, step, about)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if number_of(error) not in FULL:
            raise
        raise refusal(folder, error, max(map(_size, _all(folder)), default=0)) from error
    # rename; an unverified folder of the same step is replaced
    if target.exists():
        shutil.rmtree(target)
    os.rename(temporary, target)
    sync_folder(folder)
    # drop older checkpoints
    _drop_old(folder, keep)
    return target


def problem(checkpoint: Path) -> str | None:
    """Return the first error of a checkpoint folder, naming the file; None if every byte is as written."""
    # the manifest
    path = checkpoint / MANIFEST
    try:
        written = path.read_text(encoding="utf-8")
        manifest = json.loads(written)
        files: dict[str, Any] = manifest["files"]
        if written != _signed(manifest):
            return f"{path}: its content changed after it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path}: {type(error).__name__}: {error}"
    # names of the files
    present = {p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file()} - {MANIFEST}
    if present != set(files):
        return f"{checkpoint}: missing {sorted(set(files) - present)}, unexpected {sorted(present - set(files))}"
    # their sizes and bytes
    for name, (size, sha256) in files.items():
        if (checkpoint / name).stat().st_size != size:
            return f"{checkpoint / name}: {(checkpoint / name).stat().st_size} bytes, {size} were written"
        if hash_of_file(checkpoint / name) != sha256:
            return f"{checkpoint / name}: its content changed after it was written"
    return None


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder` that verifies, None if there is no checkpoint.

    Each corrupt newer one is named in a warning. Raises CheckpointError if there are checkpoints and none verifies.
    """
    # name the saves that were cut off
    for partial in folder.glob(".tmp-*"):
        warn(f"passed over a save that was cut off: {partial}", CheckpointWarning)
    # take the first that verifies
    problems = []
    for checkpoint in _all(folder):
        first_error = problem(checkpoint)
        if first_error is None:
            return checkpoint
        problems.append(first_error)
        warn(f"passed over a broken checkpoint: {first_error}", CheckpointWarning)
    if problems:
        raise CheckpointError(f"{folder}: none of {len(problems)} checkpoints verifies: " + "; ".join(problems))
    return None


def step_of(checkpoint: Path) -> int:
    """Return the optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def _all(folder: Path) -> list[Path]:
    """Return the folders of checkpoints in `folder`, the newest first."""
    checkpoints = [path for path in folder.glob("step-*") if STEP_NAME.fullmatch(path.name)]
    return sorted(checkpoints, key=step_of, reverse=True)


def _write_manifest(folder: Path, step: int, about: dict[str, Any]) -> None:
    """Flush every file and folder in `folder` to the disk, then write their manifest."""
    # files
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, hash_of_file(path)]
            sync(path)
    # folders
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
    # manifest
    (folder / MANIFEST).write_text(_signed({"step": step, **about, "files": files}), encoding="utf-8")
    sync(folder / MANIFEST)
    sync_folder(folder)


def _drop_old(folder: Path, keep: int) -> None:
    """Drop checkpoints older than the `keep` newest ones that verify (at least two), and interrupted saves."""
    # checkpoints
    good = 0
    for checkpoint in _all(folder):
        if good >= max(keep, 2):
            shutil.rmtree(checkpoint)
        elif problem(checkpoint) is None:
            good += 1
    # interrupted saves
    for partial in folder.glob(".tmp-*"):
        shutil.rmtree(partial)


def _signed(manifest: dict[str, Any]) -> str:
    """Return the manifest as text that holds its own sha256, which detects every flipped bit."""
    content = dict(manifest)
    content.pop("sha256", None)
    sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": sha256}, indent=1, sort_keys=True) + "\n"


def _size(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

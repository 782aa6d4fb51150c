"""Files that are whole or not there at all, and a disk that refuses them."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from hfgen.errors import ResourceError
from hfgen.loading import disk

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FULL_IN_RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "WAITS", (0.0, 0.0))


@pytest.mark.parametrize("point", ["write_text", "sync", "replace"])
def test_a_process_that_dies_while_it_writes_leaves_the_old_text(point: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 1\n")
    code = f"""
import os, pathlib
from hfgen.loading import disk
def die(*arguments, **named):
    os._exit(9)
setattr(disk if {point!r} == "sync" else pathlib.Path, {point!r}, die)
disk.write_text(pathlib.Path({str(path)!r}), "seed: 2\\n" * 1000)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert path.read_text() == "seed: 1\n"
    disk.write_text(path, "seed: 3\n")
    assert path.read_text() == "seed: 3\n" and os.listdir(tmp_path) == ["config.yaml"]


def test_a_line_that_fits_in_part_leaves_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    disk.append_line(path, "one")
    code = f"""
import pathlib, resource, signal
from hfgen.loading import disk
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6, 6))
try:
    disk.append_line(pathlib.Path({str(path)!r}), "a long line")
except OSError as error:
    raise SystemExit(error.errno)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == errno.EFBIG
    assert path.read_text() == "one\n"
    disk.append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"


@pytest.mark.parametrize("error", [FULL, FULL_IN_RUST])
def test_a_disk_that_refuses_for_a_moment_is_tried_again(error: Exception, tmp_path: Path) -> None:
    errors = [error, error]

    def write() -> str:
        if errors:
            raise errors.pop()
        return "written"

    with pytest.warns(disk.DiskWarning, match="No space left on device; trying again"):
        assert disk.persistent(write, tmp_path) == "written"


@pytest.mark.filterwarnings("ignore::hfgen.loading.disk.DiskWarning")
@pytest.mark.parametrize(("error", "words"), [
    (FULL, r"no room to save: [\d,]+ bytes are free .*Free some space"), (FULL_IN_RUST, "no room to save"),
    (OSError(errno.EROFS, "x"), "cannot be written: Read-only file system. Make it writable"),
    (PermissionError(errno.EACCES, "x"), "cannot be written: Permission denied"),
])  # fmt: skip
def test_a_disk_that_keeps_refusing_is_an_error_that_says_how_to_go_on(
    error: Exception, words: str, tmp_path: Path
) -> None:
    def write() -> None:
        raise error

    with pytest.raises(ResourceError, match=f"{words}.* and start again with --resume"):
        disk.persistent(write, tmp_path)
    with pytest.raises(ResourceError, match=r"was moved or deleted during the run\. Put it back"):
        disk.persistent(lambda: None, tmp_path / "gone")


@pytest.mark.parametrize("error", [ValueError("x"), SafetensorError("invalid header"), ResourceError("x")])
def test_an_error_that_is_not_of_the_disk_is_raised_as_it_is(error: Exception, tmp_path: Path) -> None:
    def write() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        disk.persistent(write, tmp_path)
    assert raised.value is error

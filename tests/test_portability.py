"""Other systems: file operations as Windows has them, text in UTF-8 whatever the machine's code page is."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.runs import ROOT, TINY, assert_same_run, environment

WINDOWS = """
import errno, fcntl, multiprocessing, os, shutil, sys
folder_safe, rename, fsync = os.open, os.rename, os.fsync

def open_no_folder(path, *arguments, **options):
    if isinstance(path, str | os.PathLike) and os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
    return folder_safe(path, *arguments, **options)

def rename_over_nothing(source, target):
    if os.path.exists(target):
        raise FileExistsError(errno.EEXIST, "File exists", os.fspath(target))
    rename(source, target)

def flush_what_is_writable(descriptor):
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    fsync(descriptor)

if __name__ == "__main__":
    os.open, os.rename, os.fsync = open_no_folder, rename_over_nothing, flush_what_is_writable
    shutil._use_fd_functions = False
    multiprocessing.set_start_method("spawn")
    from hfgen.data import load_dataset
    load_dataset.__kwdefaults__["max_resident_bytes"] = 0               # images go through the workers
    from hfgen.cli import main
    main()
"""
"""The command line on a system that opens no folders, renames over nothing, flushes only what is open for writing, and
starts workers by spawn."""

STRICT = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning"]
STRICT += [f"-Wignore::EncodingWarning:{module}" for module in ("dill._dill", "regex._main", "torch")]     # not ours


def python(*words: object) -> str:
    """Return what a Python of its own prints; fail unless it ends well."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command that trains a tiny model on a folder of images, of which the output folder is missing."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    for i in range(len(pixels)):
        Image.fromarray(pixels[i]).save(folder / f"größe-{i}.png")
    fixed = "--batch-size 4 --warmup-steps 0 --log-every 1 --threads 1 --lr-schedule constant --sample-every 0".split()
    return ["train", "ddpm", "--dataset", str(folder), *fixed, *TINY["ddpm"]]


def test_a_run_saves_resumes_and_ends_where_folders_cannot_be_opened_and_workers_are_spawned(
    words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "windows.py").write_text(WINDOWS, encoding="utf-8")
    first = [tmp_path / "windows.py", *words, "--num-workers", "1", "--output-dir", tmp_path / "run"]
    python(*first, "--max-steps", "2", "--save-every", "1")
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "model").mkdir()                                 # an empty folder is no obstacle
    assert "continued from step 2" in python(*first, "--max-steps", "4", "--save-every", "1", "--resume")
    python("-m", "hfgen.cli", *words, "--output-dir", tmp_path / "here", "--max-steps", "4")
    assert_same_run(tmp_path / "run", tmp_path / "here")


def test_training_resuming_and_sampling_name_the_encoding_of_every_text_file(words: list[str], tmp_path: Path) -> None:
    config = tmp_path / "größe.yaml"
    config.write_text("# größe\nbackground: white\n", encoding="utf-8")
    train = [*STRICT, "-m", "hfgen.cli", *words, "--output-dir", tmp_path / "läufe", "--config", config]
    python(*train, "--max-steps", "2")
    assert "continued from step 2" in python(*train, "--max-steps", "3", "--resume")
    python(*STRICT, "-m", "hfgen.cli", "sample", tmp_path / "läufe", "-n", "2", "--num-steps", "2", "-o",
           tmp_path / "grid.png")  # fmt: skip
    assert (tmp_path / "grid.png").is_file()

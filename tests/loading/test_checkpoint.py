"""Checkpoints: atomic, verified, and never fewer than two."""

import os
import resource
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from hfgen.errors import CheckpointError, ResourceError
from hfgen.loading import checkpoint

ABOUT = {"torch": "x"}


def write(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "state.json").write_text('{"step": 1}\n')


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.save(folder, step, write, ABOUT, keep)


def test_a_saved_checkpoint_verifies_and_is_the_newest(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (5, 100, 20):
        saved = save(tmp_path, step, keep=5)
        assert saved == tmp_path / f"step-{step:08d}"
        assert checkpoint.problem(saved) is None
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert checkpoint.step_of(newest) == 100


def test_rotation_keeps_the_newest_two_that_verify_even_if_one_is_asked_for(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    (tmp_path / "step-00000003" / "state.json").write_text("junk")
    save(tmp_path, 4, keep=2)                                 # 3 is broken and does not count: 2 must stay
    assert checkpoint.problem(tmp_path / "step-00000002") is None
    assert checkpoint.problem(tmp_path / "step-00000004") is None


def test_a_flipped_bit_anywhere_is_always_detected(tmp_path: Path) -> None:
    good = save(tmp_path / "good", 1)
    files = [p for p in good.rglob("*") if p.is_file()]
    random = np.random.default_rng(0)
    for i in range(200):
        path = files[i % len(files)]
        original = path.read_bytes()
        damaged = bytearray(original)
        damaged[random.integers(len(damaged))] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        wrong = checkpoint.problem(good)
        assert wrong is not None and (path.name in wrong or "manifest" in wrong), (path, wrong)
        path.write_bytes(original)
    assert checkpoint.problem(good) is None


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_truncated_file_is_named_and_the_older_checkpoint_is_used(tmp_path: Path, sixteenth: int) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    weights = newer / "model" / "weights.bin"
    os.truncate(weights, weights.stat().st_size * sixteenth // 16)
    with pytest.warns(checkpoint.CheckpointWarning, match=r"step-00000002/model/weights\.bin"):
        assert checkpoint.newest(tmp_path) == older


@pytest.mark.parametrize("name", ["state.json", "model/weights.bin", checkpoint.MANIFEST])
def test_a_missing_or_foreign_file_makes_a_checkpoint_invalid(tmp_path: Path, name: str) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    (newer / name).unlink()
    with pytest.warns(checkpoint.CheckpointWarning):
        assert checkpoint.newest(tmp_path) == older
    (older / "extra.bin").write_text("?")
    with pytest.warns(checkpoint.CheckpointWarning), pytest.raises(CheckpointError, match="none of 2 checkpoints"):
        checkpoint.newest(tmp_path)


CUT_OFF = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from hfgen.loading import checkpoint
    folder, point = Path(sys.argv[1]), int(sys.argv[2])
    calls = 0
    def dying(original):
        def call(*arguments, **options):
            global calls
            calls += 1
            if calls == point:
                os._exit(9)
            return original(*arguments, **options)
        return call
    os.fsync, os.rename, os.rmdir = dying(os.fsync), dying(os.rename), dying(os.rmdir)
    def write(folder):
        (folder / "model").mkdir()
        for name in ("a", "b", "model/c"):
            (folder / name).write_text(name * 1000)
    checkpoint.save(folder, 3, write, {})
    print("calls", calls)
""")


def test_a_kill_at_any_point_of_a_save_leaves_a_verified_checkpoint(tmp_path: Path) -> None:
    """The process dies at its k-th write point (flush, rename, removal), for every k until the save gets through."""
    point = 0
    while True:
        point += 1
        folder = tmp_path / str(point)
        save(folder, 1)
        save(folder, 2)
        done = subprocess.run([sys.executable, "-c", CUT_OFF, str(folder), str(point)], capture_output=True, text=True)
        partial = list(folder.glob(".tmp-*"))
        if partial:
            with pytest.warns(checkpoint.CheckpointWarning, match=r"cut off: .*\.tmp-3"):
                found = checkpoint.newest(folder)
        else:
            found = checkpoint.newest(folder)
        assert found is not None and checkpoint.problem(found) is None
        good = [p for p in folder.glob("step-*") if checkpoint.problem(p) is None]
        assert len(good) >= 2
        if done.returncode == 0:
            break
        assert done.returncode == 9, done.stderr
        save(folder, 4)                                       # the next save works, and clears the litter
        assert not list(folder.glob(".tmp-*"))
        shutil.rmtree(folder)
    assert point > 8                                          # there were that many points to die at
    assert checkpoint.step_of(found) == 3


def test_a_full_disk_leaves_the_old_checkpoint_no_litter_and_a_clear_error(tmp_path: Path) -> None:
    older = save(tmp_path, 1)

    def too_large(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(bytes(200_000))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ResourceError, match=r"no room .* bytes are free .*--resume"):
            checkpoint.save(tmp_path, 2, too_large, ABOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert [p.name for p in tmp_path.iterdir()] == [older.name]
    assert checkpoint.newest(tmp_path) == older

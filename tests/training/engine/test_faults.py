"""Faults of disk, files and numbers during a run, and what is left of the run."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hfgen
from hfgen import DDPMPipeline
from hfgen.errors import NonFiniteError, ResourceError
from hfgen.loading import checkpoint, disk
from hfgen.training import ddpm
from hfgen.training.engine import log, record, run, settings, state
from hfgen.training.engine.loop import is_out_of_memory
from hfgen.training.engine.run import main
from tests.training import runs
from tests.training.test_exact_resume import wait_for_step
from tests.training.tiny import DDPM
from tests.training.tiny import run as steps

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FULL_IN_RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
WORDS = "--max-steps 6 --save-every 2 --sample-every 3 --preview-images 1 --preview-steps 2".split()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "WAITS", (0.0,))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.train_here("ddpm", folder, *WORDS)
    return folder


WRITERS: dict[str, tuple[Any, str, int]] = {
    "config": (settings, "write_text", 0), "log": (log, "append_line", 3), "cut": (log, "write_text", 0),
    "grid": (run, "write_picture", 0), "record": (record, "write_text", 1), "networks": (state, "save_file", 2),
    "optimisers": (state, "save_file", 3), "hash": (checkpoint, "sync", 9),
    "model": (DDPMPipeline, "save_pretrained", 3),
}
"""A function that writes, and its calls before the disk is full: each of the ways by which a run writes."""


@pytest.mark.filterwarnings("ignore::hfgen.loading.disk.DiskWarning")
@pytest.mark.parametrize("error", [FULL, FULL_IN_RUST], ids=["python", "safetensors"])
@pytest.mark.parametrize("point", WRITERS)
def test_a_disk_that_is_full_at_any_write_ends_the_run_with_the_cause_and_it_can_be_resumed(
    point: str, error: Exception, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    place, name, calls = WRITERS[point]
    usual, counted = getattr(place, name), [0]

    def write(*arguments: Any, **named: Any) -> Any:
        counted[0] += 1
        if counted[0] > calls:
            raise error
        return usual(*arguments, **named)

    monkeypatch.setattr(place, name, write)
    assert main(ddpm.RECIPE, runs.arguments(tmp_path / "run", *WORDS)) == 1
    said = capsys.readouterr().err
    assert "no room to save" in said and "start again with --resume" in said and "Traceback" not in said
    assert not list(tmp_path.rglob(".*tmp*")) and not list(tmp_path.rglob("*.tmp"))
    monkeypatch.setattr(place, name, usual)
    runs.train_here("ddpm", tmp_path / "run", *WORDS, "--resume")
    runs.assert_same_run(whole, tmp_path / "run")


def test_a_folder_that_is_deleted_during_the_run_ends_it_with_the_cause(tmp_path: Path) -> None:
    def delete(step: int, numbers: Any) -> bool:
        shutil.rmtree(tmp_path / "run")
        return False

    fields: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "max_steps": 4, "log_every": 1}
    with pytest.warns(disk.DiskWarning), pytest.raises(ResourceError, match="was moved or deleted during the run"):
        hfgen.train("ddpm", dataset="digits", output_dir=tmp_path / "run", callback=delete, **fields)


@pytest.mark.parametrize("content", [None, b"", b"max_steps: [", b"\xff\xfe\x00", b"- 1\n"])
def test_settings_that_are_lost_are_taken_from_the_newest_checkpoint(
    content: bytes | None, whole: Path, tmp_path: Path
) -> None:
    runs.train_here("ddpm", tmp_path / "run", *WORDS)
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    path = tmp_path / "run/config.yaml"
    before = path.read_text()
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"config\.yaml: .*took the settings of step-00000004 in its place"):
        runs.train_here("ddpm", tmp_path / "run", words=["--resume"])
    assert path.read_text() == before.replace("resume: false", "resume: true")
    runs.assert_same_run(whole, tmp_path / "run")


def test_lines_of_the_log_that_are_none_are_dropped_with_a_warning(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    junk = [b"\n", b"[]\n", b"{}\n", b'{"step": "x"}\n', b"\xff\xfe\n", b"\0\0\0\n", b"[" * 100_000 + b"\n"]
    path.write_bytes(b"".join(lines[:3] + junk + lines[3:]))
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: dropped 7 lines"):
        runs.train_here("ddpm", tmp_path / "run", words=["--resume"])
    runs.assert_same_run(whole, tmp_path / "run")


def sign(folder: Path) -> None:
    """Give a changed checkpoint a manifest that verifies."""
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    manifest["files"] = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in files
    }
    (folder / "manifest.json").write_text(checkpoint._signed(manifest))
    assert checkpoint.problem(folder) is None


def without_moments(path: Path) -> None:
    save_file({}, path)


def other_moments(path: Path) -> None:
    tensors = load_file(path)
    name = next(key for key, value in tensors.items() if value.ndim > 1)
    save_file({**tensors, name: tensors[name].flatten()}, path)


def moments_of_others(path: Path) -> None:
    save_file({**load_file(path), "ddpm.unet.none:exp_avg": torch.zeros(3)}, path)


def junk(path: Path) -> None:
    path.write_bytes(b"\xff\x00junk")


@pytest.mark.parametrize(("name", "change", "words"), [
    ("nets.safetensors", junk, "is no file of tensors"), ("optimizers.safetensors", junk, "is no file of tensors"),
    ("state.json", junk, "is no state of a run"),
    ("state.json", lambda path: path.write_text("[]"), "is no state of a run"),
    ("state.json", lambda path: path.write_text('{"step": 6}'), "is no state of a run"),
    ("optimizers.safetensors", without_moments, r"holds 0 tensors, \d+ were written"),
    ("optimizers.safetensors", other_moments, "has the shape"),
    ("optimizers.safetensors", moments_of_others, "which this run does not train"),
])  # fmt: skip
def test_a_signed_checkpoint_of_junk_is_refused_by_name(
    name: str, change: Callable[[Path], Any], words: str, whole: Path, tmp_path: Path, capsys: Any
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for folder in (tmp_path / "run/checkpoints").iterdir():
        change(folder / name)
        sign(folder)
    assert main(ddpm.RECIPE, ["--output-dir", str(tmp_path / "run"), "--resume"]) == 1
    assert re.search(f"{re.escape(name)}.* {words}", capsys.readouterr().err)


def test_a_loss_that_is_nan_with_finite_gradients_takes_no_step() -> None:
    engine = DDPM.engine(max_steps=40)
    phase = engine.recipe.phases[0]
    usual = phase.loss

    def poisoned(nets: Mapping[str, nn.Module], *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, scalars = usual(nets, *arguments)
        return loss + torch.tensor(float("nan")), scalars

    object.__setattr__(phase, "loss", poisoned)
    before = {key: value.clone() for key, value in engine.nets["unet"].state_dict().items()}
    steps(engine, 10)
    assert all(torch.equal(value, before[key]) for key, value in engine.nets["unet"].state_dict().items())
    with pytest.raises(NonFiniteError, match="in the last 10 steps"):
        engine.check_finite(10)


def test_a_second_run_in_a_folder_names_the_first_and_a_killed_one_locks_nothing(
    whole: Path, tmp_path: Path, start: Callable[..., Any], capsys: Any
) -> None:
    process = start(tmp_path / "run", "--max-steps", "100000", "--save-every", "2", launched=True)
    wait_for_step(tmp_path / "run", 3, process)
    assert main(ddpm.RECIPE, ["--output-dir", str(tmp_path / "run"), "--resume"]) == 2
    assert f"the run in it is still going on, as process {process.pid}" in capsys.readouterr().err
    process.kill()
    process.communicate()
    assert (tmp_path / "run/.lock").exists()
    resumed = start(tmp_path / "run", "--max-steps", "100000", "--save-every", "2", "--resume", launched=True)
    assert next(line for line in resumed.stdout if "continued from step" in line)
    assert (tmp_path / "run/.lock").read_text() == str(resumed.pid)
    resumed.send_signal(signal.SIGTERM)
    resumed.communicate(timeout=120)
    assert resumed.returncode == 75
    assert not (tmp_path / "run/.lock").exists()


def test_a_folder_that_holds_something_else_gets_no_lock(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(ddpm.RECIPE, runs.arguments(tmp_path)) == 2
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize(("error", "words"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "Tried to allocate 2.00 GiB"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), "can't allocate"),
    (MemoryError(), "MemoryError"),
])  # fmt: skip
def test_memory_that_is_used_up_names_the_ways_to_need_less(error: Exception, words: str) -> None:
    engine = DDPM.engine(micro_batch_size=8)

    def too_large(*_: Any) -> Any:
        raise error

    object.__setattr__(engine.recipe.phases[0], "loss", too_large)
    with pytest.raises(ResourceError, match=rf"out of memory in step 4 .* 8 samples .*--micro-batch-size 4.*{words}"):
        next(engine.train(3, 1, 20))


def test_the_allocator_of_the_cpu_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    assert is_out_of_memory(raised.value) and not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_a_launcher_that_started_one_process_for_several_is_named_with_the_line_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("MASTER_PORT", "29500")                     # as `accelerate launch --cpu --num_processes 2` does
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    runs.train_here("ddpm", tmp_path / "run", "--max-steps", "1", "--preview-images", "0")
    said = capsys.readouterr().out
    assert "started one" in said and "accelerate launch --multi_gpu --num_processes 2 --num_machines 1" in said

"""Killed, stopped or divided among processes: it is the same run."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hfgen.loading import checkpoint
from tests.training import runs

STEPS = "40"
Popen = Callable[..., subprocess.Popen]
Train = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    words = runs.command(folder, "--max-steps", STEPS, "--save-every", "10")
    subprocess.run(words, env=runs.environment(), cwd=runs.ROOT, check=True, capture_output=True)
    return folder


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    """Wait until the run has logged `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "metrics.jsonl").exists() and len((folder / "metrics.jsonl").read_text().splitlines()) >= step:
            return
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()
    pytest.fail(f"step {step} was not reached")


def test_three_random_kills_then_resume_give_the_bits_of_the_uninterrupted_run(
    uninterrupted: Path, tmp_path: Path, start: Popen, train: Train
) -> None:
    folder, seed = tmp_path / "killed", random.Random()
    arguments = ("--max-steps", STEPS, "--save-every", "10")
    for low in (1, 12, 24):
        process = start(folder, *arguments, *(["--resume"] if folder.exists() else []))
        wait_for_step(folder, low + seed.randrange(10), process)
        time.sleep(seed.random() * 0.02)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    train(folder, "--resume")                                 # the settings come from the run
    runs.assert_same_run(uninterrupted, folder)


def test_sigterm_saves_at_the_step_boundary_exits_75_and_resumes_exactly(
    uninterrupted: Path, tmp_path: Path, start: Popen, train: Train
) -> None:
    folder = tmp_path / "stopped"
    process = start(folder, "--max-steps", STEPS, "--save-every", "10")
    wait_for_step(folder, 13, process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)                       # a second one is harmless
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "continue with --resume" in out
    saved = checkpoint.newest(folder / "checkpoints")
    assert saved is not None
    last = runs.metrics(folder)[-1]["step"]
    assert checkpoint.step_of(saved) == last >= 13
    assert not (folder / "model").exists()
    train(folder, "--resume")
    runs.assert_same_run(uninterrupted, folder)


def test_two_processes_give_the_losses_of_one_and_there_were_two(tmp_path: Path, train: Train) -> None:
    arguments = ("--max-steps", "20", "--save-every", "10")
    train(tmp_path / "one", *arguments)
    done = train(tmp_path / "two", *arguments, processes=2, launched=True)
    assert "2 process(es)" in done.stdout
    assert "Warning" not in done.stderr, done.stderr
    one, two = runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two")
    assert len(one) == len(two) == 20
    for a, b in zip(one, two, strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5, (a, b)
        assert abs(a["grad_norm"] - b["grad_norm"]) < 1e-4
    first, second = runs.tensors(tmp_path / "one"), runs.tensors(tmp_path / "two")
    for key in first:
        if "to_k.bias" in key:                                # softmax does not see it: its gradient is rounding
            continue
        torch.testing.assert_close(first[key], second[key], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("recipe", "arguments"),
    [
        ("vae", "--importance-samples 3 --latent-dim 6 3"),
        ("vae", "--posterior inverse_autoregressive --flow-width 16 --sigma-per-pixel --eval-split train[:100]"),
        ("autoencoder", "--split train[:80%] --eval-split train[80%:] --tied"),
        ("tarflow", "--preview-images 0 --class-conditional --noise-std 0.1 --eval-split train[:100]"),
        ("autoregressive", "--preview-images 0 --eval-split train[:100]"),
    ],
)
def test_two_processes_train_and_evaluate_as_one_does(
    tmp_path: Path, train: Train, recipe: str, arguments: str
) -> None:
    words = ["--max-steps", "12", "--save-every", "0", *arguments.split()]
    train(tmp_path / "one", *words, recipe=recipe)
    done = train(tmp_path / "two", *words, recipe=recipe, processes=2)
    assert "2 process(es)" in done.stdout and "Warning" not in done.stderr, done.stderr
    for a, b in zip(runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two"), strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-3, rel=1e-4), (name, a, b)
    first, second = runs.tensors(tmp_path / "one"), runs.tensors(tmp_path / "two")
    for key in first:
        if key.startswith("nets"):
            torch.testing.assert_close(first[key], second[key], atol=1e-4, rtol=0)


def test_two_processes_killed_and_resumed_give_the_bits_of_two_uninterrupted(
    tmp_path: Path, start: Popen, train: Train
) -> None:
    arguments = ("--max-steps", "16", "--save-every", "5")
    train(tmp_path / "whole", *arguments, processes=2)
    process = start(tmp_path / "killed", *arguments, processes=2, launched=True)
    wait_for_step(tmp_path / "killed", 8, process)
    process.send_signal(signal.SIGTERM)                       # the launcher passes it on
    process.communicate(timeout=60)
    assert process.returncode != 0
    saved = checkpoint.newest(tmp_path / "killed" / "checkpoints")
    assert saved is not None and checkpoint.step_of(saved) >= 8
    done = train(tmp_path / "killed", "--resume", processes=2)
    assert f"continued from step {checkpoint.step_of(saved)}" in done.stdout
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_script_module_and_command_line_are_the_same_run(tmp_path: Path, train: Train) -> None:
    arguments = ("--max-steps", "6", "--save-every", "0")
    train(tmp_path / "module", *arguments)
    launch = [sys.executable, *runs.LAUNCH_TWO]
    launch[launch.index("--multi_gpu")] = "--cpu"
    launch[launch.index("2")] = "1"
    ways = {
        "script": [*launch, "training/ddpm.py"],
        "command": [sys.executable, "-c", "from hfgen.cli import main; main()", "train", "ddpm"],
    }
    for name, words in ways.items():
        words = [*words, "--output-dir", str(tmp_path / name), *runs.SHARED, *runs.TINY["ddpm"], *arguments]
        done = subprocess.run(words, env=runs.environment(), cwd=runs.ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        runs.assert_same_run(tmp_path / "module", tmp_path / name)

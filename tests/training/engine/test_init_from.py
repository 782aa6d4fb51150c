"""Runs that start from a saved model: its weights come over, resuming does without it, other networks are refused."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.runs import assert_same_run, metrics, train_here

train = partial(train_here, "vae")


def test_a_run_starts_where_the_saved_model_stands_and_resumes_without_it(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    train(first, "--max-steps", "30")
    again = ["--start-from", str(first), *"--max-steps 4 --save-every 2 --learning-rate 1e-9".split()]
    again += ["--importance-samples", "5"]
    train(second, *again)
    old, new = (load_file(folder / "model/vae/diffusion_pytorch_model.safetensors") for folder in (first, second))
    assert all(torch.allclose(old[key], new[key], atol=1e-6) for key in old)
    assert metrics(second)[0]["loss"] < metrics(first)[0]["loss"]

    shutil.copytree(second, third)
    shutil.rmtree(third / "checkpoints" / "step-00000004")
    shutil.rmtree(first)
    train(third, "--resume", *again)
    assert_same_run(second, third)


def test_a_model_of_another_family_or_size_is_refused_by_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "vae", "--max-steps", "2")
    saved = ["--max-steps", "2", "--start-from", str(tmp_path / "vae")]
    train_here("ddpm", tmp_path / "unet", *saved, code=2)
    assert "has vae, needed unet" in capfd.readouterr().err
    train(tmp_path / "wide", *saved, "--hidden", "32", code=2)
    assert "decoder.0.bias is (16,), not (32,)" in capfd.readouterr().err
    assert not (tmp_path / "wide").exists()

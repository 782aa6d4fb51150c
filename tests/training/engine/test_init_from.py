"""Runs that start from a saved model: its weights come over, resuming does without it, other networks are refused."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hfgen.training import ddpm, vae
from hfgen.training.engine.run import main
from tests.training.runs import SHARED, TINY, assert_same_run, metrics


@pytest.fixture(autouse=True)
def same_threads():  # type: ignore[no-untyped-def]
    """Undo what runs in this process do to torch's threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def train(folder: Path, *extra: str) -> int:
    """Train the tiny VAE in this process and return the exit code."""
    return main(vae.RECIPE, ["--output-dir", str(folder), *SHARED, *TINY["vae"], *extra])


def test_a_run_starts_where_the_saved_model_stands_and_resumes_without_it(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert train(first, "--max-steps", "30") == 0
    again = ["--start-from", str(first), *"--max-steps 4 --save-every 2 --learning-rate 1e-9".split()]
    again += ["--importance-samples", "5"]
    assert train(second, *again) == 0
    old, new = (load_file(folder / "model/vae/diffusion_pytorch_model.safetensors") for folder in (first, second))
    assert all(torch.allclose(old[key], new[key], atol=1e-6) for key in old)
    assert metrics(second)[0]["loss"] < metrics(first)[0]["loss"]

    shutil.copytree(second, third)
    shutil.rmtree(third / "checkpoints" / "step-00000004")
    shutil.rmtree(first)
    assert train(third, "--resume", *again) == 0
    assert_same_run(second, third)


def test_a_model_of_another_family_or_size_is_refused_by_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "vae", "--max-steps", "2") == 0
    saved = ["--max-steps", "2", "--start-from", str(tmp_path / "vae")]
    assert main(ddpm.RECIPE, ["--output-dir", str(tmp_path / "unet"), *SHARED, *TINY["ddpm"], *saved]) == 2
    assert "has vae, needed unet" in capfd.readouterr().err
    assert train(tmp_path / "wide", *saved, "--hidden", "32") == 2
    assert "decoder.0.bias is (16,), not (32,)" in capfd.readouterr().err
    assert not (tmp_path / "wide").exists()

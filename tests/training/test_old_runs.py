"""Run folders made by hfgen 0.1.0 on 2026-11-28, in `old_runs/`, keep loading, sampling, resuming and being judged."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hfgen import AutoPipeline
from tests.forks import completed

OLD_RUNS = Path(__file__).with_name("old_runs")
RECIPES = ("ddpm", "gan", "vae")


@pytest.fixture(params=RECIPES)
def old_run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a copy of an old run folder, finished at step 4, whose newest checkpoint is that of step 2."""
    folder = tmp_path / request.param
    shutil.copytree(OLD_RUNS / request.param, folder)
    return folder


def hfgen(*words: object) -> None:
    """Run an hfgen command as a user would."""
    done = completed(["hfgen", *map(str, words)], dict(os.environ))
    assert done.returncode == 0, done.stderr


def weights(model: Path) -> dict[str, torch.Tensor]:
    """Return all weights of a model folder by file and name."""
    files = sorted(model.rglob("*.safetensors"))
    return {f"{path.parent.name}.{name}": value for path in files for name, value in load_file(path).items()}


def test_an_old_run_resumes_to_the_model_that_it_became_without_a_stop(old_run: Path) -> None:
    expected = weights(old_run / "model")
    shutil.rmtree(old_run / "model")
    hfgen("train", old_run.name, "--output-dir", old_run, "--resume")
    resumed = weights(old_run / "model")
    assert resumed.keys() == expected.keys()
    start = weights(old_run / "checkpoints" / "step-00000002" / "model")
    assert any((start[name] - value).abs().max() > 1e-4 for name, value in expected.items())
    for name, value in resumed.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert json.loads((old_run / "run.json").read_text())["step"] == 4


def test_an_old_run_and_its_model_folder_load_and_sample(old_run: Path) -> None:
    samples = []
    for folder in (old_run, old_run / "model"):
        pipe = AutoPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        few = {"num_steps": 5} if old_run.name == "ddpm" else {}
        samples.append(pipe(batch_size=2, generator=torch.Generator().manual_seed(0), output_type="pt", **few)[0])
    assert torch.equal(samples[0], samples[1]) and samples[0].isfinite().all()


def test_an_old_run_is_judged(old_run: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    dataset = "ring8" if old_run.name == "gan" else "digits"
    hfgen("evaluate", old_run, "--dataset", dataset, "--num-samples", 64, "--metrics", "frechet", "--output", report)
    assert "frechet" in report.read_text(encoding="utf-8")

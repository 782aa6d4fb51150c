"""A run's edges: budget, broken checkpoints, conditions, precision, points."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from hfgen import AutoPipeline
from hfgen.checkpoint import newest
from tests.training.runs import metrics, tensors

Train = Callable[..., object]


def test_a_budget_fixes_the_number_of_steps_and_keeps_to_the_time(tmp_path: Path, train: Train) -> None:
    before = time.monotonic()
    train(tmp_path / "run", "--budget", "12s", "--log-every", "50", "--save-every", "0")
    seconds = time.monotonic() - before
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["budget"] == "12s" and stored["max_steps"] > 50
    assert metrics(tmp_path / "run")[-1]["step"] == stored["max_steps"]
    assert 8 < seconds < 60                                   # imports and a busy machine come on top
    plain = tmp_path / "plain"
    train(plain, "--max-steps", str(stored["max_steps"]), "--log-every", "50", "--save-every", "0")
    first, second = tensors(tmp_path / "run"), tensors(plain)
    assert all((first[key] == second[key]).all() for key in first)           # throw-away steps leave no trace


def test_a_broken_newest_checkpoint_is_named_and_the_older_one_continues(tmp_path: Path, train: Train) -> None:
    folder = tmp_path / "run"
    train(folder, "--max-steps", "20", "--save-every", "10")
    whole = tensors(folder)
    broken = folder / "checkpoints" / "step-00000020" / "optimizers.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    done = train(folder, "--resume")
    assert "step-00000020/optimizers.safetensors" in done.stderr and "continued from step 10" in done.stdout  # type: ignore[attr-defined]
    again = tensors(folder)
    assert all((whole[key] == again[key]).all() for key in whole)


def test_resume_with_other_data_or_without_any_good_checkpoint_is_an_error(tmp_path: Path, train: Train) -> None:
    folder = tmp_path / "run"
    train(folder, "--max-steps", "4", "--save-every", "2")
    done = train(folder, "--resume", "--flip", code=1)
    assert "flip: False in the run, True asked" in done.stderr  # type: ignore[attr-defined]
    for checkpoint in (folder / "checkpoints").iterdir():
        state = json.loads((checkpoint / "state.json").read_text())
        (checkpoint / "state.json").write_text(json.dumps({**state, "step": 3}))
    done = train(folder, "--resume", code=1)
    assert "none of 2 checkpoints verifies" in done.stderr  # type: ignore[attr-defined]


def test_a_class_conditional_run_makes_a_pipeline_that_takes_labels(tmp_path: Path, train: Train) -> None:
    train(tmp_path / "run", "--max-steps", "4", "--class-conditional", "--tracker", "tensorboard")
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
    pipeline = AutoPipeline.from_pretrained(tmp_path / "run")
    assert pipeline.unet.config.num_class_embeds == 11 and pipeline.config["null_condition"]
    assert pipeline(class_labels=[3, 4], batch_size=2, num_steps=2, output_type="pt").images.shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"class_labels must be in \[0, 9\], got 10"):
        pipeline(class_labels=10, num_steps=2)


def test_bf16_training_is_finite_close_to_float32_and_keeps_float32_weights(tmp_path: Path, train: Train) -> None:
    arguments = ("--max-steps", "15")
    train(tmp_path / "full", *arguments)
    train(tmp_path / "half", *arguments, "--mixed-precision", "bf16")
    for a, b in zip(metrics(tmp_path / "full"), metrics(tmp_path / "half"), strict=True):
        assert abs(a["loss"] - b["loss"]) < 0.03 * max(1, a["loss"])
    assert metrics(tmp_path / "full") != metrics(tmp_path / "half")
    assert all(t.dtype != "torch.bfloat16" and t.isfinite().all() for t in tensors(tmp_path / "half").values())


def test_the_same_recipe_trains_on_points_and_samples_land_on_the_modes(tmp_path: Path, train: Train) -> None:
    train(
        tmp_path / "ring", "--dataset", "ring8", "--max-steps", "1500", "--batch-size", "256", "--log-every", "100",
        "--block-out-channels", "128", "--layers-per-block", "3", "--learning-rate", "2e-3", "--sample-every", "1500",
    )  # fmt: skip
    from hfgen.data import load_dataset

    pipeline = AutoPipeline.from_pretrained(tmp_path / "ring")
    points = pipeline(batch_size=1000, num_steps=100, output_type="pt").images
    assert points.shape == (1000, 2)
    modes = load_dataset("ring8").modes  # type: ignore[attr-defined]
    distance, nearest_mode = (points[:, None] - torch.as_tensor(modes, dtype=points.dtype)).norm(dim=2).min(1)
    close = distance < 0.15                                   # a tenth of a mode's distance to the next is 0.077
    assert close.float().mean() > 0.9, close.float().mean()
    assert len(set(nearest_mode[close].tolist())) == 8


def test_an_unfinished_run_keeps_a_verified_checkpoint_from_its_first_save_on(tmp_path: Path, start: Train) -> None:
    folder = tmp_path / "run"
    process = start(folder, "--max-steps", "4000", "--save-every", "3")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list((folder / "checkpoints").glob("step-*"))) < 2:
        time.sleep(0.01)
    process.kill()  # type: ignore[attr-defined]
    process.communicate()  # type: ignore[attr-defined]
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                       # a save that was cut off is named in one
        assert newest(folder / "checkpoints") is not None

"""A run's edges: budget, broken checkpoints, conditions, precision, points."""

import dataclasses
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hfgen import AutoPipeline
from hfgen.loading.checkpoint import newest
from hfgen.training import ddpm
from hfgen.training.engine import log
from hfgen.training.engine.run import main
from tests.forks import completed
from tests.training.runs import SHARED, TINY, assert_same_run, environment, metrics, tensors

Train = Callable[..., object]


def test_a_budget_fixes_the_number_of_steps_and_keeps_to_the_time(tmp_path: Path, train: Train) -> None:
    before = time.monotonic()
    train(tmp_path / "run", "--budget", "6s", "--log-every", "50", "--save-every", "0")
    seconds = time.monotonic() - before
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["budget"] == "6s" and stored["max_steps"] > 50
    assert metrics(tmp_path / "run")[-1]["step"] == stored["max_steps"]
    assert 2 < seconds < 60                   # imports come on top; steps that were timed beside other work are fewer
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


def test_a_short_budget_on_larger_images_takes_a_smaller_network_and_says_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = "hfgen.training.ddpm --dataset digits --resolution 16 --budget 15s --threads 1 --log-every 1".split()
    words += ["--output-dir", str(folder)]
    done = completed(words, environment())
    assert done.returncode == 0, done.stderr
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["block_out_channels"] == [8, 16, 32] and stored["layers_per_block"] == 1
    assert stored["batch_size"] == 16 and stored["learning_rate"] == 2e-3
    assert re.search(r"smaller network: .*in place of .*64 128 128.*fewer than 2,000 steps", done.stdout)
    assert metrics(folder)[-1]["step"] == stored["max_steps"] >= 5
    assert done.stdout.count("the model is not trained") == 2 and "--budget" in done.stdout      # at start and at end
    assert "training" in done.stdout.partition("finished step")[2]
    again = completed([*words, "--resume"], environment())
    assert again.returncode == 0 and f"continued from step {stored['max_steps']:,}" in again.stdout, again.stderr
    assert yaml.safe_load((folder / "config.yaml").read_text()) == {**stored, "resume": True}


def wait_for(process: Any, text: str, seconds: float = 120) -> None:
    """Wait until the process has written `text` to its error stream."""
    seen, deadline = "", time.monotonic() + seconds
    while text not in seen and time.monotonic() < deadline:
        assert process.poll() is None, f"ended before {text!r}: {seen}"
        time.sleep(0.01)
        seen = process.printed()[1]
    assert text in seen


SLOW_GRID = "--preview-images 4000".split()


def test_sigterm_while_steps_are_timed_ends_the_run_at_once_and_leaves_nothing(tmp_path: Path, start: Train) -> None:
    process: Any = start(tmp_path / "run", "--budget", "9h", "--batch-size", "1600")
    wait_for(process, "timing steps")
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert "stopped before the first step" in out and not (tmp_path / "run").exists()


def test_sigterm_in_the_last_grid_ends_it_and_the_run_is_finished(tmp_path: Path, start: Train, train: Train) -> None:
    folder = tmp_path / "run"
    process: Any = start(folder, "--max-steps", "4", *SLOW_GRID)
    wait_for(process, "preview")
    process.send_signal(signal.SIGTERM)
    before = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert time.monotonic() - before < 20 and "none: left out, --resume draws it" in out
    assert not list((folder / "samples").iterdir()) and newest(folder / "checkpoints") is not None
    AutoPipeline.from_pretrained(folder / "model")
    train(folder, "--resume", "--preview-images", "4")
    assert [path.name for path in (folder / "samples").iterdir()] == ["step-00000004.png"]
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4]


def test_a_kill_in_the_last_grid_loses_nothing_but_the_grid(tmp_path: Path, start: Train, train: Train) -> None:
    folder = tmp_path / "run"
    process: Any = start(folder, "--max-steps", "4", *SLOW_GRID)
    wait_for(process, "preview")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    AutoPipeline.from_pretrained(folder / "model")
    train(folder, "--resume", "--preview-images", "4")
    train(tmp_path / "whole", "--max-steps", "4", "--preview-images", "4")
    assert_same_run(folder, tmp_path / "whole")


@pytest.fixture
def here() -> Any:
    """Return what trains the tiny model in this process, with a recipe that is changed; undo torch's threads."""
    threads = torch.get_num_threads()

    def train(folder: Path, *extra: str, **changes: Callable[..., Any]) -> int:
        def build(settings: Any, dataset: Any) -> Any:
            return dataclasses.replace(ddpm.RECIPE.create(settings, dataset), **changes)

        words = ["--output-dir", str(folder), *SHARED, *TINY["ddpm"], "--max-steps", "6", *extra]
        return main(dataclasses.replace(ddpm.RECIPE, build=build), words)

    yield train
    torch.set_num_threads(threads)


def evaluate(nets: Any) -> dict[str, float]:
    """Return a number that the weights alone decide."""
    with torch.no_grad():
        return {"eval_x": float(nets["unet"](torch.ones(1, 1, 8, 8), torch.tensor([5])).sample.double().sum())}


@pytest.mark.parametrize("place", ["preview", "evaluate"])
@pytest.mark.parametrize("at", [3, 6])
def test_a_stop_signal_within_an_evaluation_or_a_grid_ends_it_and_resuming_makes_up_for_it(
    tmp_path: Path, here: Any, place: str, at: int
) -> None:
    calls, finished = [], []

    def signalled(made: Callable[..., Any]) -> Callable[..., Any]:
        def stop(given: Any) -> Any:
            calls.append(1)
            if len(calls) == at // 3:
                os.kill(os.getpid(), signal.SIGTERM)
            result = made(given)
            finished.append(1)
            return result

        return stop

    def draw(pipeline: Any) -> Any:
        return pipeline(batch_size=1, num_steps=2, generator=torch.Generator().manual_seed(0)).images[0]

    arguments = ("--sample-every", "3", "--log-every", "2", "--save-every", "100")
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    assert here(whole, *arguments, preview=draw, evaluate=evaluate) == 0
    made = {"preview": draw, "evaluate": evaluate}
    code = here(folder, *arguments, **{**made, place: signalled(made[place])})
    assert code == (0 if (place, at) == ("preview", 6) else 75)
    assert len(finished) == len(calls) - 1 and (folder / "model").exists() == (at == 6)
    saved = newest(folder / "checkpoints")
    assert saved is not None and saved.name == f"step-{at:08d}"
    assert here(folder, *arguments, "--resume", preview=draw, evaluate=evaluate) == 0
    assert_same_run(whole, folder)
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["step-00000003.png", "step-00000006.png"]
    for path in (folder / "samples").iterdir():
        assert path.read_bytes() == (whole / "samples" / path.name).read_bytes()


def test_something_is_shown_again_and_again_while_nothing_moves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "BEAT", 0.02)
    with log.activity("timing steps", True):
        time.sleep(0.5)
    assert 5 < capsys.readouterr().err.count("timing steps") < 40
    with log.activity("timing steps", False):
        time.sleep(0.1)
    assert not capsys.readouterr().err

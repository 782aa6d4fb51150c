"""`--objective masked` of the autoregressive recipe: the loss, exact runs, refusals, learning."""

import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hfgen import AutoPipeline, MaskedGenerationPipeline
from hfgen.errors import ConfigError
from hfgen.losses.masked import random_mask
from hfgen.training import autoregressive
from hfgen.training.engine.noise import Noise
from tests.training import runs
from tests.training.tiny import STEADY, Tiny, run, state

Train = Callable[..., subprocess.CompletedProcess]
MASKED = Tiny(autoregressive.RECIPE, {
    **STEADY, "objective": "masked", "width": 16, "layers": 1, "attention_head_dim": 8, "learning_rate": 1e-3,
})  # fmt: skip
engine = MASKED.engine
WORDS = ("--dataset digits --objective masked --batch-size 16 --width 16 --layers 1 --attention-head-dim 8 --threads 1 "
         "--learning-rate 1e-3 --lr-schedule constant --class-conditional --preview-images 0 --log-every 1").split()


def noise() -> Noise:
    return Noise((0, 0, "autoregressive", 0), 16, slice(16))


def test_the_loss_is_of_the_masked_entries_which_the_network_does_not_see() -> None:
    e = engine()
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    loss, scalars = e.recipe.phases[0].loss(e.nets, batch, noise(), {})
    levels = ((batch["x"] + 1) * 8).round().long().flatten(1)
    mask = random_mask(noise().uniform("share"), noise().uniform("order", 64))
    assert 1 <= mask.sum(1).min() < mask.sum(1).max() <= 64
    log_p = e.nets["network"](torch.where(mask, 17, levels)).logits.log_softmax(-1)
    log_p = log_p.gather(2, levels[..., None])[..., 0]
    by_hand = torch.stack([-row[where].mean() for row, where in zip(log_p, mask, strict=True)]).mean()
    assert loss.item() == scalars["loss"].item() == pytest.approx(by_hand.item(), abs=1e-6)
    assert loss.item() == pytest.approx(math.log(17), abs=0.05)


def test_a_run_in_micro_batches_takes_the_steps_of_a_whole_one() -> None:
    whole, parts = engine(class_conditional=True), engine(class_conditional=True, micro_batch_size=4)
    losses = [[line["loss"] for line in run(e, 5)] for e in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for key, value in state(whole.nets["network"]).items():
        torch.testing.assert_close(parts.nets["network"].state_dict()[key], value, atol=1e-4, rtol=0)


def test_stopped_and_resumed_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    runs.train_here("autoregressive", tmp_path / "whole", "--max-steps", "6", "--save-every", "3", words=WORDS)
    runs.train_here("autoregressive", tmp_path / "cut", "--max-steps", "3", "--save-every", "3", words=WORDS)
    runs.train_here("autoregressive", tmp_path / "cut", words=["--resume", "--max-steps", "6"])
    runs.assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_two_processes_train_and_evaluate_as_one_does(tmp_path: Path, train: Train) -> None:
    words = ["--objective", "masked", "--preview-images", "0", "--eval-split", "train[:100]", "--max-steps", "8",
             "--save-every", "0"]  # fmt: skip
    found = []
    for processes in (1, 2):
        train(tmp_path / str(processes), *words, recipe="autoregressive", processes=processes)
        found.append(runs.metrics(tmp_path / str(processes)))
    for one, two in zip(*found, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
        assert one.get("eval_loss") == pytest.approx(two.get("eval_loss"), abs=1e-5)
    assert "eval_loss" in found[0][-1]


def test_the_finished_run_samples_in_any_number_of_steps(tmp_path: Path) -> None:
    words = [word for word in WORDS if word not in ("--class-conditional", "--preview-images", "0")]
    lines = runs.train_here("autoregressive", tmp_path / "run", "--max-steps", "200", "--preview-images", "4",
                            "--eval-split", "train[:100]", words=words)  # fmt: skip
    assert lines[-1]["eval_loss"] < math.log(17) - 0.5
    pipe = AutoPipeline.from_pretrained(tmp_path / "run")
    assert isinstance(pipe, MaskedGenerationPipeline)
    pipe.set_progress_bar_config(disable=True)
    for steps in (1, 8, 64, None):
        assert pipe(2, num_steps=steps, output_type="pt").images.shape == (2, 1, 8, 8)
    half = torch.zeros(8, 8)
    half[4:] = 1
    image = pipe(1, output_type="pt").images
    assert torch.equal(pipe.complete(image, half, output_type="pt").images[:, :, :4], image[:, :, :4])


def test_the_convolutional_network_is_refused() -> None:
    changes: dict[str, Any] = {"network": "pixel_cnn"}
    with pytest.raises(ConfigError, match="--objective masked needs --network transformer"):
        engine(**changes)

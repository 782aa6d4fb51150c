"""The recipe of normalizing flows: the loss, noise, conditions, exact runs, refusals, learning."""

import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hfgen import AutoPipeline, NormalizingFlowPipeline
from hfgen.errors import ConfigError
from hfgen.metrics.likelihood import dequantised
from hfgen.training.engine.noise import Noise
from tests.training import runs
from tests.training.test_exact_resume import wait_for_step
from tests.training.tiny import TARFLOW, run, state

Train = Callable[..., subprocess.CompletedProcess]
engine = TARFLOW.engine


def noise(step: int = 0) -> Noise:
    return Noise((0, step, "flow", 0), 16, slice(16))


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_the_loss_is_the_negated_density_of_noisy_pixels_and_bits_are_those_of_their_levels(noise_std: float) -> None:
    e = engine(noise_std=noise_std)
    for parameter in e.nets["network"].parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    loss, scalars = e.recipe.phases[0].loss(e.nets, batch, noise(), {})
    x = dequantised(batch["x"], noise().uniform("pixels", 1, 8, 8), 17)
    assert ((x - batch["x"]).abs() <= 1 / 16).all()
    x = x + noise_std * noise().normal("noise", 1, 8, 8)
    with torch.no_grad():
        expected = -e.nets["network"](x).log_prob.mean().item() / 64
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert scalars["bits_per_dim"].item() == pytest.approx((expected + math.log(8)) / math.log(2), abs=1e-5)


def test_an_untrained_flow_is_the_standard_normal() -> None:
    e = engine()
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    loss, _ = e.recipe.phases[0].loss(e.nets, batch, noise(), {})
    x = dequantised(batch["x"], noise().uniform("pixels", 1, 8, 8), 17)
    assert loss.item() == pytest.approx((x.square().mean().item() + math.log(2 * math.pi)) / 2, abs=1e-5)


def test_noise_is_drawn_anew_at_each_step() -> None:
    e = engine(noise_std=0.1)
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    seen: list[torch.Tensor] = []
    nets: Any = {"network": lambda x, **k: seen.append(x) or e.nets["network"](x, **k)}
    for step in (0, 0, 1):
        e.recipe.phases[0].loss(nets, batch, noise(step), {})
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_classes_are_left_out_at_random_for_guidance() -> None:
    e = engine(class_conditional=True, condition_dropout=0.4)
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    given: list[torch.Tensor] = []
    nets: Any = {"network": lambda x, class_labels: given.append(class_labels) or e.nets["network"](x, class_labels)}
    e.recipe.phases[0].loss(nets, batch, noise(), {})
    out = noise().uniform("condition") < 0.4
    assert 0 < out.sum() < 16
    assert torch.equal(given[0], torch.where(out, 10, batch["label"]))


def test_a_run_in_micro_batches_takes_the_steps_of_a_whole_one() -> None:
    whole, parts = engine(class_conditional=True), engine(class_conditional=True, micro_batch_size=4)
    losses = [[line["loss"] for line in run(e, 5)] for e in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for key, value in state(whole.nets["network"]).items():
        torch.testing.assert_close(parts.nets["network"].state_dict()[key], value, atol=1e-4, rtol=0)


def test_killed_and_resumed_it_ends_in_the_same_bits(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], train: Train
) -> None:
    words = ("--max-steps", "14", "--save-every", "5", "--preview-images", "0", "--noise-std", "0.1")
    train(tmp_path / "whole", *words, recipe="tarflow")
    process = start(tmp_path / "killed", *words, recipe="tarflow")
    wait_for_step(tmp_path / "killed", 7, process)
    process.kill()
    process.communicate()
    train(tmp_path / "killed", "--resume", recipe="tarflow")
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_the_finished_run_learns_samples_inverts_and_says_its_likelihood(tmp_path: Path) -> None:
    lines = runs.train_here("tarflow", tmp_path / "run", "--max-steps", "120", "--eval-split", "train[:100]",
                            "--class-conditional", "--preview-images", "4")  # fmt: skip
    pipe: Any = AutoPipeline.from_pretrained(tmp_path / "run")
    assert isinstance(pipe, NormalizingFlowPipeline)
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.config["levels"], pipe.config["noise_std"], pipe.num_classes) == (17, 0.0, 10)
    images = pipe(2, class_labels=3, guidance_scale=1.5, output_type="pt").images
    again = pipe(latents=pipe.invert(images, class_labels=3), class_labels=3, output_type="pt").images
    torch.testing.assert_close(again, images, atol=1e-6, rtol=0)
    evaluated = [line for line in lines if "eval_nats" in line]
    bits = (evaluated[-1]["eval_nats"] / 64 + math.log(8)) / math.log(2)
    assert evaluated[-1]["eval_bits_per_dim"] == pytest.approx(bits, rel=1e-6)
    assert bits < math.log2(17)                                            # fewer than evenly drawn levels take


def test_patches_divide_the_sides_of_images() -> None:
    assert engine().nets["network"].config["patch_size"] == 2
    assert engine(dataset="shapes", split="train[:32]", resolution=20).nets["network"].config["patch_size"] == 4
    assert engine(dataset="shapes", split="train[:32]", resolution=18).nets["network"].config["patch_size"] == 2


def test_captions_come_before_the_patches() -> None:
    e = engine(dataset="shapes", split="train[:32]", resolution=16, captions=True)
    losses = [line["loss"] for line in run(e, 3)]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in e.nets["text_encoder"].parameters() if parameter.ndim > 1)


@pytest.mark.parametrize(("changes", "words"), [
    ({"dataset": "ring8"}, "is for images"), ({"patch_size": 3}, "patch_size"), ({"width": 0}, "--width"),
    ({"dropout": 1.0}, "--dropout"), ({"noise_std": -1.0}, "--noise-std"), ({"blocks": 0}, "--blocks"),
])  # fmt: skip
def test_settings_that_no_run_can_use_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        engine(**changes)

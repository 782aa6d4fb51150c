"""`hfgen train gan --network progressive`: levels of steps, resume inside a fade, micro-batches and two processes."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hfgen import AutoPipeline
from hfgen.errors import ConfigError
from hfgen.loading import checkpoint
from hfgen.models.progressive import at_level
from hfgen.training.engine.noise import Noise
from hfgen.training.growth import Growth
from tests.training import runs
from tests.training.test_exact_resume import wait_for_step
from tests.training.tiny import GAN, run, state

Train = Callable[..., subprocess.CompletedProcess]
WORDS = ("--network", "progressive", "--loss", "wasserstein_gp", "--latent-dim", "8", "--class-conditional")
FADING = ("--max-steps", "40", "--save-every", "25")
"""Digits grow from 2 x 2 at steps 10 and 20; at step 25 of 40 the last stage fades in."""


def engine(**changes: Any) -> Any:
    """Return the engine of digits that grow from 2 x 2 over 20 steps: at steps 5 and 10."""
    return GAN.engine(**{"network": "progressive", **changes})


def growth(engine: Any) -> Growth:
    """Return the level of the networks of an engine."""
    level = engine.nets["growth"]
    assert isinstance(level, Growth)
    return level


def test_the_level_rises_in_the_first_half_of_each_stage_and_ends_at_the_full_resolution() -> None:
    level = growth(engine())
    assert level.starts(400) == (0, 100, 200) and level.starts(1) == (0, 0, 0)
    levels = [level.level_of(step, 400) for step in range(400)]
    assert levels[:100] == [0.0] * 100 and levels[150:200] == [1.0] * 50 and levels[299:] == [2.0] * 101
    assert levels[100:150] == pytest.approx([(i + 1) / 50 for i in range(50)])
    assert levels[200:300] == pytest.approx([1 + (i + 1) / 100 for i in range(100)])
    for steps in (1, 2, 3, 5, 17):
        few = [level.level_of(step, steps) for step in range(steps)]
        assert few == sorted(few) and few[-1] == 2.0


def test_shares_of_the_stages_and_of_the_fades_are_settings() -> None:
    level = growth(engine(stage_shares=(1.0, 2.0, 1.0), fade_share=1.0))
    assert level.starts(400) == (0, 100, 300)
    assert [level.level_of(step, 400) for step in (99, 199, 299, 349, 399)] == pytest.approx([0, 0.5, 1, 1.5, 2])
    sudden = growth(engine(fade_share=0.0))
    assert [sudden.level_of(step, 400) for step in (99, 100, 199, 200)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"stage_shares": (1.0, 1.0)}, "--stage-shares must be 3 numbers above 0, one for each doubling"),
     ({"stage_shares": (1.0, 0.0, 1.0)}, "--stage-shares must be 3 numbers above 0"),
     ({"fade_share": 1.5}, "--fade-share must be"),
     ({"generator_norm": "batch"}, "--generator-norm batch is not for --network progressive"),
     ({"network": "dcgan", "stage_shares": (1.0, 1.0, 1.0)}, "--stage-shares .* is not for --network dcgan")],
)  # fmt: skip
def test_an_impossible_setting_is_an_error_that_names_it(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine(**fields)


def test_growing_networks_are_recommended_with_r1_and_the_deviation_of_groups_of_four() -> None:
    chosen = engine().settings
    assert (chosen.loss, chosen.r1, chosen.minibatch_stddev) == ("non_saturating", 1.0, 4)
    assert chosen.learning_rate == 1e-3 and chosen.betas == (0.0, 0.99) == chosen.discriminator_betas
    other = engine(loss="wasserstein_gp").settings
    assert other.gradient_penalty > 0 and other.r1 == 0 and other.discriminator_norm == "none"


def test_layers_of_a_stage_move_from_the_first_step_of_its_fade_and_lower_ones_always() -> None:
    trained = engine()
    G = trained.nets["generator"]
    moved: list[set[int]] = []
    for first in range(12):
        before = state(G)
        run(trained, 1, first)
        changed = {k for k, v in state(G).items() if not torch.equal(v, before[k])}
        moved.append({int(key.split(".")[1]) for key in changed if key.startswith("blocks")})
    assert moved == [{0}] * 5 + [{0, 1}] * 5 + [{0, 1, 2}] * 2


def test_both_networks_and_the_images_of_the_batch_are_at_the_level_of_the_step() -> None:
    trained = engine()
    level, x = growth(trained), trained.dataset.tensor(16)
    G, D = trained.nets["generator"], trained.nets["discriminator"]
    assert G.level == D.level == 0

    def loss(nets: Any, batch: Any, noise: Any, memo: Any) -> Any:
        return batch["x"], {"label": batch["label"], "levels": torch.tensor([G.level, D.level, float(level.level)])}

    for step in (0, 6, 12, 19):
        noise = Noise((0, step, "generator", 0), 16, slice(16))
        expected = level.level_of(step, 20)
        images, rest = level.during(loss)(trained.nets, {"x": x, "label": torch.arange(16)}, noise, {})
        assert rest["levels"].tolist() == pytest.approx([expected] * 3) and torch.equal(rest["label"], torch.arange(16))
        assert torch.equal(images, at_level(x, expected, 2)) and torch.equal(images, x) == (expected == 2)


@pytest.mark.parametrize("loss", ["wasserstein_gp", "relativistic"])
def test_micro_batches_give_the_losses_of_the_whole_batch_also_within_fades(loss: Any) -> None:
    whole, parts = engine(loss=loss), engine(loss=loss, micro_batch_size=4)
    for a, b in zip(run(whole, 14), run(parts, 14), strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-4), name


def test_killed_inside_a_fade_and_resumed_it_ends_in_the_same_bits_and_makes_full_resolution_images(
    tmp_path: Path, start: Callable[..., subprocess.Popen], train: Train
) -> None:
    train(tmp_path / "whole", *WORDS, *FADING, recipe="gan")
    process = start(tmp_path / "killed", *WORDS, *FADING, recipe="gan")
    wait_for_step(tmp_path / "killed", 26, process)
    process.kill()
    process.communicate()
    # the saved generator is at the level of its step, and makes images of the full resolution
    saved = checkpoint.newest(tmp_path / "killed" / "checkpoints")
    assert saved is not None and checkpoint.step_of(saved) == 25
    level = json.loads((saved / "model" / "generator" / "config.json").read_text())["level"]
    assert level == pytest.approx(1.5)
    pipe = AutoPipeline.from_pretrained(saved / "model")
    assert pipe(2, class_labels=1, output_type="pt").images.shape == (2, 1, 8, 8)
    # resume
    done = train(tmp_path / "killed", *WORDS, "--resume", recipe="gan")
    assert "continued from step 25" in done.stdout
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert AutoPipeline.from_pretrained(tmp_path / "killed").generator.level == 2.0


def test_two_processes_equal_one_while_the_networks_grow(tmp_path: Path, train: Train) -> None:
    words = (*WORDS, "--max-steps", "12", "--save-every", "0", "--learning-rate", "1e-4")
    train(tmp_path / "one", *words, recipe="gan")
    done = train(tmp_path / "two", *words, recipe="gan", processes=2)
    assert "2 process(es)" in done.stdout and "Warning" not in done.stderr, done.stderr
    for a, b in zip(runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two"), strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-3), (name, a, b)
    first, second = runs.tensors(tmp_path / "one"), runs.tensors(tmp_path / "two")
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=2e-4, rtol=0)  # Adam: two steps of 1e-4 at most


def test_a_run_that_grows_is_not_extended_since_more_steps_would_move_its_stages(tmp_path: Path, train: Train) -> None:
    words = (*WORDS, "--lr-schedule", "constant", "--save-every", "0")
    train(tmp_path, *words, "--max-steps", "4", recipe="gan")
    done = train(tmp_path, *words, "--max-steps", "8", "--resume", recipe="gan", code=1)
    assert "cannot resume with other settings (max_steps: 4 in the run, 8 asked)" in done.stderr

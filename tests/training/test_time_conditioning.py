"""Random Fourier features and adaptive group normalisation, as settings of all recipes that denoise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from hfgen import AutoPipeline
from hfgen.errors import ConfigError
from hfgen.models.blocks import FREQUENCY_STD
from tests.training import runs
from tests.training.tiny import DDPM, LATENT_DIFFUSION, SCORE_SDE, run, state

CHOICES = "--time-embedding-type fourier --resnet-time-scale-shift scale_shift".split()
FIELDS: dict[str, Any] = {"time_embedding_type": "fourier", "resnet_time_scale_shift": "scale_shift"}
CAPTIONS = "--dataset shapes --split train[:64] --resolution 8 --captions --attention-head-dim 4 --text-width 16 \
    --text-layers 1".split()
Train = Callable[..., Any]


def test_a_ddpm_with_both_choices_gives_the_same_images_in_plain_diffusers(tmp_path: Path) -> None:
    log = runs.train_here("ddpm", tmp_path / "run", *CHOICES, "--max-steps", "60")
    assert sum(line["loss"] for line in log[-10:]) < 0.7 * sum(line["loss"] for line in log[:10])
    ours: Any = AutoPipeline.from_pretrained(tmp_path / "run")
    theirs = diffusers.DDPMPipeline.from_pretrained(tmp_path / "run" / "model")
    assert type(theirs.unet) is diffusers.UNet2DModel
    images = []
    for pipe, steps in ((ours, {"num_steps": 100}), (theirs, {"num_inference_steps": 100})):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(torch.as_tensor(pipe(batch_size=2, generator=generator, output_type="np", **steps).images))
    torch.testing.assert_close(images[0], images[1], atol=1e-4, rtol=0)
    # samplers in continuous time
    generator = torch.Generator().manual_seed(0)
    fast = ours(batch_size=2, num_steps=10, sampler="dpmpp_2m", generator=generator, output_type="pt").images
    assert fast.isfinite().all()


@pytest.mark.parametrize("recipe", ["score_sde", "ddpm", "latent_diffusion"])
def test_networks_of_all_recipes_load_in_plain_diffusers(tmp_path: Path, recipe: str, grey: str) -> None:
    words = [*CHOICES, "--max-steps", "3", "--class-conditional"]
    if recipe == "latent_diffusion":
        words += ["--autoencoder", grey]
    runs.train_here(recipe, tmp_path / "run", *words)
    folder = tmp_path / "run" / "model" / "unet"
    config = json.loads((folder / "config.json").read_text())
    assert config["time_embedding_type"] == "learned" and config["resnet_time_scale_shift"] == "scale_shift"
    ours: Any = AutoPipeline.from_pretrained(tmp_path / "run").unet
    theirs: Any = diffusers.UNet2DModel.from_pretrained(folder)
    side, t, labels = ours.config["sample_size"], torch.tensor([0, 49]), torch.tensor([0, 9])
    x = torch.randn(2, ours.config["in_channels"], side, side)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, t, labels).sample, theirs(x, t, labels).sample, atol=1e-5, rtol=0)


def test_networks_of_captions_load_in_plain_diffusers_with_frequencies_for_their_timesteps(tmp_path: Path) -> None:
    runs.train_here("ddpm", tmp_path / "run", *CHOICES, *CAPTIONS, "--max-steps", "3")
    ours: Any = AutoPipeline.from_pretrained(tmp_path / "run").unet
    theirs: Any = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "run" / "model" / "unet")
    x, t, text = torch.randn(2, 3, 8, 8), torch.tensor([0, 99]), torch.randn(2, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, t, None, text).sample, theirs(x, t, text).sample, atol=1e-5, rtol=0)
    assert float(ours.time_proj.weight.std()) == pytest.approx(FREQUENCY_STD / 100, rel=0.6)


@pytest.mark.parametrize("captions", [False, True])
def test_training_leaves_the_frequencies_as_they_are(captions: bool) -> None:
    conditions: dict[str, Any] = {"dataset": "shapes", "split": "train[:64]", "resolution": 8, "captions": True}
    e = DDPM.engine(**FIELDS, **(conditions if captions else {}))
    before = state(e.nets["unet"])
    run(e, 3)
    after = state(e.nets["unet"])
    assert torch.equal(before["time_proj.weight"], after["time_proj.weight"])
    assert not torch.equal(before["conv_in.weight"], after["conv_in.weight"])


def test_a_stopped_run_resumes_to_the_bits_of_the_uninterrupted_one_with_both_choices(tmp_path: Path) -> None:
    words = [*CHOICES, "--save-every", "4", "--lr-schedule", "constant"]
    runs.train_here("ddpm", tmp_path / "whole", *words, "--max-steps", "10")
    runs.train_here("ddpm", tmp_path / "stopped", *words, "--max-steps", "4")
    runs.train_here("ddpm", tmp_path / "stopped", *words, "--max-steps", "10", "--resume")
    runs.assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_two_processes_give_the_losses_of_one_with_both_choices(tmp_path: Path, train: Train) -> None:
    words = [*CHOICES, "--max-steps", "10", "--save-every", "0"]
    train(tmp_path / "one", *words)
    done = train(tmp_path / "two", *words, processes=2)
    assert "2 process(es)" in done.stdout and "Warning" not in done.stderr, done.stderr
    for a, b in zip(runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two"), strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5, (a, b)


@pytest.mark.parametrize("recipe", [DDPM, SCORE_SDE])
@pytest.mark.parametrize("name", FIELDS)
def test_points_refuse_the_settings_of_images_by_name(recipe: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} {FIELDS[name]} is for images"):
        recipe.engine(dataset="ring8", **{name: FIELDS[name]})


def test_adaptive_normalisation_keeps_the_groups_of_attention(tmp_path: Path, grey: str) -> None:
    given = {"output_dir": tmp_path, "autoencoder": grey}
    plain, adaptive = (LATENT_DIFFUSION.engine(**given, **more).nets["unet"] for more in (
        {}, {"resnet_time_scale_shift": "scale_shift"}))  # fmt: skip
    changed = [key for key, value in plain.state_dict().items() if adaptive.state_dict()[key].shape != value.shape]
    assert plain.state_dict().keys() == adaptive.state_dict().keys()
    assert changed and all("time_emb_proj" in key for key in changed)

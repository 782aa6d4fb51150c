"""How many steps a budget pays for, where steps cost more from some step on."""

from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hfgen.data import load_dataset
from hfgen.training import ddpm, score_sde
from hfgen.training.autoencoder_kl import RECIPE, AutoencoderKLSettings
from hfgen.training.ddpm import DDPMSettings
from hfgen.training.engine.budget import affordable, sample_grid, untrained
from hfgen.training.settings import denoiser


@pytest.mark.parametrize("start", [None, 0, 7, 1000])
@pytest.mark.parametrize("seconds", [0.0, 1.0, 9.9, 100.0, 123.4])
def test_the_steps_of_a_budget_are_the_most_whose_times_add_up_to_less(start: int | None, seconds: float) -> None:
    def first(steps: int) -> int:
        return steps // 2 if start is None else start

    def taken(steps: int) -> float:
        return sum(1.0 if step < first(steps) else 2.5 for step in range(steps))

    expected = max([1, *(steps for steps in range(150) if taken(steps) <= seconds)])
    assert affordable(seconds, [1.0, 2.5], lambda steps: (0, first(steps))) == expected
    assert affordable(-3.0, [1.0], lambda steps: (0,)) == 1
    assert affordable(seconds, [2.0], lambda steps: (0,)) == max(1, int(seconds / 2))


def test_an_autoencoder_with_a_discriminator_has_two_stages(tmp_path: Path) -> None:
    digits = load_dataset("digits")
    for weight, start, stages in ((0.5, None, (0, 50)), (0.5, 8, (0, 8)), (0.0, None, (0,)), (None, None, (0,))):
        settings = AutoencoderKLSettings(
            output_dir=tmp_path, budget="3m", adversarial_weight=weight, adversarial_start=start
        )
        assert RECIPE.create(settings, digits).stages(100) == stages


@pytest.mark.parametrize(
    ("second_a_step", "images", "steps"),
    [(0.001, 64, 50), (0.012, 64, 20), (0.05, 16, 20), (0.1, 16, 10), (0.9, 4, 10), (10.0, 0, None)],
)
def test_the_grid_is_the_largest_of_which_one_or_two_fit(
    second_a_step: float, images: int, steps: int | None, tmp_path: Path
) -> None:
    """`second_a_step`: of one denoising step of 8 images; 5 seconds are allowed for grids."""
    digits = load_dataset("digits")
    settings = ddpm.RECIPE.recommended(DDPMSettings(output_dir=tmp_path, budget="100s"), digits)
    seconds, fields = sample_grid(settings, digits, 2 * second_a_step, 5.0)
    assert fields["preview_images"] == images and fields.get("preview_steps") == steps
    assert seconds == pytest.approx(second_a_step * images / 8 * (steps or 0))
    asked = replace(settings, preview_images=9, preview_steps=7)
    assert sample_grid(asked, digits, 0.002, 5.0)[1] == {"preview_images": 9, "preview_steps": 7}
    plot = sample_grid(settings, load_dataset("ring8"), 2 * second_a_step, 5.0)     # of 2,000 points or of none
    assert plot[1]["preview_images"] == (64 if second_a_step * 50 <= 5.0 else 0)


def test_a_recipe_whose_grid_has_no_size_draws_it_as_it_is(tmp_path: Path) -> None:
    settings = AutoencoderKLSettings(output_dir=tmp_path, budget="3m")
    assert sample_grid(settings, load_dataset("digits"), 7.0, 5.0) == (7.0, {})


@pytest.mark.filterwarnings("ignore:.*are enlarged")
@pytest.mark.parametrize("recipe", [ddpm, score_sde])
@pytest.mark.parametrize("side", [16, 28, 32, 64, 96])
def test_smaller_networks_grow_up_to_the_recommended_one(recipe: Any, side: int, tmp_path: Path) -> None:
    images = load_dataset("digits", resolution=side, channels=3)
    cls = {ddpm: DDPMSettings, score_sde: score_sde.ScoreSDESettings}[recipe]
    asked = cls(output_dir=tmp_path, budget="3m")
    usual = recipe.RECIPE.recommended(asked, images)
    offered = [*recipe.RECIPE.spec.smaller(asked, images), usual]
    sizes = [sum(p.numel() for p in recipe.build(s, images).nets["unet"].parameters()) for s in offered]
    assert len(sizes) == 4 and all(2 * a < b for a, b in pairwise(sizes))
    open_fields = {"block_out_channels", "layers_per_block", "batch_size", "learning_rate"}
    for s in offered:
        changed = {name for name, value in asdict(s).items() if value != asdict(usual)[name]}
        assert changed <= open_fields and len(s.block_out_channels) == len(usual.block_out_channels)
    own = recipe.RECIPE.spec.smaller(replace(asked, batch_size=7, learning_rate=1e-4), images)
    assert {(s.batch_size, s.learning_rate) for s in own} == {(7, 1e-4)}


@pytest.mark.filterwarnings("ignore:.*are enlarged")
def test_no_smaller_network_takes_the_place_of_one_that_was_asked_for(tmp_path: Path) -> None:
    asked, images = DDPMSettings(output_dir=tmp_path, budget="3m"), load_dataset("digits", resolution=16)
    assert not denoiser.smaller(replace(asked, block_out_channels=(64, 128, 128)), images)
    assert not denoiser.smaller(replace(asked, layers_per_block=2), images)
    assert not denoiser.smaller(asked, load_dataset("digits")) and not denoiser.smaller(asked, load_dataset("ring8"))


def test_a_budget_of_too_few_steps_names_one_that_is_enough(tmp_path: Path) -> None:
    asked = DDPMSettings(output_dir=tmp_path, budget="2m", max_steps=500)
    said = untrained(asked, 20_000) or ""
    assert "not trained" in said and "2m are enough for 500 steps, 20,000 are recommended" in said
    assert "--budget 8m or more, a smaller --resolution, fewer --block-out-channels" in said
    assert untrained(replace(asked, max_steps=2000), 20_000) is None
    assert untrained(replace(asked, budget=None, max_steps=1), 20_000) is None

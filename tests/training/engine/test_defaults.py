"""Defaults in the help of a recipe are those that the recipe recommends."""

import re
from importlib import import_module

import pytest

from hfgen.cli import RECIPES
from hfgen.data import load_dataset
from hfgen.training import ddpm, gan
from hfgen.training.engine.defaults import in_words
from hfgen.training.engine.run import main


def help_of(recipe: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the help text of a recipe as one line, without its frame."""
    with pytest.raises(SystemExit) as ended:
        main(import_module(f"hfgen.training.{recipe}").RECIPE, ["--help"])
    assert ended.value.code == 0
    return re.sub(r"[\s│]+", " ", capsys.readouterr().out)


def test_values_are_worded_with_the_general_one_first_and_kinds_that_share_a_value_together() -> None:
    assert in_words({"large": 2e-4, "small": 2e-3, "tiny": 2e-3}) == "0.0002 (0.002 for small, tiny)"
    assert in_words({"large": (64, 128), "small": (32,), "points": ()}) == "64 128 (32 for small; none for points)"
    assert in_words({"large": "conv", "small": "conv"}) == "conv"


def test_the_help_shows_the_values_that_a_run_on_digits_and_on_points_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    digits = ddpm.RECIPE.recommended(ddpm.DDPMSettings(output_dir=""), load_dataset("digits"))  # type: ignore[arg-type]
    widths = " ".join(map(str, digits.block_out_channels))
    text = help_of("ddpm", capsys)
    assert f"{widths} for 8x8 grey" in text and f"{digits.max_steps} for 8x8 grey" in text
    points = gan.RECIPE.recommended(gan.GANSettings(output_dir=""), load_dataset("ring8"))  # type: ignore[arg-type]
    assert f"{points.loss} for points" in help_of("gan", capsys)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_no_field_of_a_recipe_is_left_without_its_default(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(recipe, capsys)
    assert "--batch-size" in text and "(default: recommended)" not in text

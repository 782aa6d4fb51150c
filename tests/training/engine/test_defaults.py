"""Defaults in the help of a recipe are those that the recipe recommends."""

import re
from dataclasses import fields
from importlib import import_module

import pytest

from hfgen.cli import RECIPES
from hfgen.data import load_dataset
from hfgen.training import ddpm, gan
from hfgen.training.engine.defaults import PARTS, documentation, in_words
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


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_the_help_groups_the_fields_by_the_parts_of_the_settings(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = import_module(f"hfgen.training.settings.{recipe}").SPEC.settings
    parts = {name: documentation(settings)[name][0] for name in (field.name for field in fields(settings))}
    text = help_of(recipe, capsys)
    boxes = {match[1]: match.start() for match in re.finditer(r"(\w+) options [─-]", text)}
    assert [part for part in PARTS if part in parts.values()] == list(boxes)
    ends = [*list(boxes.values())[1:], len(text)]
    for (part, start), end in zip(boxes.items(), ends, strict=True):
        shown = set(re.findall(r"--([a-z][a-z0-9-]*)[ ,]", text[start:end]))
        assert {name.replace("_", "-") for name, one in parts.items() if one == part} <= shown, part


def test_a_default_is_written_once_and_none_of_them_as_pythons_none(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("ddpm", capsys)
    assert "(default: None)" not in text and "Default: cores / processes. --" in text
    assert "(default: 20000 (1800 for 8x8 grey, points))" in text

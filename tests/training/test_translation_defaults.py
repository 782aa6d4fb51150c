"""What translation is trained with where nothing is said: the papers' values, those of small images, and the help."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hfgen.training.settings.translation import TranslationSettings, recommended

ZHU = {"history": 50, "cycle_weight": 10.0, "identity_weight": 0.5, "paired_weight": 0.0, "adversarial_weight": 2.0,
       "generator": "resnet", "loss": "least_squares", "gradient_penalty": 0.0, "clip": 0.0, "batch_size": 1,
       "learning_rate": 2e-4, "discriminator_learning_rate": 2e-4, "blocks": 9, "downsamplings": 2, "width": 64,
       "discriminator_width": 64, "discriminator_layers": 3, "discriminator_norm": "instance"}  # fmt: skip
SIXTEEN = {"history": 50, "cycle_weight": 20.0, "identity_weight": 0.5, "blocks": 2, "downsamplings": 1, "width": 16,
           "discriminator_width": 32, "discriminator_layers": 2, "discriminator_norm": "spectral"}  # fmt: skip
ISOLA = {"generator": "unet", "loss": "non_saturating", "paired_weight": 100.0, "cycle_weight": 0.0, "history": 0,
         "identity_weight": 0.0, "adversarial_weight": 1.0}  # fmt: skip


def settings(**choices: Any) -> TranslationSettings:
    return TranslationSettings(output_dir=Path("unused"), **choices)


def images_of(side: int, channels: int = 3) -> Any:
    return SimpleNamespace(shape=(3, side, side), shape_a=(3, side, side), shape_b=(channels, side, side))


@pytest.mark.parametrize(
    ("choices", "dataset", "expected"),
    [
        ({}, images_of(256), ZHU),
        ({}, images_of(128), {**ZHU, "blocks": 6}),
        ({}, images_of(32), SIXTEEN),
        ({"paired": True}, images_of(256), {**ISOLA, "depth": 8, "discriminator_norm": "instance"}),
        ({"paired": True}, images_of(48), {**ISOLA, "depth": 4, "discriminator_norm": "spectral"}),
        ({}, images_of(64, channels=1), {"identity_weight": 0.0, "cycle_weight": 10.0}),
        ({"loss": "hinge"}, images_of(256), {"discriminator_norm": "spectral", "adversarial_weight": 1.0}),
        ({"loss": "wasserstein"}, images_of(32), {"discriminator_norm": "none", "clip": 0.01}),
        ({"loss": "wasserstein_gp"}, images_of(32), {"discriminator_norm": "layer", "gradient_penalty": 10.0}),
        ({"loss": "relativistic"}, images_of(256), {"discriminator_norm": "instance", "clip": 0.0}),
        ({"learning_rate": 3e-4, "blocks": 1}, images_of(32), {"discriminator_learning_rate": 3e-4, "blocks": 1}),
    ],
)  # fmt: skip
def test_what_is_recommended_is_the_papers_or_fits_small_images(
    choices: dict[str, Any], dataset: Any, expected: dict[str, Any]
) -> None:
    found = recommended(settings(**choices), dataset)
    assert {name: getattr(found, name) for name in expected} == expected

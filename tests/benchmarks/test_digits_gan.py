"""The digits benchmark of GANs: short versions that can fail, and the README's promise on one seed (pytest -m slow)."""

from pathlib import Path

import pytest
import torch

from hfgen.data import load_dataset
from tests.benchmarks.digits_gan import RECIPES, classifiers, read, run, steer, verdicts
from tests.benchmarks.digits_quality import measure
from tests.benchmarks.harness import sample, train

SHORT = "--dataset digits --threads 1 --max-steps 800 --save-every 0 --sample-every 0".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    classifiers(folder)
    return folder


def test_the_classifiers_read_real_digits_that_they_have_not_seen(folder: Path) -> None:
    held_out = load_dataset("digits", split="train[80%:]")
    for name in ("reader", "steerer"):
        right = read(folder / name / "model", held_out.tensor() / 2 + 0.5) == held_out.labels()
        assert right.double().mean() >= 0.97


def test_a_short_conditional_run_makes_digits_of_the_asked_class(folder: Path) -> None:
    train("gan", folder / "short", 0, [*SHORT, "--class-conditional"])
    labels = torch.arange(500) % 10
    images = sample(folder / "short" / "model", 500, seed=1, labels=labels)
    assert (read(folder / "reader" / "model", images) == labels).double().mean() > 0.8
    shuffled = labels[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    assert (read(folder / "reader" / "model", images) == shuffled).double().mean() < 0.3
    found = measure(load_dataset("digits").tensor().flatten(1), images.flatten(1) * 2 - 1)
    assert found["precision"] > 0.5 and found["nearest_ratio"] > 0.8, found
    says = verdicts(folder / "short")                                          # wrong classes were fakes
    assert says["D(x, right)"] > 0.5 and says["D(x, wrong)"] < 0.2, says


def test_latents_of_a_short_run_are_led_to_a_class_that_another_classifier_sees_too(folder: Path) -> None:
    train("gan", folder / "plain", 0, SHORT)
    found = steer(folder / "plain" / "model", folder, seed=0)
    assert found["reached"] > 0.8 and found["reached_by_other"] > 0.6, found


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_full_run_is_as_close_to_real_digits_as_promised(recipe: str, folder: Path) -> None:
    found = run({"recipe": recipe, "seed": 0}, folder, threads=1)
    assert found["frechet_ratio"] <= 1.5 and found["precision"] >= 0.8 and found["nearest_ratio"] >= 0.8, found
    assert found.get("label_accuracy", 1.0) >= 0.95, found
    assert found.get("reached", 1.0) >= 0.9, found

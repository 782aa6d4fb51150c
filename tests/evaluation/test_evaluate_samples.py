"""`hfgen.evaluate` of samples that are there already: the numbers of the pipeline that makes the same samples."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import hfgen
from hfgen import images
from hfgen.data import load_dataset
from hfgen.errors import ConfigError
from tests import command_line
from tests.evaluation.judged import QUICK, Given

SETTINGS: dict[str, Any] = {"metrics": "frechet,kid,prdc,privacy", **QUICK}


def numbers(result: Any) -> dict[str, Any]:
    """Return the numbers of an evaluation without the names of the model."""
    return dict(result.metrics)


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    """Return samples of 8 bits, (70, 1, 8, 8) in [0, 1], which are no digits."""
    noise = torch.rand(70, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return (noise * 255).round() / 255


@pytest.fixture(scope="module")
def pictures(samples: torch.Tensor) -> list[Image.Image]:
    return images.to_pil(samples * 2 - 1)


class Album:
    """A model that gives PIL images, in their order."""

    def __init__(self, pictures: list[Image.Image]) -> None:
        self.pictures, self.calls = pictures, 0

    def __call__(self, batch_size: int) -> list[Image.Image]:
        chosen = [self.pictures[(self.calls + i) % len(self.pictures)] for i in range(batch_size)]
        self.calls += batch_size
        return chosen


def test_tensors_arrays_and_lists_have_the_numbers_of_the_pipeline_that_returns_them(
    samples: torch.Tensor, pictures: list[Image.Image]
) -> None:
    of_tensors = numbers(hfgen.evaluate(Given(samples * 2 - 1), "digits", num_samples=70, **SETTINGS))
    of_pictures = numbers(hfgen.evaluate(Album(pictures), "digits", num_samples=70, **SETTINGS))
    layouts = samples.numpy().transpose(0, 2, 3, 1)
    for given in (samples, layouts, samples[:, 0], list(samples[:, 0].numpy()), (samples, np.arange(70) % 10)):
        assert numbers(hfgen.evaluate(given, "digits", **SETTINGS)) == of_tensors
    for given in (pictures, (samples * 255).byte(), [np.asarray(one) for one in pictures], load_dataset(pictures)):
        assert numbers(hfgen.evaluate(given, "digits", **SETTINGS)) == of_pictures


def test_values_between_8_bits_are_not_rounded(samples: torch.Tensor) -> None:
    between = (samples * 0.9 + 0.0371).double()
    assert numbers(hfgen.evaluate(between, "digits", **SETTINGS)) == numbers(
        hfgen.evaluate(Given(between * 2 - 1), "digits", num_samples=70, **SETTINGS)
    )


def test_folders_and_files_have_the_numbers_of_the_pipeline_on_the_command_line(
    samples: torch.Tensor, pictures: list[Image.Image], tmp_path: Path
) -> None:
    import json

    (tmp_path / "folder").mkdir()
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / "folder" / f"{i:05d}.png")
    np.savez(tmp_path / "adm.npz", (samples * 255).byte().numpy().transpose(0, 2, 3, 1))
    table = datasets.Dataset.from_dict({"image": pictures})
    table.to_parquet(tmp_path / "table.parquet")
    table.save_to_disk(str(tmp_path / "saved"))
    expected = json.loads(hfgen.evaluate(Album(pictures), "digits", num_samples=70, **SETTINGS).to_json())["metrics"]
    for name in ("folder", "adm.npz", "table.parquet", "saved", "folder/*.png"):
        out = tmp_path / "out.json"
        words = ["--dataset", "digits", "--metrics", SETTINGS["metrics"], "--resamples", "50", "-o", str(out)]
        done = command_line.hfgen("evaluate", str(tmp_path / name), *words)
        assert done.exit_code == 0 and "(given samples): 70 samples, " in done.stdout, done.output
        assert json.loads(out.read_text(encoding="utf-8"))["metrics"] == expected


def test_samples_that_hfgen_wrote_have_the_numbers_of_their_model(tmp_path: Path) -> None:
    net = hfgen.DCGANGenerator(resolution=8, channels=1, width=8, latent_dim=4)
    hfgen.GANPipeline(net.eval()).save_pretrained(tmp_path / "gan")
    done = command_line.hfgen("sample", str(tmp_path / "gan"), "-n", "40", "-o", str(tmp_path / "x.npy"))
    assert done.exit_code == 0, done.output
    both = [numbers(hfgen.evaluate(tmp_path / name, "digits", num_samples=40, **SETTINGS)) for name in ("gan", "x.npy")]
    assert both[0] == both[1]


def test_reference_data_may_be_objects_and_labels_of_samples_make_them_useful(samples: torch.Tensor) -> None:
    data: Any = load_dataset("digits")
    x, labels = data.tensor() / 2 + 0.5, data.labels()
    options: dict[str, Any] = {"metrics": "frechet,usefulness", "classifier_steps": 20, **QUICK}
    held_out = (x[900:], labels[900:])
    found = hfgen.evaluate((x[:100], labels[:100]), (x[:900], labels[:900]), held_out=held_out, **options)
    assert found.samples["conditions"] == "labels of the samples" and "accuracy_score" in found.metrics
    plain = hfgen.evaluate(samples, x, metrics="frechet,cost,likelihood", **QUICK)
    assert plain.none["cost"] == "the samples were there already"
    assert plain.none["likelihood"].startswith("how GivenSamples makes its samples is not known")


def test_points_are_samples_too_and_are_compared_with_their_density() -> None:
    ring: Any = load_dataset("ring8")
    found = hfgen.evaluate(ring.sample(400, 1), "ring8", metrics="frechet,diversity,likelihood", **QUICK)
    assert found.metrics["modes_covered"]["value"] == 8 and "log_p" in found.metrics


def test_samples_of_both_sides_are_compared(samples: torch.Tensor, tmp_path: Path) -> None:
    digits = load_dataset("digits").tensor(70) / 2 + 0.5
    named = {"noise": samples, "digits": digits}
    report = hfgen.compare(named, "digits", tmp_path / "report", metrics="frechet", num_samples=70, **QUICK)
    assert [row.model for row, _ in sorted(zip(report.rows, report.ranks(), strict=True), key=lambda one: one[1])] == [
        "digits", "noise",
    ]  # fmt: skip


def test_more_samples_than_there_are_other_shapes_and_other_objects_are_refused(samples: torch.Tensor) -> None:
    for given, options, message in (
        (samples, {"num_samples": 71}, "num_samples must be at most 70, the number of samples, got 71"),
        (samples, {"num_steps": 5}, "num_steps must be 1"),
        (torch.rand(20, 3, 8, 8), {}, "Tensor makes 3x8x8, digits is 1x8x8; load the data with --resolution 8"),
        (samples[:3], {}, "num_samples must be at least 6"),
        ({1, 2}, {}, "set is no model: give a folder, a Hub id, or a callable that returns images; nor is it samples"),
    ):
        with pytest.raises(ConfigError, match=message):
            hfgen.evaluate(given, "digits", **{**SETTINGS, **options})

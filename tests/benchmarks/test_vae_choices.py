"""The benchmarks of VAEs and of few labels run as their first lines say, on tiny settings."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.benchmarks import few_labels, in_process, vae_posteriors, vae_scales

Say = pytest.CaptureFixture[str]


def test_scales_of_pixels_are_trained_and_judged_once_for_each_likelihood_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    monkeypatch.setattr("tests.benchmarks.harness.ThreadPoolExecutor", in_process.InTurn)
    results = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", ["vae_scales", *"--seeds 3 --steps 3 --results".split(), str(results)])
    vae_scales.main()
    assert len(results.read_text().splitlines()) == 6
    assert "| gaussian | per pixel |" in capsys.readouterr().out


def test_classifiers_of_few_labels_start_in_five_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    monkeypatch.setattr("tests.benchmarks.harness.ThreadPoolExecutor", in_process.InTurn)
    words = "--seeds 3 4 --labels 10 --steps 2 --unlabelled-steps 2 --keep".split()
    monkeypatch.setattr(sys, "argv", ["few_labels", *words, str(tmp_path)])
    few_labels.main()
    said = capsys.readouterr().out
    assert "| labels | scratch | fresh autoencoder |" in said and said.splitlines()[-1].count("±") == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["autoencoder-3", "autoencoder-4", "vae-3", "vae-4"]


def test_posteriors_are_trained_once_and_compared_image_by_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    for i in range(120):
        pixels = np.random.default_rng(i).integers(0, 255, (28, 28), dtype=np.uint8)
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{i}.png")
    monkeypatch.setattr(vae_posteriors, "train", in_process.train)
    data = str(tmp_path / "data")
    words = ["--train", data, "--test", data, "--keep", str(tmp_path / "runs"), "--share", "5e-5", "--samples", "3"]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["vae_posteriors", *words, "--images", "20"])
        vae_posteriors.main()
    said = [line for line in capsys.readouterr().out.splitlines() if "-log p" in line]
    assert len(said) == 4 and "better by" in said[1] and said[1] == said[3]

"""`hfgen.compare` puts models side by side: order, ties, plots and words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import hfgen
from hfgen.data import load_dataset
from hfgen.errors import ConfigError
from hfgen.evaluation import report as report_module
from hfgen.evaluation.report import Report
from hfgen.evaluation.result import Evaluation
from tests import command_line
from tests.cards.helpers import MAKERS
from tests.evaluation.judged import Given, shares

pytest.importorskip("matplotlib")
FEW: dict[str, Any] = {"num_samples": 200, "resamples": 50, "progress": False}


def row(name: str, value: float, low: float | None, high: float | None) -> Evaluation:
    metrics = {"frechet": {"value": value, "low": low, "high": high, "floor": 0.5}}
    return Evaluation(name, "GAN", "digits", "train", metrics, {}, {}, None, {}, {}, None, {}, {})


def test_rows_are_ordered_by_distance_and_overlapping_intervals_are_ties() -> None:
    rows = [("c", 9.0, 8.0, 10.0), ("a", 1.0, 0.5, 2.0), ("d", 30.0, None, None), ("b", 2.0, 1.5, 3.0)]
    report = Report([row(*one) for one in rows])
    assert [one.model for one in report.rows] == ["a", "b", "c", "d"]
    assert report.ties() == [("a", "b")] and report.ranks() == ["1=", "1=", "3", "4"]


def test_three_models_make_a_report_with_tables_grids_and_plots(tmp_path: Path) -> None:
    real, first, second = shares(900, 450, 447)
    noise = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    models = {"noise | it": Given(noise), "fresh": Given(first.tensor()), "fresh too": Given(second.tensor())}
    report = hfgen.compare(models, real, tmp_path / "out", **FEW)
    assert {one.model for one in report.rows[:2]} == {"fresh", "fresh too"} and report.ranks() == ["1=", "1=", "3"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.startswith("# 3 models on share 0\n")
    assert "Ties (=), where the intervals of the Fréchet distance overlap: fresh" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    widths = [line.count("|") for line in table]
    assert len(table) == 12 and len({*widths[:6]}) == len({*widths[6:]}) == 1
    assert "noise &#124; it" in table[4] and "| real data |" in table[5] and "| below |" in table[5]
    floor = report.rows[0].metrics["frechet"]
    assert f"| real data | {floor['floor']:.4g} [{floor['floor_low']:.4g}, {floor['floor_high']:.4g}] |" in table[11]
    assert table[8].startswith(f"| {report.rows[0].model} | {floor['matched']:.4g} * |")
    assert "At equal counts, 200 items a side" in text
    assert "likelihood: none, how Given makes its samples is not known" in text
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [one["model"] for one in written["models"]] == [one.model for one in report.rows]
    assert written["models"][0]["metrics"]["frechet"] == report.rows[0].to_dict()["metrics"]["frechet"]
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert {"quality_against_time.png", "precision_against_recall.png", "samples-noise_it.png"} <= names
    assert "closest-fresh.png" in names
    for name in names:
        assert f"]({name})" in text
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 30


def test_the_command_gives_steps_to_those_that_take_several(tmp_path: Path) -> None:
    for name in ("GANPipeline", "DDPMPipeline"):
        torch.manual_seed(0)
        MAKERS[name]().save_pretrained(tmp_path / name / "model")
        (tmp_path / name / "config.yaml").write_text("seed: 0\n")
    folders = [str(tmp_path / name) for name in ("GANPipeline", "DDPMPipeline", "GANPipeline")]
    words = "--dataset digits --num-samples 20 --num-steps 3 --metrics frechet,cost --resamples 20".split()
    done = command_line.hfgen("compare", *folders, *words, "-o", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    found = {one["model"]: one for one in json.loads((tmp_path / "out" / "report.json").read_text())["models"]}
    assert found.keys() == {"GANPipeline", "DDPMPipeline", "GANPipeline-2"}
    assert found["DDPMPipeline"]["metrics"]["evaluations_per_image"]["value"] == 3
    assert "\n\nSampled: DDPMPipeline by dpmpp_2m in 3 steps.\n\n" in (tmp_path / "out" / "report.md").read_text()
    assert found["GANPipeline"]["metrics"]["evaluations_per_image"]["value"] == 1
    assert found["GANPipeline"]["metrics"] == found["GANPipeline-2"]["metrics"]
    assert sorted(path.name for path in (tmp_path / "out").glob("[pq]*.png")) == ["quality_against_time.png"]


def test_without_matplotlib_nothing_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "find_spec", lambda name: None)
    model = Given(load_dataset("digits").tensor())
    with pytest.raises(ConfigError, match=r"pip install matplotlib"):
        hfgen.compare([model], "digits", tmp_path / "out", **FEW)
    assert model.calls == 0 and not (tmp_path / "out").exists()


def test_a_missing_model_is_told_before_another_is_sampled(tmp_path: Path) -> None:
    model = Given(load_dataset("digits").tensor())
    with pytest.raises(ConfigError, match="no such folder, and not a Hub id"):
        hfgen.compare([model, tmp_path / "no" / "such" / "model"], "digits", tmp_path / "out", **FEW)
    assert model.calls == 0
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="compare needs at least one model"):
        hfgen.compare([], "digits", tmp_path / "out")


def large() -> Any:
    return hfgen.GANPipeline(hfgen.DCGANGenerator(resolution=(16, 8), channels=1, width=4, latent_dim=4).eval())


@pytest.mark.parametrize(("second", "settings", "message"), [
    (MAKERS["GANPipeline of classes"], {}, "second makes 3 classes, digits has 10"),
    (MAKERS["DDPMPipeline of text"], {}, "second reads captions, and digits gives none"),
    (MAKERS["DDPMPipeline"], {"num_steps": 9, "sampler": "ddpm"}, "second: num_steps must be an int in .1, 5., got 9"),
    (MAKERS["DDPMPipeline"], {"sampler": "euler"}, "sampler must be one of ddpm, "),
    (MAKERS["DDPMPipeline of points"], {}, "second makes 2, digits is 1x8x8"),
    (MAKERS["LatentDiffusionPipeline"], {}, "second makes 3x8x8, digits is 1x8x8; load .* --resolution 8 --channels 3"),
    (lambda: hfgen.VAEPipeline(hfgen.VAE((4, 8), 1)), {}, "second makes 1x4x8, .* --resolution 4 8 --channels 1"),
    (large, {}, "second makes 1x16x8, .* --resolution 16 8 --channels 1"),
    (MAKERS["ClassifierPipeline"], {}, "second: ClassifierPipeline makes no samples from noise alone"),
])  # fmt: skip
def test_nothing_is_sampled_where_a_later_model_is_impossible(
    second: Any, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    first = Given(load_dataset("digits").tensor())
    with pytest.raises(ConfigError, match=message):
        hfgen.compare({"first": first, "second": second()}, "digits", tmp_path / "out", **FEW, **settings)
    assert first.calls == 0 and not (tmp_path / "out").exists()

"""The report of the course's question, from made-up numbers: its table, what it leaves out, seconds, and the plot."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.benchmarks import course_question
from tests.benchmarks.course_question import (
    fitted,
    left_out,
    level,
    main,
    numbers,
    plot,
    runs_of,
    summary,
    training_seconds,
)
from tests.benchmarks.harness import Row

pytest.importorskip("matplotlib")


def run(folder: Path, seconds: float | None) -> Path:
    """Return a run folder that took these seconds, or does not tell."""
    folder.mkdir()
    (folder / "config.yaml").write_text("batch_size: 4\n")
    if seconds is not None:
        (folder / "run.json").write_text(json.dumps({"step": 10, "seconds": seconds}))
    return folder


def judged(frechet: float, **others: Any) -> Any:
    """Return an evaluation with a Frechet distance at its own count and, one higher, at that of the real data."""
    interval = {"floor": 0.2, "floor_low": 0.1, "floor_high": 0.3, "count": 900}
    metrics = {"frechet": {"value": frechet, "matched": frechet + 1, **interval}, "seconds_per_64": {"value": 2.0}}
    return SimpleNamespace(metrics={**metrics, **{name: {"value": value} for name, value in others.items()}})


def rows(folder: Path) -> list[Row]:
    """Return two seeds of two families; one of them has no precision."""
    runs = [run(folder / "run", 5.0)]
    found = [numbers("VAE", seed, judged(seed + 1.0), runs) for seed in (0, 1)]
    return found + [numbers("DDPM", seed, judged(0.5, precision=0.7), runs) for seed in (0, 1)]


def test_the_training_of_a_family_is_that_of_all_its_runs(tmp_path: Path) -> None:
    runs = runs_of("latent diffusion", tmp_path, 2)
    assert [one.name for one in runs] == ["latent-diffusion-autoencoder_kl-2", "latent-diffusion-2"]
    assert [one.name for one in runs_of("WGAN-GP", tmp_path, 0)] == ["wgan-gp-0"]
    run(runs[0], 40.0)
    assert training_seconds(runs) is None
    run(runs[1], 60.5)
    assert training_seconds(runs) == 100.5
    assert numbers("latent diffusion", 2, judged(1.0, training_seconds=60.5), runs)["training_seconds"] == 100.5
    assert training_seconds([*runs, run(tmp_path / "silent", None)]) is None


def test_the_recipes_of_a_family_share_its_budget_and_the_last_takes_its_own_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []

    def train(recipe: str, out: Path, seed: int, words: list[str]) -> float:
        told.append((recipe, " ".join(words)))
        return 1.0

    monkeypatch.setattr(course_question, "train", train)
    out = fitted("latent diffusion", tmp_path, 2, 100.0, ["--dataset", "digits"], "--layers-per-block 1")
    before = tmp_path / "latent-diffusion-autoencoder_kl-2"
    assert told == [
        ("autoencoder_kl", "--dataset digits --budget 40s"),
        ("latent_diffusion", f"--dataset digits --autoencoder {before} --budget 60s --layers-per-block 1"),
    ]
    (out / "model").mkdir(parents=True)
    (before / "model").mkdir(parents=True)
    assert fitted("latent diffusion", tmp_path, 2, 100.0, []) == out and len(told) == 2


def test_fields_of_a_family_that_is_not_compared_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--keep", str(tmp_path), "--families", "VAE", "--own-fields", "DDPM", "--layers-per-block 1"])
    assert "--own-fields: DDPM is not among VAE" in capsys.readouterr().err


def test_the_summary_has_what_all_families_have_and_names_the_rest(tmp_path: Path) -> None:
    head, _, ddpm, vae, _, said = summary(rows(tmp_path)).splitlines()
    assert head == "| family | seeds | frechet | seconds_per_64 | training_seconds |"
    assert ddpm == "| DDPM | 2 | 0.5 ± 0 | 2 ± 0 | 5 ± 0 |"
    assert vae == "| VAE | 2 | 1.5 ± 0.707 | 2 ± 0 | 5 ± 0 |"
    assert "precision (none of VAE); recall (none of DDPM, VAE);" in said and "frechet" not in said


def test_nothing_is_left_out_where_every_family_has_everything(tmp_path: Path) -> None:
    whole = [{name: 1.0 if value is None else value for name, value in row.items()} for row in rows(tmp_path)]
    assert left_out(whole) == "" and "Left out" not in summary(whole)


def test_the_plot_shows_the_distance_at_the_count_of_the_real_data(tmp_path: Path) -> None:
    found = rows(tmp_path)
    assert (found[0]["frechet_drawn"], found[0]["frechet_floor"]) == (2.0, [0.1, 0.3])
    assert plot(found, tmp_path / "course.png")
    with Image.open(tmp_path / "course.png") as picture:
        assert picture.size == (900, 675)
        colours: Any = picture.convert("RGB").getcolors(2**20)
    assert any(count > 10_000 and r == g == b and 200 < r < 250 for count, (r, g, b) in colours)         # the floor


def test_a_level_that_is_not_finite_is_not_drawn_and_no_plot_is_made_of_nothing(tmp_path: Path) -> None:
    assert level([1.0, 3.0]) == (2.0, math.sqrt(2)) and level([4.0]) == (4.0, None)
    mean, deviation = level([1.0, math.inf])
    assert math.isnan(mean) and deviation is None
    diverged = [{**row, "frechet_drawn": math.inf} if row["family"] == "VAE" else row for row in rows(tmp_path)]
    assert plot(diverged, tmp_path / "diverged.png")
    nothing = [{**row, "seconds_per_64": None} for row in diverged]
    assert not plot(nothing, tmp_path / "none.png") and not (tmp_path / "none.png").exists()

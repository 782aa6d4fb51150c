"""Short versions of the toy benchmark: the recommended recipe covers the modes, the usual one collapses."""

from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image

from hfgen.data import load_dataset
from hfgen.data.toy import Toy
from tests.benchmarks.harness import sample, table, train
from tests.benchmarks.toy_gan import RECIPES, measure, movie

SHORT = "--dataset ring8 --threads 1 --max-steps 1500 --sample-every 500 --save-every 0".split()


def test_the_recommended_recipe_finds_all_modes_where_the_usual_one_has_collapsed(tmp_path: Path) -> None:
    found = {}
    for name in ("recommended", "non-saturating"):
        train("gan", tmp_path / name, 0, [*RECIPES[name].split(), *SHORT])
        points = sample(tmp_path / name / "model", 2500, seed=1000)
        found[name] = measure(points, cast(Toy, load_dataset("ring8")))
    assert found["recommended"]["modes"] == 8 and found["recommended"]["high quality"] > 0.7, found
    assert found["recommended"]["reverse KL"] < 0.1, found
    assert found["non-saturating"]["modes"] <= 4 and found["non-saturating"]["high quality"] < 0.3, found
    movie([tmp_path / name for name in found], tmp_path / "movie.gif")
    with Image.open(tmp_path / "movie.gif") as animation:
        assert animation.n_frames == 3 and animation.size == (516, 256)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["ring8", "grid25"])
def test_the_measure_gives_real_points_full_marks_and_one_mode_few(name: str) -> None:
    dataset = cast(Toy, load_dataset(name))
    real = measure(dataset.sample(20_000, seed=1), dataset)
    assert real["modes"] == len(cast(torch.Tensor, dataset.modes))
    assert abs(real["high quality"] - 0.989) < 0.004 and real["reverse KL"] < 0.002 and abs(real["width"] - 0.97) < 0.02
    one = measure(dataset.modes[:1].expand(100, 2) + dataset.sigma * torch.randn(100, 2), dataset)  # type: ignore[index]
    assert one["modes"] == 1 and one["reverse KL"] > 2


def test_a_table_shows_mean_and_deviation_over_seeds() -> None:
    rows = [{"recipe": "a", "x": value} for value in (1.0, 2.0, 3.0)] + [{"recipe": "b", "x": 5.0}]
    assert table(rows, ["recipe"], ["x"]).splitlines()[2:] == ["| a | 3 | 2 ± 1 |", "| b | 1 | 5 |"]

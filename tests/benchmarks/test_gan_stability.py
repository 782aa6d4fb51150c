"""The stability benchmark: its numbers from a log that is known, and one short comparison."""

import json
from pathlib import Path

import pytest

from hfgen.errors import NonFiniteError
from tests.benchmarks import gan_stability
from tests.benchmarks.gan_stability import LOSSES, over_time, run, sheet


def test_counts_over_time_are_those_of_the_second_half_and_of_the_best(tmp_path: Path) -> None:
    counted = [{"step": i, "modes": m, "high_quality": m / 10} for i, m in enumerate((0, 8, 8, 6, 2, 4), 2)]
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in [{"step": 1, "loss": 0.0}, *counted]))
    found = over_time(tmp_path / "log")
    assert found.pop("deviation") == pytest.approx((8 / 3) ** 0.5)
    assert found == {"modes": 4, "high quality": 0.4, "fewest": 2, "lost": 4}


def test_a_short_run_of_each_kind_is_counted_and_a_diverged_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"dataset": "ring8", "loss": "squared_hellinger", "seed": 0}
    row = run(job, tmp_path, 20)
    assert set(row) == set(gan_stability.NUMBERS) and 0 <= row["modes"] <= 8 and row["diverged"] == 0
    picture = sheet(tmp_path, 0, 20)
    column = 164 * list(LOSSES).index("squared_hellinger")
    assert len(picture.crop((column, 20, column + 160, 170)).getcolors(100_000) or []) > 5

    def diverged(*words: object) -> int:
        raise NonFiniteError("gradients were NaN or infinite in the last 10 steps")

    monkeypatch.setattr(gan_stability, "train", diverged)
    assert run(job, tmp_path, 20) == {**dict.fromkeys(gan_stability.NUMBERS, 0.0), "diverged": 1.0}

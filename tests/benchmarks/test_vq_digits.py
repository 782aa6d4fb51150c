"""The benchmark of discrete autoencoders: it runs as its first lines say, and its floors hold on one seed (slow)."""

import sys
from pathlib import Path

import pytest

from tests.benchmarks import in_process, vq_digits

FLOORS = [("ema", 19.0, 50.0), ("gradient", 16.5, 3.0), ("fsq", 18.5, 15.0)]
"""Quantiser, decibels and perplexity after 300 steps, below the values of RESULTS.md."""


def test_each_quantiser_is_trained_and_judged_once_for_each_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vq_digits, "train", in_process.train)
    monkeypatch.setattr("tests.benchmarks.harness.ThreadPoolExecutor", in_process.InTurn)
    fields = "--block-out-channels 8 16 --num-codes 16 --code-dim 2 --levels 4 4 --batch-size 16"
    words = ["--seeds", "5", "--steps", "4", "--fields", fields, "--keep", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["vq_digits", *words])
    vq_digits.main()
    said = capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ema-5", "fsq-5", "gradient-5"]
    assert all(f"| {kind} |" in said for kind in ("ema", "gradient", "fsq"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "psnr", "perplexity"), FLOORS)
def test_held_out_digits_come_back_from_codes_as_well_as_reported(
    kind: str, psnr: float, perplexity: float, tmp_path: Path
) -> None:
    words = "--threads 1 --max-steps 300 --block-out-channels 16 32"
    found = vq_digits.work({"quantiser": kind, "seed": 0}, tmp_path, words)
    assert found["psnr"] >= psnr and found["perplexity"] >= perplexity, found

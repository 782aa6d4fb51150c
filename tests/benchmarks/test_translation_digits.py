"""The digits on texture of the translation benchmark: a function of their number, lighter than what is behind them."""

from pathlib import Path

import numpy as np
import torch

from hfgen.data import load_dataset
from tests.benchmarks.translation_digits import coloured, domains, texture, write


def test_a_texture_is_a_function_of_its_number_and_neighbouring_pixels_are_alike() -> None:
    some, one = texture(np.arange(5), "ground", 28, 28), texture(np.array([3]), "ground", 28, 28)
    assert torch.equal(some[3:4], one) and not torch.equal(some[2], some[3])
    assert some.min() >= 0 and some.max() <= 0.5
    steps = (some[..., 1:] - some[..., :-1]).abs().mean()
    assert steps < 0.5 * (some[..., 14:] - some[..., :14]).abs().mean()


def test_digits_are_lighter_than_their_ground_everywhere() -> None:
    ink = torch.full((20, 1, 28, 28), -1.0)
    blank = coloured(ink, np.arange(20))
    full = coloured(-ink, np.arange(20))
    assert (full >= blank).all() and (full - blank).mean() > 0.8


def test_the_two_halves_share_no_digit_and_keep_their_labels(tmp_path: Path) -> None:
    digits = load_dataset("digits")
    labels = digits.labels()
    assert labels is not None
    write(digits.tensor(20), labels[:20], tmp_path / "mnist.parquet")
    domains(tmp_path / "mnist.parquet", tmp_path, "train", halves=True)
    a, b = (load_dataset(tmp_path / f"train-{domain}.parquet") for domain in "ab")
    assert torch.equal(a.labels(), labels[:10]) and torch.equal(b.labels(), labels[10:20])  # type: ignore[arg-type]
    assert a.shape == (1, 8, 8) and b.shape == (3, 8, 8)
    assert (a.tensor() - digits.tensor(10)).abs().max() < 1 / 255 + 1e-6

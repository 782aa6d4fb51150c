"""The translation benchmark of digits: its textures, its two halves of the data, and a small run of all of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import TranslationPipeline
from hfgen.data import load_dataset
from hfgen.images import from_pil
from tests.benchmarks import harness, in_process, translation_digits
from tests.benchmarks.translation_digits import coloured, domains, main, texture, write


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


def test_a_small_run_reads_both_translations_draws_them_and_is_not_trained_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load_dataset("digits")
    labels = digits.labels()
    assert labels is not None
    write(digits.tensor(200), labels[:200], tmp_path / "mnist.parquet")
    small, trained = {"classifier": "--batch-size 20", "translation": "--discriminator-layers 1 --batch-size 2"}, []

    def train(recipe: str, folder: Path, seed: int, fields: list[str]) -> float:
        trained.append(folder.name)
        return in_process.train(recipe, folder, seed, [*fields, *small[recipe].split(), "--max-steps", "2"])

    monkeypatch.setattr(translation_digits, "train", train)
    monkeypatch.setattr(harness, "ThreadPoolExecutor", in_process.InTurn)
    keep, mnist, figure = tmp_path / "runs", str(tmp_path / "mnist.parquet"), tmp_path / "digits.png"
    fields = "--width 4 --blocks 1 --discriminator-width 4 --warmup-steps 1".split()
    words = ["x", "--train", mnist, "--test", mnist, "--keep", str(keep), "--threads", "1", "--figure", str(figure)]
    monkeypatch.setattr("sys.argv", [*words, "--", *fields])
    main()
    figure.unlink()
    main()
    assert trained == ["reader-a", "reader-b", "with-the-cycle-0", "without-0"]
    rows = [json.loads(line) for line in (keep / "rows.jsonl").read_text().splitlines()]
    assert [row["recipe"] for row in rows] == ["with the cycle", "without"]
    for one in (one for row in rows for one in row["directions"]):
        assert 0 <= one["class_kept"] <= 1 and 0 <= one["reader"] <= 1 and one["cycle_error"] > 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| without | b2a | 1 |")
    pipe = TranslationPipeline.from_pretrained(keep / "with-the-cycle-0")
    x = load_dataset(keep / "test-b.parquet").tensor(12)
    made = pipe(x / 2 + 0.5, "b2a", output_type="pt").images * 2 - 1
    with Image.open(figure) as sheet:
        assert sheet.size == (12 * 50 + 2, 6 * 50 + 2)                         # 8 pixels, enlarged to 48
        for row, expected in ((3, x), (4, made)):
            cells = [sheet.crop((50 * i + 2, 50 * row + 2, 50 * i + 50, 50 * row + 50)).resize((8, 8), 0)
                     for i in range(12)]  # fmt: skip
            assert (from_pil(cells) - expected).abs().max() < 1.01 / 255

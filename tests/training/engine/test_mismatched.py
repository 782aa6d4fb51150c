"""Wrong conditions: another class and another caption for every sample, as a function of (seed, step, sample)."""

import torch

from hfgen.training.engine.mismatched import mismatched, other_captions, other_classes
from hfgen.training.engine.noise import Noise


def noise(rows: slice = slice(None), step: int = 3) -> Noise:
    return Noise((0, step, "discriminator", 0), 6000, rows)


def test_wrong_classes_are_uniform_among_the_others() -> None:
    labels = torch.arange(6000) % 5
    wrong = mismatched({"label": labels}, noise(), 5)["label"]
    counts = torch.bincount(labels * 5 + wrong, minlength=25).view(5, 5)
    assert counts.diagonal().sum() == 0
    expected = 1200 / 4
    off = counts[~torch.eye(5, dtype=torch.bool)]
    assert ((off - expected).abs() < 5 * (expected * 3 / 4) ** 0.5).all(), counts          # five standard deviations


def test_the_largest_draw_gives_a_wrong_class_too() -> None:
    last = torch.full((1,), 1 - 2**-24)
    for number in (2, 3, 10, 1000, 100_001):
        wrong = other_classes(torch.zeros(1, dtype=torch.int64), last, number)
        assert wrong.tolist() == [number - 1]


def test_a_wrong_caption_is_one_of_the_data_with_another_text() -> None:
    captions = ["a", "a", "b", "a", "c"]
    texts = ["a", "b", "c"] * 2000
    wrong = mismatched({"caption": texts}, noise(), None, captions)["caption"]
    assert all(one != other for one, other in zip(texts, wrong, strict=True)) and set(wrong) == {"a", "b", "c"}
    assert other_captions(["a", "c"], torch.tensor([0.1, 0.99]), captions) == ["b", "a"]     # on from the drawn one


def test_wrong_conditions_do_not_depend_on_how_a_batch_is_divided_and_change_with_the_step() -> None:
    captions = [str(i % 50) for i in range(200)]
    batch = {"label": torch.arange(6000) % 3, "caption": [str(i % 7) for i in range(6000)]}
    whole = mismatched(batch, noise(), 3, captions)
    rows = slice(1000, 1500)
    part = mismatched({key: value[rows] for key, value in batch.items()}, noise(rows), 3, captions)
    assert torch.equal(part["label"], whole["label"][rows]) and part["caption"] == whole["caption"][rows]
    later = mismatched(batch, noise(step=4), 3, captions)
    assert not torch.equal(later["label"], whole["label"]) and later["caption"] != whole["caption"]
